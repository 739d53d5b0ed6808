"""Attempts: processes that work on a store and may be killed. They are forked from this one, which has
imported everything and computed nothing, so that hundreds of them cost no more than what they do.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Hook = Callable[[], None]

#: An attempt that takes longer is a hang.
LIMIT_S = 120.0


@dataclass(frozen=True)
class Ended:
    """How an attempt ended: its exit code, negative for a signal, and what it said."""

    pid: int
    code: int
    said: str
    hung: bool = False

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL and not self.hung


class Attempt:
    """A running process; `kill_after_s` is when it is killed with SIGKILL if it has not ended by then."""

    def __init__(
        self, work: Callable[[], int], *, hook: Hook | None = None, kill_after_s: float | None = None
    ) -> None:
        self._ends = None if kill_after_s is None else time.monotonic() + kill_after_s
        self._hangs = time.monotonic() + LIMIT_S
        reading, writing = os.pipe()
        # What it says stays in the pipe until it has ended; a pipe is no file that a limit could cut.
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 1 << 20)
        os.set_blocking(reading, False)
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reading)
            _become(writing, work, hook)
        os.close(writing)
        self._said = reading
        self._handle = os.pidfd_open(self.pid)

    def kill_after(self, seconds: float) -> None:
        """Kill it if it has not ended in so long from now; it is `wait` that does it."""
        self._ends = time.monotonic() + seconds

    def wait(self) -> Ended:
        """Wait until it ends, killing it when its time has come."""
        hung = False
        until = min(self._hangs, self._ends if self._ends is not None else self._hangs)
        if not select.select([self._handle], [], [], max(0.0, until - time.monotonic()))[0]:
            hung = until == self._hangs
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._handle)
        said = b""
        try:
            while piece := os.read(self._said, 1 << 20):
                said += piece
        except BlockingIOError:
            pass  # a process that it started has the pipe too
        os.close(self._said)
        code = os.waitstatus_to_exitcode(status)
        return Ended(self.pid, code, said.decode(errors="replace"), hung)


def _become(writing: int, work: Callable[[], int], hook: Hook | None) -> None:
    """In the new process: do the work, and end without what the parent has yet to do."""
    code = 1
    try:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDONLY)
        for target, source in ((0, nothing), (1, writing), (2, writing)):
            os.dup2(source, target)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
        if hook is not None:
            hook()
        code = work()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:  # noqa: BLE001 - a process ends here, whatever it met
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def worker(store: Path, plan: str) -> Callable[[], int]:
    """What a launcher starts: a worker of a plan, submitted now."""
    since_ns = submitted_ns(store)

    def work() -> int:
        from slurm.worker import main

        return main(["--store", str(store), "--plan", plan, "--retry", f'{{"since_ns": {since_ns}}}'])

    return work


def submitter(store: Path, plan: str, on: str, *options: str) -> Callable[[], int]:
    """`salt-sweep submit` by itself."""

    def work() -> int:
        import salt_cli

        return salt_cli.run("salt-sweep", ["submit", plan, "--on", on, *options, "--store", str(store)])

    return work


def submitted_ns(store: Path) -> int:
    """The time of a submission by the clock of the store's files."""
    stamp = store / "jobs" / "stamp"
    stamp.parent.mkdir(parents=True, exist_ok=True)
    stamp.touch()
    return stamp.stat().st_mtime_ns


def left_of(group: int, within_s: float = 20.0) -> list[int]:
    """Processes of an attempt's group that still run after so long; they are to end with it."""
    deadline = time.monotonic() + within_s
    while (members := _members(group)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return members


def workers_of(store: Path, within_s: float) -> list[int]:
    """Workers of submitters of a store that still run after so long."""
    deadline = time.monotonic() + within_s
    while True:
        found = []
        for place in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                words = place.read_bytes().split(b"\0")
                if b"slurm.worker" in words and os.fsencode(store) in words:
                    found.append(int(place.parent.name))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def _members(group: int) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = place.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended just now
        if int(fields[2]) == group and fields[0] not in "ZX":
            found.append(int(place.parent.name))
    return found
