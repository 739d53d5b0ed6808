"""What students against their teachers say, as sentences made from the numbers, and as a table."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from analysis.regime import BETWEEN, FEW, INVERTED, RELIABLE, STUDENT_LIMITED, TEACHER_LIMITED, UNDECIDED
from analysis.tables import MISSING, Table, percent
from analysis.turning import BENDS, PEAK, VALLEY
from analysis.turning import FEW as FEW_POINTS


def regime_table(regimes: pd.DataFrame, turns: pd.DataFrame, weakest: pd.DataFrame, within: float) -> Table:
    """A row per group with two teachers and more."""
    keys = ["label", "kind", "frames", "arm", "student", "compute"]
    rows = regimes.merge(turns[[*keys, "shape", "extremum"]], on=keys, validate="one_to_one")
    rows = rows.merge(weakest.drop(columns=["compute_flops", "teachers"]), on=keys, validate="one_to_one")
    lines = [
        (
            *(row.label, row.kind, row.student, row.compute, f"{row.teachers}"),
            _slope(row) if math.isfinite(row.slope) else MISSING,
            row.regime,
            row.shape if math.isnan(row.extremum) else f"{row.shape} at {percent(row.extremum)}",
            f"{row.weakest} ({percent(row.weakest_accuracy)})",
            percent(row.weakest_student),
            f"{row.best} ({percent(row.best_accuracy)})",
            percent(row.best_student),
            MISSING if math.isnan(row.probability) else f"{row.probability:.2f}",
        )
        for row in rows.itertuples()
    ]
    headers = (
        *(
            "label",
            "probe",
            "student",
            "student compute",
            "teachers",
            "slope [95 %]",
            "regime",
            "turning point",
        ),
        *(f"weakest teacher within {100 * within:g}", "its student %", "best student's teacher"),
        *("best student %", "probability"),
    )
    caption = (
        "Student accuracy against teacher accuracy at equal student compute; (teacher's own accuracy in %)."
    )
    return Table(caption, headers, lines)


def regime_sentences(
    regimes: pd.DataFrame, turns: pd.DataFrame, weakest: pd.DataFrame, within: float
) -> list[str]:
    """For every group of two teachers and more: regime, turning point, the weakest teacher that will do."""
    lines = []
    for regime, turn in zip(regimes.itertuples(), turns.itertuples(), strict=True):
        if regime.teachers > 1:
            lines.append(f"{_place(regime)}: {_regime(regime)}{_turn(turn)}")
    several = int(regimes["slope_low"].notna().sum())
    if several > 1:
        lines.append(
            f"{several} intervals of 95 % for slopes, not corrected for their number: about "
            f"{0.05 * several:.1f} of them miss the truth by chance"
        )
    lines += [f"{_place(row)}: {_weakest(row, within)}" for row in weakest.itertuples()]
    alone = int((regimes["teachers"] == 1).sum())
    if alone:
        lines.append(
            f"{alone} of {len(regimes)} groups of equal student compute have a single teacher: nothing is "
            "said of them"
        )
    return lines


def _place(row: Any) -> str:
    return f"{row.label}, {row.kind}, student {row.student} at {row.compute}"


def _slope(row: Any) -> str:
    text = f"{row.slope:.2f}"
    return text if math.isnan(row.slope_low) else f"{text} [{row.slope_low:.2f}, {row.slope_high:.2f}]"


def _regime(row: Any) -> str:
    if math.isnan(row.slope):
        return f"its {row.teachers} teachers are equally good, so no slope"
    head = f"a point of teacher accuracy goes with {_slope(row)} points of the student's over {row.teachers} "
    text = f"{head}teachers: " + {
        FEW: "too few for an interval",
        TEACHER_LIMITED: "teacher-limited (1 is in the interval, 0 is not)"
        if row.slope_low <= 1
        else "teacher-limited (the interval lies above 1)",
        STUDENT_LIMITED: "student-limited (0 is in the interval, 1 is not)",
        BETWEEN: "better teachers help, but by less than they are better",
        INVERTED: "better teachers go with worse students",
        UNDECIDED: "the interval holds 0 and 1, so the regime cannot be told",
    }[row.regime]  # fmt: skip
    if row.reliability < RELIABLE:
        text += (
            f"; only {100 * row.reliability:.0f} % of the teachers' variance is beyond their own noise, "
            "which pulls the slope to 0"
        )
    return text


def _turn(row: Any) -> str:
    if row.shape == FEW_POINTS:
        return f"; too few teachers ({row.teachers}) to look for a turning point"
    if row.shape in (PEAK, VALLEY):
        return (
            f"; a {row.shape} at a teacher accuracy of {percent(row.extremum)} %, by the quadratic "
            f"(p = {row.p_quadratic:.2g}) and by lines on both sides (p = {row.p_lines:.2g})"
        )
    if row.shape == BENDS:
        why = "too few points on one side" if math.isnan(row.p_lines) else f"p = {row.p_lines:.2g}"
        return (
            f"; a quadratic turns at {percent(row.extremum)} % (p = {row.p_quadratic:.2g}), lines on both "
            f"sides do not confirm it ({why}): it may only level off"
        )
    return f"; no turning point shown (p = {row.p_quadratic:.2g})"


def _weakest(row: Any, within: float) -> str:
    points = f"{100 * within:g} points"
    best = f"the best student ({percent(row.best_student)} %)"
    if row.weakest == row.best and row.saved == 0:
        text = f"no teacher weaker than {row.best} ({percent(row.best_accuracy)} %), that of {best}, "
        text += f"gives a student within {points} of it"
    else:
        text = f"the weakest teacher within {points} of {best} is {row.weakest} "
        text += f"({percent(row.weakest_accuracy)} %, {100 * row.saved:.1f} points weaker than {row.best}); "
        text += f"its student is {100 * row.shortfall:.1f} points behind"
    if math.isnan(row.probability):
        return f"{text}; no probability without several seeds or the number of report clips"
    noise = f"draws of {row.seeds} seeds" if row.basis == "seeds" else "draws of the report clips, one seed"
    text += f"; within in {100 * row.probability:.0f} % of {noise}"
    if row.weaker_probability > 0:
        text += f", a weaker teacher's in {100 * row.weaker_probability:.0f} %"
    return text
