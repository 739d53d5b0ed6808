"""Results of any other project or paper as a table like that of `analysis.gather`."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.foreign_columns import DERIVED, Source, sources
from analysis.foreign_file import RawTable, read_file
from analysis.table_columns import NUMBERS, SCORE_KEY, TEXT, typed
from salt.errors import UserError

#: The name for the published numbers of the SALT paper.
PUBLISHED = "salt2025"
#: Written by people where there is no value.
_MISSING = frozenset(["", "na", "n/a", "null", "none", "-", "–"])
_COLUMN_OF = {
    "compute": "total_flops",
    "size": "parameters",
    "data": "clips_seen",
    "loss": "final_loss",
    "metric": "accuracy",
    "seed": "seed",
    "budget": "budget_flops",
    "share": "teacher_share",
    "teacher_metric": "teacher_accuracy",
    "gpu_hours": "gpu_hours",
    "n_report": "n_report",
}
_TEXTS = {
    "arm": "imported",
    "label": "metric",
    "kind": "reported",
    "frames": "ordered",
    "student": None,
    "teacher": None,
}


def read_table(path: str, columns: str | None = None) -> pd.DataFrame:
    """The table of a CSV or Parquet file, or of `salt2025`, one row a line, with the columns of `gather`.

    `columns` says what the file's columns are called: `compute=C,size=N,data=D,loss=val_loss,metric=acc`,
    further `seed`, `arm`, `label`, `kind`, `frames`, `budget`, `student`, `teacher`, `teacher_metric`,
    `share`, `gpu_hours`, `n_report` and `config` (`config=lr+width`: what else tells experiments apart).
    `compute=flops*1e21` multiplies; `metric=acc%` divides by 100. What is not said is recognised by obvious
    names. Derived only when asked: `compute=6ND`, `data=C/6N`, `size=C/6D`, the usual estimate of dense
    transformers (arXiv 2001.08361, section 2.1).

    Units are those of the file: `total_flops` (compute), `parameters`, `clips_seen` (data: clips, tokens),
    `final_loss`, `accuracy` (a share between 0 and 1), `budget_flops` (the row's own compute without a
    budget column). `run_id` is `file:line`. `attrs["notes"]` holds sentences on all that was assumed or
    changed. Values that are not finite and missing ones stay as rows with state and reason.

    Rows that agree in everything are one row, the first (noted); rows of one configuration, seed and score
    with different values are refused. A file that `salt-analyze gather` wrote comes back as it was.

    Raises `UserError` with file, line, column, value and way out.
    """
    if path == PUBLISHED:
        return _published(columns)
    raw = read_file(path)
    if raw.columns.keys() >= set(TEXT):
        return _gathered(raw, columns)
    return _Reader(raw, columns).table()


def notes(table: pd.DataFrame) -> list[str]:
    """What `read_table` assumed or changed, as sentences; none for a gathered plan."""
    return list(table.attrs.get("notes", []))


def _published(columns: str | None) -> pd.DataFrame:
    if columns:
        raise UserError(f"--table {PUBLISHED} has our columns already: leave --columns out")
    from analysis.reference import reference_table

    table: pd.DataFrame = reference_table(PUBLISHED)
    return table


def _gathered(raw: RawTable, columns: str | None) -> pd.DataFrame:
    """A table that `salt-analyze gather` wrote, as it was, without columns that no other table has."""
    if columns:
        raise UserError(f"{raw.path}: it was written by salt-analyze gather: leave --columns out")
    reader = _Reader(raw, None)
    there = {}
    for name in raw.columns:
        source = Source(columns=(name,))
        if name in TEXT:
            there[name] = pd.Series(reader.texts(source, None), dtype=object)
        elif name in NUMBERS or name.startswith("flops_"):
            there[name] = pd.Series(reader.numbers(source))
    table = pd.DataFrame(there)
    table = typed(table)
    table.loc[(table["role"] == "cell") & table["variant"].isna(), "variant"] = ""
    return table


@dataclass
class _Reader:
    raw: RawTable
    text: str | None
    notes: list[str] = field(default_factory=list)

    def table(self) -> pd.DataFrame:
        raw = self.raw
        if not raw.places:
            raise UserError(f"{raw.path}: it has no rows")
        found = sources(raw.path, list(raw.columns), self.text)
        if not found.keys() & {"metric", "loss"}:
            raise UserError(
                f"{raw.path}: no column is known to be an accuracy or a loss; say which is, with --columns "
                f"metric=COLUMN or loss=COLUMN (it has {', '.join(raw.columns)})"
            )
        table = pd.DataFrame(index=range(len(raw.places)))
        for name, column in _COLUMN_OF.items():
            source = found.get(name)
            table[column] = (
                self.numbers(source) if source is not None and source.columns else np.full(len(table), np.nan)
            )
        for name, default in _TEXTS.items():
            source = found.get(name)
            table[name] = pd.Series(self.texts(source, default), dtype=object)
        table["variant"] = self._variant(found.get("config"))
        self._derive(table, found)
        for name in ("metric", "teacher_metric"):
            if name in found:
                table[_COLUMN_OF[name]] = self._shares(table[_COLUMN_OF[name]], found[name])
        self._state(table, found)
        self._identify(table, found)
        table = typed(self._without_copies(table))
        table.attrs["notes"] = self.notes
        return table

    # --- values ---------------------------------------------------------------------------------

    def numbers(self, source: Source) -> np.ndarray[Any, Any]:
        (column,) = source.columns
        values = np.full(len(self.raw.places), np.nan)
        for row, value in enumerate(self.raw.columns[column]):
            if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
                continue
            try:
                values[row] = float(value)
            except (TypeError, ValueError):
                raise UserError(
                    f"{self.raw.at(row)}: column {column!r} holds {value!r}, which is not a number; leave it "
                    "empty where there is none, and write 1.5e21 without units or thousands marks"
                ) from None
        return values * source.scale

    def texts(self, source: Source | None, default: str | None) -> list[str | None]:
        if source is None:
            return [default] * len(self.raw.places)
        values = (
            None if value is None else str(value).strip() for value in self.raw.columns[source.columns[0]]
        )
        return [value or default for value in values]

    def _variant(self, source: Source | None) -> list[str]:
        if source is None:
            return [""] * len(self.raw.places)
        columns = [[str(value).strip() for value in self.raw.columns[name]] for name in source.columns]
        if len(columns) == 1:
            return columns[0]
        return [
            ", ".join(f"{name}={value}" for name, value in zip(source.columns, values, strict=True))
            for values in zip(*columns, strict=True)
        ]

    def _shares(self, values: pd.Series, source: Source) -> pd.Series:
        """Accuracies as shares. Percent only where it is said, or where every value lies in (1, 100]."""
        finite = values[np.isfinite(values)]
        column = source.columns[0]
        percent = source.percent or (len(finite) > 0 and bool(((finite > 1) & (finite <= 100)).all()))
        if percent:
            self.notes.append(
                f"column {column!r} was taken as percent and divided by 100"
                + (
                    ""
                    if source.percent
                    else f" (its values lie between {finite.min():g} and {finite.max():g})"
                )
            )
            values, finite = values / 100, finite / 100
        outside = finite[(finite < 0) | (finite > 1)]
        if len(outside):
            row = int(outside.index[0])
            raise UserError(
                f"{self.raw.at(row)}: column {column!r} holds {self.raw.columns[column][row]!r}, which is no "
                f"accuracy between 0 and 1; if all of them are in percent, say so with --columns "
                f"metric={column}%; if it is a loss, with --columns loss={column}"
            )
        return values

    def _derive(self, table: pd.DataFrame, found: dict[str, Source]) -> None:
        for name, source in found.items():
            if source.formula is None:
                continue
            parts = DERIVED[name, source.formula]
            lacking = [part for part in parts if part not in found or found[part].formula]
            if lacking:
                raise UserError(
                    f"--columns {name}={source.formula}: {self.raw.path} gives no "
                    f"{' and no '.join(lacking)}; name the column, such as {lacking[0]}=COLUMN"
                )
            first, second = (table[_COLUMN_OF[part]] for part in parts)
            table[_COLUMN_OF[name]] = 6 * first * second if name == "compute" else first / (6 * second)
            self.notes.append(f"{name} was computed as {source.formula}, with C, N and D in the file's units")

    # --- what a row is ----------------------------------------------------------------------------

    def _state(self, table: pd.DataFrame, found: dict[str, Source]) -> None:
        """`done` where the row has a finite result and a finite compute, if the file has such columns."""
        reasons: list[list[str]] = [[] for _ in range(len(table))]
        failed = np.zeros(len(table), dtype=bool)
        asked = [name for name in ("metric", "loss", "compute", "size", "data") if name in found]
        for name in asked:
            values = table[_COLUMN_OF[name]].to_numpy()
            written = self._written(found[name])
            for row in np.flatnonzero(~np.isfinite(values)):
                if written is not None and written[row]:
                    failed[row] = True
                    reasons[row].append(f"{name} is {values[row]:g}, not a finite number")
                else:
                    reasons[row].append(f"no {name}")
        results = [name for name in ("metric", "loss") if name in found]
        no_result = ~np.logical_or.reduce([np.isfinite(table[_COLUMN_OF[name]]) for name in results])
        lost = failed | no_result
        if "compute" in found:
            lost |= ~np.isfinite(table["total_flops"].to_numpy())
        table["state"] = np.where(lost, np.where(failed, "failed", "missing"), "done")
        table["reason"] = [
            "; ".join(why) if is_lost else None for why, is_lost in zip(reasons, lost, strict=True)
        ]

    def _written(self, source: Source) -> list[bool] | None:
        """Whether the file has something there, such as `nan`; None for a derived field."""
        if not source.columns:
            return None
        return [
            not (value is None or (isinstance(value, str) and value.strip().lower() in _MISSING))
            for value in self.raw.columns[source.columns[0]]
        ]

    def _identify(self, table: pd.DataFrame, found: dict[str, Source]) -> None:
        raw, name = self.raw, Path(self.raw.path).name
        table["run_id"] = table["cell_id"] = [f"{name}:{place}" for place in raw.places]
        table["plan"], table["role"] = Path(raw.path).stem, "cell"
        table["charge"] = table["convention"] = "as given"
        table["probe_id"] = "reported"
        if "seed" not in found:
            table["seed"] = 0.0
            self.notes.append("the file names no seeds: every row stands under seed 0")
        if "budget" not in found:
            table["budget_flops"] = table["total_flops"]
            self.notes.append("the file names no budgets: a row's budget is its own compute")
        if "data" in found and found["data"].columns:
            self.notes.append(f"clips_seen holds column {found['data'].columns[0]!r} in the file's own unit")
        sizes = table["parameters"]
        if "student" not in found:
            names = [f"{size:.4g}" if math.isfinite(size) else None for size in sizes]
            table["student"] = pd.Series(names, dtype=object)
        given = table["teacher"].notna()
        table["teacher_run_id"] = ("teacher " + table["teacher"].astype(str)).where(given, None)
        table["scored_teacher"] = table["teacher_run_id"]
        table["teacher_state"] = given.map({True: "done", False: None}).where(
            np.isfinite(table["teacher_accuracy"]), None
        )
        table["config"] = [_label(row) for row in table.itertuples()]
        exact = ["arm", "student", "teacher", "teacher_share", "variant", "parameters", "budget_flops"]
        if "seed" not in found or "budget" not in found:  # nothing says that runs of other lengths are alike
            exact += ["clips_seen", "total_flops"]
        table["config_id"] = [
            hashlib.sha256(repr(values).encode()).hexdigest()[:12]
            for values in zip(*(table[name].tolist() for name in exact), strict=True)
        ]

    def _without_copies(self, table: pd.DataFrame) -> pd.DataFrame:
        """One row for rows that agree in everything; rows that agree in all but their values are refused."""
        values = pd.DataFrame(self.raw.columns, dtype=object)
        copies = values.astype(str).duplicated(keep="first").to_numpy()
        if copies.any():
            places = [self.raw.places[row] for row in np.flatnonzero(copies)]
            self.notes.append(
                f"{len(places)} rows are copies of earlier ones and were left out: {self.raw.unit} "
                + ", ".join(map(str, places[:6]))
                + (" ..." if len(places) > 6 else "")
            )
            table = table[~copies]
        key = ["config_id", "seed", *SCORE_KEY]
        twice = table[table.duplicated(key, keep=False)]
        if len(twice):
            first = twice[(twice[key] == twice[key].iloc[0]).all(axis=1)]
            lines = " and ".join(str(self.raw.places[row]) for row in first.index[:4])
            raise UserError(
                f"{self.raw.path}: {self.raw.unit}s {lines} give different results for one "
                f"configuration ({first['config'].iloc[0]}), seed {first['seed'].iloc[0]:g} and "
                f"{first['label'].iloc[0]!r}; name what tells them apart, such as --columns seed=COLUMN or "
                "config=COLUMN+COLUMN, or take one of them out"
            )
        return table.reset_index(drop=True)


def _label(row: Any) -> str:
    """A short name for tables and legends, such as `salt 3e8>1e9 20% lr=0.001`."""
    size = row.student or ""
    sizes = f"{row.teacher}>{size}" if row.teacher else size
    share = f"{100 * row.teacher_share:.3g}%" if math.isfinite(row.teacher_share) else ""
    return " ".join(part for part in (row.arm, sizes, share, row.variant) if part)
