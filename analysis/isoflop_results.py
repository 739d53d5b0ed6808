"""IsoFLOP profiles of every arm and score of a table, with the surface's optimum and its intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.isoflop import (
    Exchange,
    Miss,
    exchange,
    miss,
    optimum,
    parabola_bias,
    parabola_law,
    profiles,
)
from analysis.law_bootstrap import DRAWS, LEVEL, Bootstrap, bootstrap
from analysis.law_fit import LawFit, fit_law
from analysis.law_points import PointSet, point_sets
from analysis.laws import SURFACE, Metric, as_metric
from salt.errors import UserError

#: Draws of the surface over which the parabola's bias is worked out.
_BIAS_DRAWS = 200
_FEWEST_DRAWS = 40


@dataclass(frozen=True, kw_only=True)
class IsoflopResult:
    """Profiles of one arm and score.

    `table` has a row per budget (`analysis.isoflop.profiles`) with `size_low` and `size_high` of the
    surface's optimum; `exponent` of N* in C by the surface, with `exponent_low`, `exponent_high`, and by
    the parabolas (`parabola_exponent`); `measured_miss` what following these runs' parabolas would cost at
    the target budget, `bias` what parabolas without any noise would (the interval is over the surface's
    draws). None where the surface has no fit, or fewer than two budgets a parabola.
    """

    of: PointSet
    surface: LawFit
    draws: Bootstrap | None
    cost: Exchange
    table: pd.DataFrame
    target_flops: float
    exponent: tuple[float, float, float]
    parabola_exponent: float
    measured_miss: Miss | None
    bias: Miss | None
    bias_share: tuple[float, float]

    @property
    def solved(self) -> bool:
        """Whether the surface has an optimum: both terms are there, and the search came to rest."""
        return self.surface.status in ("converged", "at bound")


def isoflop_results(
    table: pd.DataFrame,
    metric: Metric,
    *,
    at: float | None = None,
    across: bool = False,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> list[IsoflopResult]:
    """Profiles of each arm and score; `at` is the budget in FLOPs that the parabola is extrapolated to
    (default: the largest one).

    Raises `UserError` where no arm has three sizes at one budget.
    """
    sets = point_sets(table, SURFACE, metric, every=True, across=across)
    sets = [found for found in sets if "compute" in found.data.columns]
    results = [_result(found, at, draws, level) for found in sets if _sizes(found) >= 3]
    if not results:
        most = max((_sizes(found) for found in sets), default=0)
        raise UserError(
            f"an isoFLOP profile needs at least 3 encoder sizes, and no arm of this table has more than "
            f"{most}: "
            "add sizes to the study file"
        )
    return results


def _sizes(found: PointSet) -> int:
    return len(np.unique(found.data.columns["size"]))


def _result(found: PointSet, at: float | None, draws: int, level: float) -> IsoflopResult:
    data = found.data
    fit = fit_law(SURFACE, data)
    cost = exchange(data)
    resampled = bootstrap(fit, draws=draws, level=level)
    solved = fit.status in ("converged", "at bound")
    rows = profiles(data, fit.parameters if solved else None, cost)
    target = float(rows["budget_flops"].max()) if at is None else at
    rows["size_low"] = rows["size_high"] = math.nan
    exponent = (math.nan, math.nan, math.nan)
    measured = bias = None
    share = (math.nan, math.nan)
    line = parabola_law(rows, cost)
    if solved:
        exponent = _exponent(fit, resampled, cost)
        if resampled is not None:
            ends = [
                resampled.function(lambda p, c=budget: optimum(p, c, cost)[0])  # type: ignore[misc]
                for budget in rows["budget_flops"]
            ]
            rows["size_low"], rows["size_high"] = [end[0] for end in ends], [end[1] for end in ends]
        bias = parabola_bias(data, fit.parameters, cost, target)
        if line is not None:
            measured = miss(fit.parameters, cost, target, line[0] * target ** line[1])
        if bias is not None and resampled is not None:
            share = _bias_interval(found, resampled, cost, target, bias)
    return IsoflopResult(
        of=found,
        surface=fit,
        draws=resampled,
        cost=cost,
        table=rows,
        target_flops=target,
        exponent=exponent,
        parabola_exponent=math.nan if line is None else line[1],
        measured_miss=measured,
        bias=bias,
        bias_share=share,
    )


def _exponent(fit: LawFit, draws: Bootstrap | None, cost: Exchange) -> tuple[float, float, float]:
    """Of N* in C: beta / (alpha + kappa beta), with its interval."""

    def value(parameters: dict[str, Any]) -> Any:
        alpha, beta = parameters["exponent_size"], parameters["exponent_data"]
        return beta / (alpha + cost.exponent * beta)

    low, high = (math.nan, math.nan) if draws is None else draws.function(value)
    return float(value(fit.parameters)), low, high


def _bias_interval(
    found: PointSet, draws: Bootstrap, cost: Exchange, target: float, bias: Miss
) -> tuple[float, float]:
    names = draws.of.law.parameters
    shares = []
    for row in draws.parameters[:_BIAS_DRAWS]:
        one = parabola_bias(found.data, dict(zip(names, map(float, row), strict=True)), cost, target)
        shares.append(math.nan if one is None else one.share)
    known = np.isfinite(shares).sum()
    return draws.interval(np.array(shares), bias.share) if known >= _FEWEST_DRAWS else (math.nan, math.nan)


def profile_table(results: list[IsoflopResult]) -> pd.DataFrame:
    """One row per arm, score and budget, with responses as losses or accuracies."""
    parts = []
    for result in results:
        part = result.table.copy()
        for name in [column for column in part.columns if column.startswith("response_")]:
            part[name.replace("response", "best")] = as_metric(part.pop(name), result.of.data.metric)
        for name in ("kind", "label", "arm"):
            part.insert(0, name, getattr(result.of, name))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def law_table(results: list[IsoflopResult], flops_per_gpu_hour: float | None) -> pd.DataFrame:
    """One row per arm and score: exponents, and what the parabola would have cost at the target budget, in
    FLOPs and (where a run's time is known) GPU-hours.
    """
    rows = []
    for result in results:
        row: dict[str, Any] = {name: getattr(result.of, name) for name in ("arm", "label", "kind")}
        row |= {
            "n": len(result.of.data),
            "n_lost": result.of.lost,
            "surface_status": result.surface.status,
            "budgets": len(result.table),
            "budgets_bracketed": int((result.table["status"] == "bracketed").sum()),
            "exponent_surface": result.exponent[0],
            "exponent_low": result.exponent[1],
            "exponent_high": result.exponent[2],
            "exponent_parabola": result.parabola_exponent,
            "cost_exponent": result.cost.exponent,
            "target_flops": result.target_flops,
            "extrapolation": result.target_flops / float(result.table["budget_flops"].max()),
        }
        for name, one in (("measured", result.measured_miss), ("bias", result.bias)):
            wasted = math.nan if one is None else one.wasted_flops
            row |= {
                f"{name}_size_parabola": math.nan if one is None else one.size_parabola,
                f"{name}_wasted_flops": wasted,
                f"{name}_wasted_share": wasted / result.target_flops,
                f"{name}_wasted_gpu_hours": math.nan
                if flops_per_gpu_hour is None
                else wasted / flops_per_gpu_hour,
            }
        row |= {
            "size_surface": math.nan if result.bias is None else result.bias.size_surface,
            "bias_share_low": result.bias_share[0],
            "bias_share_high": result.bias_share[1],
        }
        rows.append(row)
    return pd.DataFrame(rows)
