"""The laws that salt fits, as columns of `analysis.separable`, and what their parameters are called.

All are of the form y = E + sum A x^-alpha (+ kappa q), in which y falls: a loss as it is, or of an accuracy
the log odds of an error, -logit(accuracy). docs/laws.md says why, and derives the teacher's term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from analysis.separable import Problem
from salt.errors import UserError

Array = NDArray[Any]
Metric = Literal["loss", "accuracy"]
#: Columns of points by the names that laws use, and their units.
UNITS = {
    "compute": "pretraining FLOPs",
    "size": "encoder parameters",
    "data": "clips seen (foreign tables: as given)",
    "teacher": "logit of the teacher's accuracy",
}


@dataclass(frozen=True)
class Law:
    """Which columns enter: each of `powers` as a power term of its own, each of `covariates` linearly."""

    name: str
    powers: tuple[str, ...]
    covariates: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        return (*self.powers, *self.covariates)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names in the order of a fit: linear coefficients, then exponents."""
        slopes = [f"slope_{name}" for name in self.covariates]
        amplitudes = [f"amplitude_{name}" for name in self.powers]
        return ("asymptote", *slopes, *amplitudes, *(f"exponent_{name}" for name in self.powers))

    def formula(self, metric: Metric) -> str:
        """The law in symbols."""
        symbols = {"compute": "C", "size": "N", "data": "D"}
        greek = {"compute": "γ", "size": "α", "data": "β"}
        left = "L" if metric == "loss" else "−logit(accuracy)"
        parts = ["E", *(f"A_{symbols[name]} {symbols[name]}^−{greek[name]}" for name in self.powers)]
        return f"{left} = " + " + ".join([*parts, *("κ q" for _ in self.covariates)])


COMPUTE = Law("compute", ("compute",))
SURFACE = Law("surface", ("size", "data"))
TEACHER = Law("teacher", ("size", "data"), ("teacher",))
TEACHER_COMPUTE = Law("teacher-compute", ("compute",), ("teacher",))
LAWS = {law.name: law for law in (COMPUTE, SURFACE, TEACHER, TEACHER_COMPUTE)}


@dataclass(frozen=True, kw_only=True)
class Points:
    """What a law is fitted to: n finite runs.

    `response` [n] is a loss or -logit(accuracy); `columns` holds what laws may use (`UNITS`), [n] each;
    `cell` [n] numbers experiments that differ only in their seed; `unit` [n] numbers what was drawn
    independently: runs, or the students of one teacher run together; `budget` [n] in FLOPs.
    """

    response: Array
    columns: dict[str, Array]
    cell: Array
    unit: Array
    budget: Array
    metric: Metric
    run_ids: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.response)

    def where(self, mask: Array) -> Points:
        return Points(
            response=self.response[mask],
            columns={name: values[mask] for name, values in self.columns.items()},
            cell=self.cell[mask],
            unit=self.unit[mask],
            budget=self.budget[mask],
            metric=self.metric,
            run_ids=tuple(np.asarray(self.run_ids, dtype=object)[mask]) if self.run_ids else (),
        )


def points(
    response: Any,
    *,
    metric: Metric,
    cell: Any = None,
    unit: Any = None,
    budget: Any = None,
    run_ids: tuple[str, ...] = (),
    **columns: Any,
) -> Points:
    """`Points` from plain arrays: losses, or accuracies as shares strictly between 0 and 1.

    Raises `UserError` where a value is not finite, or has no logarithm. Leave such rows out, and count
    them, before.
    """
    y = np.asarray(response, dtype=float)
    there = {name: np.asarray(values, dtype=float) for name, values in columns.items() if values is not None}
    for name, values in {"response": y, **there}.items():
        if not np.isfinite(values).all():
            raise UserError(f"a law needs finite values, and {name} has others: leave those rows out")
    for name in ("compute", "size", "data"):
        if name in there and not (there[name] > 0).all():
            raise UserError(
                f"a law needs {name} above 0, and {there[name].min():g} is not: leave such rows out"
            )
    if metric == "accuracy":
        if not ((y > 0) & (y < 1)).all():
            raise UserError(
                "an accuracy of 0 or 1 has no logit: leave such rows out, or give accuracies as shares"
            )
        y = -np.log(y / (1 - y))
    elif not (y > 0).all():
        raise UserError(f"a loss must be above 0 to be fitted, and {y.min():g} is not")
    number = np.arange(len(y))
    return Points(
        response=y,
        columns=there,
        cell=number if cell is None else np.unique(np.asarray(cell), return_inverse=True)[1],
        unit=number if unit is None else np.unique(np.asarray(unit), return_inverse=True)[1],
        budget=there.get("compute", np.full(len(y), np.nan))
        if budget is None
        else np.asarray(budget, dtype=float),
        metric=metric,
        run_ids=run_ids,
    )


def as_metric(response: Any, metric: Metric) -> Array:
    """A law's y as a loss or an accuracy again."""
    y = np.asarray(response, dtype=float)
    return y if metric == "loss" else np.asarray(1 / (1 + np.exp(y)))


@dataclass(frozen=True)
class Scaled:
    """A law on points, with logarithms centred at `centres` so that amplitudes are of the size of y."""

    problem: Problem
    law: Law
    centres: dict[str, float]

    def at(self, columns: dict[str, Array]) -> Problem:
        """The law's problem at other places."""
        return self.problem.at(*_matrices(self.law, columns, self.centres))

    def raw(self, coefficients: Array, theta: Array) -> Array:
        """Parameters [S, p] in `Law.parameters`' order, in plain units, unrounded."""
        linear = np.array(coefficients, dtype=float)
        first = 1 + len(self.law.covariates)
        for index, name in enumerate(self.law.covariates):  # the covariate was centred too
            linear[:, 0] -= linear[:, 1 + index] * self.centres[name]
        for index, name in enumerate(self.law.powers):
            with np.errstate(over="ignore"):
                linear[:, first + index] *= np.exp(theta[:, index] * self.centres[name])
        return np.concatenate([linear, theta], axis=1)


def scaled(law: Law, data: Points) -> Scaled:
    """The problem of a law on points. Raises `UserError` if a column of the law is not there."""
    missing = [name for name in law.columns if name not in data.columns]
    if missing:
        raise UserError(
            f"the law {law.name} needs {', '.join(f'{name} ({UNITS[name]})' for name in missing)}, which "
            "this table does not hold: name the column with --columns, or take another law"
        )
    centres = {
        name: float(np.mean(data.columns[name] if name in law.covariates else np.log(data.columns[name])))
        for name in law.columns
    }
    powers, linear = _matrices(law, data.columns, centres)
    free = (data.metric == "loss", *(False for _ in law.covariates), *(True for _ in law.powers))
    return Scaled(Problem(powers, linear, free, data.metric == "loss"), law, centres)


def _matrices(law: Law, columns: dict[str, Array], centres: dict[str, float]) -> tuple[Array, Array]:
    count = len(next(iter(columns.values())))
    size = len(law.powers)
    powers = np.zeros((size, size, count))
    for index, name in enumerate(law.powers):
        powers[index, index] = np.log(columns[name]) - centres[name]
    covariates = [columns[name] - centres[name] for name in law.covariates]
    return powers, np.stack([np.ones(count), *covariates])
