"""Do better teachers make better students? Students of equal compute, set against their teachers' accuracy.

A group is one label, probe, arm and student size at one student compute: students whose own FLOPs agree
within 2 %, or, where a table says that its runs were matched in steps (`matched_steps`), that trained for as
many steps. A teacher is one configuration of it; its point is the mean over seeds of teacher and student.

The slope of the student's accuracy on the teacher's says who limits: near 1 the student follows its teacher
(teacher-limited), near 0 the teacher does not matter (student-limited). Intervals are Student's t of least
squares over teachers, k - 2 degrees of freedom: they take the teachers as drawn at random.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from analysis.intervals import LEVEL
from analysis.pareto import arm_rows, usable
from analysis.plain import flops_text

Array = NDArray[Any]
#: What all students of a group share.
GROUP = ["label", "kind", "frames", "arm", "student", "compute"]
#: Own FLOPs this close count as equal.
COMPUTE_TOLERANCE = 0.02
#: Below this part of the teachers' variance being real, the slope is pulled to 0 enough to say so.
RELIABLE = 0.8
TEACHER_LIMITED, STUDENT_LIMITED, BETWEEN = "teacher-limited", "student-limited", "between"
INVERTED, UNDECIDED, FEW = "better teachers, worse students", "cannot be told", "too few teachers"


def teacher_points(table: pd.DataFrame, frames: str = "ordered") -> pd.DataFrame:
    """One row per (group, teacher configuration), from seeds where both accuracies are finite.

    `teacher_name` (size, and what else is unusual); `parameters` of the student; `n` seeds; `teacher_mean`,
    `student_mean`, their `_deviation` over seeds; `compute` as text, `compute_flops` (mean own FLOPs);
    `teacher_error`, `student_error`: standard error of the mean over seeds, with one seed the binomial error
    of the report clips; `n_report`; `seeds`, `values`, `teacher_values`: the seeds and their accuracies.
    """
    rows = arm_rows(table).dropna(subset=["kind"])
    rows = rows[(rows["frames"] == frames) & rows["teacher_run_id"].notna() & usable(rows)]
    rows = rows.assign(own_flops=student_compute(rows))
    rows = rows[np.isfinite(rows["teacher_accuracy"]) & np.isfinite(rows["own_flops"])]
    if rows.empty:
        return pd.DataFrame(columns=POINT_COLUMNS)
    rows = with_compute(rows.assign(variant=rows["variant"].fillna("")))
    found = []
    for key, group in rows.groupby([*GROUP, "teacher", "variant", "config_id", "budget_flops"], sort=True):
        found.append(dict(zip(GROUP, key[:6], strict=True)) | _point(group.sort_values("seed"), key[6:]))
    points = pd.DataFrame(found, columns=POINT_COLUMNS)
    # The same size twice at one student compute: small share of a large budget, large share of a small one.
    twice = points.duplicated([*GROUP, "teacher_name"], keep=False)
    points["teacher_name"] = [
        f"{row.teacher_name}, budget {flops_text(row.budget_flops)}" if again else row.teacher_name
        for row, again in zip(points.itertuples(), twice, strict=True)
    ]
    order = [*GROUP[:4], "parameters", "student", "compute_flops", "teacher_mean", "teacher_name"]
    return points.sort_values(order, kind="stable").reset_index(drop=True)


POINT_COLUMNS = [
    *GROUP, "parameters", "compute_flops", "teacher", "variant", "teacher_name", "config_id", "budget_flops",
    "n", "teacher_mean", "student_mean", "teacher_deviation", "student_deviation", "teacher_error",
    "student_error", "n_report", "seeds", "values", "teacher_values",
]  # fmt: skip


def _point(group: pd.DataFrame, key: tuple[Any, ...]) -> dict[str, Any]:
    teacher, variant, config_id, budget = key
    values, above = (group[name].to_numpy(dtype=float) for name in ("accuracy", "teacher_accuracy"))
    clips = float(group["n_report"].min())
    return {
        "parameters": float(group["parameters"].iloc[0]),
        "compute_flops": float(group["compute_flops"].iloc[0]),
        "teacher": teacher,
        "variant": variant,
        "teacher_name": ", ".join(part for part in (str(teacher), variant.replace("teacher's ", "")) if part),
        "config_id": config_id,
        "budget_flops": budget,
        "n": len(group),
        "teacher_mean": above.mean(),
        "student_mean": values.mean(),
        "teacher_deviation": above.std(ddof=1) if len(above) > 1 else math.nan,
        "student_deviation": values.std(ddof=1) if len(values) > 1 else math.nan,
        "teacher_error": mean_error(above, clips),
        "student_error": mean_error(values, clips),
        "n_report": clips,
        "seeds": tuple(int(seed) for seed in group["seed"]),
        "values": tuple(values.tolist()),
        "teacher_values": tuple(above.tolist()),
    }


def mean_error(values: Array, n_report: float) -> float:
    """Standard error of a mean over seeds; of one seed the binomial error of its clips, NaN if not known."""
    if len(values) > 1:
        return float(values.std(ddof=1) / math.sqrt(len(values)))
    rate = float(values[0])
    return math.sqrt(max(rate * (1 - rate), 0.0) / n_report) if n_report > 0 else math.nan


def student_compute(rows: pd.DataFrame) -> pd.Series:
    """What students spent themselves, in FLOPs: `own_flops`; results of other projects that lack it have
    the total less the teacher's share, or nothing.
    """
    rest = rows["total_flops"] * (1 - rows["teacher_share"])
    return rows["own_flops"].where(rows["own_flops"].notna(), rest)


def without_compute(table: pd.DataFrame, frames: str = "ordered") -> int:
    """Scores of students whose teacher's accuracy is known, but not what they spent themselves."""
    rows = arm_rows(table)
    rows = rows[(rows["frames"] == frames) & rows["teacher_run_id"].notna() & usable(rows)]
    known = np.isfinite(rows["teacher_accuracy"])
    return int((known & ~np.isfinite(student_compute(rows))).sum())


def with_compute(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with `compute`, what their students spent as text, and `compute_flops`, the group's mean."""
    if "matched_steps" in rows and rows["matched_steps"].notna().any():
        names = rows["steps"].map(lambda steps: f"{steps / 1000:g}k steps")
        ids: Any = names
    else:
        ids = pd.Series(equal_within(rows["own_flops"].to_numpy(dtype=float)), index=rows.index)
        names = None
    means = rows["own_flops"].groupby(ids).transform("mean")
    compute = names if names is not None else means.map(lambda flops: f"{flops_text(flops)} FLOPs")
    return rows.assign(compute=compute, compute_flops=means)


def equal_within(values: Array, tolerance: float = COMPUTE_TOLERANCE) -> Array:
    """Numbers of groups, ascending: a value more than `tolerance` above the smallest of its group opens the
    next one.
    """
    order = np.argsort(values, kind="stable")
    numbers = np.empty(len(values), dtype=int)
    number, first = -1, -math.inf
    for place in order:
        if values[place] > first * (1 + tolerance) or number < 0:
            number, first = number + 1, values[place]
        numbers[place] = number
    return numbers


# --- slope ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Line:
    """A least-squares line through k points; bounds are NaN with fewer than three or without residual."""

    slope: float
    low: float
    high: float
    intercept: float
    k: int


def line(x: Array, y: Array, level: float = LEVEL) -> Line:
    """Least squares of y on x with Student's t interval of the slope."""
    k = len(x)
    away = x - x.mean()
    square = float(away @ away)
    slope = float(away @ y / square)
    intercept = float(y.mean() - slope * x.mean())
    low = high = math.nan
    if k > 2:
        residual = y - intercept - slope * x
        error = math.sqrt(float(residual @ residual) / (k - 2) / square)
        reach = float(special.stdtrit(k - 2, 0.5 + level / 2)) * error
        if reach > 1e-12:
            low, high = slope - reach, slope + reach
    return Line(slope=slope, low=low, high=high, intercept=intercept, k=k)


def regimes(points: pd.DataFrame) -> pd.DataFrame:
    """One row per group: `teachers`, `slope`, `slope_low`, `slope_high` (95 %), `intercept`, `regime`.

    `reliability` is the part of the variance of the teachers' means that is not their own noise; below 0.8
    the slope is noticeably pulled to 0 (errors in the regressor). `teacher_range` and `student_range` are
    differences of the largest and smallest means, `gap` the mean of student minus teacher.
    """
    found = []
    for key, group in points.groupby(GROUP, sort=False):
        x, y = group["teacher_mean"].to_numpy(), group["student_mean"].to_numpy()
        row = dict(zip(GROUP, key, strict=True)) | {
            "compute_flops": float(group["compute_flops"].iloc[0]),
            "teachers": len(group),
            "teacher_range": float(np.ptp(x)),
            "student_range": float(np.ptp(y)),
            "gap": float((y - x).mean()),
            "slope": math.nan, "slope_low": math.nan, "slope_high": math.nan, "intercept": math.nan,
            "reliability": math.nan, "regime": FEW,
        }  # fmt: skip
        if len(group) > 1 and np.ptp(x) > 0:
            fit = line(x, y)
            noise = float((group["teacher_error"] ** 2).mean())
            row |= {
                "slope": fit.slope,
                "slope_low": fit.low,
                "slope_high": fit.high,
                "intercept": fit.intercept,
                "reliability": max(0.0, 1 - noise / float(x.var(ddof=1))),
                "regime": regime(fit),
            }
        found.append(row)
    return pd.DataFrame(found, columns=REGIME_COLUMNS)


REGIME_COLUMNS = [
    *GROUP, "compute_flops", "teachers", "slope", "slope_low", "slope_high", "intercept", "regime",
    "reliability", "teacher_range", "student_range", "gap",
]  # fmt: skip


def regime(fit: Line) -> str:
    """What the slope's interval says against 0 and 1."""
    if math.isnan(fit.low):
        return FEW
    zero, one = fit.low <= 0 <= fit.high, fit.low <= 1 <= fit.high
    if zero and one:
        return UNDECIDED
    if zero:
        return STUDENT_LIMITED
    if fit.high < 0:
        return INVERTED
    return TEACHER_LIMITED if one or fit.low > 1 else BETWEEN
