"""`metrics.jsonl`: append-only, one JSON object a line; the later attempt wins."""

from __future__ import annotations

import errno
import json
import math
import os
from typing import TYPE_CHECKING, Any

from salt.disk import DiskFailed, writing

if TYPE_CHECKING:
    from pathlib import Path

#: Enough of the end of the file to hold its last whole line.
TAIL_BYTES = 65536


class Metrics:
    """Writer of one attempt, a context manager. Each line is one `write` at the end of the file.

    Raises `DiskFailed` where that cannot be done, also when the file was removed: it is part of the run.
    """

    def __init__(self, path: Path, attempt: int) -> None:
        self.path, self.attempt = path, attempt
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            torn = _tail(path, 1) not in (b"", b"\n")
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            if torn:  # a kill cut the last line: end it, so that ours starts on its own
                self._append(b"\n")

    def write(self, step: int, **values: float | int | str | None) -> None:
        """One line; a number that is not finite is written as null, beside its name in `non_finite`."""
        bad = [
            name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)
        ]
        clean = {name: None if name in bad else value for name, value in values.items()}
        line: dict[str, Any] = {"step": step, "attempt": self.attempt, **clean}
        if bad:
            line["non_finite"] = bad
        with writing(self.path):
            self._append((json.dumps(line, allow_nan=False) + "\n").encode())
            if os.fstat(self._file).st_nlink == 0:
                raise DiskFailed(
                    f"{self.path} was removed while the run wrote to it", errno.ENOENT, self.path
                )

    def _append(self, data: bytes) -> None:
        while data:  # a disk takes less than all of a line only when it is about to say why
            data = data[os.write(self._file, data) :]

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file >= 0:
            handle, self._file = self._file, -1
            with writing(self.path):  # network disks say here what they could not write
                os.close(handle)


def flush_to_disk(path: Path) -> None:
    """Have the lines so far on the disk: a checkpoint must not outlive the lines before it."""
    with writing(path):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines by step, ascending, the latest attempt of each; torn lines are left out, wherever they are."""
    if not path.exists():
        return []
    rows: dict[int, dict[str, Any]] = {}
    with open(path, "rb") as file:
        for text in file:
            row = _row(text)
            if row is not None:
                kept = rows.get(row["step"])
                if kept is None or _attempt(row) >= _attempt(kept):
                    rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def last_row(path: Path) -> dict[str, Any] | None:
    """The whole line that was written last, whatever its step; None where there is none."""
    for text in reversed(_tail(path, TAIL_BYTES).split(b"\n")):
        row = _row(text)
        if row is not None:
            return row
    return None


def _row(text: bytes) -> dict[str, Any] | None:
    """A line's values; None for one that a kill cut: the attempt after it logged the step again."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):  # cut, glued to another, or not text at all
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _attempt(row: dict[str, Any]) -> int:
    number = row.get("attempt")
    return number if isinstance(number, int) else 0


def _tail(path: Path, count: int) -> bytes:
    """The last `count` bytes of a file, fewer if it is shorter, none if it is not there."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - count))
            return file.read()
    except FileNotFoundError:
        return b""
