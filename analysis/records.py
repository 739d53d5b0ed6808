"""Tables as plain data: strict JSON and CSV, where what is missing is null or empty, never NaN or 0."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from salt.store import write_atomically

#: Columns that count something: written as whole numbers.
COUNTS = frozenset(
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
        "teacher_students",
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


def stacked(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Tables one below the other; an empty one where there is none."""
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries of plain values."""
    names = [str(name) for name in table.columns]
    rows = []
    for values in table.itertuples(index=False, name=None):
        row = {name: plain(value) for name, value in zip(names, values, strict=True)}
        for name in COUNTS & row.keys():
            row[name] = _count(row[name])
        rows.append(row)
    return rows


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    """Write a table with a header; lists (run ids) are joined by blanks, missing values are empty."""
    write_atomically(path, csv_text(table).encode())
    return path


def csv_text(table: pd.DataFrame) -> str:
    """The text of that file."""
    columns = {str(name): _csv_column(str(name), table[name]) for name in table.columns}
    text: str = pd.DataFrame(columns, index=table.index).to_csv(index=False, lineterminator="\n")
    return text


def _csv_column(name: str, column: pd.Series) -> pd.Series:
    """Values as a CSV file is to show them. Columns of text or floats are done as a whole: there can be many
    rows.
    """
    if column.dtype == object and pd.api.types.infer_dtype(column, skipna=True) in ("string", "empty"):
        return column
    if column.dtype == "float64":
        finite = column.where(np.isfinite(column))
        whole = name in COUNTS and bool((finite.isna() | finite.map(is_whole)).all())
        return finite.astype("Int64") if whole else finite
    values = [_count(plain(value)) if name in COUNTS else plain(value) for value in column]
    joined = [" ".join(map(str, value)) if isinstance(value, list) else value for value in values]
    return pd.Series(joined, index=column.index, dtype=object)


def is_whole(value: float) -> bool:
    """Below 2^53 a float is the whole number that it looks like."""
    return value.is_integer() and abs(value) < 2**53


def _count(value: Any) -> Any:
    """A whole number where it is one: sizes of other projects may be estimates, with a fraction."""
    return int(value) if isinstance(value, float) and is_whole(value) else value
