"""Processes of one cluster: started, recorded, and ended only if they are still its own.

Each daemon carries the cluster's folder in a variable of its environment, and what it starts inherits that. A
recorded process id is trusted only while its process carries it, since the system uses ids again.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from tests.slurm.waiting import wait_for

MARK = "SALT_TEST_CLUSTER"
STOP_LIMIT_S = 10.0


class Daemons:
    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.folder = folder
        self.plain = dict(environment)  # of commands, and so of jobs
        self.environment = self.plain | {MARK: str(folder)}
        self._children: dict[str, subprocess.Popen[bytes]] = {}  # to be waited for when they have ended

    def start(self, name: str, command: Sequence[str], **more: str) -> None:
        """Start a daemon in the background, with `more` in its environment; nothing if it is alive."""
        if self.find(name) is not None:
            return
        with open(self.folder / "log" / f"{name}.out", "ab") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=self.environment | more,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for the tests; what becomes of these is decided after
            )
        self._children[name] = process
        (self.folder / "run" / f"{name}.pid").write_text(str(process.pid))

    def find(self, name: str) -> psutil.Process | None:
        """The daemon's process, if it is alive."""
        try:
            process = psutil.Process(int((self.folder / "run" / f"{name}.pid").read_text()))
        except (FileNotFoundError, ValueError, psutil.NoSuchProcess):
            return None
        return process if self._is_own(process) else None

    def stop(self, *names: str) -> None:
        """End daemons as a shutdown does: SIGTERM, and SIGKILL to those that are there after 10 s."""
        found = [process for process in map(self.find, names) if process is not None]
        end(found, kill=False)
        self._forget(names)

    def kill(self, *names: str) -> None:
        """End daemons at once, as a crash does."""
        end([process for process in map(self.find, names) if process is not None], kill=True)
        self._forget(names)

    def all(self) -> list[psutil.Process]:
        """All that carries the mark: daemons, their helpers, and the parents of jobs."""
        return [process for process in psutil.process_iter() if self._is_own(process)]

    def jobs(self, node: str | None = None) -> list[psutil.Process]:
        """All processes of this cluster's jobs, or of those on one node."""
        found = []
        for process in psutil.process_iter():
            variables = environment_of(process)
            of_cluster = variables.get("SLURM_CONF") == self.environment["SLURM_CONF"]
            if (
                of_cluster
                and "SLURM_JOB_ID" in variables
                and node in (None, variables.get("SLURMD_NODENAME"))
            ):
                found.append(process)
        return found

    def _is_own(self, process: psutil.Process) -> bool:
        return environment_of(process).get(MARK) == str(self.folder)

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            child = self._children.pop(name, None)
            if child is not None:
                child.wait(timeout=STOP_LIMIT_S)
            (self.folder / "run" / f"{name}.pid").unlink(missing_ok=True)

    def forget_all(self) -> None:
        self._forget(list(self._children))


def environment_of(process: psutil.Process) -> dict[str, str]:
    """What a process was started with; empty if it has ended, or is the kernel's."""
    try:
        # Not psutil's reading: it stops where a daemon has written its title over the first variables.
        block = Path(f"/proc/{process.pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return {}
    pairs = (variable.partition("=") for variable in block.split("\0") if "=" in variable)
    return {name: value for name, _, value in pairs}


def with_children(processes: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Processes and all below them: a job may have cleared the environment of what it started."""
    found = dict.fromkeys(processes)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found |= dict.fromkeys(process.children(recursive=True))
    return list(found)


def parents_of(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.parents())
    except psutil.NoSuchProcess:
        return []


def end(processes: Sequence[psutil.Process], kill: bool) -> None:
    """End processes and wait until they have ended; `kill`: without asking first."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill() if kill else process.terminate()
    if not kill and not _gone(processes, STOP_LIMIT_S):
        end([process for process in processes if environment_of(process)], kill=True)
    elif kill and not _gone(processes, STOP_LIMIT_S):
        raise RuntimeError(f"still there after SIGKILL: {[process.pid for process in processes]}")


def _gone(processes: Sequence[psutil.Process], limit_s: float) -> bool:
    # One that has ended has no environment any more, also while nobody has waited for it.
    with contextlib.suppress(AssertionError):
        wait_for(lambda: not any(map(environment_of, processes)), limit_s)
        return True
    return False
