"""`salt-sweep submit --on local` and `--on inline`: how many workers, on which GPUs, in front or behind."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from typing import TYPE_CHECKING

from sweeps.command import print_json

if TYPE_CHECKING:
    from salt.plan_specs import Plan
    from slurm.submission import Submission


def workers_for(args: argparse.Namespace, plan: Plan, missing: int) -> int:
    """Worker processes: as asked, else one for each group of GPUs, or of processors where none are used.

    Never more than there are runs to do.
    """
    execution = plan.execution
    wanted: int
    if args.workers is not None:
        wanted = args.workers
    elif execution.device.startswith("cuda"):
        from slurm.gpus import visible_gpus

        wanted = len(visible_gpus()) // execution.processes
    else:
        wanted = (os.cpu_count() or 1) // (execution.threads * execution.processes)
    return max(1, min(wanted, missing))


def devices_for(args: argparse.Namespace, plan: Plan, workers: int) -> list[str]:
    """What each worker process may see of the machine's GPUs; nothing where that is left to the run.

    Raises:
        UserError: too few GPUs for so many workers.
    """
    if args.on != "local" or plan.execution.device != "cuda":
        return []
    from slurm.gpus import groups, visible_gpus

    return groups(visible_gpus(), plan.execution.processes, workers)


def run_here(args: argparse.Namespace, submission: Submission, workers: int, devices: list[str]) -> int:
    """Run a plan in this process, by worker processes, or by a process that is left behind; the exit code."""
    if args.on == "inline":
        from slurm.inline import run_inline

        return run_inline(submission)
    from slurm.local import run_local
    from slurm.snapshot import take_snapshot

    submission = replace(submission, code=take_snapshot(submission.store).folder)
    if not args.detach:
        return run_local(submission, workers, devices=devices)
    from slurm.detached import start_detached

    record = start_detached(submission, workers, devices)
    folder = submission.folder / record.submission
    if args.json:
        print_json({"plan": record.plan, "submission": record.submission, "process": record.process})
    else:
        print(
            f"plan {record.plan}: process {record.process} goes on with {workers_text(workers)}; its log: "
            f"{folder / 'local.log'}; `salt-sweep status {record.plan} --watch` follows, "
            f"`salt-sweep cancel {record.plan}` stops it"
        )
    return 0


def workers_text(workers: int) -> str:
    return "1 worker process" if workers == 1 else f"{workers} worker processes"
