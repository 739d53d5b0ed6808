"""IsoFLOP profiles: the best size at each budget, and what a plain parabola makes of it.

A parabola in log N (approach 2 of Hoffmann et al. 2022, arXiv 2203.15556) is symmetric; the profile of E +
A/N^alpha + B/D^beta along a budget is not unless alpha = beta, so that the vertex is shifted, by the more
the wider the sizes are spread (arXiv 2603.22339). The shift is the same at every budget whose sizes lie
alike around its optimum: exponents come out right and the sizes wrong. Here the best size comes from the
surface itself and from profiles with its exponents; the parabola stands beside them, with what it would
have cost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import brentq, nnls

from analysis.laws import Points
from salt.errors import UserError

Array = NDArray[Any]
#: Budgets nearer than this factor are one where a table names none.
SAME_BUDGET = 1.1


@dataclass(frozen=True)
class Exchange:
    """What a unit of data costs at size N: C = factor N^exponent D. For 6 N D: 6 and 1."""

    factor: float
    exponent: float

    def data(self, compute: Any, size: Any) -> Any:
        return compute / (self.factor * size**self.exponent)


@dataclass(frozen=True)
class Optimum:
    """The best split of a budget: size, data, and y there."""

    size: float
    data: float
    response: float


def exchange(data: Points) -> Exchange:
    """How cost per clip grows with size in these runs, by least squares of log(C / D) on log N.

    Raises `UserError` for fewer than two sizes.
    """
    size, per_unit = np.log(data.columns["size"]), np.log(data.columns["compute"] / data.columns["data"])
    if len(np.unique(np.round(size, 9))) < 2:
        raise UserError("one encoder size in this table: a best size needs at least three")
    slope, level = np.polyfit(size - size.mean(), per_unit, 1)
    return Exchange(float(np.exp(level - slope * size.mean())), float(slope))


def optimum(parameters: dict[str, Any], compute: Any, cost: Exchange) -> tuple[Array, Array, Array]:
    """(N, D, y) that minimise E + A/N^alpha + B/D^beta at C = factor N^kappa D, in closed form.

    N^(alpha + kappa beta) = (alpha A / (kappa beta B)) (C / factor)^beta; parameters and C may be arrays.
    """
    alpha, beta = parameters["exponent_size"], parameters["exponent_data"]
    a, b = parameters["amplitude_size"], parameters["amplitude_data"]
    kappa = cost.exponent
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        log_n = np.log(alpha * a / (kappa * beta * b)) + beta * np.log(compute / cost.factor)
        size = np.exp(log_n / (alpha + kappa * beta))
        data = cost.data(compute, size)
        y = parameters["asymptote"] + a * size**-alpha + b * data**-beta
    return np.asarray(size), np.asarray(data), np.asarray(y)


def power_law(x: Any, y: Any, weights: Any = None) -> tuple[float, float]:
    """(factor, exponent) of y = factor x^exponent, by (weighted) least squares of log y on log x.

    `weights` multiply residuals, such as 1 / (standard deviation of log y).
    """
    logs = np.log(np.asarray(x, dtype=float))
    centre = logs.mean()
    slope, level = np.polyfit(logs - centre, np.log(np.asarray(y, dtype=float)), 1, w=weights)
    return float(np.exp(level - slope * centre)), float(slope)


def budget_groups(data: Points) -> list[tuple[float, Array]]:
    """(budget in FLOPs, indices of its points), ascending; budgets within 10 % are one, at their geometric
    mean.
    """
    logs = np.log(data.budget)
    order = np.argsort(logs, kind="stable")
    cuts = np.flatnonzero(np.diff(logs[order]) > math.log(SAME_BUDGET)) + 1
    return [(float(np.exp(logs[part].mean())), part) for part in np.split(order, cuts)]


def parabola(size: Array, y: Array) -> tuple[float, float, float]:
    """(best size, y there, curvature per squared decade) of a parabola in log10 N; NaN sizes if it opens
    down.
    """
    logs = np.log10(size)
    centre = logs.mean()
    second, first, level = np.polyfit(logs - centre, y, 2)
    if second <= 0:
        return math.nan, math.nan, float(second)
    return float(10 ** (centre - first / (2 * second))), float(level - first**2 / (4 * second)), float(second)


def profiles(data: Points, parameters: dict[str, float] | None, cost: Exchange) -> pd.DataFrame:
    """One row per budget: the best size by parabola, by a profile with the surface's exponents, by the
    surface.

    Columns: `budget_flops`, `n`, `sizes` (how many), `smallest`, `largest`, `bracketed` (the lowest mean is
    at neither end), `status`, and per method `size_`, `data_`, `response_`: parabola, profile, surface.
    `parameters` of the surface (`LawFit.parameters`), or None: then only the parabola.

    The profile is E + a N^-alpha + b N^(kappa beta) with E, a, b of its own at each budget (a and b not
    negative) and the exponents of the surface: not symmetric, and linear once they are known.
    """
    rows = []
    for budget, index in budget_groups(data):
        size, y = data.columns["size"][index], data.response[index]
        levels, place = np.unique(size, return_inverse=True)
        means = np.bincount(place, y) / np.bincount(place)
        best = int(np.argmin(means))
        bracketed = 0 < best < len(levels) - 1
        row: dict[str, Any] = {
            "budget_flops": budget,
            "n": len(index),
            "sizes": len(levels),
            "smallest": float(levels[0]),
            "largest": float(levels[-1]),
            "bracketed": bracketed,
        }
        found = {"parabola": (math.nan, math.nan), "profile": (math.nan, math.nan)}
        if len(levels) >= 3:
            found["parabola"] = parabola(size, y)[:2]
            if parameters is not None and math.isfinite(parameters["exponent_size"]):
                found["profile"] = _profile(size, y, parameters, cost)
        if parameters is not None:
            best_size, _, best_y = optimum(parameters, budget, cost)
            found["surface"] = (float(best_size), float(best_y))
        for name, (where, low) in found.items():
            row |= {f"size_{name}": where, f"data_{name}": cost.data(budget, where), f"response_{name}": low}
        row["status"] = _status(row, levels)
        rows.append(row)
    return pd.DataFrame(rows)


def _profile(size: Array, y: Array, parameters: dict[str, float], cost: Exchange) -> tuple[float, float]:
    alpha, beta = parameters["exponent_size"], cost.exponent * parameters["exponent_data"]
    logs = np.log(size)
    centre = logs.mean()
    columns = np.stack([np.ones_like(logs), -np.ones_like(logs)], 1)  # an asymptote of either sign
    terms = np.stack([np.exp(-alpha * (logs - centre)), np.exp(beta * (logs - centre))], 1)
    (up, down, a, b), _ = nnls(np.concatenate([columns, terms], axis=1), y)
    if a <= 0 or b <= 0:
        return math.nan, math.nan
    step = math.log(alpha * a / (beta * b)) / (alpha + beta)
    return math.exp(centre + step), float(up - down + a * math.exp(-alpha * step) + b * math.exp(beta * step))


def _status(row: dict[str, Any], levels: Array) -> str:
    if len(levels) < 3:
        return "too few sizes"
    if not row["bracketed"]:
        return "not bracketed: best at an end of the sizes tried"
    if not math.isfinite(row["size_parabola"]):
        return "no minimum in the parabola"
    if not row["smallest"] <= row["size_parabola"] <= row["largest"]:
        return "optimum not interior"
    return "bracketed"


@dataclass(frozen=True)
class Miss:
    """What following the parabola would cost at a budget.

    `size_parabola` and `size_surface` as each extrapolates; `wasted_flops`: the budget less the budget at
    which the surface's best split is as good as the parabola's choice.
    """

    budget_flops: float
    size_parabola: float
    size_surface: float
    wasted_flops: float

    @property
    def share(self) -> float:
        return self.wasted_flops / self.budget_flops


def miss(parameters: dict[str, float], cost: Exchange, budget: float, size: float) -> Miss:
    """What a split of `budget` at `size` costs against the surface's best."""
    best, _, lowest = optimum(parameters, budget, cost)
    y = float(
        parameters["asymptote"]
        + parameters["amplitude_size"] * size ** -parameters["exponent_size"]
        + parameters["amplitude_data"] * cost.data(budget, size) ** -parameters["exponent_data"]
    )
    wasted = 0.0
    if y > float(lowest):

        def above(log_compute: float) -> float:
            return float(optimum(parameters, math.exp(log_compute), cost)[2]) - y

        low = math.log(budget)
        while above(low) < 0:
            low -= 1.0
        wasted = budget - math.exp(float(brentq(above, low, math.log(budget), xtol=1e-14, rtol=1e-14)))
    return Miss(budget, size, float(best), wasted)


def parabola_law(table: pd.DataFrame, cost: Exchange) -> tuple[float, float] | None:
    """(factor, exponent) of N = factor C^exponent through the parabolas' sizes; None with fewer than two
    budgets that have one.
    """
    good = table[np.isfinite(table["size_parabola"])]
    if len(good) < 2:
        return None
    return power_law(good["budget_flops"], good["size_parabola"])


def parabola_bias(data: Points, parameters: dict[str, float], cost: Exchange, budget: float) -> Miss | None:
    """What the parabola alone does, without noise: `miss` of parabolas through the surface itself at these
    runs' sizes and budgets, extrapolated to `budget`.
    """
    smooth = (
        parameters["asymptote"]
        + parameters["amplitude_size"] * data.columns["size"] ** -parameters["exponent_size"]
        + parameters["amplitude_data"] * data.columns["data"] ** -parameters["exponent_data"]
    )
    clean = Points(
        response=smooth,
        columns=data.columns,
        cell=data.cell,
        unit=data.unit,
        budget=data.budget,
        metric=data.metric,
    )
    line = parabola_law(profiles(clean, None, cost), cost)
    if line is None:
        return None
    return miss(parameters, cost, budget, line[0] * budget ** line[1])
