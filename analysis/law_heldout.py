"""What a law is worth where it was not fitted: the largest budget held out and predicted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from analysis.isoflop import budget_groups
from analysis.law_fit import LawFit, fit_law
from analysis.laws import as_metric


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """The largest budget predicted from the others.

    `predicted` and `measured` are means over its runs, in the metric (loss, or accuracy as a share);
    `error` their difference; `noise` the standard error of the measured mean, None for one run; `factor`
    how far beyond the largest budget fitted. `status` of the fit without it; the numbers are NaN where that
    has no predictions.
    """

    budget_flops: float
    factor: float
    predicted: float
    measured: float
    error: float
    noise: float | None
    status: str
    n_fitted: int
    n_held: int


def hold_out(fit: LawFit) -> HeldOut | None:
    """Refit without the largest budget and predict it; None if there is only one budget."""
    groups = budget_groups(fit.data)
    if len(groups) < 2:
        return None
    (before, _), (budget, index) = groups[-2], groups[-1]
    held = np.zeros(len(fit.data), dtype=bool)
    held[index] = True
    given = None if not math.isfinite(fit.delta) else fit.delta
    rest = fit_law(fit.law, fit.data.where(~held), huber=given)
    measured = as_metric(fit.data.response[held], fit.data.metric)
    predicted = math.nan
    if rest.usable:
        columns = {name: values[held] for name, values in fit.data.columns.items()}
        predicted = float(rest.value(**columns).mean())
    mean = float(measured.mean())
    return HeldOut(
        budget_flops=budget,
        factor=budget / before,
        predicted=predicted,
        measured=mean,
        error=predicted - mean,
        noise=float(measured.std(ddof=1) / math.sqrt(len(measured))) if len(measured) > 1 else None,
        status=rest.status,
        n_fitted=int((~held).sum()),
        n_held=int(held.sum()),
    )
