"""`metrics.jsonl`: append-only, one JSON object a line; the later attempt wins."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class Metrics:
    """Writer of one attempt, a context manager. Lines are flushed as they are written."""

    def __init__(self, path: Path, attempt: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
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
        try:
            row = json.loads(text)
        except json.JSONDecodeError:
            continue  # cut by a kill; the attempt after it logged the step again
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            kept = rows.get(row["step"])
            if kept is None or row.get("attempt", 0) >= kept.get("attempt", 0):
                rows[row["step"]] = row
    return [rows[step] for step in sorted(rows)]
