"""The weakest teacher whose student is within some points of the best, and the teacher x student surface."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.regime import GROUP
from analysis.seed_draws import DRAWS, draw_means

Array = NDArray[Any]
_CELL = ["label", "kind", "frames", "arm", "compute"]

WEAKEST_COLUMNS = [
    *GROUP, "compute_flops", "teachers", "basis", "seeds", "weakest", "weakest_accuracy", "weakest_student",
    "best", "best_accuracy", "best_student", "shortfall", "saved", "probability", "weaker_probability",
]  # fmt: skip


def weakest_teachers(points: pd.DataFrame, within: float, draws: int = DRAWS, rng: int = 0) -> pd.DataFrame:
    """Per group of `analysis.regime.teacher_points` with two teachers: the one with the least accuracy whose
    student's mean is at most `within` (a share, 0.005 for half a point) below the best student's.

    `shortfall` of its student; `saved`, how far the teacher itself is below the best student's teacher;
    `probability` that its student is within `within` of the best over draws of seeds (with one seed: of
    report clips); `weaker_probability` that a still weaker teacher's is; both NaN without draws.
    `basis` says which.
    """
    found = []
    for stream, (key, group) in enumerate(points.groupby(GROUP, sort=False)):
        if len(group) < 2:
            continue
        ordered = group.sort_values(["teacher_mean", "teacher_name"], kind="stable").reset_index(drop=True)
        means = ordered["student_mean"].to_numpy()
        best = int(np.argmax(means))
        place = int(np.argmax(means >= means[best] - within - 1e-12))
        weakest, top = ordered.iloc[place], ordered.iloc[best]
        drawn = draw_means(_values(ordered), ordered["n_report"].to_numpy(dtype=float), draws, rng, stream)
        close = drawn.drawn >= drawn.drawn.max(axis=1, keepdims=True) - within - 1e-12
        sure = drawn.source != "none"
        found.append(
            dict(zip(GROUP, key, strict=True))
            | {
                "compute_flops": float(top["compute_flops"]),
                "teachers": len(ordered),
                "basis": drawn.source,
                "seeds": drawn.seeds,
                "weakest": weakest["teacher_name"],
                "weakest_accuracy": weakest["teacher_mean"],
                "weakest_student": weakest["student_mean"],
                "best": top["teacher_name"],
                "best_accuracy": top["teacher_mean"],
                "best_student": top["student_mean"],
                "shortfall": float(means[best] - means[place]),
                "saved": float(top["teacher_mean"] - weakest["teacher_mean"]),
                "probability": float(close[:, place].mean()) if sure else math.nan,
                "weaker_probability": float(close[:, :place].any(axis=1).mean()) if sure else math.nan,
            }
        )
    return pd.DataFrame(found, columns=WEAKEST_COLUMNS)


def _values(points: pd.DataFrame) -> Array:
    """Accuracies of students [teachers, seeds], NaN where a teacher's student lacks a seed."""
    seeds = sorted({seed for row in points["seeds"] for seed in row})
    values = np.full((len(points), len(seeds)), np.nan)
    for i, (own, accuracies) in enumerate(zip(points["seeds"], points["values"], strict=True)):
        values[i, [seeds.index(seed) for seed in own]] = accuracies
    return values


SURFACE_COLUMNS = [
    *_CELL, "compute_flops", "teacher_name", "student", "n", "configurations", "mean", "deviation", "minimum",
    "maximum", "teacher_mean",
]  # fmt: skip


def surface(points: pd.DataFrame) -> pd.DataFrame:
    """Teacher x student at each student compute: every pair of names there, also those without a run (n 0).

    `n` counts runs over seeds and configurations (`configurations`: several only where a rate was swept or
    two budgets give one student compute); `mean`, `deviation`, `minimum`, `maximum` of the students'
    accuracy, `teacher_mean` of their teachers'.
    """
    found = []
    for key, group in points.groupby(_CELL, sort=False):
        teachers = group.groupby("teacher_name")["teacher_mean"].mean().sort_values(kind="stable").index
        students = group.sort_values("parameters", kind="stable")["student"].unique()
        for teacher, student in product(teachers, students):
            cell = group[(group["teacher_name"] == teacher) & (group["student"] == student)]
            values = np.array([value for row in cell["values"] for value in row])
            above = [value for row in cell["teacher_values"] for value in row]
            found.append(
                dict(zip(_CELL, key, strict=True))
                | {
                    "compute_flops": float(group["compute_flops"].mean()),
                    "teacher_name": teacher,
                    "student": student,
                    "n": len(values),
                    "configurations": len(cell),
                    "mean": values.mean() if len(values) else math.nan,
                    "deviation": values.std(ddof=1) if len(values) > 1 else math.nan,
                    "minimum": values.min() if len(values) else math.nan,
                    "maximum": values.max() if len(values) else math.nan,
                    "teacher_mean": float(np.mean(above)) if above else math.nan,
                }
            )
    return pd.DataFrame(found, columns=SURFACE_COLUMNS)
