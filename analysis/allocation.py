"""How much of the budget the teacher should get: accuracy along the teacher's share, at each budget.

A curve is everything equal but the share: label, probe, arm, student, teacher and variant, at one budget.
Pure functions over the table of `analysis.gather`. Where a table says at how many steps its runs were matched
(`matched_steps`), that is the budget; else it is `budget_flops`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from analysis.intervals import LEVEL as T_LEVEL
from analysis.intervals import holm
from analysis.pareto import arm_rows, usable
from analysis.seed_draws import DRAWS, Draws, block_spread, bounds, by_seed, draw_means

Array = NDArray[Any]
#: A curve without its budget.
PLACE = ["label", "kind", "frames", "arm", "teacher", "student", "variant"]
INTERIOR, FLAT, FEW = "interior", "flat", "too few shares"
SMALLEST, LARGEST = "at the smallest share tried", "at the largest share tried"
#: Shares that a quadratic needs: one more than its parameters, so that it can fail.
LEAST_FOR_QUADRATIC = 4


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Accuracies along the share at one budget: `shares` [m] ascending, `values` [m, seeds] (NaN: lost)."""

    place: dict[str, Any]
    budget: float
    unit: str  # "FLOPs" or "steps"
    budget_flops: float  # mean of the curve's totals where budgets are steps
    shares: Array
    values: Array
    n_report: Array
    flops: Array  # mean total FLOPs of each share
    n_lost: int
    draws: Draws


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """`points`: a row per curve and share; `optima`: per curve; `trends`: per `PLACE`, over budgets."""

    points: pd.DataFrame
    optima: pd.DataFrame
    trends: pd.DataFrame


def allocation(table: pd.DataFrame, frames: str = "ordered", draws: int = DRAWS, rng: int = 0) -> Allocation:
    """Best share, its interval, how flat it is, and how it moves with the budget.

    `points`: `share`, `n` seeds, `mean`, `minimum`, `maximum`, `deviation`; `behind` the best share in shares
    of the report clips with `behind_low`, `behind_high` (95 %), `p` and `p_holm` over the curve; `within`
    whether it is within noise of the best; `best`. `basis` names the noise: seeds (paired differences with
    the spread pooled over the curve) or report clips (one seed: binomial, independent).

    `optima`: `best_share` of the means with `low`, `high` (90 %) over draws; `optimum` of a quadratic in
    logit(share), where there are 4 shares and it has a maximum between the ends, with `optimum_low`,
    `optimum_high` and `interior_probability`; `flat_low` to `flat_high`, the shares around the best that are
    within noise of it; `status`.

    `trends`: `slope` of log10 best share on log10 budget with `slope_low`, `slope_high` (90 %), over budgets
    with three shares; `grid_slope` is that of the shares tried (their mean logarithm), which the best of
    mere noise would follow.
    """
    curves = share_curves(table, frames, draws, rng)
    points, optima = [], []
    for curve in curves:
        rows, optimum = _judged(curve)
        points += rows
        optima.append(optimum)
    return Allocation(
        points=pd.DataFrame(points, columns=POINT_COLUMNS),
        optima=pd.DataFrame(optima, columns=OPTIMUM_COLUMNS),
        trends=pd.DataFrame(_trends(curves, optima), columns=TREND_COLUMNS),
    )


_BUDGET = ["budget", "unit", "budget_flops"]
POINT_COLUMNS = [
    *PLACE, *_BUDGET, "share", "flops", "n", "mean", "minimum", "maximum", "deviation", "n_report",
    "behind", "behind_low", "behind_high", "p", "p_holm", "within", "best", "basis",
]  # fmt: skip
OPTIMUM_COLUMNS = [
    *PLACE, *_BUDGET, "status", "shares", "seeds", "n_lost", "basis", "best_share", "best_mean", "low",
    "high", "optimum", "optimum_low", "optimum_high", "interior_probability", "flat_low", "flat_high",
    "flat_shares", "smallest_share", "largest_share", "spread",
]  # fmt: skip
TREND_COLUMNS = [
    *PLACE, "unit", "budgets", "budgets_at_an_end", "basis", "slope", "slope_low", "slope_high",
    "grid_slope", "flat_budgets", "of",
]  # fmt: skip


def share_curves(
    table: pd.DataFrame, frames: str = "ordered", draws: int = DRAWS, rng: int = 0
) -> list[Curve]:
    """The curves of a table, those of one share included: they have a status too."""
    rows = arm_rows(table)
    rows = rows[(rows["frames"] == frames) & rows["teacher_share"].notna()].dropna(subset=["kind"])
    steps = rows["matched_steps"] if "matched_steps" in rows else pd.Series(np.nan, index=rows.index)
    in_steps = bool(steps.notna().any())
    rows = rows.assign(
        budget=steps if in_steps else rows["budget_flops"],
        usable=usable(rows),
        variant=rows["variant"].fillna(""),
    )
    rows = rows[rows["budget"].notna()]
    found: list[Curve] = []
    for key, group in rows.groupby([*PLACE, "budget"], sort=True, dropna=False):
        good = group[group["usable"]]
        if good.empty:
            continue
        wide = by_seed(good, ["teacher_share"])
        of = good.groupby("teacher_share", sort=True)
        n_report = of["n_report"].min().to_numpy(dtype=float)
        values = wide.to_numpy(dtype=float)
        place = dict(zip(PLACE, key[:-1], strict=True))
        found.append(
            Curve(
                place=place,
                budget=float(key[-1]),
                unit="steps" if in_steps else "FLOPs",
                budget_flops=float(good["total_flops"].mean()) if in_steps else float(key[-1]),
                shares=wide.index.to_numpy(dtype=float),
                values=values,
                n_report=n_report,
                flops=of["total_flops"].mean().to_numpy(dtype=float),
                n_lost=len(group) - len(good),
                draws=draw_means(values, n_report, draws, rng, stream=len(found)),
            )
        )
    return found


# --- one curve ------------------------------------------------------------------------------------


def _judged(curve: Curve) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    means = curve.draws.means
    best = int(np.argmax(means))  # of equal means the smaller share
    behind = behind_best(curve.values, curve.n_report, best)
    within = np.array([p is None or p >= 1 - T_LEVEL for p in behind.p_holm])
    head = curve.place | {
        "budget": curve.budget,
        "unit": curve.unit,
        "budget_flops": curve.budget_flops,
        "basis": behind.basis,
    }
    counts = np.isfinite(curve.values).sum(axis=1)
    points = []
    for i, share in enumerate(curve.shares):
        values = curve.values[i][np.isfinite(curve.values[i])]
        points.append(
            head
            | {
                "share": float(share),
                "flops": float(curve.flops[i]),
                "n": int(counts[i]),
                "mean": float(means[i]),
                "minimum": float(values.min()),
                "maximum": float(values.max()),
                "deviation": float(values.std(ddof=1)) if len(values) > 1 else math.nan,
                "n_report": float(curve.n_report[i]),
                "behind": float(behind.difference[i]),
                "behind_low": float(behind.low[i]),
                "behind_high": float(behind.high[i]),
                "p": behind.p[i],
                "p_holm": behind.p_holm[i],
                "within": bool(within[i]),
                "best": i == best,
            }
        )
    first = last = best
    while first > 0 and within[first - 1]:
        first -= 1
    while last + 1 < len(within) and within[last + 1]:
        last += 1
    optimum = (
        head
        | _optimum(curve, best)
        | {
            "status": _status(best, within, behind.basis),
            "shares": len(curve.shares),
            "seeds": curve.draws.seeds,
            "n_lost": curve.n_lost,
            "best_share": float(curve.shares[best]),
            "best_mean": float(means[best]),
            "flat_low": float(curve.shares[first]),
            "flat_high": float(curve.shares[last]),
            "flat_shares": last - first + 1,
            "smallest_share": float(curve.shares[0]),
            "largest_share": float(curve.shares[-1]),
            "spread": float(means.max() - means.min()),
        }
    )
    return points, optimum


def _status(best: int, within: Array, basis: str) -> str:
    if len(within) < 3:
        return FEW
    if basis != "none" and within.all():
        return FLAT
    if best in (0, len(within) - 1):
        return SMALLEST if best == 0 else LARGEST
    return INTERIOR


@dataclass(frozen=True)
class Behind:
    """How far each configuration is behind the best of them; p of no difference, None where none exists."""

    difference: Array
    low: Array
    high: Array
    p: list[float | None]
    p_holm: list[float | None]
    basis: str  # "seeds", "report clips" or "none"


def behind_best(values: Array, n_report: Array, best: int) -> Behind:
    """Differences best - other of accuracies [m, seeds], paired by seed over the seeds that all have.

    Two seeds and more: t intervals with the spread pooled over all m after taking out each seed's own level
    ((m - 1)(n - 1) degrees of freedom, as in randomised blocks). One seed: binomial errors of both sides,
    as if their clips were drawn apart. That the best was picked from the same numbers makes others look
    further behind than they are; Holm's correction over the m - 1 pairs leans against it.
    """
    whole = values[:, np.isfinite(values).all(axis=0)]
    means = whole.mean(axis=1) if whole.shape[1] else np.nanmean(values, axis=1)
    difference = means[best] - means
    m, n = len(means), whole.shape[1]
    error, quantile, basis = math.nan, math.nan, "none"
    errors = np.full(m, math.nan)
    spread, degrees = block_spread(whole)
    if degrees:
        error = math.sqrt(2 / n) * spread
        if error > 1e-12:
            errors[:] = error
            quantile, basis = float(special.stdtrit(degrees, 0.5 + T_LEVEL / 2)), "seeds"
    elif m > 1 and np.isfinite(n_report).all() and (n_report > 0).all():
        variance = np.clip(means * (1 - means), 0, None) / n_report
        errors = np.sqrt(variance + variance[best])
        quantile, basis = float(special.ndtri(0.5 + T_LEVEL / 2)), "report clips"
    p: list[float | None] = [None] * m
    if basis != "none":
        for i in range(m):
            if i != best and errors[i] > 0:
                ratio = -abs(float(difference[i] / errors[i]))
                tail = special.stdtr(degrees, ratio) if basis == "seeds" else special.ndtr(ratio)
                p[i] = 2 * float(tail)
    others = [i for i in range(m) if i != best]
    p_holm: list[float | None] = [None] * m
    for i, value in zip(others, holm([p[i] for i in others]), strict=True):
        p_holm[i] = value
    reach = quantile * errors
    reach[best] = math.nan
    return Behind(difference, difference - reach, difference + reach, p, p_holm, basis)


def _optimum(curve: Curve, best: int) -> dict[str, Any]:
    """Intervals of the best share, and the quadratic's optimum where it has one."""
    drawn = curve.draws.drawn
    low, high = (
        bounds(curve.shares[np.argmax(drawn, axis=1)])
        if len(drawn) and len(curve.shares) > 1
        else (math.nan, math.nan)
    )
    names = ("optimum", "optimum_low", "optimum_high", "interior_probability")
    found: dict[str, Any] = {"low": low, "high": high} | dict.fromkeys(names, math.nan)
    if len(curve.shares) < LEAST_FOR_QUADRATIC:
        return found
    point, inside = quadratic_optimum(curve.shares, curve.draws.means[None])
    if not inside[0]:
        return found
    found["optimum"] = float(point[0])
    if len(drawn):
        optima, interior = quadratic_optimum(curve.shares, drawn)
        found["optimum_low"], found["optimum_high"] = bounds(optima)
        found["interior_probability"] = float(interior.mean())
    return found


def quadratic_optimum(shares: Array, means: Array) -> tuple[Array, Array]:
    """(optimum [k], whether it lies between the ends [k]) of quadratics in logit(share) through means [k, m].

    Without a maximum between the ends it is the end with the higher fitted value.
    """
    x = special.logit(shares)
    middle, scale = x.mean(), max(np.ptp(x), 1e-12)
    u = (x - middle) / scale
    design = np.stack([np.ones_like(u), u, u**2], axis=1)
    _, linear, square = np.linalg.pinv(design) @ means.T
    ends = np.array([u[0], u[-1]])
    fitted = linear[:, None] * ends + square[:, None] * ends**2
    end = ends[np.argmax(fitted, axis=1)]
    curved = square < -1e-12
    vertex = -linear / np.where(curved, 2 * square, 1.0)
    inside = curved & (vertex > u[0]) & (vertex < u[-1])
    return special.expit(np.where(inside, vertex, end) * scale + middle), inside


# --- over budgets ---------------------------------------------------------------------------------


def _trends(curves: list[Curve], optima: list[dict[str, Any]]) -> list[dict[str, Any]]:
    groups: dict[tuple[Any, ...], list[int]] = {}
    for index, curve in enumerate(curves):
        if len(curve.shares) >= 3:
            groups.setdefault(tuple(curve.place[name] for name in PLACE), []).append(index)
    return [
        _trend([curves[i] for i in places], [optima[i] for i in places])
        for places in groups.values()
        if len(places) > 1
    ]


def _trend(curves: list[Curve], optima: list[dict[str, Any]]) -> dict[str, Any]:
    """Slope of log10 of the best share on log10 budget; optima of quadratics where every budget has one."""
    smooth = all(math.isfinite(row["optimum"]) for row in optima)
    best = np.array([row["optimum"] if smooth else row["best_share"] for row in optima])
    x = np.log10([curve.budget for curve in curves])
    away = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    low = high = math.nan
    sources = {curve.draws.source for curve in curves}
    if "none" not in sources:
        drawn = np.stack([_drawn_best(curve, smooth) for curve in curves])
        low, high = bounds(away @ np.log10(drawn))
    ends = [row["status"] in (SMALLEST, LARGEST) for row in optima]
    return curves[0].place | {
        "unit": curves[0].unit,
        "budgets": len(curves),
        "budgets_at_an_end": sum(ends),
        "basis": " and ".join(sorted(sources)),
        "slope": float(away @ np.log10(best)),
        "slope_low": low,
        "slope_high": high,
        "grid_slope": float(away @ [np.log10(curve.shares).mean() for curve in curves]),
        "flat_budgets": sum(row["status"] == FLAT for row in optima),
        "of": "optimum of a quadratic" if smooth else "best share of the means",
    }


def _drawn_best(curve: Curve, smooth: bool) -> Array:
    if smooth:
        return quadratic_optimum(curve.shares, curve.draws.drawn)[0]
    return np.asarray(curve.shares[np.argmax(curve.draws.drawn, axis=1)])
