"""The tables of a report as files: CSV for programs, LaTeX for papers."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pandas as pd

from analysis.plots import file_name
from analysis.report_blocks import Section
from analysis.tables import Table
from salt.store import write_atomically


def write_tables(sections: list[Section], folder: Path) -> list[Path]:
    """Write each table of a report as `<name>.csv`, with its run ids, and `<name>.tex`; all paths."""
    paths = []
    for section in sections:
        for shown in section.tables():
            for ending, text in ((".csv", _csv(shown.table)), (".tex", latex(shown.table))):
                path = folder / f"{file_name(shown.name)}{ending}"
                write_atomically(path, text.encode())
                paths.append(path)
    return paths


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*table.headers, *(["run ids"] if table.run_ids else [])])
    for number, row in enumerate(table.rows):
        writer.writerow([*row, *([" ".join(table.run_ids[number])] if table.run_ids else [])])
    return text.getvalue()


def latex(table: Table) -> str:
    """A `tabular` between rules of the booktabs package, and the caption above; every name is escaped."""
    headers = [_escape(name) for name in table.headers]
    frame = pd.DataFrame(list(table.rows), columns=range(len(headers)), dtype=object).map(_escape)
    styled = frame.style.hide(axis="index").format_index(lambda place: headers[place], axis="columns")
    text: str = styled.to_latex(hrules=True, column_format="l" * len(headers))
    return f"% needs \\usepackage{{booktabs}}; {_escape(table.caption)}\n{text}"


_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "−": "$-$",
    "–": "--",
    "±": r"$\pm$",
    "…": r"\ldots{}",
    "\n": " ",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
} | {character: f"\\{character}" for character in "&%$#_{}"}


def _escape(text: str) -> str:
    """Text with everything that LaTeX would take for a command made harmless."""
    return "".join(_SPECIAL.get(character, character) for character in str(text))
