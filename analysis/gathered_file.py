"""The gathered table back from the CSV file in a report: the same table, to the last digit."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis.table_columns import NUMBERS, TEXT, part_columns, typed
from salt.errors import UserError


def read_gathered(path: Path) -> pd.DataFrame:
    """The table as `analysis.gather.gather` gave it when it was written to a CSV file.

    Raises:
        UserError: the file is not there or no such table, or a number in it is none.
    """
    if not path.is_file():
        raise UserError(f"{path} is not there: write the report again with `salt-analyze report`")
    raw = pd.read_csv(path, dtype=str, keep_default_na=False)
    lacking = [name for name in (*TEXT, *NUMBERS) if name not in raw]
    if lacking:
        raise UserError(
            f"{path}: no column {lacking[0]!r}: write the report again with `salt-analyze report`"
        )
    table = raw.astype(object).where(raw != "", None)
    for name in (*NUMBERS, *part_columns(table)):
        try:
            table[name] = table[name].astype("float64")
        except ValueError as error:
            raise UserError(f"{path}: column {name!r}: {error}; write the report again") from error
    # The one text that may be empty without being missing: a cell that is no variant of another.
    table["variant"] = table["variant"].where(table["variant"].notna() | (table["role"] != "cell"), "")
    others = [name for name in table.columns if name not in (*TEXT, *NUMBERS, *part_columns(table))]
    if others:  # of a foreign table
        return pd.concat([typed(table), table[others]], axis=1)
    return typed(table)
