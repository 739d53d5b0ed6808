"""`salt-train probe`: new probes of runs that are trained, or of states that a run has kept."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from salt.errors import RunFailed, UserError
from salt.probe_suite import read_suite
from salt.specs import ProbeSpec, RunSpec, spec_id
from salt.store import RunDir, pretty_json, read_json, write_atomically
from salt.writable import make_folder

if TYPE_CHECKING:
    import torch

    from salt.artefact import AnyEncoder
    from salt.clips import Clips
    from salt.result_specs import ProbeResult

Branch = Literal["student", "ema"]
#: What --branch means; None is the encoder that a run keeps.
BRANCHES: dict[str | None, tuple[Branch | None, ...]] = {
    None: (None,),
    "student": ("student",),
    "ema": ("ema",),
    "both": ("ema", "student"),
}

_ABOUT = """Run a suite of probes on encoders that are there already: a run of the store (its
id, or the beginning of it), or all trained runs of a plan. With --step the state
that a run keeps after that many steps is probed, or a checkpoint of that step; the
run need not be finished. Results go into the folder of each run; those that are
there already are not made again."""

_EXAMPLES = """examples:
  salt-train probe 3f2a --spec probe.yaml                   one finished run
  salt-train probe miniature --spec probe.yaml --json       every finished run of a plan
  salt-train probe 3f2a --spec probe.yaml --step 900        a state that the run keeps
  salt-train probe 3f2a --spec probe.yaml --branch both     average and student of an EMA run

probe.yaml (or .json) has fields of a suite; lists are CSV files, relative to it:
  labels: [motion]
  kinds: [linear, attentive]
  train: clips/train.csv
  selection: clips/selection.csv
  report: clips/report.csv
  train_clips: 1024
  selection_clips: 512
  report_clips: 2048
  views: 3
"""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One encoder to be probed and where the answer goes. `step` None means the finished encoder."""

    run: RunDir
    spec: RunSpec
    step: int | None
    branch: Branch | None  # None: the one that is kept and probed, as `salt-train run` does
    path: Path


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `probe` to the commands of `salt-train`."""
    parser = commands.add_parser(
        "probe",
        help="run new probes on trained runs or kept states",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "target", metavar="RUN|PLAN", help="a run id (or its beginning), or the name of a plan"
    )
    parser.add_argument("--spec", type=Path, required=True, metavar="FILE", help="the suite, YAML or JSON")
    parser.add_argument("--step", type=int, metavar="N", help="the state after N steps (default: the end)")
    parser.add_argument(
        "--branch",
        choices=("student", "ema", "both"),
        help="of runs with an EMA teacher (default: the one that the run keeps, ema)",
    )
    parser.add_argument("--store", help="run store (default: $SALT_STORE, else ./salt-store)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads on a CPU (default 1)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="to decode new clips (default 2)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of text")


def run_probe(arguments: argparse.Namespace, store: Path) -> int:
    """`salt-train probe`: 0 if every encoder asked for has its result now.

    Raises:
        UserError: the suite, its lists, the run or the state is not there or does not fit.
        RunFailed: weights or clips are not what they should be.
    """
    for option in ("threads", "workers"):
        if getattr(arguments, option) < 1:
            raise UserError(f"--{option} {getattr(arguments, option)}: must be at least 1")
    if arguments.step is not None and arguments.step < 0:
        raise UserError(f"--step {arguments.step}: must be 0 or more")
    probe, lists = read_suite(arguments.spec)
    probe_id = spec_id(probe)
    runs, from_plan = _runs(store, arguments.target)
    targets, passed = [], []
    for run in runs:
        try:
            targets += _targets(run, arguments.step, arguments.branch, probe, probe_id)
        except UserError as error:
            if not from_plan:
                raise
            passed.append({"run_id": run.run_id, "reason": str(error)})
    if not targets:
        raise UserError(
            f"plan {arguments.target}: none of {len(runs)} runs can be probed so; the first: "
            f"{passed[0]['reason'] if passed else 'it has no runs'}"
        )
    missing = [target for target in targets if not target.path.exists()]
    if missing:
        import torch

        _refuse_device(arguments.device)
        torch.set_num_threads(arguments.threads)
    for target in missing:
        make_folder(target.path.parent, "probes of this run go to")
    opened: dict[tuple[str, bytes], Clips] = {}
    for number, target in enumerate(missing, start=1):
        print(f"probe {number} of {len(missing)}: {_name(target)}", file=sys.stderr)
        _probe(target, probe, probe_id, lists, opened, arguments)
    _print(arguments.json, probe, probe_id, targets, missing, passed)
    return 0


def _refuse_device(name: str) -> None:
    """Raise `UserError` for a device that is not there, before clips are decoded for it."""
    import torch

    try:
        torch.zeros(1, device=name).cpu()
    except (RuntimeError, AssertionError) as error:  # NotImplementedError is a RuntimeError
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: {reason}; take cpu, or a device that is there") from error


def _runs(store: Path, name: str) -> tuple[list[RunDir], bool]:
    """The runs meant, and whether they are those of a plan."""
    from salt.plans import plan_names, read_plan

    plans = plan_names(store)
    if name in plans:
        return [RunDir(store, run.run_id) for run in read_plan(store, name).runs], True
    matches = sorted(path.name for path in (store / "runs").glob("*/*") if path.name.startswith(name))
    if len(matches) != 1:
        which = ", ".join(matches[:5]) or "none"
        raise UserError(
            f"{name!r}: {store} must have a plan of that name or exactly one run beginning so; it has "
            f"the runs {which} (plans: {', '.join(plans) or 'none'})"
        )
    return [RunDir(store, matches[0])], False


def _targets(
    run: RunDir, step: int | None, branch: str | None, probe: ProbeSpec, probe_id: str
) -> list[Target]:
    """What of a run is probed. Raises UserError where it is not there."""
    if not run.spec.exists():
        raise UserError(f"run {run.run_id} has not begun: train it first")
    from salt.probe_views import probe_problems

    spec = run.read_spec()
    problems = probe_problems(probe, spec)
    if problems:
        raise UserError(f"run {run.run_id}: {'; '.join(problems)}")
    if step is not None and step >= spec.steps:
        if step > spec.steps:
            raise UserError(f"--step {step}: run {run.run_id} has {spec.steps} steps")
        step = None  # the end is the finished encoder
    if branch is not None and spec.arm != "vjepa":
        raise UserError(
            f"--branch {branch}: run {run.run_id} is {spec.arm} and has one encoder; leave the option out"
        )
    if spec.arm == "raw":
        if step is not None or set(probe.kinds) <= {"attentive"}:
            raise UserError(
                f"run {run.run_id} is raw pixels: no steps, no tokens for an attentive probe, and no "
                "label-free metrics; ask for linear or knn"
            )
    elif step is None and not run.artefact.exists():
        raise UserError(
            f"run {run.run_id} is not trained to its end ({spec.steps} steps): finish it, or name a state "
            f"with --step ({_kept(run, spec)})"
        )
    return [_target(run, spec, step, one, probe_id) for one in BRANCHES[branch]]


def _target(run: RunDir, spec: RunSpec, step: int | None, branch: Branch | None, probe_id: str) -> Target:
    """Results of the finished encoder go where `salt-train run` puts them; others into a folder each."""
    own = "ema" if spec.arm == "vjepa" else "student"
    path = run.probe(probe_id)
    if step is not None or branch not in (None, own):
        state = spec.steps if step is None else step
        path = run.probes / f"step-{state:08d}-{branch or own}" / f"{probe_id}.json"
    return Target(run=run, spec=spec, step=step, branch=branch, path=path)


def _kept(run: RunDir, spec: RunSpec) -> str:
    there = [str(step) for step in spec.keep_steps if run.has_kept(step)]
    return f"it keeps {', '.join(there)}" if there else "it keeps none yet"


def _probe(
    target: Target,
    probe: ProbeSpec,
    probe_id: str,
    lists: Mapping[str, Path],
    opened: dict[tuple[str, bytes], Clips],
    arguments: argparse.Namespace,
) -> None:
    from salt.clips import planned_clips
    from salt.probe import run_probes
    from salt.probe_views import probe_clip_spec

    clip = probe_clip_spec(probe, target.spec)
    key = msgspec.json.encode(clip)
    for fingerprint, path in lists.items():
        if (fingerprint, key) not in opened:
            opened[fingerprint, key] = planned_clips(
                path, fingerprint, clip, target.run.store / "cache", workers=arguments.workers
            )
    clips = {fingerprint: opened[fingerprint, key] for fingerprint in lists}
    encoder, branch, digest = load_encoder(target)
    result = run_probes(
        probe, probe_id, target.spec, target.run.run_id, encoder, branch, digest, clips, arguments.device
    )
    write_atomically(target.path, pretty_json(result))


def load_encoder(target: Target) -> tuple[AnyEncoder | None, str, str]:
    """The encoder to be probed, its branch and its weights' hash; None for raw pixels.

    Raises:
        UserError: no kept state and no checkpoint of that step.
        RunFailed: weights that are damaged or do not fit.
    """
    from salt.artefact import load_artefact, weights_sha256
    from salt.learner import build_encoder
    from salt.tensor_names import misfits, plain_names, shapes

    run, spec = target.run, target.spec
    if spec.arm == "raw":
        return None, "raw", ""
    if target.step is None and target.branch != "student":
        return load_artefact(run, spec)
    step = spec.steps if target.step is None else target.step
    branch = target.branch or ("ema" if spec.arm == "vjepa" else "student")
    prefix = "ema." if branch == "ema" else "encoder."
    state = plain_names(_state(run, spec, step))
    tensors = {name.removeprefix(prefix): state[name] for name in state if name.startswith(prefix)}
    encoder = build_encoder(spec.model.encoder, spec.model, spec.clip, spec.seed)
    problem = misfits(shapes(tensors), shapes(encoder.state_dict()))
    if problem is not None:
        raise RunFailed(
            "checkpoint", f"run {run.run_id}, step {step}, {branch}: weights do not fit: {problem}"
        )
    encoder.load_state_dict(tensors, strict=True)
    return encoder, branch, weights_sha256(tensors)


def _state(run: RunDir, spec: RunSpec, step: int) -> dict[str, torch.Tensor]:
    """The whole state of a run after `step` steps: kept, or its newest checkpoint."""
    from salt.checkpoint import load_kept, load_newest

    if run.has_kept(step):
        return load_kept(run, step, "checkpoint")[1]
    newest = load_newest(run, lambda message: print(f"warning: {message}", file=sys.stderr))
    if newest is not None and newest[0].step == step:
        return newest[1]
    at = "no checkpoint" if newest is None else f"its newest checkpoint is of step {newest[0].step}"
    raise UserError(f"run {run.run_id} has no state of step {step}: {_kept(run, spec)}, {at}")


def _name(target: Target) -> str:
    step = "" if target.step is None else f", step {target.step}"
    branch = "" if target.branch is None else f", {target.branch}"
    return f"run {target.run.run_id} ({target.spec.arm}, seed {target.spec.seed}{step}{branch})"


def _print(
    as_json: bool,
    probe: ProbeSpec,
    probe_id: str,
    targets: list[Target],
    made: list[Target],
    passed: list[dict[str, str]],
) -> None:
    from salt.result_specs import ProbeResult

    rows = [(target, target in made, read_json(target.path, ProbeResult)) for target in targets]
    if as_json:
        found = {
            "probe_id": probe_id,
            "probe": msgspec.to_builtins(probe),
            "results": [
                {
                    "step": target.spec.steps if target.step is None else target.step,
                    "path": str(target.path),
                    "made": new,
                    "result": msgspec.to_builtins(result),
                }
                for target, new, result in rows
            ],
            "passed_over": passed,
        }
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        sys.stdout.flush()
        return
    print(f"probe {probe_id}")
    for target, new, result in rows:
        print(f"{_name(target)}: {'' if new else 'already there: '}{target.path}")
        for line in _lines(result):
            print(f"  {line}")
    for item in passed:
        print(f"passed over: {item['reason']}")


def _lines(result: ProbeResult) -> list[str]:
    lines = [
        f"{score.label}, {score.kind}, frames {score.frames}: accuracy {score.accuracy:.1%} "
        f"(chance {score.chance:.1%}, {score.n_report} report clips)"
        for score in result.scores
    ]
    return lines + [f"{name}: {value:.3f}" for name, value in result.label_free.items()]
