"""`salt-train`: train one run in this process, and show what a run did."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec

from salt import __version__, exchange_cli, probe_cli
from salt.errors import ClaimLost, Interrupted, UserError
from salt.plain_yaml import parse_yaml
from salt.plan_specs import PlannedRun
from salt.plans import choose_plan, plan_names, read_plan
from salt.specs import ExecSpec, ProbeSpec, RunSpec, spec_id
from salt.store import RunDir, store_path

_EXAMPLES = """examples:
  salt-train run 3f2a --plan miniature             train and probe a run of a plan (an id, or its beginning)
  salt-train run spec.json --list clips/train.csv  train a run from a spec file, as in <run>/spec.json
  salt-train show 3f2a                             steps, loss, probes and errors of a run
  salt-train probe 3f2a --spec suite.yaml          more probes of a run that is done, or of a kept state
  salt-train export 3f2a --out folder/             weights for Hugging Face's VJEPA2Model
  torchrun --nproc-per-node 4 --no-python salt-train run 3f2a    four processes train one run
"""


def main(argv: Sequence[str]) -> int:
    """Run `salt-train` with these arguments; the exit code."""
    arguments = _parser().parse_args(list(argv))
    store = store_path(arguments.store)
    commands = {
        "run": _run,
        "show": _show,
        "probe": probe_cli.run_probe,
        "export": exchange_cli.run_export,
        "import": exchange_cli.run_import,
    }
    return commands[arguments.command](arguments, store)


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="salt-train",
        description="Train one run, show, probe or exchange it. `salt-sweep submit` sends whole studies.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    parser.add_argument("--version", action="version", version=f"salt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="train and probe one run, from its newest checkpoint if it has one",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    run.add_argument(
        "run", metavar="RUN", help="a run id of a plan (or its beginning), or the file of a run spec (.json)"
    )
    run.add_argument("--plan", help="the plan it is in (default: the newest of the store)")
    run.add_argument(
        "--list",
        type=Path,
        dest="lists",
        action="append",
        default=[],
        help="for a spec file: the list of its videos; again for each list of a mixture",
    )
    run.add_argument("--threads", type=int, help="threads of this process (default: as planned)")
    run.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: as planned)")
    run.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any field of `execution`, such as micro_batch_clips=8 or compile=true",
    )
    run.add_argument(
        "--from-start",
        action="store_true",
        help="begin again where a run has lost its checkpoints; without it that is an error",
    )
    run.add_argument(
        "--processes", type=int, metavar="N", help="how many train it together (default: as torchrun says)"
    )
    show = commands.add_parser("show", help="what a run is and did", epilog=_EXAMPLES, formatter_class=raw)
    show.add_argument("run", metavar="RUN", help="a run id of the store, or its beginning")
    for command in (run, show):
        command.add_argument("--store", help="run store (default: $SALT_STORE, else ./salt-store)")
        command.add_argument("--json", action="store_true", help="one JSON object instead of text")
    probe_cli.add_parsers(commands)
    exchange_cli.add_parsers(commands)
    return parser


def _run(arguments: argparse.Namespace, store: Path) -> int:
    if arguments.run.endswith(".json"):
        planned, probes, execution = _from_file(Path(arguments.run), arguments.lists)
    else:
        planned, probes, execution = _from_plan(store, arguments.plan, arguments.run)
    execution = _changed(execution, arguments)
    from salt.world import find_launch

    launch = find_launch(os.environ, arguments.processes)
    main = launch is None or launch.rank == 0
    run = RunDir(store, planned.run_id)
    if run.is_complete(planned.probe_ids):
        if main:
            print(f"run {planned.run_id} is complete; nothing to do", file=sys.stderr)
    else:
        from salt.claim import Claim, ClaimHeld
        from salt.run import execute
        from salt.signals import heeding

        with heeding():
            try:  # the claim is rank 0's; without it that process ends, and its launcher ends the others
                claim = Claim.acquire(run) if main else nullcontext()
            except ClaimHeld as held:
                raise UserError(f"{held}: wait for it, or stop it") from held
            try:
                with claim:
                    execute(
                        store,
                        planned,
                        probes,
                        execution,
                        processes=arguments.processes,
                        from_start=arguments.from_start,
                    )
            except ClaimLost as lost:
                raise UserError(f"run {planned.run_id}: {lost}") from lost
            except Interrupted as stop:
                print(f"run {planned.run_id} {stop}; the same command goes on from there", file=sys.stderr)
                return 130
    if main:
        _print(summary(run), arguments.json)
    return 0


def _from_plan(
    store: Path, plan: str | None, prefix: str
) -> tuple[PlannedRun, dict[str, ProbeSpec], ExecSpec]:
    name = choose_plan(store, plan)
    if plan is None:
        print(f"plan: {name}", file=sys.stderr)
    found = read_plan(store, name)
    matches = [run for run in found.runs if run.run_id.startswith(prefix)]
    if len(matches) != 1:
        which = ", ".join(run.run_id for run in matches[:5]) or "none"
        raise UserError(
            f"run {prefix!r}: plan {name} must have exactly one run beginning so, it has {which}; "
            f"see `salt-sweep status {name}`"
        )
    return matches[0], found.probes, found.execution


def _changed(execution: ExecSpec, arguments: argparse.Namespace) -> ExecSpec:
    """The planned execution with what the command line says otherwise."""
    settings = [*arguments.settings]
    if arguments.threads is not None:
        settings.append(f"threads={arguments.threads}")
    if arguments.device is not None:
        settings.append(f"device={arguments.device}")
    fields: dict[str, Any] = msgspec.to_builtins(execution)
    for text in settings:
        key, given, value = text.partition("=")
        if not given or key not in fields or key in ("folder", "lists"):
            known = ", ".join(name for name in fields if name not in ("folder", "lists"))
            raise UserError(f"--set {text}: write KEY=VALUE with one of the keys {known}")
        try:
            fields[key] = parse_yaml(f"{key}: {value}".encode(), Path("--set"))[key]
            execution = msgspec.convert(fields, ExecSpec)
        except (UserError, msgspec.ValidationError) as error:
            raise UserError(f"--set {text}: {error}") from error
    return execution


def _from_file(path: Path, lists: list[Path]) -> tuple[PlannedRun, dict[str, ProbeSpec], ExecSpec]:
    from salt.flops import run_cost
    from salt.lists import data_spec, read_list
    from salt.masks import check_masks
    from salt.problems import run_problems
    from salt.sizes import check_model, grid
    from salt.store import read_json

    if not lists:
        raise UserError(f"{path}: a run from a spec file needs --list, the list of its videos")
    if not path.exists():
        raise UserError(f"{path}: no such file")
    spec = read_json(path, RunSpec)
    problems = check_model(spec.model, spec.clip, spec.masks)
    problems = problems or check_masks(spec.masks, grid(spec.model, spec.clip), spec.optim.batch_clips)
    problems += run_problems(spec)
    if problems:
        raise UserError(f"{path}: " + "; ".join(problems))
    there = {data_spec(read_list(each), spec.data.name).fingerprint: str(each) for each in lists}
    wanted = [part.fingerprint for part in spec.data.parts] or [spec.data.fingerprint]
    missing = [fingerprint for fingerprint in wanted if fingerprint not in there]
    if missing:
        found = ", ".join(f"{each} has {fingerprint}" for fingerprint, each in there.items())
        raise UserError(
            f"{path}: no list has the fingerprint {missing[0]} ({found}): give the right one with --list, "
            "or put its fingerprint and number of clips into the spec"
        )
    planned = PlannedRun(run_id=spec_id(spec), role="student", spec=spec, cost=run_cost(spec), probe_ids=())
    return planned, {}, ExecSpec(lists=there)


def _show(arguments: argparse.Namespace, store: Path) -> int:
    prefix = arguments.run
    matches = sorted(path.name for path in (store / "runs").glob("*/*") if path.name.startswith(prefix))
    if len(matches) != 1:
        plans = ", ".join(plan_names(store)) or "none"
        which = ", ".join(matches[:5]) or "none"
        raise UserError(
            f"run {prefix!r}: {store} must have exactly one run beginning so, it has {which} (plans: {plans})"
        )
    _print(summary(RunDir(store, matches[0])), arguments.json)
    return 0


def summary(run: RunDir) -> dict[str, Any]:
    """What a run is and did, as plain data."""
    from salt.metrics import read_metrics

    spec, result, error = run.read_spec(), run.read_result(), run.read_error()
    rows = read_metrics(run.metrics)
    probes = [run.read_probe(path.stem) for path in sorted(run.probes.glob("*.json"))]
    scores = [score for probe in probes if probe is not None for score in probe.scores]
    return {
        "run_id": run.run_id,
        "folder": str(run.path),
        "arm": spec.arm,
        "seed": spec.seed,
        "steps": spec.steps,
        "step": rows[-1]["step"] if rows else 0,
        "loss": rows[-1].get("loss") if rows else None,
        "done": result is not None,
        "result": msgspec.to_builtins(result),
        "error": msgspec.to_builtins(error),
        "scores": [msgspec.to_builtins(score) for score in scores],
    }


def _print(found: dict[str, Any], as_json: bool) -> None:
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        sys.stdout.flush()
        return
    state = "done" if found["done"] else "not done"
    print(
        f"run {found['run_id']}: {found['arm']}, seed {found['seed']}, "
        f"step {found['step']} of {found['steps']}, {state}"
    )
    print(f"folder: {found['folder']}")
    if isinstance(found["loss"], float):
        print(f"last logged loss: {found['loss']:.4f}")
    if found["error"] is not None:
        error = found["error"]
        print(f"error ({error['kind']}), attempt {error['attempt']} on {error['host']}: {error['message']}")
        if error["traceback"]:
            print(error["traceback"].rstrip())
    for score in found["scores"]:
        print(
            f"{score['label']}, {score['kind']}, frames {score['frames']}: accuracy {score['accuracy']:.1%} "
            f"(chance {score['chance']:.1%}, {score['n_report']} report clips)"
        )
