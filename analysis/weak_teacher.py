"""Students against their teachers: has the student passed the teacher, and was it the teaching or the FLOPs?

A student sits on top of its teacher's compute, so being above the teacher is no evidence for distillation
by itself. The control beside it is the pixel arm, which spends the same total on one encoder of the
student's size.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.compare import paired
from analysis.gather import SCORE_KEY
from analysis.intervals import t_interval
from analysis.pareto import arm_rows, usable

_PAIR_COLUMNS = [
    "label",
    "kind",
    "frames",
    "arm",
    "budget_flops",
    "teacher",
    "student",
    "teacher_share",
    "variant",
    "config",
    "config_id",
    "seed",
    "teacher_accuracy",
    "student_accuracy",
    "gap",
    "passed",
    "n_report",
    "run_id",
    "teacher_run_id",
]
_PLACE = [
    "label",
    "kind",
    "frames",
    "arm",
    "budget_flops",
    "teacher",
    "student",
    "teacher_share",
    "variant",
    "config",
]
_TABLE_COLUMNS = [
    *_PLACE,
    "n",
    "n_lost",
    "teacher_mean",
    "mean",
    "minimum",
    "maximum",
    "deviation",
    "gap",
    "gap_low",
    "gap_high",
    "above",
    "share_above",
    "pixel_mean",
    "pixel_n",
    "over_pixel",
    "over_pixel_low",
    "over_pixel_high",
    "over_pixel_n",
    "run_ids",
]


def student_teacher_pairs(table: pd.DataFrame) -> pd.DataFrame:
    """One row per student run with a frozen teacher, where both accuracies are finite.

    `gap` is student minus teacher in shares of the report clips; `passed` is gap > 0 (above the diagonal).
    """
    rows = arm_rows(table).dropna(subset=["kind"])
    rows = rows[rows["teacher_run_id"].notna()]
    rows = rows[usable(rows) & np.isfinite(rows["teacher_accuracy"])]
    rows = rows.rename(columns={"accuracy": "student_accuracy"})
    rows = rows.assign(gap=rows["student_accuracy"] - rows["teacher_accuracy"])
    rows = rows.assign(passed=rows["gap"] > 0)
    return (
        rows[_PAIR_COLUMNS].sort_values([*SCORE_KEY, "budget_flops", "config", "seed"]).reset_index(drop=True)
    )


def teacher_student_table(table: pd.DataFrame) -> pd.DataFrame:
    """Per budget, teacher and student: mean, n and spread over seeds, the gap, and the equal-FLOPs control.

    `gap` is paired with the teacher by run, `over_pixel` with the pixel arm of the same budget, student
    size and seed; both with t intervals. `above` counts students above their teacher. Rows whose seeds
    are all lost stay, with n 0. With several pixel configurations of one size (a swept rate) the best on
    the selection split is used.
    """
    rows = arm_rows(table).dropna(subset=["kind"])
    students = rows[rows["teacher_run_id"].notna()]
    groups = students.groupby([*SCORE_KEY, "config_id", "budget_flops"], sort=True)
    found = [_teacher_student(group, rows) for _, group in groups]
    result = pd.DataFrame(found, columns=_TABLE_COLUMNS)
    order = ["label", "kind", "frames", "budget_flops", "arm", "teacher", "student", "config"]
    return result.sort_values(order, kind="stable").reset_index(drop=True)


def _teacher_student(group: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Any]:
    first = group.iloc[0]
    good = group[usable(group)].sort_values("seed")
    both = good[np.isfinite(good["teacher_accuracy"])]
    gaps = both["accuracy"] - both["teacher_accuracy"]
    gap = t_interval(gaps)
    pixel = pixel_control(rows, first)
    pairs = paired(good, pixel)
    over = t_interval(pairs["a"] - pairs["b"])
    return {name: first[name] for name in _PLACE} | {
        "n": len(good),
        "n_lost": len(group) - len(good),
        "teacher_mean": both["teacher_accuracy"].mean(),
        "mean": good["accuracy"].mean(),
        "minimum": good["accuracy"].min(),
        "maximum": good["accuracy"].max(),
        "deviation": good["accuracy"].std(ddof=1),
        "gap": gap.mean,
        "gap_low": gap.low,
        "gap_high": gap.high,
        "above": int((gaps > 0).sum()),
        "share_above": float((gaps > 0).mean()) if len(gaps) else None,
        "pixel_mean": pixel["accuracy"].mean(),
        "pixel_n": len(pixel),
        "over_pixel": over.mean,
        "over_pixel_low": over.low,
        "over_pixel_high": over.high,
        "over_pixel_n": over.n,
        "run_ids": tuple(dict.fromkeys([*good["run_id"], *both["teacher_run_id"], *pairs["b_run_id"]])),
    }


def pixel_control(rows: pd.DataFrame, like: pd.Series) -> pd.DataFrame:
    """Usable pixel rows of the same score, student size and budget: the whole budget spent on one encoder."""
    same = rows[(rows["arm"] == "pixel") & usable(rows)]
    for name in (*SCORE_KEY, "student", "budget_flops"):
        same = same[same[name] == like[name]]
    if same["config_id"].nunique() > 1:
        selection = same.groupby("config_id")["selection_accuracy"].mean()
        same = same[same["config_id"] == selection.sort_index().idxmax()]
    return same.sort_values("seed")


def share_above(pairs: pd.DataFrame) -> pd.DataFrame:
    """Per label, kind, frames and budget: students above their teacher, of how many."""
    groups = pairs.groupby(["label", "kind", "frames", "budget_flops"], sort=True)["passed"]
    counts = groups.agg(above="sum", n="count").reset_index()
    counts["share"] = counts["above"] / counts["n"]
    return counts
