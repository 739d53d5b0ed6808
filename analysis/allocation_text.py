"""What accuracy along the teacher's share says, as sentences made from its numbers, and as a table."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from analysis.allocation import FEW, FLAT, INTERIOR, Allocation
from analysis.plain import flops_text
from analysis.seed_draws import LEVEL
from analysis.tables import MISSING, Table, interval, percent

#: A trend of the shares tried below this is none.
LEVEL_GRID = 0.05


def budget_text(row: Any) -> str:
    """`8e11 FLOPs` or `240k steps`."""
    return f"{row.budget / 1000:g}k steps" if row.unit == "steps" else f"{flops_text(row.budget)} FLOPs"


FOOTER = (
    "Within noise: differences to the best, 95 %, Holm's correction over the shares of a budget. 90 % "
    "intervals: {draws:,} draws of seeds, or of report clips where there is one seed."
)


def share_text(share: float) -> str:
    """A share in percent, three digits at most."""
    return f"{100 * share:.3g} %"


def allocation_table(optima: pd.DataFrame) -> Table:
    """The best share at each budget."""
    ends = f"{100 * LEVEL:.0f} %"
    rows = [
        (
            *(row.label, row.kind, _who(row), budget_text(row), row.status, f"{row.shares}", f"{row.seeds}"),
            *(share_text(row.best_share), percent(row.best_mean), interval(row.low, row.high)),
            MISSING if math.isnan(row.optimum) else share_text(row.optimum),
            interval(row.optimum_low, row.optimum_high),
            f"{percent(row.flat_low)} to {percent(row.flat_high)}" if row.basis != "none" else MISSING,
        )
        for row in optima.itertuples()
    ]
    headers = (
        *("label", "probe", "teacher > student", "budget", "status", "shares", "seeds in all"),
        *("best share", "accuracy %", f"{ends} interval, share in %", "quadratic's best", f"{ends} interval"),
        "within noise of the best, share in %",
    )
    caption = "The teacher's share of the budget with the highest accuracy, everything else equal."
    return Table(caption, headers, rows)


def allocation_sentences(result: Allocation) -> list[str]:
    """One sentence or two per curve, and one per trend."""
    lines = [_curve_sentence(row) for row in result.optima.itertuples() if row.shares > 1]
    single = int((result.optima["shares"] == 1).sum())
    if single:
        lines.append(
            f"{single} of {len(result.optima)} curves have a single share, which says nothing about the split"
        )
    return lines + [_trend_sentence(row) for row in result.trends.itertuples()]


def _who(row: Any) -> str:
    sizes = f"{row.teacher} > {row.student}"
    return f"{sizes} ({row.variant})" if row.variant else sizes


def _place(row: Any) -> str:
    return f"{row.label}, {row.kind}, {_who(row)}"


def _curve_sentence(row: Any) -> str:
    head = f"{_place(row)} at {budget_text(row)}: "
    noise = (
        f"by differences paired over {row.seeds} seeds"
        if row.basis == "seeds"
        else "by the binomial error of the report clips alone: one seed, so no interval over seeds"
    )
    best = f"{share_text(row.best_share)} scores best ({percent(row.best_mean)} %)"
    if row.basis == "none":
        return f"{head}{best}, but without several seeds or the number of report clips no noise is known"
    if row.status == FEW:
        return f"{head}too few shares ({row.shares}) to say where the best lies"
    if row.status == FLAT:
        return (
            f"{head}any share from {share_text(row.smallest_share)} to {share_text(row.largest_share)} is "
            f"within noise of the best, {noise}; they span {100 * row.spread:.1f} points"
        )
    if row.flat_shares > 1:
        near = (
            f"any share from {share_text(row.flat_low)} to {share_text(row.flat_high)} is within noise of it"
        )
    else:
        near = "every other share is further behind than noise"
    text = f"{head}{best}; {near}, {noise}"
    if row.status != INTERIOR:
        beyond = "smaller" if row.best_share == row.smallest_share else "larger"
        return f"{text}; it lies {row.status}: a {beyond} one may be better"
    return text + _quadratic(row)


def _quadratic(row: Any) -> str:
    if math.isnan(row.optimum):
        return ""
    text = f"; a quadratic in logit(share) puts it at {share_text(row.optimum)}"
    if math.isnan(row.optimum_low):
        return text
    return text + f" [{share_text(row.optimum_low)}, {share_text(row.optimum_high)}]"


def _trend_sentence(row: Any) -> str:
    sure = not math.isnan(row.slope_low)
    ends = f" [{row.slope_low:.2f}, {row.slope_high:.2f}]" if sure else ", without an interval"
    text = f"{_place(row)}: over {row.budgets} budgets the {row.of} goes as budget^{row.slope:.2f}{ends}"
    if row.flat_budgets:
        text += f"; {row.flat_budgets} of them are flat"
    if row.budgets_at_an_end:
        text += f"; at {row.budgets_at_an_end} it lies at an end of the shares tried, so the slope is a bound"
    if abs(row.grid_slope) > LEVEL_GRID and (not sure or row.slope_low <= row.grid_slope <= row.slope_high):
        text += f"; the shares tried move as budget^{row.grid_slope:.2f}, from which this cannot be told"
    elif sure and row.slope_low <= 0 <= row.slope_high:
        text += "; no trend shown"
    elif sure:
        text += f"; the best share {'grows' if row.slope > 0 else 'shrinks'} with the budget"
    return text
