"""What fitted laws say: a table with status and what was held out, and sentences on predictions."""

from __future__ import annotations

import math

import pandas as pd

from analysis.law_results import LawResult
from analysis.laws import Metric
from analysis.tables import MISSING, Table, percent


def law_table(results: list[LawResult], metric: Metric) -> Table:
    headers = (
        *("arm", "label", "probe", "status", "runs", "parameters [interval]", "starts that agree"),
        *("lack of fit p", "largest budget held out: predicted, measured", "error", "notes"),
    )
    return Table(
        f"Law {results[0].fit.law.formula(metric)}",
        headers,
        [_fit_row(result, metric) for result in results],
        [result.fit.data.run_ids for result in results],
    )


def _fit_row(result: LawResult, metric: Metric) -> tuple[str, ...]:
    fit, held, draws = result.fit, result.held, result.draws
    runs = f"{len(fit.data)}" + (f" of {len(fit.data) + result.of.lost}" if result.of.lost else "")
    p = MISSING if draws is None or draws.lack_of_fit_p is None else f"{draws.lack_of_fit_p:.2g}"
    told, error = MISSING, MISSING
    if held is not None and math.isfinite(held.predicted):
        told = f"{_metric(held.predicted, metric)}, {_metric(held.measured, metric)} (x{held.factor:.3g})"
        error = _metric(held.error, metric, signed=True)
        error += "" if held.noise is None else f" ± {_metric(held.noise, metric)}"
    elif held is not None:
        told = f"{MISSING} ({held.status} without it)"
    parameters = "; ".join(_parameter(result, name) for name in fit.law.parameters)
    return (
        *(result.of.arm, result.of.label, result.of.kind, fit.status, runs),
        MISSING if fit.status == "too few points" else parameters,
        f"{fit.agreeing} of {len(fit.starts)}" if fit.starts else MISSING,
        *(p, told, error, "; ".join(fit.notes)),
    )


def _parameter(result: LawResult, name: str) -> str:
    low, high = result.interval(name)
    text = f"{name} {result.fit.parameters[name]:.4g}"
    return text if math.isnan(low) else f"{text} [{low:.3g}, {high:.3g}]"


def _metric(value: float, metric: Metric, signed: bool = False) -> str:
    if metric == "accuracy":
        return f"{percent(value, signed)} %" if not signed else f"{percent(value, signed)} points"
    return f"{value:+.4f}" if signed else f"{value:.4f}"


def prediction_sentences(table: pd.DataFrame, metric: Metric, level: float) -> list[str]:
    lines = []
    for row in table.itertuples():
        ends = (
            "no interval"
            if math.isnan(row.low)
            else (f"{100 * level:.3g} % interval {_metric(row.low, metric)} to {_metric(row.high, metric)}")
        )
        beyond = (
            f"an extrapolation {row.factor:.3g} times beyond the largest budget fitted"
            if row.factor > 1.01
            else "inside the budgets fitted"
        )
        lines.append(
            f"at {row.compute:.4g} FLOPs, {row.arm}, {row.label}, {row.kind}: {_metric(row.value, metric)}, "
            f"{ends}; {beyond}"
        )
    return lines or ["no fit gives predictions"]
