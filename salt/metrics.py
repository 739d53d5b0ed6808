"""`metrics.jsonl`: append-only, one JSON object a line; the later attempt wins."""

from __future__ import annotations

import json
import math
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

#: Enough of the end of the file to hold its last whole line.
TAIL_BYTES = 65536


class Metrics:
    """Writer of one attempt, a context manager. Lines are flushed as they are written."""

    def __init__(self, path: Path, attempt: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = _tail(path, 1) not in (b"", b"\n")
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed on exit
        if torn:  # a kill cut the last line: end it, so that ours starts on its own
            self._file.write("\n")
        self.attempt = attempt

    def write(self, step: int, **values: float | int | str | None) -> None:
        """One line; a number that is not finite is written as null, beside its name in `non_finite`."""
        bad = [
            name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)
        ]
        clean = {name: None if name in bad else value for name, value in values.items()}
        line: dict[str, Any] = {"step": step, "attempt": self.attempt, **clean}
        if bad:
            line["non_finite"] = bad
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Lines by step, ascending, the latest attempt of each; a torn line is left out."""
    if not path.exists():
        return []
    rows: dict[int, dict[str, Any]] = {}
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        row = _row(text)
        if row is not None:
            kept = rows.get(row["step"])
            if kept is None or row.get("attempt", 0) >= kept.get("attempt", 0):
                rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]


def last_row(path: Path) -> dict[str, Any] | None:
    """The whole line that was written last, whatever its step; None where there is none."""
    for text in reversed(_tail(path, TAIL_BYTES).decode("utf-8", errors="replace").splitlines()):
        row = _row(text)
        if row is not None:
            return row
    return None


def _row(text: str) -> dict[str, Any] | None:
    """A line's values; None for one that a kill cut: the attempt after it logged the step again."""
    try:
        row = json.loads(text)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _tail(path: Path, count: int) -> bytes:
    """The last `count` bytes of a file, fewer if it is shorter, none if it is not there."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - count))
            return file.read()
    except FileNotFoundError:
        return b""
