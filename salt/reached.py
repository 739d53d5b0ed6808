"""`reached.json`: how far a run is, after every step; it outlives a kill, and tells what that undid."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

import msgspec

from salt.disk import writing
from salt.specs import Spec
from salt.store import write_atomically

#: The file is rewritten in place and never changes its size, so that it needs no room that is not there.
SIZE_BYTES = 512


class Reached(Spec, kw_only=True):
    """Where an attempt is. Seconds are those of training behind `step`, over all attempts.

    `saved_step` is the step of the run's newest checkpoint, None before the first. `burnt_*` is what attempts
    before this one did and was done again; None where it is not known.
    """

    attempt: int
    step: int
    wall_s: float
    saved_step: int | None
    burnt_steps: int | None
    burnt_wall_s: float | None


class ReachedFile:
    """The writer of one attempt, a context manager; None as path writes nowhere.

    A write goes to memory that the system keeps when the process is killed: after a crash of the whole
    machine the file may be some seconds behind, and what was burnt is counted that much too low.
    """

    def __init__(self, path: Path | None, first: Reached) -> None:
        self.path, self.now, self._file = path, first, -1
        if path is not None:
            write_atomically(path, _text(first))
            with writing(path):
                self._file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def note(self, step: int, wall_s: float, saved_step: int | None) -> None:
        """After each step, and after each save."""
        if self.path is not None:
            self.now = msgspec.structs.replace(
                self.now, step=step, wall_s=round(wall_s, 3), saved_step=saved_step
            )
            with writing(self.path):
                os.pwrite(self._file, _text(self.now), 0)

    def __enter__(self) -> ReachedFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file >= 0:
            handle, self._file = self._file, -1
            os.close(handle)


def read_reached(path: Path) -> Reached | None:
    """None for a file that is absent or not whole: then nobody knows."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Reached)
    except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _text(reached: Reached) -> bytes:
    return msgspec.json.encode(reached).ljust(SIZE_BYTES - 1) + b"\n"
