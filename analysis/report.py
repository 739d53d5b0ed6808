"""The report of a study: one self-contained HTML file, figures, tables, and what they came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis.findings import limits, results
from analysis.gather import cells_used
from analysis.records import write_csv
from analysis.report_analyses import Analyses, analyse
from analysis.report_blocks import Block, Picture, Section
from analysis.report_figures import write_figures
from analysis.report_manifest import Source, write_manifest
from analysis.report_sections import sections
from analysis.report_tables import write_tables
from analysis.report_template import TEMPLATE
from salt.errors import UserError
from salt.plain_yaml import parse_yaml
from salt.plans import plan_dir
from salt.store import write_atomically

PAGE, FIGURES, TABLES, GATHERED = "report.html", "figures", "tables", "gathered.csv"


@dataclass(frozen=True)
class Report:
    """What was written, the page first, and the analyses behind it."""

    paths: list[Path]
    made: Analyses

    def findings(self) -> dict[str, Any]:
        """What came out and what threatens it, as plain data."""
        parts = (("results", results(self.made.evidence)), ("limits", limits(self.made.evidence)))
        return {
            name: [{"topic": f.topic, "text": f.text, "run_ids": list(f.run_ids)} for f in found]
            for name, found in parts
        }


def write_report(source: Source, table: pd.DataFrame, out: Path, say: Callable[[str], None]) -> Report:
    """Write `report.html`, `figures/`, `tables/` and `report.json` under `out`, from a gathered table.

    `source` says what the table is of; `say` hears what is being done. Files of an earlier report are
    replaced, and those that this one does not have any more are removed.
    """
    figures = out / FIGURES
    made = analyse(table, say)
    say("figures")
    paths = [*write_figures(made, figures), write_csv(table, figures / GATHERED)]
    say("tables and page")
    told = sections(made, figures, source.tuning)
    paths += write_tables(told, out / TABLES)
    page = out / PAGE
    write_atomically(page, render(table, source.question, told).encode())
    write_manifest(out, source, [page, *paths])
    return Report([page, *paths], made)


def read_question(store: Path, name: str) -> str:
    """The `question` of the study file that was planned; a plain sentence where it has none."""
    path = plan_dir(store, name) / "study.yaml"
    if not path.exists():
        return "The study file of this plan is not in the store."
    try:
        question = parse_yaml(path.read_bytes(), path).get("question")
    except UserError as error:
        raise UserError(f"{error}; plan the study again") from error
    return question if question and isinstance(question, str) else "The study file asks no question."


def render(table: pd.DataFrame, question: str, told: list[Section]) -> str:
    """The HTML text, with the pictures inside."""
    used, total = cells_used(table)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(TEMPLATE).render(
        title=f"Study {table['plan'].iloc[0]}: frozen teachers, EMA teachers and pixels at equal FLOPs",
        question=question,
        used=used,
        total=total,
        verify="salt-analyze verify",
        sections=[_laid_out(section) for section in told],
    )


def _laid_out(section: Section) -> dict[str, Any]:
    """Blocks of a section with their keys; single-column pictures in a row are one group."""
    groups: list[list[dict[str, Any]]] = []
    seen: dict[str, int] = {}
    beside = False
    for block in section.blocks:
        key = f"{section.id}/{block.name}"
        seen[key] = seen.get(key, 0) + 1
        shown = _fields(block) | {"key": key if seen[key] == 1 else f"{key} ({seen[key]})"}
        narrow = isinstance(block, Picture) and block.column
        if narrow and beside:
            groups[-1].append(shown)
        else:
            groups.append([shown])
        beside = narrow
    return {"id": section.id, "title": section.title, "groups": groups}


def _fields(block: Block) -> dict[str, Any]:
    names = [*block.__dataclass_fields__, "kind", *(["data"] if isinstance(block, Picture) else [])]
    return {name: getattr(block, name) for name in names}
