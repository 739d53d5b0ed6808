"""A study beside the published numbers: the same questions, asked of both with the same code.

Tasks, probes, data and FLOPs are of other scales, so accuracies are never set on one axis: only answers are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.allocation import allocation
from analysis.allocation_text import share_text
from analysis.findings import Finding
from analysis.pareto import usable
from analysis.published import LABEL, allocation_statements, equal_flops_pairs, teacher_statements
from analysis.reference import CITATION, NAME, reference_table
from analysis.regime import regimes, teacher_points
from analysis.tables import MISSING, Table, flops, interval, percent
from analysis.versus import comparisons

_DRAWS = 1000
_LEAD = "SALT minus V-JEPA at equal FLOPs, points"


@dataclass(frozen=True)
class Answers:
    """What the questions are answered from: a table, and what was made of the whole of it."""

    table: pd.DataFrame
    points: pd.DataFrame  # `analysis.regime.teacher_points`
    lines: pd.DataFrame  # `analysis.regime.regimes`
    optima: pd.DataFrame  # of `analysis.allocation.allocation`


def beside_published(study: Answers, configs: pd.DataFrame) -> tuple[Table, list[Finding]]:
    """Questions with the study's answers per label and probe and the published ones; and what the published
    numbers say by themselves, with the published runs behind it.
    """
    published = reference_table(NAME)
    published = published[published["label"] == LABEL].reset_index(drop=True)
    points = teacher_points(published)
    allocated = allocation(published, draws=_DRAWS)
    other = Answers(published, points, regimes(points), allocated.optima)
    label, kind = _panels(published)[0]
    whole = {_LEAD: _published_lead(published)} | _answers(other, label, kind)
    sides = [({"arm": "salt"}, {"arm": "vjepa"})]
    there = {"salt", "vjepa"} <= set(configs["arm"])
    leads = comparisons(study.table, configs, sides, 0.95) if there else pd.DataFrame()
    rows: list[tuple[str, ...]] = []
    runs: list[tuple[str, ...]] = []
    for label, kind in _panels(study.table):
        answers = {_LEAD: _lead(leads, label, kind)} | _answers(study, label, kind)
        for question, (answer, ids) in answers.items():
            rows.append((label, kind, question, answer, whole[question][0]))
            runs.append(tuple(dict.fromkeys((*ids, *whole[question][1]))))
    caption = f"The same questions asked of this study and of {CITATION}, mean of four tasks, one seed each."
    table = Table(caption, ("label", "probe", "question", "this study", "published"), rows, runs)
    lines = allocation_statements(published, allocated) + teacher_statements(published)
    said = " ".join(f"{line.removeprefix(f'{CITATION}: ')}." for line in lines)
    runs_of_all = tuple(dict.fromkeys(published["run_id"]))
    return table, [Finding(f"What the published numbers say ({CITATION})", said, runs_of_all)]


def _panels(table: pd.DataFrame) -> list[tuple[str, str]]:
    rows = table.dropna(subset=["kind", "label"])
    return list(dict.fromkeys(zip(rows["label"], rows["kind"], strict=True)))


def _answers(of: Answers, label: str, kind: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Question -> (answer, runs behind it), for one label and probe."""

    def here(rows: pd.DataFrame) -> pd.DataFrame:
        return rows[(rows["label"] == label) & (rows["kind"] == kind)]

    points, rows = here(of.points), here(of.table)
    taught = rows[usable(rows) & rows["teacher_run_id"].notna()]
    runs = tuple(dict.fromkeys([*taught["run_id"], *taught["teacher_run_id"]]))
    passed = int((points["student_mean"] > points["teacher_mean"]).sum())
    slopes = [_slope(row) for row in here(of.lines).itertuples() if row.teachers > 2]
    shares = [_share(row) for row in here(of.optima).itertuples() if row.shares > 1]
    return {
        "students above their teacher, means over seeds": (
            f"{passed} of {len(points)}" if len(points) else MISSING,
            runs,
        ),
        "student's points per point of its teacher, at equal student compute": (
            "; ".join(slopes) or MISSING,
            runs,
        ),
        "teacher's share of the budget that scores best": ("; ".join(shares) or MISSING, runs),
    }


def _slope(row: Any) -> str:
    ends = "" if pd.isna(row.slope_low) else f" [{row.slope_low:.2f}, {row.slope_high:.2f}]"
    return f"{row.slope:.2f}{ends} ({row.student}, {row.compute})"


def _share(row: Any) -> str:
    return f"{share_text(row.best_share)} ({row.status}; {flops(row.budget_flops)} FLOPs)"


def _lead(leads: pd.DataFrame, label: str, kind: str) -> tuple[str, tuple[str, ...]]:
    """The two arms' paired difference at the study's largest budget."""
    if leads.empty:
        return MISSING, ()
    here = leads[(leads["label"] == label) & (leads["kind"] == kind) & leads["budget_flops"].notna()]
    if here.empty:
        return MISSING, ()
    row = here.loc[here["budget_flops"].idxmax()]
    text = f"{percent(row['difference'], signed=True)} {interval(row['low'], row['high'], signed=True)}"
    return f"{text} at {flops(row['budget_flops'])} FLOPs", tuple(row["run_ids"])


def _published_lead(published: pd.DataFrame) -> tuple[str, tuple[str, ...]]:
    pairs = equal_flops_pairs(published)
    text = "; ".join(
        f"{percent(row.difference, signed=True)} ± {percent(row.error)} (binomial) at "
        f"{flops(row.salt_flops)} FLOPs"
        for row in pairs.itertuples()
    )
    ids = published.loc[published["config"].isin([*pairs["salt"], *pairs["vjepa"]]), "run_id"]
    return text or MISSING, tuple(ids)
