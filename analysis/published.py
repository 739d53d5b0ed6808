"""What the published numbers of the SALT paper support, as sentences computed from them."""

from __future__ import annotations

import math
from itertools import pairwise

import pandas as pd

from analysis.allocation import Allocation, allocation
from analysis.pareto import COST_TOLERANCE, arm_rows
from analysis.reference import CITATION
from analysis.regime import regimes, teacher_points
from analysis.weakest import weakest_teachers

#: The paper's average over four tasks, in which its ablations are given.
LABEL = "avg4"


def difference_error(p: float, q: float, n_p: float, n_q: float) -> float:
    """Standard error of the difference of two accuracies from the clips alone (binomial, clips apart)."""
    return math.sqrt(p * (1 - p) / n_p + q * (1 - q) / n_q)


def equal_flops_pairs(table: pd.DataFrame, label: str = LABEL) -> pd.DataFrame:
    """Runs of `salt` and `vjepa` of one student size whose total FLOPs agree within 1 %.

    One row per pair: accuracies, `difference` (salt - vjepa), its binomial standard `error`, both totals.
    Runs with an unusual teacher (other data or masks) are left out.
    """
    rows = arm_rows(table)
    rows = rows[(rows["label"] == label) & (rows["variant"] == "")]
    pairs = rows[rows["arm"] == "salt"].merge(
        rows[rows["arm"] == "vjepa"], on=["student", "label", "kind", "frames"], suffixes=("_salt", "_vjepa")
    )
    near = (pairs["total_flops_salt"] / pairs["total_flops_vjepa"] - 1).abs() <= COST_TOLERANCE
    found = [
        {
            "student": row.student,
            "salt": row.config_salt,
            "vjepa": row.config_vjepa,
            "salt_flops": row.total_flops_salt,
            "vjepa_flops": row.total_flops_vjepa,
            "vjepa_printed_flops": row.printed_flops_vjepa,
            "salt_accuracy": row.accuracy_salt,
            "vjepa_accuracy": row.accuracy_vjepa,
            "difference": row.accuracy_salt - row.accuracy_vjepa,
            "error": difference_error(
                row.accuracy_salt, row.accuracy_vjepa, row.n_report_salt, row.n_report_vjepa
            ),
        }
        for row in pairs[near].itertuples()
    ]
    return pd.DataFrame(found)


def allocation_statements(table: pd.DataFrame, result: Allocation | None = None) -> list[str]:
    """On the split: the arms at equal corrected FLOPs, and how many gaps between shares are mere error."""
    lines = []
    for row in equal_flops_pairs(table).itertuples():
        lines.append(
            f"{CITATION}: at equal FLOPs ({row.salt_flops / 1e21:.3f}e21 for {row.salt}, "
            f"{row.vjepa_flops / 1e21:.3f}e21 for {row.vjepa}, where the paper prints "
            f"{row.vjepa_printed_flops / 1e21:.3f}e21) the mean of four tasks is "
            f"{100 * row.salt_accuracy:.1f} against {100 * row.vjepa_accuracy:.1f} %, a gap of "
            f"{row.difference / row.error:.0f} binomial standard errors; one seed each, so how much of it "
            "seeds explain is not known"
        )
    result = allocation(table[table["label"] == LABEL], draws=200) if result is None else result
    points = result.points[(result.points["label"] == LABEL) & (result.points["variant"] == "")]
    gaps, small, dearer = 0, 0, 0
    for _, curve in points.groupby("budget", sort=True):
        for first, second in pairwise(curve.sort_values("share").itertuples()):
            error = difference_error(first.mean, second.mean, first.n_report, second.n_report)
            gaps += 1
            small += abs(first.mean - second.mean) <= 1.96 * error
            dearer += first.flops > second.flops  # the smaller share leaves the student more steps
    if gaps:
        best = points.loc[points.groupby("budget")["mean"].idxmax()]
        shares = ", ".join(f"{100 * row.share:.0f} %" for row in best.itertuples())
        lines.append(
            f"{CITATION}: {small} of {gaps} gaps between neighbouring shares are below 1.96 binomial "
            f"standard errors; the best shares of FLOPs by budget are {shares}; budgets are matched in "
            f"steps, and {dearer} of {gaps} times the run with the longer student spent more FLOPs"
        )
    return lines


def teacher_statements(table: pd.DataFrame, within: float = 0.005) -> list[str]:
    """On students and teachers at equal student steps: how many passed, and how much the teacher matters.

    Teachers that are students themselves are left out of the weakest one that will do.
    """
    rows = table[table["label"] == LABEL]
    points = teacher_points(rows)
    passed = int((points["student_mean"] > points["teacher_mean"]).sum())
    lines = [
        f"{CITATION}: {passed} of {len(points)} students passed their teacher in the mean of four tasks; "
        "one seed each"
    ]
    for row in regimes(points).itertuples():
        if row.teachers > 2:
            lines.append(
                f"{CITATION}: over {row.teachers} teachers that differ by {100 * row.teacher_range:.1f} "
                f"points, students {row.student} of {row.compute} differ by {100 * row.student_range:.1f}; "
                f"slope {row.slope:.2f} [{row.slope_low:.2f}, {row.slope_high:.2f}]: {row.regime}"
            )
    single = points[~points["variant"].str.contains("is a student")]
    for row in weakest_teachers(single, within).itertuples():
        lines.append(
            f"{CITATION}: of pixel teachers the weakest within {100 * within:g} points of the best student "
            f"{row.student} of {row.compute} ({100 * row.best_student:.1f} %, teacher {row.best} of "
            f"{100 * row.best_accuracy:.1f} %) is {row.weakest} of {100 * row.weakest_accuracy:.1f} %; in "
            f"{100 * row.probability:.0f} % of draws of the report clips"
        )
    return lines
