"""Fitting a law: many starts, the best kept, the others reported, and a status that says what may be
believed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from analysis.laws import Law, Points, Scaled, as_metric, scaled
from analysis.separable import EXPONENT_BOUNDS, Fits, polish, predict, project, residuals

Array = NDArray[Any]
Status = Literal["converged", "not converged", "at bound", "degenerate", "too few points"]
#: Exponents from which the search starts, each with each.
STARTS = (0.1, 0.3, 0.7)
#: Where the Huber loss turns linear, in robust standard deviations of the residuals. Huber's usual 1.345
#: leaves intervals of small studies too narrow (of 15 runs, a nominal 90 % covers 87 %; with 2.5, 90 %),
#: and an outlier is still an outlier.
HUBER_ERRORS = 2.5
#: Objectives this near the best, relatively, are the same solution; those within `RIVAL` are rivals.
SAME, RIVAL = 1e-6, 0.01
#: Above this condition number of the scaled normal matrix single parameters mean nothing.
CONDITION = 1e10


@dataclass(frozen=True, kw_only=True)
class LawFit:
    """One fitted law.

    `parameters` are in plain units and unrounded. `delta` is where the Huber loss turns linear, in units of
    the residual (log loss, or log odds); `objective` the sum of Huber losses; `deviation` the residuals'
    standard deviation on n - p degrees of freedom. `starts` holds of every start its exponents, where it
    ended, its objective, iterations and whether it came to rest; `agreeing` counts those that ended in the
    best solution, `rivals` the ranges of exponents among all within 1 % of its objective.
    """

    law: Law
    scale: Scaled
    data: Points
    fit: Fits
    parameters: dict[str, float]
    status: Status
    notes: tuple[str, ...]
    delta: float
    objective: float
    deviation: float
    starts: tuple[dict[str, Any], ...]
    agreeing: int
    rivals: dict[str, tuple[float, float]]

    @property
    def usable(self) -> bool:
        """Whether predictions mean something; single parameters need `status` converged."""
        return self.status in ("converged", "at bound", "degenerate")

    def response(self, **columns: Any) -> Array:
        """y at other places (columns as in `UNITS`): a loss, or -logit(accuracy)."""
        arrays = {name: np.atleast_1d(np.asarray(values, dtype=float)) for name, values in columns.items()}
        return np.asarray(predict(self.scale.at(arrays), self.fit)[0])

    def value(self, **columns: Any) -> Array:
        """The loss or the accuracy at other places."""
        return as_metric(self.response(**columns), self.data.metric)


def fit_law(
    law: Law, data: Points, *, huber: float | None = None, weights: Array | None = None, squares: bool = False
) -> LawFit:
    """Fit a law from all starts.

    Args:
        huber: the Huber loss's delta in units of the residual (1e-3 on log loss in Hoffmann et al. 2022);
            by default 2.5 robust standard deviations of a first fit by least squares.
        weights: [n], of the points. squares: least squares of y itself, without logarithm and without polish.

    Too few points give a fit with that status and missing (NaN) parameters, not an error.
    """
    short = _too_few(law, data)
    if short is not None:
        return _empty(law, data, short)
    scale = scaled(law, data)
    if squares:
        problem = scale.problem
        plain = type(problem)(problem.powers, problem.linear, problem.positive, logarithmic=False)
        scale = Scaled(plain, law, scale.centres)
    problem, y = scale.problem, data.response
    w = np.ones(len(data)) if weights is None else np.asarray(weights, dtype=float)
    relative = w / y**2 if problem.logarithmic else w
    starts = _starts(len(law.powers))
    first = project(problem, y, relative, starts, tolerance=1e-11 if squares else 1e-6)
    best = first.pick([int(np.argmin(first.objective))])
    delta = math.inf
    if not squares:
        rest = residuals(problem, y, predict(problem, best))[0]
        delta = robust_delta(rest, len(law.parameters)) if huber is None else huber
        best = polish(problem, y, w, best, delta)
    else:
        best = polish(problem, y, w, best, math.inf)
    return _described(law, scale, data, best, first, delta, starts)


def robust_delta(rest: Array, parameters: int) -> float:
    """2.5 robust standard deviations (from the median absolute deviation, made larger for the parameters
    fitted) of residuals [n]; infinite if most of them are 0.
    """
    spread = 1.4826 * float(np.median(np.abs(rest - np.median(rest))))
    spread *= math.sqrt(len(rest) / max(1, len(rest) - parameters))
    return HUBER_ERRORS * spread if spread > 1e-12 else math.inf


def _starts(exponents: int) -> Array:
    values = STARTS if exponents > 1 else (0.05, *STARTS, 1.5)
    return np.array(np.meshgrid(*[values] * exponents)).reshape(exponents, -1).T


def _too_few(law: Law, data: Points) -> str | None:
    """Why a law cannot be told from these points, or None: as many places as parameters, and 3 levels of each
    power's column.
    """
    cells = len(np.unique(data.cell))
    needed = len(law.parameters)
    if cells < needed:
        return f"{cells} experiments (apart from seeds) for {needed} parameters"
    for name in law.powers:
        if name in data.columns:
            levels = len(np.unique(np.round(np.log(data.columns[name]), 6)))
            if levels < 3:
                return f"{levels} value(s) of {name}: a power with an asymptote needs 3"
    for name in law.covariates:
        if name in data.columns and float(np.ptp(data.columns[name])) <= 1e-9:
            return f"{name} does not vary"
    return None


def _empty(law: Law, data: Points, reason: str) -> LawFit:
    nothing = np.full((1, 1), np.nan)
    return LawFit(
        law=law,
        scale=scaled(law, data),
        data=data,
        fit=Fits(nothing, nothing, nothing[0], np.zeros(1, dtype=int), np.zeros(1, dtype=bool)),
        parameters=dict.fromkeys(law.parameters, math.nan),
        status="too few points",
        notes=(reason,),
        delta=math.nan,
        objective=math.nan,
        deviation=math.nan,
        starts=(),
        agreeing=0,
        rivals={},
    )


def _described(
    law: Law, scale: Scaled, data: Points, best: Fits, first: Fits, delta: float, starts: Array
) -> LawFit:
    raw = scale.raw(best.coefficients, best.theta)[0]
    lowest = float(first.objective.min())
    # Noise-free data leave rounding: all solutions at that level are one.
    floor = 1e-18 * float(np.sum(data.response**2))
    same = first.objective <= lowest * (1 + SAME) + floor
    near = first.objective <= lowest * (1 + RIVAL) + floor
    rest = residuals(scale.problem, data.response, predict(scale.problem, best))[0]
    freedom = len(data) - len(law.parameters)
    status, notes = _status(law, scale, data, best, bool(first.converged[same].any()))
    return LawFit(
        law=law,
        scale=scale,
        data=data,
        fit=best,
        parameters=dict(zip(law.parameters, map(float, raw), strict=True)),
        status=status,
        notes=notes,
        delta=delta,
        objective=float(best.objective[0]),
        deviation=math.sqrt(float(rest @ rest) / freedom) if freedom > 0 else math.nan,
        starts=tuple(
            {
                "start": tuple(map(float, starts[index])),
                "end": tuple(map(float, first.theta[index])),
                "objective": float(first.objective[index]),
                "iterations": int(first.iterations[index]),
                "converged": bool(first.converged[index]),
            }
            for index in range(len(starts))
        ),
        agreeing=int(same.sum()),
        rivals={
            f"exponent_{name}": (float(first.theta[near, index].min()), float(first.theta[near, index].max()))
            for index, name in enumerate(law.powers)
        },
    )


def _status(
    law: Law, scale: Scaled, data: Points, best: Fits, rested: bool
) -> tuple[Status, tuple[str, ...]]:
    notes = []
    status: Status = "converged"
    low, high = EXPONENT_BOUNDS
    amplitudes = best.coefficients[0][1 + len(law.covariates) :]
    size = float(np.ptp(data.response)) or 1.0
    if not (bool(best.converged[0]) and rested):
        return "not converged", ("the search did not come to rest",)
    for index, name in enumerate(law.powers):
        exponent = float(best.theta[0, index])
        if amplitudes[index] <= 1e-9 * size:
            status = "degenerate"
            notes.append(f"no effect of {name}: its amplitude is 0, so its exponent says nothing")
        elif exponent <= low * 1.01 or exponent >= high * 0.99:
            status = "at bound" if status == "converged" else status
            notes.append(_bound_note(name, exponent, exponent <= low * 1.01))
    if data.metric == "loss" and best.coefficients[0][0] <= 0:
        status = "at bound" if status == "converged" else status
        notes.append("the asymptote is 0: none is seen in these data")
    if len(np.unique(data.cell)) == len(law.parameters):
        notes.append("as many parameters as experiments: the law meets every mean and is not tested")
    if status == "converged" and condition(scale, best) > CONDITION:
        status = "degenerate"
        notes.append("parameters trade against each other: only predictions inside the data mean something")
    return status, tuple(notes)


def _bound_note(name: str, exponent: float, lowest: bool) -> str:
    if lowest:
        return f"the exponent of {name} is the lowest searched, {exponent:.4g}: no levelling off is seen"
    return (
        f"the exponent of {name} is the highest searched, {exponent:.4g}: level but for the smallest {name}"
    )


def jacobian(scale: Scaled, best: Fits) -> Array:
    """d residual scale / d (coefficients, exponents), [n, P + K]."""
    columns = scale.problem.columns(best.theta)
    matrix = np.concatenate([columns, scale.problem.slopes(columns, best.coefficients)], axis=1)[0]
    if scale.problem.logarithmic:
        matrix = matrix / predict(scale.problem, best)
    return np.asarray(matrix.T)


def condition(scale: Scaled, best: Fits) -> float:
    """Condition number of the normal matrix with columns of unit length; infinite if a column is 0."""
    matrix = jacobian(scale, best)
    norms = np.linalg.norm(matrix, axis=0)
    if not (norms > 0).all():
        return math.inf
    values = np.linalg.svd(matrix / norms, compute_uv=False)
    return float((values[0] / values[-1]) ** 2) if values[-1] > 0 else math.inf
