"""Is a report still true? Everything in it is made again, and what differs is listed with its cause.

The page is compared text by text, tables and data cell by cell, pictures pixel by pixel. What is compared
with is computed from the run store where it is at hand, otherwise from the table that lies in the report:
then a score that changed since cannot be noticed, but a number that does not follow from the table can.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd

import salt
from analysis.report import FIGURES, GATHERED, PAGE, write_report
from analysis.report_manifest import (
    LIBRARIES,
    Manifest,
    Source,
    analysis_sha256,
    read_manifest,
    sha256,
)
from analysis.verify_files import Difference, csv_differences, page_differences, picture_difference


@dataclass(frozen=True)
class Verified:
    """What differs, why it may, and how much was compared."""

    differences: list[Difference]
    causes: list[str]
    texts: int  # of the page
    cells: int  # of CSV files
    pictures: int
    of: str  # "the run store" or "the table in the report"

    @property
    def stale(self) -> bool:
        return bool(self.differences)


def verify(out: Path, table: pd.DataFrame, source: Source, of: str, say: Callable[[str], None]) -> Verified:
    """Make a report again from a table, beside the one in `out`, and compare.

    `source` says what the table is of now, `of` in words where it came from. Nothing in `out` is written.

    Raises:
        UserError: `out` is no report.
    """
    was = read_manifest(out)
    with tempfile.TemporaryDirectory(prefix="salt-verify-") as folder:
        again = Path(folder)
        write_report(source, table, again, say)
        say("comparing")
        now = read_manifest(again)
        found, texts, cells, pictures = _compared(out, again, was, now)
        causes = _causes(out, again, was, now)
    return Verified(found, causes, texts, cells, pictures, of)


def _compared(out: Path, again: Path, was: Manifest, now: Manifest) -> tuple[list[Difference], int, int, int]:
    found: list[Difference] = []
    texts = cells = pictures = 0
    for name in sorted({*was.files, *now.files}):
        mine, other = out / name, again / name
        if not mine.is_file():
            found.append(Difference(name, "", "not there" if name in was.files else "unknown to it", "there"))
        elif not other.is_file():
            found.append(Difference(name, "", "there", "not made any more"))
        elif name == PAGE:
            some, texts = page_differences(mine.read_text(), other.read_text())
            found += some
        elif name.endswith(".csv"):
            some, number = csv_differences(name, mine, other)
            found, cells = found + some, cells + number
        elif name.endswith(".png"):
            some, pictures = picture_difference(name, mine, other), pictures + 1
            found += some
        elif mine.read_bytes() != other.read_bytes():
            found.append(Difference(name, "", "these bytes", "others"))
    return found, texts, cells, pictures


def _causes(out: Path, again: Path, was: Manifest, now: Manifest) -> list[str]:
    """What has changed since the report was written that can make a number differ."""
    found = []
    edited = [
        name for name, known in was.files.items() if (out / name).is_file() and sha256(out / name) != known
    ]
    if edited:
        names = ", ".join(edited[:6]) + (", ..." if len(edited) > 6 else "")
        found.append(f"{len(edited)} files were changed after the report was written: {names}")
    if was.plan_sha256 != now.plan_sha256 and now.plan_sha256 is not None:
        found.append("the study was planned again: its plan.jsonl is another one")
    found += _runs_changed(out / FIGURES / GATHERED, again / FIGURES / GATHERED)
    if was.question != now.question:
        found.append("the study file asks another question")
    if was.tuning != now.tuning:
        found.append("the store holds other tuning")
    if was.salt != now.salt:
        found.append(f"the report was written by salt {was.salt}, this is {salt.__version__}")
    elif was.analysis_sha256 != analysis_sha256():
        found.append("the code of the analysis is not the one that wrote the report")
    for name in LIBRARIES:
        if was.libraries.get(name) != version(name):
            found.append(f"{name} was {was.libraries.get(name, 'unknown')}, is {version(name)}")
    return found


def _runs_changed(was: Path, now: Path) -> list[str]:
    """Which runs' rows of the gathered table are others, and whether the rules of counting are."""
    if not was.is_file() or was.read_bytes() == now.read_bytes():
        return []
    old, new = (pd.read_csv(path, dtype=str, keep_default_na=False) for path in (was, now))
    if list(old.columns) != list(new.columns):
        return ["the gathered table has other columns"]
    found = []
    for name, what in (("convention", "FLOP convention"), ("charge", "charge for teachers")):
        rules = [", ".join(sorted(set(each[name]))) for each in (old, new)]
        if rules[0] != rules[1]:
            found.append(f"the {what} was {rules[0]}, is {rules[1]}")
    before, after = (set(each.itertuples(index=False, name=None)) for each in (old, new))
    place = list(old.columns).index("run_id")
    changed = sorted({row[place] for row in before ^ after})
    if changed:
        names = ", ".join(changed[:8]) + (", ..." if len(changed) > 8 else "")
        found.append(f"{len(changed)} runs have other rows in the table: {names}")
    return found
