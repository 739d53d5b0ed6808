"""Slurm's own commands, with time limits: nothing here waits for a controller that does not answer.

They are run without the SLURM_* and SBATCH_* variables of a job around this process, which would become
options of what is sent.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterable, Sequence

from salt.specs import Spec

#: Seconds for a question whose answer only makes a display better, and for one that has to be answered.
ASK_S = 4.0
MUST_S = 60.0
#: Variables that say which cluster is meant, not what a job is like.
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_CONF_SERVER", "SBATCH_CLUSTERS")


#: Commands of Slurm that this process waits for.
_asked: set[subprocess.Popen[str]] = set()
#: How often `stop_asking` was called.
_stops = [0]


class SchedulerSilent(RuntimeError):
    """A command of Slurm is missing, failed, or did not answer in time; the message says which and why."""


class QueuedTask(Spec, kw_only=True):
    """A line of squeue: one task of an array, or one job (`task` is None)."""

    job: str
    task: int | None
    state: str  # PENDING, RUNNING, ...
    reason: str
    nodes: str
    comment: str


class PastTask(Spec, kw_only=True):
    """The last line of sacct about a task: a requeued one has several."""

    job: str
    task: int | None
    state: str  # COMPLETED, FAILED, TIMEOUT, NODE_FAIL, PREEMPTED, CANCELLED, ...
    exit_code: str
    nodes: str
    elapsed_s: int | None
    starts: int  # lines about it: how often it was started


def clean_environment() -> dict[str, str]:
    """This process's environment without what an outer job put there."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not name.startswith(("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SUBMITIT_"))
    }


def ask(command: Sequence[str], timeout_s: float = ASK_S) -> str:
    """The output of a command of Slurm. Raises `SchedulerSilent`."""
    name = command[0]
    before = _stops[0]
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=clean_environment(),
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise SchedulerSilent(f"{name} is not on this machine's PATH") from error
    except OSError as error:
        raise SchedulerSilent(f"{name} cannot be run ({error.strerror})") from error
    with process:
        _asked.add(process)
        if _stops[0] != before:  # stopped while this one was being started, before it could be found
            _end(process)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except BaseException as error:
            _end(process)
            if isinstance(error, subprocess.TimeoutExpired):
                raise SchedulerSilent(f"{name} did not answer within {timeout_s:g} s") from error
            raise
        finally:
            _asked.discard(process)
    if process.returncode:
        said = " ".join((err.strip() or out.strip()).split()) or "without a word"
        raise SchedulerSilent(f"{name} failed with code {process.returncode}: {said}")
    return out


def stop_asking() -> None:
    """End what other threads ask: who waited for them was interrupted."""
    _stops[0] += 1  # first: a command that is just being started sees it, or is found below
    for process in tuple(_asked):
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):  # a wrapper's children, too
            os.killpg(process.pid, signal.SIGKILL)


def queue(timeout_s: float = ASK_S, users: Iterable[int] = ()) -> list[QueuedTask]:
    """All jobs of this user, and of others by number, that are waiting or running, array tasks one by one.

    Raises `SchedulerSilent`.
    """
    form = "%A|%F|%K|%T|%r|%N|%k"
    names = ",".join(str(user) for user in dict.fromkeys([os.getuid(), *users]))
    tasks = []
    for line in ask(
        ["squeue", "--noheader", "--array", f"--user={names}", f"--format={form}"], timeout_s
    ).splitlines():
        fields = line.strip().split("|", 6)
        if len(fields) < 7:
            continue
        own, array, index, state, reason, nodes, comment = fields
        in_array = index.isdigit()
        tasks.append(
            QueuedTask(
                job=array if in_array else own,
                task=int(index) if in_array else None,
                state=state,
                reason=reason,
                nodes="" if nodes == "(null)" else nodes,
                comment="" if comment == "(null)" else comment,
            )
        )
    return tasks


def past(jobs: Iterable[str], since: str, timeout_s: float = ASK_S) -> dict[tuple[str, int | None], PastTask]:
    """What accounting knows of jobs since a time (`YYYY-MM-DDTHH:MM:SS`), by (job, task).

    Raises `SchedulerSilent`, for instance where there is no accounting.
    """
    columns = "JobID,State,ExitCode,NodeList,ElapsedRaw"
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates"]
    command += [f"--jobs={','.join(jobs)}", f"--starttime={since}", f"--format={columns}"]
    found: dict[tuple[str, int | None], PastTask] = {}
    for line in ask(command, timeout_s).splitlines():
        fields = line.split("|")
        match = re.fullmatch(r"(\d+)(?:_(\d+))?", fields[0])
        if match is None or len(fields) < 5:
            continue  # tasks that wait come as a range, `7_[3-9%2]`: squeue tells of them one by one
        key = (match[1], None if match[2] is None else int(match[2]))
        before = found.get(key)
        found[key] = PastTask(
            job=key[0],
            task=key[1],
            state=fields[1],
            exit_code=fields[2],
            nodes="" if fields[3] == "None assigned" else fields[3],
            elapsed_s=int(fields[4]) if fields[4].isdigit() else None,
            starts=1 + (before.starts if before is not None else 0),
        )
    return found


def configuration(timeout_s: float = ASK_S) -> dict[str, str]:
    """What `scontrol show config` says, name -> value. Raises `SchedulerSilent`."""
    lines = ask(["scontrol", "show", "config"], timeout_s).splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}
