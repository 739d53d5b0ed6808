"""A local submission that goes on by itself: `python -m slurm.detached`, started by `submit --detach`."""

from __future__ import annotations

import argparse
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from salt.plans import read_plan
from salt.processes import machine, start_of
from salt.signals import held_back
from slurm.local import run_local
from slurm.records import SubmissionRecord, jobs_folder, new_submission, read_record, write_record
from slurm.submission import Submission, worker_environment


def start_detached(submission: Submission, workers: int, devices: Sequence[str]) -> SubmissionRecord:
    """Start a process that runs a plan as `run_local` does, and outlives this one; its record.

    Its own output is `local.log` in the submission's folder, its workers' logs lie beside it.
    """
    name = new_submission()
    folder = jobs_folder(submission.store, submission.plan.name) / name
    record = SubmissionRecord(
        submission=name,
        plan=submission.plan.name,
        on="local",
        unix_s=time.time(),
        host=socket.gethostname(),
        command=tuple(sys.argv),
        code=None if submission.code is None else str(submission.code.absolute()),
        retry=submission.retry,
        workers=workers,
        devices=tuple(devices),
    )
    write_record(folder, record)
    command = [sys.executable, "-P", "-m", "slurm.detached", str(submission.store.absolute())]
    command += [submission.plan.name, name]
    environment = worker_environment(submission.plan.execution.threads, submission.code)
    with open(folder / "local.log", "ab") as output, held_back():
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    import msgspec

    running = msgspec.structs.replace(
        record, process=process.pid, started=start_of(process.pid), machine=machine()
    )
    write_record(folder, running)
    process.returncode = 0  # it is nobody's child from here on: no warning about it at the end
    return running


def main(argv: list[str]) -> int:
    """Exit code as that of `run_local`; 130 when it was stopped."""
    parser = argparse.ArgumentParser(prog="slurm.detached", description="Run a plan on this machine.")
    parser.add_argument("store", type=Path)
    parser.add_argument("plan")
    parser.add_argument("submission")
    args = parser.parse_args(argv)
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # the terminal that it was started from may go
    folder = jobs_folder(args.store, args.plan) / args.submission
    record = read_record(folder)
    submission = Submission(
        store=args.store,
        plan=read_plan(args.store, args.plan),
        retry=record.retry,
        code=None if record.code is None else Path(record.code),
    )
    try:
        return run_local(submission, record.workers, devices=record.devices, logs=folder / "workers")
    except KeyboardInterrupt:
        print("stopped; submit again to go on", file=sys.stderr, flush=True)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
