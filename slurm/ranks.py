"""One run trained by several processes of this machine, under the worker that holds its claim.

`python -m slurm.ranks JOB` is one of them. They find each other by torchrun's variables, so that `salt.world`
sees no difference; but they end with their worker, which torchrun's agent does not.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from salt.errors import RunFailed, UserError
from salt.plan_specs import PlannedRun
from salt.specs import ExecSpec, ProbeSpec, Spec
from salt.store import RunDir, pretty_json, read_json, write_atomically

#: After one process failed, or the worker is to stop, the others have this long to end by themselves.
GRACE_S = 30.0
POLL_S = 0.1


class Job(Spec, kw_only=True):
    """What the processes are to do."""

    store: str
    run: PlannedRun
    probes: dict[str, ProbeSpec]
    execution: ExecSpec


def execute_together(
    store: Path, run: PlannedRun, probes: Mapping[str, ProbeSpec], execution: ExecSpec
) -> None:
    """`salt.run.execute` by `execution.processes` processes; raises `RunFailed` like it.

    The caller holds the run's claim.
    """
    path = store / "jobs" / "ranks" / f"{run.run_id}.json"
    job = Job(store=str(store), run=run, probes=dict(probes), execution=execution)
    write_atomically(path, pretty_json(job))
    folder, began_ns = RunDir(store, run.run_id), time.time_ns()
    ranks = _start(path, execution)
    try:
        codes = _wait(ranks)
    finally:
        _stop(ranks)
        path.unlink(missing_ok=True)
    if not any(codes):
        return
    error = folder.read_error() if folder.error.exists() else None
    if error is not None and folder.error.stat().st_mtime_ns >= began_ns:
        raise RunFailed(error.kind, error.message)
    ended = ", ".join(f"{rank} with {code}" for rank, code in enumerate(codes) if code)
    raise RunFailed("code", f"processes of {len(codes)} ended early: {ended}; their output is in this log")


def _start(job: Path, execution: ExecSpec) -> list[subprocess.Popen[bytes]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "slurm.ranks", str(job), "--parent", str(os.getpid())]
    meet = {"WORLD_SIZE": str(execution.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **meet, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(execution.processes)
    ]


def _wait(ranks: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes of all; the others of one that failed get `GRACE_S`, in which they mostly say why."""
    deadline = None
    while True:
        codes = [process.poll() for process in ranks]
        if all(code is not None for code in codes):
            return [code or 0 for code in codes]
        if any(codes) and deadline is None:
            deadline = time.monotonic() + GRACE_S
        if deadline is not None and time.monotonic() > deadline:
            return [1 if code is None else code for code in codes]
        time.sleep(POLL_S)


def _stop(ranks: list[subprocess.Popen[bytes]]) -> None:
    """End those that still run."""
    for process in ranks:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    for process in ranks:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def main(argv: list[str]) -> int:
    """Exit code 0 when the run is done, 1 when it failed, 130 when it was stopped."""
    parser = argparse.ArgumentParser(prog="slurm.ranks", description="One of several that train a run.")
    parser.add_argument("job", type=Path)
    parser.add_argument("--parent", type=int, required=True, help="stop when this is no longer the parent")
    arguments = parser.parse_args(argv)
    from slurm.worker import raise_interrupt, stop_with_parent

    signal.signal(signal.SIGTERM, raise_interrupt)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's, which passes it on
    threading.Thread(target=stop_with_parent, args=(arguments.parent,), daemon=True).start()
    job = read_json(arguments.job, Job)
    from salt.run import execute

    try:
        execute(Path(job.store), job.run, job.probes, job.execution, processes=job.execution.processes)
    except (RunFailed, UserError) as error:
        print(f"rank {os.environ['RANK']}: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
