"""What the commands of `salt-analyze` share: the table they work on, and how they say what they found.

Heavy imports come after parsing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.errors import UserError
from salt.plans import choose_plan
from salt.store import store_path

if TYPE_CHECKING:
    import pandas as pd

    from analysis.tables import Table


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command: one line of help, examples, options beside the common ones, and its work.

    `run` returns an exit code, or None for 0. Without `common` a command has only its own options.
    """

    name: str
    text: str
    examples: tuple[str, ...]
    run: Callable[[Job], int | None]
    arguments: Callable[[argparse.ArgumentParser], None] | None = None
    common: bool = True


@dataclass
class Job:
    """One call of a command: options, the table they name, the folder for files, and printing."""

    options: argparse.Namespace
    notes: list[str] = field(default_factory=list)
    _table: pd.DataFrame | None = None
    _name: str | None = None

    @property
    def store(self) -> Path:
        return store_path(self.options.store)

    @property
    def name(self) -> str:
        """The plan, or the file of a foreign table without its ending."""
        if self._name is None:
            if self.options.table:
                self._name = Path(self.options.table).stem
            else:
                self._name = choose_plan(self.store, self.options.study)
                if self.options.study is None:
                    self.say(f"study: {self._name} (the newest plan in {self.store})")
        return self._name

    @property
    def out(self) -> Path:
        if self.options.out:
            out = Path(self.options.out)
        elif self.options.table:
            out = Path(f"{self.name}-analysis")
        else:
            out = self.store / "reports" / self.name
        if out.exists() and not out.is_dir():
            raise UserError(f"--out {out} is a file: name a folder")
        return out

    def table(self) -> pd.DataFrame:
        """The gathered plan, or the foreign table of `--table`, with only the labels and probes asked for."""
        if self._table is None:
            self._table = self._load()
        return self._table

    def _load(self) -> pd.DataFrame:
        from analysis.gather import cells_used, gather
        from analysis.pareto import arm_rows

        if self.options.table:
            from analysis.foreign import notes, read_table

            table = read_table(self.options.table, self.options.columns)
            for note in notes(table):
                self.say(f"{self.options.table}: {note}")
        else:
            table = gather(self.store, self.name)
            if table.empty:
                raise UserError(
                    f"plan {self.name!r} in {self.store} has no cells: plan the study again with "
                    "`salt-sweep plan`"
                )
        table = only(only(table, "label", self.options.label), "kind", self.options.probe)
        used, total = cells_used(table)
        arms, arm_cells = cells_used(arm_rows(table))
        if not arms and not self.options.table:
            raise UserError(
                f"no scores yet: 0 of {arm_cells} cells of the arms of {self.name!r} in {self.store} have "
                f"any; run `salt-sweep submit {self.name}`, or see why with `salt-sweep status {self.name}`"
            )
        if used < total and not (self.options.table and not used):  # a foreign table may hold losses alone
            self.say(f"{used} of {total} cells used: the others have no scores yet or failed")
        return table

    # --- saying it ------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A note for people, on standard error."""
        print(text, file=sys.stderr)

    def print_json(self, paths: list[Path], parts: dict[str, Any]) -> None:
        """One JSON object: what the numbers rest on, `parts` (plain values), and the files written."""
        from analysis.gather import cells_used

        used, total = cells_used(self.table())
        first = self.table().iloc[0]
        about = {name: str(first[name]) for name in ("plan", "charge", "convention")}
        files = [str(path) for path in paths]
        whole = about | {"cells_used": used, "cells": total} | parts | {"files": files}
        print(json.dumps(whole, allow_nan=False, indent=2))

    def print_tables(self, tables: list[Table], footer: str | None = None) -> None:
        """Tables as text, then a line on units and the FLOP convention (`footer`, else the usual one)."""
        from rich.console import Console
        from rich.table import Table as RichTable
        from rich.text import Text

        # A pipe has no width of its own: there, lines are as long as the table.
        console = Console() if sys.stdout.isatty() else Console(width=240, force_terminal=False)
        for table in tables:
            shown = RichTable(title=Text(table.caption), title_justify="left")
            for header in table.headers:
                shown.add_column(Text(header), overflow="fold")
            for row in table.rows:
                shown.add_row(*(Text(cell) for cell in row))
            console.print(shown)
        console.print(Text(self.footer() if footer is None else footer))

    def footer(self) -> str:
        from analysis.gather import cells_used

        used, total = cells_used(self.table())
        first = self.table().iloc[0]
        return (
            f"{used} of {total} cells used. FLOPs: {first['convention']} convention, teacher training "
            f"charged {first['charge']}. Accuracy in %, differences in points; intervals: Student's "
            "t over seeds, uncorrected."
        )

    def print_lines(self, lines: list[str]) -> None:
        """Sentences, wrapped on a terminal and whole in a log."""
        from rich.console import Console
        from rich.text import Text

        console = Console() if sys.stdout.isatty() else Console(width=10_000, force_terminal=False)
        for line in lines:
            console.print(Text(line))

    def print_paths(self, paths: list[Path], main_name: str) -> None:
        """The pictures whose names begin with `main_name`, and where all of them are."""
        pictures = [path for path in paths if path.suffix in (".png", ".pdf")]
        for path in pictures:
            if path.name.startswith(main_name):
                print(f"figure: {path}")
        print(f"{len(pictures)} figure files and their data as CSV: {paths[0].parent}")


def per_label(table: Table) -> list[Table]:
    """A table for each label and probe, its first two columns, which then need no columns of their own."""
    from analysis.tables import Table

    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in table.rows:
        groups.setdefault(row[:2], []).append(row[2:])
    return [Table(", ".join(key), table.headers[2:], rows) for key, rows in groups.items()]


def only(table: pd.DataFrame, column: str, wanted: list[str] | None) -> pd.DataFrame:
    """Rows whose label or kind is among those asked for; all where none is. Unknown names are refused."""
    if not wanted:
        return table
    known = sorted(set(table[column].dropna()))
    for name in wanted:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            option = "--label" if column == "label" else "--probe"
            raise UserError(
                f"{option} {name!r} is not in this study: {hint}it has {', '.join(known) or 'none'}"
            )
    return table[table[column].isin(wanted)].reset_index(drop=True)
