"""A law fitted to every set of points of a table: parameters with intervals, what was held out, curves to
draw.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.law_bootstrap import DRAWS, LEVEL, Bootstrap, bootstrap
from analysis.law_fit import LawFit, fit_law
from analysis.law_heldout import HeldOut, hold_out
from analysis.law_points import PointSet, point_sets
from analysis.laws import Law, Metric, as_metric

#: Points of a drawn curve.
_CURVE = 60


@dataclass(frozen=True, kw_only=True)
class LawResult:
    """A fit with its intervals (None: no more independent units than parameters) and the held-out budget
    (None: one budget).
    """

    of: PointSet
    fit: LawFit
    draws: Bootstrap | None
    held: HeldOut | None

    @property
    def largest_flops(self) -> float:
        """The largest compute (budget) fitted, from which extrapolation counts."""
        return float(np.max(self.fit.data.budget))

    def interval(self, name: str) -> tuple[float, float]:
        """Of a parameter; NaN where there is none."""
        return (math.nan, math.nan) if self.draws is None else self.draws.parameter(name)


def law_results(
    table: pd.DataFrame,
    law: Law,
    metric: Metric,
    *,
    every: bool = False,
    across: bool = False,
    huber: float | None = None,
    draws: int = DRAWS,
    level: float = LEVEL,
    rng: int = 0,
) -> list[LawResult]:
    """Fit `law` to each arm and score of the table; see `analysis.law_points.point_sets`,
    `analysis.law_fit`.
    """
    results = []
    for found in point_sets(table, law, metric, every=every, across=across):
        fit = fit_law(law, found.data, huber=huber)
        results.append(
            LawResult(
                of=found,
                fit=fit,
                draws=bootstrap(fit, draws=draws, level=level, rng=rng),
                held=hold_out(fit) if fit.status != "too few points" else None,
            )
        )
    return results


def parameter_table(results: list[LawResult]) -> pd.DataFrame:
    """One row per fit and parameter: value (unrounded), interval, status, n, units, starts, lack of fit."""
    rows: list[dict[str, Any]] = []
    for result in results:
        fit, draws = result.fit, result.draws
        for name, value in fit.parameters.items():
            low, high = result.interval(name)
            rivals = fit.rivals.get(name, (math.nan, math.nan))
            rows.append(
                _place(result)
                | {
                    "law": fit.law.name,
                    "metric": fit.data.metric,
                    "parameter": name,
                    "value": value,
                    "low": low,
                    "high": high,
                    "level": math.nan if draws is None else draws.level,
                    "status": fit.status,
                    "n": len(fit.data),
                    "n_lost": result.of.lost,
                    "experiments": len(np.unique(fit.data.cell)),
                    "unit": None if draws is None else draws.unit,
                    "units": math.nan if draws is None else draws.units,
                    "lack_of_fit_p": math.nan
                    if draws is None or draws.lack_of_fit_p is None
                    else draws.lack_of_fit_p,
                    "objective": fit.objective,
                    "huber_delta": fit.delta,
                    "residual_deviation": fit.deviation,
                    "starts": len(fit.starts),
                    "starts_agreeing": fit.agreeing,
                    "rival_low": rivals[0],
                    "rival_high": rivals[1],
                    "notes": "; ".join(fit.notes),
                    "run_ids": fit.data.run_ids,
                }
            )
    return pd.DataFrame(rows)


def held_table(results: list[LawResult]) -> pd.DataFrame:
    """One row per fit: the largest budget, predicted from the others."""
    rows = []
    for result in results:
        held = result.held
        if held is not None:
            noise = math.nan if held.noise is None else held.noise
            rows.append(_place(result) | {**held.__dict__, "noise": noise})
    columns = [*_PLACE, *HeldOut.__dataclass_fields__]
    return pd.DataFrame(rows, columns=columns)


def start_table(results: list[LawResult]) -> pd.DataFrame:
    """One row per start: exponents at its begin and end, objective, iterations, whether it came to rest."""
    rows = []
    for result in results:
        for number, start in enumerate(result.fit.starts):
            row = _place(result) | {"law": result.fit.law.name, "start": number}
            for index, name in enumerate(result.fit.law.powers):
                row |= {f"from_{name}": start["start"][index], f"to_{name}": start["end"][index]}
            rows.append(row | {name: start[name] for name in ("objective", "iterations", "converged")})
    return pd.DataFrame(rows)


def point_table(results: list[LawResult]) -> pd.DataFrame:
    """One row per fitted run: columns of the law, measured and predicted, in the metric."""
    rows = []
    for result in results:
        data = result.fit.data
        part = pd.DataFrame({"run_id": data.run_ids, "budget_flops": data.budget} | data.columns)
        part["measured"] = as_metric(data.response, data.metric)
        part["predicted"] = result.fit.value(**data.columns) if result.fit.usable else math.nan
        for name, value in reversed(_place(result).items()):
            part.insert(0, name, value)
        rows.append(part)
    return pd.concat(rows, ignore_index=True)


def curve_table(results: list[LawResult], at: float | None = None) -> pd.DataFrame:
    """Curves of laws in compute: value and interval from the smallest compute to the largest, or to `at`."""
    rows = []
    for result in results:
        if result.fit.law.columns != ("compute",) or not result.fit.usable:
            continue
        data = result.fit.data
        ends = float(data.columns["compute"].min()), max(at or 0.0, float(data.columns["compute"].max()))
        compute = np.geomspace(*ends, _CURVE)
        rows.append(_valued(result, compute))
    columns = [*_PLACE, "compute", "value", "low", "high", "factor"]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)


def prediction_table(results: list[LawResult], at: float) -> pd.DataFrame:
    """What laws in compute say of one budget: value, interval, and how many times beyond the largest one
    fitted.
    """
    rows = [
        _valued(result, np.array([at]))
        for result in results
        if result.fit.law.columns == ("compute",) and result.fit.usable
    ]
    columns = [*_PLACE, "compute", "value", "low", "high", "factor"]
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=columns)


_PLACE = ("arm", "label", "kind")


def _place(result: LawResult) -> dict[str, Any]:
    return {name: getattr(result.of, name) for name in _PLACE}


def _valued(result: LawResult, compute: np.ndarray) -> pd.DataFrame:
    metric = result.fit.data.metric
    value = result.fit.value(compute=compute)
    low = high = np.full(len(compute), math.nan)
    if result.draws is not None:
        ends = result.draws.response(compute=compute)
        low, high = sorted((as_metric(ends[0], metric), as_metric(ends[1], metric)), key=lambda end: end[0])
    return pd.DataFrame(
        _place(result)
        | {
            "compute": compute,
            "value": value,
            "low": low,
            "high": high,
            "factor": compute / result.largest_flops,
        }
    )
