"""One process per run: a claim file whose modification time is the heartbeat.

The file is made with O_EXCL, so that of several processes exactly one gets it. A claim whose holder is dead
is broken by a rename under a lock, again by exactly one. "Dead" means: on the machine that asks, no process
of that number that began at that time; on any other machine, no heartbeat for `STALE_AFTER_S`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from salt.disk import writing
from salt.processes import lives, machine, start_of
from salt.signals import STOP
from salt.specs import Spec
from salt.store import RunDir

#: Heartbeats are this far apart, and a claim of another machine is dead after `STALE_AFTER_S`.
HEARTBEAT_S = 10.0
STALE_AFTER_S = 120.0
#: A claim is written right after it is made: an empty one this old was left by a kill in between.
EMPTY_AFTER_S = 5.0

log = logging.getLogger(__name__)


class Holder(Spec, kw_only=True):
    """Who holds a claim. `machine` tells boots and process namespaces of a host apart."""

    host: str
    machine: str
    pid: int
    started: str | None  # start of the process in clock ticks since boot, where the system tells it
    token: str
    claimed_unix_s: float

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


class ClaimHeld(RuntimeError):
    """Another process has the run."""

    def __init__(self, run_id: str, holder: Holder | None, age_s: float) -> None:
        who = str(holder) if holder is not None else "a process that has not yet written its name"
        super().__init__(f"run {run_id} is held by {who} (heartbeat {age_s:.0f} s ago)")
        self.holder = holder
        self.age_s = age_s


class Claim:
    """The right to work in one run's folder, kept alive by a thread until it is released.

    Use as a context manager, or call `release`. `lost` is set when the claim was taken away, which happens
    only to a process that stood still for longer than `STALE_AFTER_S`; until the release `STOP` then says
    that the run is another's.
    """

    def __init__(self, run: RunDir, holder: Holder, heartbeat_s: float) -> None:
        self.run = run
        self.holder = holder
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._beat, args=(heartbeat_s,), name="claim-heartbeat", daemon=True
        )
        self._thread.start()

    @classmethod
    def acquire(cls, run: RunDir, heartbeat_s: float = HEARTBEAT_S) -> Claim:
        """Claim a run, breaking a dead holder's claim.

        Raises:
            ClaimHeld: a living process has it; the message names the holder.
            DiskFailed: the claim cannot be written.
        """
        holder = _me()
        with writing(run.claim):
            run.path.mkdir(parents=True, exist_ok=True)
            if not _create(run.claim, holder):
                _take_over(run, holder)
        return cls(run, holder, heartbeat_s)

    def release(self) -> None:
        """Give the run back. A claim that was taken away meanwhile is left to its new holder."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        if self.lost.is_set():
            STOP.lost = False
        try:
            with _breaking(self.run):
                if _is_mine(self.run.claim, self.holder):
                    self.run.claim.unlink()
        except OSError as error:  # a store that is gone or read-only: what stopped the run says more
            log.warning(
                "the claim on run %s could not be given back (%s): another process can take it when this one "
                "has ended, from other machines after %g s", self.run.run_id, error, STALE_AFTER_S,
            )  # fmt: skip

    def _beat(self, heartbeat_s: float) -> None:
        while not self._stop.wait(heartbeat_s):
            try:
                if not _is_mine(self.run.claim, self.holder):
                    self.lost.set()
                    STOP.lost = True
                    return
                os.utime(self.run.claim)
            except FileNotFoundError:
                continue  # taken away just now: the next beat notices
            except OSError as error:  # a file system that stutters: the next beat may get through
                log.warning("no heartbeat for the claim on run %s: %s", self.run.run_id, error)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class ClaimState(Spec, kw_only=True):
    """What a claim file says, for status displays."""

    holder: Holder | None
    age_s: float
    stale: bool


def read_claim(run: RunDir, now_unix_s: float | None = None) -> ClaimState | None:
    """The state of a run's claim; None when there is none. Changes nothing."""
    try:
        data = run.claim.read_bytes()
        modified = run.claim.stat().st_mtime
    except FileNotFoundError:
        return None
    age_s = max(0.0, (time.time() if now_unix_s is None else now_unix_s) - modified)
    holder = _decode(data)
    return ClaimState(holder=holder, age_s=age_s, stale=_is_stale(holder, age_s))


def _decode(data: bytes) -> Holder | None:
    try:
        return msgspec.json.decode(data, type=Holder)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # empty or cut: made, but its holder was stopped before the name was written


def _is_stale(holder: Holder | None, age_s: float) -> bool:
    if holder is None:
        return age_s > EMPTY_AFTER_S
    if holder.machine == machine():
        return not lives(holder.pid, holder.started)
    return age_s > STALE_AFTER_S


def _is_mine(path: Path, me: Holder) -> bool:
    try:
        holder = _decode(path.read_bytes())
    except FileNotFoundError:
        return False
    return holder is not None and holder.token == me.token


def _create(path: Path, holder: Holder) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(handle, msgspec.json.encode(holder))
        os.fsync(handle)
    except OSError:  # a full disk: a claim without a name would keep others away for a while
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    # A process that stood still before the write may have been taken for dead and its file replaced.
    return _is_mine(path, holder)


def _take_over(run: RunDir, me: Holder) -> None:
    """Replace a dead holder's claim, or raise `ClaimHeld`."""
    beside = run.path / f".claim.{me.token}.tmp"
    with _breaking(run):
        beside.write_bytes(msgspec.json.encode(me))
        try:
            # The age by the file system's own clock: machines may disagree about the time.
            state = read_claim(run, beside.stat().st_mtime)
            if state is None:  # released meanwhile: as free as any other
                if not _create(run.claim, me):
                    raise ClaimHeld(run.run_id, None, 0.0)
            elif state.stale:
                os.replace(beside, run.claim)
            else:
                _bring_back(run.claim, beside.stat().st_mtime)
                raise ClaimHeld(run.run_id, state.holder, state.age_s)
        finally:
            beside.unlink(missing_ok=True)


def _bring_back(claim: Path, now_unix_s: float) -> None:
    """A heartbeat of the future, from before a clock was set back, counts from now on: else a dead holder on
    another machine would stay alive until that time comes. A living one overwrites it with its next beat.
    """
    if claim.stat().st_mtime > now_unix_s + HEARTBEAT_S:
        os.utime(claim, (now_unix_s, now_unix_s))


@contextlib.contextmanager
def _breaking(run: RunDir) -> Iterator[None]:
    """One process at a time decides whether a claim goes; the kernel frees the lock of a killed one."""
    handle = os.open(run.path / "claim.lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        for left in run.path.glob(".claim.*.tmp"):  # of processes that were killed with the lock
            left.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def _me() -> Holder:
    pid = os.getpid()
    return Holder(
        host=socket.gethostname(),
        machine=machine(),
        pid=pid,
        started=start_of(pid),
        token=uuid.uuid4().hex,
        claimed_unix_s=time.time(),
    )
