"""Requests to stop: a signal sets a flag, and every loop that takes long looks at it.

Nothing is done inside a handler: it may come in the middle of a save, of an import or of a collective. What
was saved before is what a kill leaves; a request to stop only lets the run save once more and give its claim
back.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from salt.errors import ClaimLost, Interrupted, UserError

#: Signals by which people and schedulers ask a job to stop.
ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
#: Seconds between such a request and SIGKILL. Slurm waits `KillWait` seconds, 30 unless set otherwise
#: (slurm.conf's manual); a job that is warned earlier (`--signal`) has more.
GRACE_VARIABLE = "SALT_GRACE_S"
DEFAULT_GRACE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Request:
    """The first request: which signal, and when by `time.time` and `time.monotonic`."""

    signal_name: str
    unix_s: float
    monotonic_s: float


class Stop:
    """Whether this process was asked to stop. Looking costs nothing: no lock, no system call."""

    def __init__(self) -> None:
        self.request: Request | None = None
        #: Set while this process works on a run whose claim another one has taken (`salt.claim`).
        self.lost = False
        #: Set by whoever decided that the run in hand is not worth going on with (pruning): it saves and
        #: stops as after a request, and whoever set it takes it back.
        self.enough = False

    @property
    def requested(self) -> bool:
        return self.request is not None or self.lost or self.enough

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Note a request, as the handler of its signal; the second and later ones change nothing."""
        if self.request is None:
            name = signal.Signals(number).name
            self.request = Request(signal_name=name, unix_s=time.time(), monotonic_s=time.monotonic())

    def check(self) -> None:
        """For loops with nothing of their own to save. Raises `Interrupted` if the process is to stop."""
        self.refuse_lost()
        if self.request is not None:
            raise Interrupted(step=None, saved=False)

    def refuse_lost(self) -> None:
        """Raises `ClaimLost` if the run in hand is another process's by now."""
        if self.lost:
            raise ClaimLost

    def left_s(self) -> float:
        """Seconds of grace that are left, never below 0; all of them before a request."""
        since_s = 0.0 if self.request is None else time.monotonic() - self.request.monotonic_s
        return max(0.0, grace_s() - since_s)

    def clear(self) -> None:
        self.request = None


#: The one of this process; `train` looks at `STOP.requested` once a step.
STOP = Stop()


def install() -> Stop:
    """Let all of `ASKING` set the flag from now on, once in the main thread of a process; the flag.

    Raises `UserError` for a grace time that is none, now and not at the stop.
    """
    grace_s()
    for number in ASKING:
        signal.signal(number, STOP.ask)
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, ASKING
    )  # one that came since the start (`held_back`) is heard now
    return STOP


@contextmanager
def heeding() -> Iterator[Stop]:
    """`install`, undone afterwards; a flag set inside is forgotten unless someone around heeds it too.

    In a thread other than the main one, which alone may have handlers, nothing is installed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield STOP
        return
    before = {number: signal.getsignal(number) for number in ASKING}
    install()
    try:
        yield STOP
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if before[signal.SIGTERM] != STOP.ask:
            STOP.clear()


@contextmanager
def held_back() -> Iterator[None]:
    """`ASKING` waits: here until the end, in processes started inside until they `install` their handlers."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def shielded() -> Iterator[None]:
    """Processes started inside never see `ASKING`; those that come meanwhile reach this one, afterwards at
    the latest.

    Schedulers signal every process of a job, decoders included, from their first moment. Only this thread
    holds them back: a signal to the whole process is heard at once where another thread (of torch, say)
    takes it, which sets the same flag a little earlier.
    """
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # first: it unblocks what it has blocked itself
    with held_back():
        yield


def grace_s() -> float:
    """`$SALT_GRACE_S`, else `DEFAULT_GRACE_S`. Raises `UserError` for what is no positive number."""
    text = os.environ.get(GRACE_VARIABLE)
    if text is None:
        return DEFAULT_GRACE_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 < seconds < float("inf"):
        raise UserError(
            f"{GRACE_VARIABLE}={text!r}: give the seconds between a signal and the kill, such as 120, "
            "or unset it"
        )
    return seconds


def grace_warning(save_s: float, steps_between: int) -> str | None:
    """What to say once a save has been measured: None if it takes at most half of the grace time.

    Args:
        save_s: seconds that a save took. steps_between: steps between periodic checkpoints.
    """
    grace = grace_s()
    if save_s <= grace / 2:
        return None
    return (
        f"a save takes {save_s:.1f} s and a stop gives {grace:g} s ({GRACE_VARIABLE}): a stop may lose up to "
        f"{steps_between} steps; warn the job earlier and set {GRACE_VARIABLE}, or lower "
        "execution: checkpoint_every_steps"
    )
