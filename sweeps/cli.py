"""`salt-sweep`: plan a study, run it, say where it stands."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from salt import __version__
from salt.errors import UserError
from salt.store import choose_plan, plan_dir, read_plan, store_path

_STORE_HELP = "the run store (default: $SALT_STORE, else ./salt-store)"
_STUDY_HELP = "a plan's name or its study file (default: the newest plan of the store)"


def main(argv: list[str]) -> int:
    """Run one command line; returns the exit code (0 well, 1 runs failed, 2 user's mistake)."""
    args = _parser().parse_args(argv)
    code: int = args.run(args)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="salt-sweep",
        description="Plan a study at matched FLOPs, run it, and say where it stands.",
        epilog="examples:\n"
        "  salt-sweep plan study.yaml\n"
        "  salt-sweep submit study --on local\n"
        "  salt-sweep status study",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"salt {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_plan(commands)
    _add_submit(commands)
    _add_status(commands)
    return parser


def _add_command(
    commands: Any, name: str, run: Any, summary: str, description: str, examples: list[str]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    parser.add_argument("--store", help=_STORE_HELP)
    parser.add_argument("--json", action="store_true", help="print plain data instead of tables")
    return parser


def _add_plan(commands: Any) -> None:
    parser = _add_command(
        commands,
        "plan",
        _plan,
        "price and check a study's grid and write its plan",
        "Solve the steps of every cell so that teacher, teacher inference and student together cost the\n"
        "budget within 1 %, check that all of it can be built, show the prices, and write the plan.\n"
        "Nothing is written if any cell is bad.",
        [
            "salt-sweep plan study.yaml",
            "salt-sweep plan study.yaml --budget 1e20 --budget 1e21",
            "salt-sweep plan study.yaml --quick      # the study's own small version, as <name>-quick",
            "salt-sweep plan --budget 1e21           # the newest plan's study at another budget",
        ],
    )
    parser.add_argument(
        "study", nargs="?", metavar="STUDY.yaml", help="the study file (default: that of the newest plan)"
    )
    parser.add_argument(
        "--budget",
        type=float,
        action="append",
        metavar="FLOPS",
        help="total training FLOPs of a cell, instead of the file's budgets; may be given several times",
    )
    parser.add_argument("--quick", action="store_true", help="lay the file's section `quick` over it")


def _add_submit(commands: Any) -> None:
    parser = _add_command(
        commands,
        "submit",
        _submit,
        "run what a plan still lacks",
        "Run every run and probe of the plan that is not there yet, teachers before their students.\n"
        "Submitting again resumes what was interrupted, retries what failed, and sends nothing when all\n"
        "is done. The exit code is 1 if runs failed.",
        [
            "salt-sweep submit study --on local",
            "salt-sweep submit study --on local --workers 4",
            "salt-sweep submit --on inline           # the newest plan, in this process",
        ],
    )
    parser.add_argument("study", nargs="?", metavar="STUDY", help=_STUDY_HELP)
    parser.add_argument(
        "--on",
        choices=("local", "inline"),
        default="local",
        help="local: worker processes on this machine; inline: this process (default: local)",
    )
    parser.add_argument(
        "--workers", type=int, metavar="W", help="worker processes for --on local (default: one per CPU core)"
    )
    parser.add_argument(
        "--retry-diverged", action="store_true", help="also retry runs whose loss stopped being a number"
    )


def _add_status(commands: Any) -> None:
    parser = _add_command(
        commands,
        "status",
        _status,
        "what is done, running, failed, blocked; what is left to pay",
        "Read the state of every run from the store's files. Changes nothing.",
        [
            "salt-sweep status study",
            "salt-sweep status            # the newest plan",
            "salt-sweep status study --json",
        ],
    )
    parser.add_argument("study", nargs="?", metavar="STUDY", help=_STUDY_HELP)


# --- commands -------------------------------------------------------------------------------------


def _plan(args: argparse.Namespace) -> int:
    from salt.clips import require_decodable
    from sweeps.config import load_study
    from sweeps.plan import build_plan, write_plan
    from sweeps.show import plan_json, plan_tables

    store = store_path(args.store)
    budgets = tuple(args.budget) if args.budget else None
    for budget in budgets or ():
        if not 0 < budget < float("inf"):
            raise UserError(f"--budget {budget}: give a positive number of FLOPs, such as 1e21")
    if args.study is not None:
        study = load_study(Path(args.study), quick=args.quick, budgets_flops=budgets)
    else:
        name = _choose(store, None)
        planned = plan_dir(store, name) / "study.yaml"
        lists = _lists_of(store, name)
        study = load_study(planned, quick=args.quick, budgets_flops=budgets, lists=lists)
        if name == f"{study.name}-quick":  # the newest plan is a quick one: stay with it
            study = load_study(planned, quick=True, budgets_flops=budgets, lists=lists)
    plan = build_plan(study)
    for path in dict.fromkeys(study.lists.values()):
        require_decodable(path, study.file.clip)
    written = write_plan(store, plan, study.data)
    if args.json:
        _print_json(
            {
                **plan_json(plan),
                "store": str(store),
                "folder": str(written.folder),
                "written": written.outcome,
            }
        )
    else:
        _print_tables(plan_tables(plan))
        print(written)
    return 0


def _submit(args: argparse.Namespace) -> int:
    from slurm.local import Submission, run_local
    from slurm.prepare import prepare_clips
    from slurm.states import STUCK, State, assess
    from slurm.status import plan_status, problem_table

    if args.workers is not None and (args.workers < 1 or args.on == "inline"):
        way_out = "it is one process" if args.on == "inline" else "give at least 1"
        raise UserError(f"--workers {args.workers} with --on {args.on}: {way_out}")
    store = store_path(args.store)
    name = _choose(store, args.study)
    plan = read_plan(store, name)
    since_ns = _now_ns(store, name)
    standings = assess(store, plan, since_ns=since_ns, retry_diverged=args.retry_diverged)
    missing = [run for run in plan.runs if standings[run.run_id].state not in (State.DONE, *STUCK)]
    code = 0
    if missing:
        workers = min(args.workers or os.cpu_count() or 1, len(missing))
        _announce(name, len(missing), len(plan.runs), plan_status(store, plan), args.on, workers)
        prepare_clips(store, plan)
        submission = Submission(store=store, plan=plan, since_ns=since_ns, retry_diverged=args.retry_diverged)
        if args.on == "inline":
            from slurm.inline import run_inline

            code = run_inline(submission)
        else:
            code = run_local(submission, workers)
    else:
        print(f"plan {name}: nothing to send", file=sys.stderr)
    status = plan_status(store, plan)
    bad = [run for run in status.runs if run.state is not State.DONE]
    if args.json:
        _print_json({"plan": name, "sent": len(missing), "runs": len(plan.runs), "counts": status.counts})
    else:
        if bad:
            _print_tables([problem_table(bad)])
        done = len(plan.runs) - len(bad)
        print(f"plan {name}: {done} of {len(plan.runs)} runs done; {len(missing)} were sent")
    return 1 if bad else code


def _announce(name: str, missing: int, total: int, status: Any, on: str, workers: int) -> None:
    """What is about to be paid, before it is."""
    from slurm.names import flops_text

    left = flops_text(status.planned_flops - status.done_flops)
    how = "in this process" if on == "inline" else f"on this machine, {workers} worker processes"
    print(f"plan {name}: {missing} of {total} runs to do, {left} of training left, {how}", file=sys.stderr)


def _status(args: argparse.Namespace) -> int:
    import msgspec

    from slurm.status import plan_status, status_tables

    store = store_path(args.store)
    status = plan_status(store, read_plan(store, _choose(store, args.study)))
    if args.json:
        _print_json(msgspec.to_builtins(status))
    else:
        _print_tables(status_tables(status))
    return 0


# --- helpers --------------------------------------------------------------------------------------


def _choose(store: Path, name: str | None) -> str:
    """The wanted plan's name; says on stderr which one was taken when none was named."""
    chosen = choose_plan(store, name)
    if name is None:
        print(f"taking the newest plan of {store}: {chosen}", file=sys.stderr)
    return chosen


def _lists_of(store: Path, name: str) -> dict[str, Path]:
    """Where the lists of a plan lie: its copy of the study file is away from them."""
    plan = read_plan(store, name)
    probe = next(iter(plan.probes.values()))
    found = {"train": probe.train, "selection": probe.selection, "report": probe.report}
    return {split: Path(plan.execution.lists[data.fingerprint]) for split, data in found.items()}


def _now_ns(store: Path, name: str) -> int:
    """The time by the store's own clock: files in it are compared with it."""
    stamp = store / "jobs" / name / "submitted"
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n")
    return stamp.stat().st_mtime_ns


def _print_tables(tables: list[Any]) -> None:
    from slurm.console import console

    out = console()
    for table in tables:
        out.print(table)


def _print_json(data: object) -> None:
    print(json.dumps(data, indent=2, allow_nan=False))
