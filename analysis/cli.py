"""`salt-analyze`: frontier, students against teachers, and the report of a study. Heavy imports come after
parsing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import salt
from salt.errors import UserError
from salt.plans import choose_plan
from salt.store import store_path

if TYPE_CHECKING:
    import pandas as pd

    from analysis.tables import Table

_EXAMPLES = {
    "pareto": (
        "Accuracy-FLOPs frontier of each arm, with the spread over seeds.",
        """examples:
  salt-analyze pareto                            the newest plan of ./salt-store
  salt-analyze pareto miniature --probe linear   one probe only
  salt-analyze pareto miniature --label motion --json > frontier.json""",
    ),
    "weak-teacher": (
        "Student accuracy against teacher accuracy, beside pixel training at equal FLOPs.",
        """examples:
  salt-analyze weak-teacher
  salt-analyze weak-teacher miniature --label motion --probe linear --out figures/""",
    ),
    "report": (
        "One self-contained HTML file with figures, tables, and what may not be concluded.",
        """examples:
  salt-analyze report
  salt-analyze report miniature --store /data/salt-store --out /tmp/report""",
    ),
}


def parser() -> argparse.ArgumentParser:
    """The command line, as data: tests read it."""
    top = argparse.ArgumentParser(
        prog="salt-analyze",
        description="What a study means: frontiers, students against teachers, a report.",
        epilog="examples:\n  salt-analyze pareto\n  salt-analyze weak-teacher\n  salt-analyze report",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"salt {salt.__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (text, examples) in _EXAMPLES.items():
        command = commands.add_parser(
            name,
            help=text,
            description=text,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_argument(
            "study", nargs="?", metavar="STUDY", help="name of a plan (default: the newest of the store)"
        )
        command.add_argument(
            "--store", metavar="DIR", help="run store (default: $SALT_STORE, else ./salt-store)"
        )
        command.add_argument("--out", metavar="DIR", help="where files go (default: STORE/reports/STUDY)")
        command.add_argument(
            "--label", action="append", metavar="NAME", help="only this label; may be repeated"
        )
        command.add_argument(
            "--probe", action="append", metavar="KIND", help="only this probe: linear, knn or attentive"
        )
        command.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. `UserError` is raised before anything is written."""
    options = parser().parse_args(argv)
    store = store_path(options.store)
    name = choose_plan(store, options.study)
    if options.study is None:
        print(f"study: {name} (the newest plan in {store})", file=sys.stderr)
    table = _load(store, name, options.label, options.probe)
    out = Path(options.out) if options.out else store / "reports" / name
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file: name a folder")
    command = {"pareto": _pareto, "weak-teacher": _weak_teacher, "report": _report}[options.command]
    command(store, table, out, options.json)
    return 0


def _load(store: Path, name: str, labels: list[str] | None, probes: list[str] | None) -> pd.DataFrame:
    from analysis.gather import cells_used, gather
    from analysis.pareto import arm_rows

    table = gather(store, name)
    if table.empty:
        raise UserError(f"plan {name!r} in {store} has no cells: plan the study again with `salt-sweep plan`")
    table = _only(_only(table, "label", labels), "kind", probes)
    used, total = cells_used(table)
    arms, arm_cells = cells_used(arm_rows(table))
    if not arms:
        raise UserError(
            f"no scores yet: 0 of {arm_cells} cells of the arms of {name!r} in {store} have any; run "
            f"`salt-sweep submit {name}`, or see why with `salt-sweep status {name}`"
        )
    if used < total:
        print(f"{used} of {total} cells used: the others have no scores yet or failed", file=sys.stderr)
    return table


def _only(table: pd.DataFrame, column: str, wanted: list[str] | None) -> pd.DataFrame:
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


def _pareto(store: Path, table: pd.DataFrame, out: Path, as_json: bool) -> None:
    from analysis.figure_pareto import write_pareto
    from analysis.pareto import configurations
    from analysis.records import records
    from analysis.tables import frontier_table

    configs = configurations(table)
    configs = configs[configs["frames"] == "ordered"]
    paths = write_pareto(table, out / "figures")
    if as_json:
        _print_json(table, paths, {"configurations": records(configs)})
        return
    _print_tables(_per_label(frontier_table(configs)), _footer(table))
    _print_paths(paths, "pareto.")


def _weak_teacher(store: Path, table: pd.DataFrame, out: Path, as_json: bool) -> None:
    from analysis.figure_weak_teacher import weak_teacher_data, write_weak_teacher
    from analysis.records import records
    from analysis.tables import weak_teacher_table
    from analysis.weak_teacher import share_above

    data = weak_teacher_data(table)
    if data.cells.empty:
        raise UserError(
            "no cell of this study has a frozen teacher, so there is nothing to set a student against: add "
            "an arm with teachers to the study file"
        )
    paths = write_weak_teacher(table, out / "figures")
    if as_json:
        parts = {"table": data.cells, "pairs": data.pairs, "share_above": share_above(data.pairs)}
        _print_json(table, paths, {name: records(rows) for name, rows in parts.items()})
        return
    _print_tables(_per_label(weak_teacher_table(data.cells)), _footer(table))
    _print_paths(paths, "weak-teacher.")


def _report(store: Path, table: pd.DataFrame, out: Path, as_json: bool) -> None:
    from analysis.report import collect, evidence_records, write_report

    paths = write_report(store, table, out, lambda text: print(f"report: {text}", file=sys.stderr))
    if as_json:
        _print_json(table, paths, evidence_records(collect(table)))
        return
    print(f"report: {paths[0]}")
    print(f"figures: {out / 'figures'}")


# --- printing -----------------------------------------------------------------------------------


def _print_json(source: pd.DataFrame, paths: list[Path], parts: dict[str, Any]) -> None:
    from analysis.gather import cells_used

    used, total = cells_used(source)
    first = source.iloc[0]
    about = {name: str(first[name]) for name in ("plan", "charge", "convention")}
    files = [str(path) for path in paths]
    print(
        json.dumps(
            about | {"cells_used": used, "cells": total} | parts | {"files": files}, allow_nan=False, indent=2
        )
    )


def _per_label(table: Table) -> list[Table]:
    """A table for each label and probe, its first two columns, which then need no columns of their own."""
    from analysis.tables import Table

    groups: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in table.rows:
        groups.setdefault(row[:2], []).append(row[2:])
    return [Table(", ".join(key), table.headers[2:], rows) for key, rows in groups.items()]


def _print_tables(tables: list[Table], footer: str) -> None:
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
    console.print(Text(footer))


def _footer(table: pd.DataFrame) -> str:
    from analysis.gather import cells_used

    used, total = cells_used(table)
    first = table.iloc[0]
    return (
        f"{used} of {total} cells used. FLOPs: {first['convention']} convention, teacher training charged "
        f"{first['charge']}. Accuracy in %, differences in points; intervals are Student's t over seeds, "
        "uncorrected."
    )


def _print_paths(paths: list[Path], main_name: str) -> None:
    pictures = [path for path in paths if path.suffix in (".png", ".pdf")]
    for path in pictures:
        if path.name.startswith(main_name):
            print(f"figure: {path}")
    print(f"{len(pictures)} figure files and their data as CSV: {pictures[0].parent}")
