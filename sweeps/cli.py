"""`salt-sweep`: plan a study, run it, say where it stands. Each command says more with `--help`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

from salt import __version__
from salt.errors import UserError
from salt.plans import read_plan
from salt.store import store_path
from sweeps.benchmark_cli import add_benchmark
from sweeps.command import STUDY_HELP, add_command, choose, print_json, print_tables
from sweeps.diff_cli import add_diff
from sweeps.ledger import add_ledger
from sweeps.plan_cli import add_plan
from sweeps.recipe_cli import add_recipe


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
        "  salt-sweep plan --budget 1e21\n"
        "  salt-sweep plan study.yaml\n"
        "  salt-sweep submit study --on local\n"
        "  salt-sweep status study",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"salt {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_plan(commands)
    _add_submit(commands)
    _add_status(commands)
    add_diff(commands)
    add_ledger(commands)
    add_recipe(commands)
    add_benchmark(commands)
    return parser


def _add_submit(commands: Any) -> None:
    parser = add_command(
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
    parser.add_argument("study", nargs="?", metavar="STUDY", help=STUDY_HELP)
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
    parser.add_argument(
        "--retry-given-up",
        action="store_true",
        help="also retry runs that were given up after several vain tries",
    )


def _add_status(commands: Any) -> None:
    parser = add_command(
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
    parser.add_argument("study", nargs="?", metavar="STUDY", help=STUDY_HELP)


# --- commands -------------------------------------------------------------------------------------


def _submit(args: argparse.Namespace) -> int:
    from slurm.local import Submission, run_local
    from slurm.prepare import prepare_clips, refuse_runs
    from slurm.states import STUCK, State, assess
    from slurm.status import plan_status, problem_table
    from slurm.tidy import tidy
    from sweeps.auditing import audit_plan

    if args.workers is not None and (args.workers < 1 or args.on == "inline"):
        way_out = "it is one process" if args.on == "inline" else "give at least 1"
        raise UserError(f"--workers {args.workers} with --on {args.on}: {way_out}")
    store = store_path(args.store)
    name = choose(store, args.study)
    plan = read_plan(store, name)
    since_ns = _now_ns(store, name)
    standings = assess(
        store,
        plan,
        since_ns=since_ns,
        retry_diverged=args.retry_diverged,
        retry_given_up=args.retry_given_up,
    )
    missing = [run for run in plan.runs if standings[run.run_id].state not in (State.DONE, *STUCK)]
    code = 0
    if missing:
        cores_each = plan.execution.threads * plan.execution.processes
        workers = min(args.workers or max(1, (os.cpu_count() or 1) // cores_each), len(missing))
        _announce(name, len(missing), len(plan.runs), plan_status(store, plan), args.on, workers)
        refuse_runs(plan)
        audit_plan(store, plan)
        prepare_clips(store, plan)
        submission = Submission(
            store=store,
            plan=plan,
            since_ns=since_ns,
            retry_diverged=args.retry_diverged,
            retry_given_up=args.retry_given_up,
        )
        if args.on == "inline":
            from slurm.inline import run_inline

            code = run_inline(submission)
        else:
            code = run_local(submission, workers)
    else:
        print(f"plan {name}: nothing to send", file=sys.stderr)
    status = plan_status(store, plan)
    bad = [run for run in status.runs if run.state is not State.DONE]
    tidy(store, [run.run_id for run in status.runs if run.state is State.DONE])
    if args.json:
        print_json({"plan": name, "sent": len(missing), "runs": len(plan.runs), "counts": status.counts})
    else:
        if bad:
            print_tables([problem_table(bad)])
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
    status = plan_status(store, read_plan(store, choose(store, args.study)))
    if args.json:
        print_json(msgspec.to_builtins(status))
    else:
        print_tables(status_tables(status))
    return 0


# --- helpers --------------------------------------------------------------------------------------


def _now_ns(store: Path, name: str) -> int:
    """The time by the store's own clock: files in it are compared with it."""
    stamp = store / "jobs" / name / "submitted"
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n")
    return stamp.stat().st_mtime_ns
