"""`salt-sweep submit`: run what a plan still lacks, in this process, on this machine or on a cluster."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from salt.errors import UserError
from salt.plans import read_plan
from salt.store import store_path
from sweeps.command import STUDY_HELP, add_command, choose, print_json, print_tables

if TYPE_CHECKING:
    from salt.plan_specs import Plan
    from slurm.states import Retry


def add_submit(commands: Any) -> None:
    parser = add_command(
        commands,
        "submit",
        _submit,
        "run what a plan still lacks",
        "Run every run and probe of the plan that is not there yet, teachers before their students.\n"
        "Submitting again resumes what was interrupted, retries what failed, and sends nothing when all\n"
        "is done. With --on slurm it says what will be sent and what it costs, sends job arrays and\n"
        "returns at once, as with --detach; else it returns when all is done, with exit code 1 if runs\n"
        "are not.",
        [
            "salt-sweep submit study --on local",
            "salt-sweep submit study --on local --workers 4 --detach",
            "salt-sweep submit --on inline           # the newest plan, in this process",
            "salt-sweep submit study --on slurm --site cluster.yaml",
            "salt-sweep submit study --on slurm --dry-run      # the very batch scripts; nothing is sent",
            "salt-sweep submit study --on slurm --slurm time=4:00:00 --slurm partition=long",
        ],
    )
    parser.add_argument("study", nargs="?", metavar="STUDY", help=STUDY_HELP)
    add_options(parser)
    parser.add_argument(
        "--retry-diverged", action="store_true", help="also retry runs whose loss stopped being a number"
    )
    parser.add_argument(
        "--retry-given-up",
        action="store_true",
        help="also retry runs that were given up after several vain tries",
    )


def add_options(parser: argparse.ArgumentParser) -> None:
    """Options of all commands that send runs."""
    parser.add_argument(
        "--on",
        choices=("local", "inline", "slurm"),
        help="local: worker processes on this machine; inline: this process; slurm: jobs (default: slurm "
        "where a site profile with a section `slurm:` is named, else local)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        metavar="W",
        help="worker processes for --on local (default: one per GPU, or per CPU core)",
    )
    parser.add_argument("--detach", action="store_true", help="with --on local: go on in the background")
    parser.add_argument(
        "--site", metavar="SITE.yaml", help="a site profile (default: the study's, else $SALT_SITE)"
    )
    parser.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a key of the profile's section `slurm:` for this submission, such as time=4:00:00",
    )
    parser.add_argument("--max-gpu-hours", type=float, metavar="H", help="send nothing that takes more")
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent, and send nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask before sending jobs")


def _submit(args: argparse.Namespace) -> int:
    from slurm.states import Retry

    return submit(args, Retry(diverged=args.retry_diverged, given_up=args.retry_given_up))


def submit(args: argparse.Namespace, retry: Retry) -> int:
    """Send what a plan lacks as the options say, and of old errors what `retry` says; the exit code."""
    from slurm.submission import Submission

    if args.on is None and (args.workers is not None or args.detach):
        args.on = "local"
    _refuse_options(args)
    store = store_path(args.store)
    name = choose(store, args.study)
    plan = read_plan(store, name)
    if args.on is None:
        args.on = _usual_place(args, store, plan)
    submission = Submission(
        store=store,
        plan=plan,
        retry=msgspec.structs.replace(retry, since_ns=now_ns(store, name)),
    )
    if args.on == "slurm":
        from sweeps.submit_cluster import submit_to_cluster

        return submit_to_cluster(args, submission)
    return _submit_here(args, submission)


def _usual_place(args: argparse.Namespace, store: Path, plan: Plan) -> str:
    """Where runs go if nobody says: nobody wants a study to train on the machine that jobs are sent from."""
    from sweeps.estimates import site_of_plan

    site, _ = site_of_plan(store, plan, args.site or os.environ.get("SALT_SITE") or None)
    place = "slurm" if args.slurm or (site is not None and site.slurm is not None) else "local"
    if site is not None and place == "slurm":
        print(f"site {site.name}: jobs are sent to Slurm (--on slurm)", file=sys.stderr)
    return place


def _refuse_options(args: argparse.Namespace) -> None:
    """Raise `UserError` for options that mean nothing where the runs go."""
    if args.workers is not None and (args.workers < 1 or args.on != "local"):
        way_out = {
            "inline": "it is one process",
            "slurm": "how many run at once is slurm: max_jobs and runs_per_gpu of the site profile",
        }.get(args.on, "give at least 1")
        raise UserError(f"--workers {args.workers} with --on {args.on}: {way_out}")
    if args.detach and args.on != "local":
        raise UserError(f"--detach with --on {args.on}: it is for --on local")
    if args.slurm and args.on not in (None, "slurm"):
        raise UserError(f"--slurm {args.slurm[0]} with --on {args.on}: it is for --on slurm")
    if args.max_gpu_hours is not None and not args.max_gpu_hours > 0:
        raise UserError(f"--max-gpu-hours {args.max_gpu_hours:g}: give a number above 0")


def _submit_here(args: argparse.Namespace, submission: Any) -> int:
    from slurm.prepare import prepare_clips, refuse_runs
    from slurm.states import STUCK, State, assess
    from slurm.status import plan_status, problem_table
    from slurm.tidy import tidy
    from sweeps.auditing import audit_plan

    store, plan, name = submission.store, submission.plan, submission.plan.name
    standings = assess(store, plan, submission.retry)
    missing = [run for run in plan.runs if standings[run.run_id].state not in (State.DONE, *STUCK)]
    code = 0
    if missing:
        from sweeps.submit_local import devices_for, run_here, workers_for

        workers = workers_for(args, plan, len(missing))
        devices = devices_for(args, plan, workers)
        _announce(name, len(missing), len(plan.runs), plan_status(store, plan), args.on, workers)
        _refuse_cost(args, submission, missing)
        if args.dry_run:
            if args.json:
                facts = {"plan": name, "runs": len(plan.runs), "to_do": len(missing), "workers": workers}
                print_json({**facts, "devices": devices, "sent": 0})
            return 0
        refuse_runs(plan)
        audit_plan(store, plan)
        prepare_clips(store, plan)
        code = run_here(args, submission, workers, devices)
        if args.detach:
            return code
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


def _refuse_cost(args: argparse.Namespace, submission: Any, missing: list[Any]) -> None:
    if args.max_gpu_hours is None:
        return
    from sweeps.estimates import estimate, refuse_hours, site_of_plan

    site, _ = site_of_plan(
        submission.store, submission.plan, args.site or os.environ.get("SALT_SITE") or None
    )
    expected = None
    if site is not None:
        found = estimate(submission.store, submission.plan, site)
        expected = found.gpu_hours(missing, submission.plan.execution.processes)
    refuse_hours(expected, args.max_gpu_hours, f"{len(missing)} runs of plan {submission.plan.name}")


def _announce(name: str, missing: int, total: int, status: Any, on: str, workers: int) -> None:
    """What is about to be paid, before it is."""
    from slurm.names import flops_text
    from sweeps.submit_local import workers_text

    left = flops_text(status.planned_flops - status.done_flops)
    how = "in this process" if on == "inline" else f"on this machine, {workers_text(workers)}"
    print(f"plan {name}: {missing} of {total} runs to do, {left} of training left, {how}", file=sys.stderr)


def now_ns(store: Path, name: str) -> int:
    """The time by the store's own clock: files in it are compared with it."""
    stamp = store / "jobs" / name / "submitted"
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.write_text(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n")
    return stamp.stat().st_mtime_ns


def agreed(question: str) -> bool:
    """Ask on a terminal; elsewhere nobody can answer, and what was typed is what was meant."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return True
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def processors() -> int:
    return os.cpu_count() or 1
