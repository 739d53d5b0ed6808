"""Gathered tables of large plans, kept in `<store>/cache/gather/` until a file behind them changes.

One file a plan, in numpy's own format without pickle: numbers as they are, each text column as whole
numbers into the list of its values; what all scores of a cell or teacher have in common only once. Deleting
it costs nothing but time. It counts only if this code wrote it, for this path of the store, and the plan and
every file and folder that was looked at still has the same stamp; one that is torn, foreign or of another
version is made anew.
"""

from __future__ import annotations

import hashlib
import io
import time
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd

from analysis.gather_rows import frame
from analysis.run_files import Stamp, stamps_of
from salt.disk import DiskFailed
from salt.store import write_atomically

#: Raised by hand when the table changes in a way that the source below does not show.
FORMAT = 1
#: Runs from which on a table is kept: below, reading anew takes no longer than people notice.
KEPT_FROM_RUNS = 1000
#: A file that was changed this shortly before it was read may change again in the same tick of its disk.
_TICK_NS = 50_000_000
_FOLDER = Path(__file__).parent
_ARRAYS = ("line_of", "codes", "numbers", "common_codes", "common_numbers")
#: What reading raises where a file is not there, torn, or of another kind.
_NOT_OURS = (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile, msgspec.DecodeError)


class _Head(msgspec.Struct):
    format: int
    code_sha256: str
    store: str
    plan: str
    plan_stamp: Stamp
    paths: list[str]
    names: list[str]  # of all columns, in order
    texts: dict[str, list[str]]  # column -> its values
    common: list[str]  # columns that hold one value for each cell or teacher
    notes: list[str]


def cache_path(store: Path, plan_name: str) -> Path:
    """Where the table of a plan is kept."""
    return store / "cache" / "gather" / f"{hashlib.sha256(plan_name.encode()).hexdigest()[:16]}.npz"


def load(store: Path, plan_name: str, plan_stamp: Stamp) -> pd.DataFrame | None:
    """The kept table of a plan, or None if there is none that still counts."""
    try:
        path = cache_path(store, plan_name)
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            head = msgspec.json.decode(file["head"].tobytes(), type=_Head)
            same = (head.format, head.code_sha256, head.store, head.plan, head.plan_stamp)
            if same != (FORMAT, _code_sha256(), str(store), plan_name, plan_stamp):
                return None
            if not np.array_equal(_array(stamps_of(store, head.paths)), file["stamps"]):
                return None
            return _table(head, {name: file[name] for name in _ARRAYS})
    except _NOT_OURS:
        return None  # not there, torn, or not ours: it is made anew


def save(
    store: Path, plan_name: str, plan_stamp: Stamp, stamps: dict[str, Stamp], table: pd.DataFrame
) -> None:
    """Keep a table. Where the disk refuses, the table gets a note: the next call only takes longer."""
    newest = max([plan_stamp[0], *(each[0] for each in stamps.values())], default=0)
    runs = table["run_id"].nunique()
    if runs < KEPT_FROM_RUNS or newest > time.time_ns() - _TICK_NS:
        return
    texts: dict[str, list[str]] = {}
    common: list[str] = []
    arrays: dict[str, list[np.ndarray[Any, Any]]] = {name: [] for name in _ARRAYS[1:]}
    first = _first_rows(table)
    line_of = np.cumsum(np.isin(np.arange(len(table)), first)) - 1
    for name in table.columns:
        values = table[name].to_numpy()
        kind = "codes" if values.dtype == object else "numbers"
        bits = values if kind == "codes" else values.view(np.int64)  # NaN is no number, but the same bits
        is_common = bool((bits == bits[first][line_of]).all())
        if is_common:
            values = values[first]
            common.append(name)
        if kind == "codes":
            values, known = pd.factorize(values, use_na_sentinel=True)
            texts[name] = [str(value) for value in known]
            values = values.astype(np.int32)
        arrays[f"common_{kind}" if is_common else kind].append(values)
    head = _Head(
        format=FORMAT,
        code_sha256=_code_sha256(),
        store=str(store),
        plan=plan_name,
        plan_stamp=plan_stamp,
        paths=list(stamps),
        names=[str(name) for name in table.columns],
        texts=texts,
        common=common,
        notes=list(table.attrs.get("notes", [])),
    )
    buffer = io.BytesIO()
    parts: dict[str, Any] = {
        "head": np.frombuffer(msgspec.json.encode(head), dtype=np.uint8),
        "stamps": _array(stamps.values()),
        "line_of": line_of.astype(np.int32),
    } | {name: np.array(columns) for name, columns in arrays.items()}
    np.savez(buffer, **parts)
    try:
        write_atomically(cache_path(store, plan_name), buffer.getvalue())
    except (DiskFailed, OSError) as problem:
        notes = [*table.attrs.get("notes", []), f"the gathered table could not be kept: {problem}"]
        table.attrs["notes"] = notes


def _first_rows(table: pd.DataFrame) -> np.ndarray[Any, Any]:
    """Places of the first row of each cell or teacher, whose rows follow each other."""
    starts = np.zeros(len(table), dtype=bool)
    starts[:1] = True
    for name in ("role", "cell_id", "run_id"):
        values = table[name].to_numpy()
        starts[1:] |= values[1:] != values[:-1]
    return np.flatnonzero(starts)


def _table(head: _Head, arrays: dict[str, np.ndarray[Any, Any]]) -> pd.DataFrame:
    texts, numbers = {}, {}
    line_of, next_of = arrays["line_of"], {name: iter(arrays[name]) for name in _ARRAYS[1:]}
    for name in head.names:
        is_common = name in head.common
        kind = "codes" if name in head.texts else "numbers"
        values = next(next_of[f"common_{kind}" if is_common else kind])
        if kind == "numbers":
            numbers[name] = values[line_of] if is_common else values
            continue
        known = np.array([*head.texts[name], None], dtype=object)[values]  # -1, what is missing, is the last
        texts[name] = known[line_of] if is_common else known
    table = frame(texts, numbers)
    if list(table.columns) != head.names:
        table = table[head.names]
    if head.notes:
        table.attrs["notes"] = head.notes
    return table


def _array(stamps: Any) -> np.ndarray[Any, Any]:
    return np.array(list(stamps), dtype=np.int64).reshape(-1, 3)


def _code_sha256() -> str:
    """Hash of what makes the table from a store: our modules that take part in it."""
    hashed = hashlib.sha256(str(FORMAT).encode())
    for name in ("configs", "gather", "gather_cache", "gather_rows", "lineage", "run_files", "table_columns"):
        hashed.update((_FOLDER / f"{name}.py").read_bytes())
    for name in ("flops", "flops_paper", "plans", "plan_specs", "result_specs", "sizes", "specs"):
        hashed.update((_FOLDER.parent / "salt" / f"{name}.py").read_bytes())
    return hashed.hexdigest()
