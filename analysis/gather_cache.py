"""Gathered tables of large plans, kept in `<store>/cache/gather/` until a file behind them changes.

One file a plan, in numpy's own format without pickle: numbers as they are, each text column as whole
numbers into the list of its values. Deleting it costs nothing but time. It counts only if this code wrote
it, for this path of the store, and the plan and every file and folder that was looked at still has the same
stamp; one that is torn, foreign or of another version is made anew.
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
    texts: dict[str, list[str | None]]  # column -> its values
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
            return _table(head, file["codes"], file["numbers"])
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
    texts: dict[str, list[str | None]] = {}
    codes, numbers = [], []
    for name in table.columns:
        if table[name].dtype == object:
            code, values = pd.factorize(table[name].to_numpy(), use_na_sentinel=True)
            texts[name] = [str(value) for value in values]
            codes.append(code.astype(np.int32))
        else:
            numbers.append(table[name].to_numpy(dtype=np.float64))
    head = _Head(
        format=FORMAT,
        code_sha256=_code_sha256(),
        store=str(store),
        plan=plan_name,
        plan_stamp=plan_stamp,
        paths=list(stamps),
        names=[str(name) for name in table.columns],
        texts=texts,
        notes=list(table.attrs.get("notes", [])),
    )
    buffer = io.BytesIO()
    np.savez(
        buffer,
        head=np.frombuffer(msgspec.json.encode(head), dtype=np.uint8),
        stamps=_array(stamps.values()),
        codes=np.array(codes),
        numbers=np.array(numbers),
    )
    try:
        write_atomically(cache_path(store, plan_name), buffer.getvalue())
    except (DiskFailed, OSError) as problem:
        notes = [*table.attrs.get("notes", []), f"the gathered table could not be kept: {problem}"]
        table.attrs["notes"] = notes


def _table(head: _Head, codes: np.ndarray[Any, Any], numbers: np.ndarray[Any, Any]) -> pd.DataFrame:
    # -1, what is missing, takes the last value.
    texts = {
        name: np.array([*values, None], dtype=object)[code]
        for (name, values), code in zip(head.texts.items(), codes, strict=True)
    }
    names = [name for name in head.names if name not in head.texts]
    table = frame(texts, dict(zip(names, numbers, strict=True)))
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
