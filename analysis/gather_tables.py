"""The gathered table for people and other programs: how much is there, and Parquet."""

from __future__ import annotations

import io
from pathlib import Path

import pandas as pd

from analysis.foreign_file import require_pyarrow
from analysis.pareto import arm_order
from analysis.records import COUNTS, is_whole
from analysis.tables import MISSING, Table
from salt.store import write_atomically


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """One row per (role, arm, state): `runs` and `rows`. Rows of one run can be in several states."""
    groups = table.groupby(["role", "arm", "state"], sort=True, dropna=False)
    found = groups["run_id"].agg(runs="nunique", rows="size").reset_index()
    place = {arm: number for number, arm in enumerate(arm_order(found["arm"]))}
    order = found.assign(place=found["arm"].map(place)).sort_values(["role", "place", "state"], kind="stable")
    return order.drop(columns="place").reset_index(drop=True)


def counts_table(found: pd.DataFrame) -> Table:
    """`counts` as people read them."""
    lines = [
        (
            str(row.role),
            str(row.arm),
            str(row.state) if row.state else MISSING,
            f"{row.runs:,}",
            f"{row.rows:,}",
        )
        for row in found.itertuples()
    ]
    return Table("What the table holds.", ("role", "arm", "state", "runs", "rows"), lines)


def write_parquet(table: pd.DataFrame, path: Path) -> Path:
    """Write a table whose missing values are null: text, whole numbers for counts, else float64."""
    parquet = require_pyarrow("writing Parquet")
    import pyarrow as arrow

    arrays = []
    for name in table.columns:
        column = table[name]
        if not pd.api.types.is_numeric_dtype(column):
            arrays.append(arrow.array(column, type=arrow.string(), from_pandas=True))
        elif name in COUNTS and bool((column.isna() | column.map(is_whole)).all()):
            arrays.append(arrow.array(column.astype("Int64"), type=arrow.int64(), from_pandas=True))
        else:
            arrays.append(arrow.array(column, type=arrow.float64(), from_pandas=True))
    buffer = io.BytesIO()
    parquet.write_table(arrow.table(arrays, names=[str(name) for name in table.columns]), buffer)
    write_atomically(path, buffer.getvalue())
    return path
