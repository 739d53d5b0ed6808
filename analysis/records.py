"""Tables as plain data: strict JSON and CSV, where what is missing is null or empty, never NaN or 0."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from salt.store import write_atomically

#: Columns that count something: written as whole numbers.
_COUNTS = frozenset(
    [
        "n",
        "n_lost",
        "gain_n",
        "pixel_n",
        "over_pixel_n",
        "above",
        "family",
        "n_choices",
        "seed",
        "steps",
        "n_report",
        "n_train",
        "n_selection",
        "classes",
        "parameters",
        "clips_seen",
        "unique_clips",
    ]
)


def plain(value: Any) -> Any:
    """A JSON value: numpy and pandas scalars unwrapped; NaN and infinity become None."""
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries of plain values."""
    names = [str(name) for name in table.columns]
    rows = []
    for values in table.itertuples(index=False, name=None):
        row = {name: plain(value) for name, value in zip(names, values, strict=True)}
        for name in _COUNTS & row.keys():
            row[name] = None if row[name] is None else int(row[name])
        rows.append(row)
    return rows


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write a table with a header; lists (run ids) are joined by blanks, missing values are empty."""
    rows = records(table)
    for row in rows:
        for name, value in row.items():
            if isinstance(value, list):
                row[name] = " ".join(str(item) for item in value)
    text = pd.DataFrame(rows, columns=list(table.columns), dtype=object).to_csv(
        index=False, lineterminator="\n"
    )
    write_atomically(path, text.encode())
    return path
