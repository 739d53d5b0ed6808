"""A CSV or Parquet file as columns of raw values, each with the place (line or row) it came from."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salt.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """`columns`: header -> one value a row; `places`: the line (CSV) or row (Parquet) of each."""

    path: str
    unit: str  # "line" or "row"
    places: list[int]
    columns: dict[str, list[Any]]

    def at(self, row: int) -> str:
        """Where a row is, for errors and notes."""
        return f"{self.path}:{self.places[row]}"


def read_file(path: str) -> RawTable:
    """Read a `.csv`, `.tsv` or `.parquet` file whole.

    CSV: a header, then as many fields in each line as in the header; separated by commas, or by tabs or
    semicolons where the header has no comma; UTF-8, with or without a byte order mark. Blank lines are
    passed over, and so are lines that begin with `#` before the header.

    Raises `UserError` for a file that is not there, or is not that.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"--table {path}: no such file; name a CSV or Parquet file, or salt2025")
    if file.suffix.lower() in (".parquet", ".pq"):
        return _parquet(path)
    return _csv(path)


def _csv(path: str) -> RawTable:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); save it as UTF-8 CSV") from error
    lines = io.StringIO(text, newline="")
    skipped = 0
    while True:
        position = lines.tell()
        first = lines.readline()
        if not first:
            raise UserError(f"{path}: it is empty; the first line names the columns")
        if first.strip() and not first.startswith("#"):
            break
        skipped += 1
    lines.seek(position)
    delimiter = next((mark for mark in ",\t;" if mark in first), ",")
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    places: list[int] = []
    header: list[str] = []
    try:
        header = [name.strip() for name in next(reader)]
        _check_header(path, header)
        for fields in reader:
            place = skipped + reader.line_num
            if not any(field.strip() for field in fields):
                continue
            if len(fields) != len(header):
                raise UserError(
                    f"{path}:{place}: {len(fields)} fields, but the header names {len(header)} columns; a "
                    f"field with {delimiter!r} in it needs quotes"
                )
            rows.append(fields)
            places.append(place)
    except csv.Error as error:
        raise UserError(f"{path}:{skipped + reader.line_num}: not CSV: {error}") from error
    columns = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    return RawTable(path=path, unit="line", places=places, columns=columns)


def _check_header(path: str, header: list[str]) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{path}: two columns are called {twice[0]!r}; rename one")


def _parquet(path: str) -> RawTable:
    parquet = require_pyarrow("reading Parquet")
    import pyarrow

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise UserError(f"{path}: not a Parquet file: {error}") from error
    _check_header(path, list(table.column_names))
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    return RawTable(path=path, unit="row", places=list(range(1, table.num_rows + 1)), columns=columns)


def require_pyarrow(what: str) -> Any:
    """The module `pyarrow.parquet`, or a `UserError` that says how to get it."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(
            f"{what} needs pyarrow, which is not installed: pip install 'salt-scaling[parquet]', or use CSV"
        ) from error
    return parquet
