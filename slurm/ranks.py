"""One run trained by several processes, under the worker that holds its claim.

`python -m slurm.ranks JOB` is one of them. They find each other by torchrun's variables, so that `salt.world`
sees no difference; but they end with their worker, which torchrun's agent does not. How they come to be on
several nodes is in `slurm.multinode`.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from salt.attempts import progress
from salt.errors import Interrupted, RunFailed, UserError
from salt.failures import as_failure, ended_how
from salt.plan_specs import PlannedRun
from salt.processes import lives
from salt.signals import STOP, held_back, install
from salt.specs import ExecSpec, ProbeSpec, Spec
from salt.store import RunDir, pretty_json, read_json, write_atomically
from slurm.multinode import (
    first_rank,
    is_first_node,
    leader_name,
    meeting_point,
    nodes_of_job,
    own_rank,
    step_command,
    this_node,
)
from slurm.submission import worker_environment

#: After one process failed, the others have this long to end by themselves.
GRACE_S = 30.0
POLL_S = 0.1
#: Exit code of a process that was asked to stop, and did.
STOPPED = 130


class Job(Spec, kw_only=True):
    """What the processes are to do."""

    store: str
    run: PlannedRun
    probes: dict[str, ProbeSpec]
    execution: ExecSpec


class RankError(Spec, kw_only=True):
    """What stopped one of the processes, in a file beside the job until the worker has read it."""

    rank: int
    kind: str
    message: str


def execute_together(
    store: Path, run: PlannedRun, probes: Mapping[str, ProbeSpec], execution: ExecSpec
) -> None:
    """`salt.run.execute` by `execution.processes` processes; raises `RunFailed` and `Interrupted` like it.

    The caller holds the run's claim. Of several errors that of the process which did not merely lose the
    others is raised.
    """
    path = store / "jobs" / ".ranks" / f"{run.run_id}.json"
    for old in _error_files(path):
        old.unlink()
    job = Job(store=str(store), run=run, probes=dict(probes), execution=execution)
    write_atomically(path, pretty_json(job))
    folder = RunDir(store, run.run_id)
    before = progress(folder)
    ranks = _start(path, execution)
    try:
        codes = _wait(ranks)
        errors = [read_json(each, RankError) for each in _error_files(path)]
    finally:
        _stop(ranks)
        for file in (path, *_error_files(path)):
            file.unlink(missing_ok=True)
    if not any(codes):
        return
    own = [error for error in errors if error.kind != "ranks"]
    if not own and (STOP.requested or set(codes) <= {0, STOPPED}):
        raise Interrupted(step=None, saved=progress(folder) != before)
    raise _failure(codes, own, errors)


def _failure(codes: list[int], own: list[RankError], errors: list[RankError]) -> RunFailed:
    """The failure of processes with these exit codes; `own` errors are not about the others."""
    killed = [
        f"process {rank} of {len(codes)} {ended_how(code)}" for rank, code in enumerate(codes) if code < 0
    ]
    if killed and not own:
        return RunFailed("killed", "; ".join(killed))
    for error in own or errors:
        by = f"rank {error.rank} of {len(codes)}: "
        return RunFailed(
            error.kind, error.message if error.message.startswith("rank ") else by + error.message
        )
    ended = ", ".join(f"{rank} with {code}" for rank, code in enumerate(codes) if code)
    return RunFailed("code", f"processes of {len(codes)} ended early: {ended}; their output is in this log")


def _error_files(job: Path) -> list[Path]:
    return sorted(job.parent.glob(f"{job.stem}-rank-*.json"))


def _start(job: Path, execution: ExecSpec) -> list[subprocess.Popen[bytes]]:
    """Start all processes of a run; over several nodes srun is started, and it alone is watched."""
    if nodes_of_job(os.environ) == 1:
        return _start_here(job, execution, meeting_point("127.0.0.1"))
    command = step_command(job, execution, os.environ, leader_name())
    world = {**meeting_point(this_node(os.environ)), "WORLD_SIZE": str(execution.processes)}
    environment = {**worker_environment(execution.threads), **world}
    with held_back():
        return [subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment)]


def _start_here(
    job: Path, execution: ExecSpec, meet: Mapping[str, str], first: int = 0, count: int | None = None
) -> list[subprocess.Popen[bytes]]:
    """Start processes of a run on this machine: `count` of them (default: all), from rank `first` on."""
    command = [sys.executable, "-P", "-m", "slurm.ranks", str(job), "--parent", str(os.getpid())]
    own = {**worker_environment(execution.threads), **meet, "WORLD_SIZE": str(execution.processes)}
    with held_back():
        return [
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                env={**own, "RANK": str(first + local), "LOCAL_RANK": str(local)},
            )
            for local in range(execution.processes if count is None else count)
        ]


def _wait(ranks: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes of all. The others of one that failed get `GRACE_S`, in which they mostly say why.

    A request to stop is passed on once, and what is left of the grace time waited for. Raises `ClaimLost`.
    """
    deadline = None
    told = False
    while True:
        codes = [process.poll() for process in ranks]
        if STOP.lost:  # at once, and without a save: the run's files are another process's
            for process in ranks:
                process.kill()
            STOP.refuse_lost()
        if STOP.requested and not told:
            told = True
            for process in ranks:
                if process.poll() is None:
                    process.send_signal(signal.SIGUSR1)  # which srun passes on; SIGTERM would end its tasks
            deadline = time.monotonic() + STOP.left_s()
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
    parser.add_argument("--parent", type=int, help="stop when this is no longer the parent")
    parser.add_argument("--leader", help="a task of srun: stop when this process of the first node is gone")
    parser.add_argument("--share", type=int, help="start so many processes here, this node's share")
    arguments = parser.parse_args(argv)
    install()
    if arguments.parent is not None:
        _end_when(lambda: os.getppid() != arguments.parent)
    elif is_first_node(os.environ):
        pid, _, started = arguments.leader.partition(":")
        _end_when(lambda: not lives(int(pid), started or None))
    if arguments.share is not None:
        return _share_of_node(arguments.job, arguments.share)
    if arguments.leader is not None:
        os.environ.update(own_rank(os.environ))
    return _one_rank(arguments.job)


def _share_of_node(path: Path, share: int) -> int:
    """Start this node's processes and wait for them; the code of one that failed, if any."""
    job = read_json(path, Job)
    meet = {name: os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT")}
    ranks = _start_here(path, job.execution, meet, first_rank(os.environ, share), share)
    try:
        codes = _wait(ranks)
    finally:
        _stop(ranks)
    return max((abs(code) for code in codes), default=0)


def _one_rank(path: Path) -> int:
    job = read_json(path, Job)
    from salt.run import execute

    rank = int(os.environ["RANK"])
    try:
        execute(Path(job.store), job.run, job.probes, job.execution, processes=job.execution.processes)
    except Interrupted as stop:
        print(f"rank {rank}: {stop}", file=sys.stderr, flush=True)
        return STOPPED
    except (RunFailed, UserError) as error:
        failure = as_failure(error)
        print(f"rank {rank}: {failure}", file=sys.stderr, flush=True)
        record = RankError(rank=rank, kind=failure.kind, message=str(failure))
        beside = path.with_name(f"{path.stem}-rank-{rank}.json")
        write_atomically(beside, pretty_json(record))
        return 1
    return 0


def _end_when(gone: Callable[[], bool]) -> None:
    """End this process as soon as its worker is gone: the claim went with it, so nothing may be saved."""

    def watch() -> None:
        while not gone():
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
