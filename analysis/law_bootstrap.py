"""Intervals of a law's parameters and predictions: a wild bootstrap of its residuals, by what was drawn
independently.

The design (sizes, budgets) stays as it is; residuals, made larger by what the fit has taken from them (Bell
and McCaffrey 2002), get a random sign per unit (Wu 1986; Cameron, Gelbach and Miller 2008), and all
resamples are fitted at once. Where the loss is nearly one of absolute values, units get random weights
instead. A unit is a seed of an experiment. It is all seeds of an experiment where the law does not fit
within the noise of the seeds (then what is off is common to them), and all students of one teacher run
where students share one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from analysis.law_fit import LawFit, jacobian
from analysis.separable import Fits, polish, predict, project, residuals

Array = NDArray[Any]
LEVEL = 0.90
DRAWS = 2000
#: Below this p value of the lack-of-fit test seeds of one experiment are not taken as independent of each
#: other.
LACK_OF_FIT = 0.05
#: A Huber loss that turns linear below this many standard deviations of the residuals is nearly one of
#: absolute values, whose fits meet some points exactly: signs of those residuals move nothing. There the
#: units' weights are drawn instead (Rubin 1981).
WILD_DEVIATIONS = 1.0
#: Six-point weights for few units (Webb 2014), else signs.
_WEBB = np.sqrt(np.array([0.5, 1.0, 1.5]))
_FEW_UNITS = 12


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Resampled fits of a law.

    `parameters` [draws, p] in plain units; `unit` what a draw changes the sign of, `units` how many there
    are; `lack_of_fit_p` the F test of the law against free means of the experiments (None: one seed each).
    """

    of: LawFit
    fits: Fits
    parameters: Array
    unit: Literal["seed", "experiment", "teacher", "teacher and experiment"]
    units: int
    lack_of_fit_p: float | None
    level: float
    unit_of: Array

    def parameter(self, name: str) -> tuple[float, float]:
        """Interval of a parameter at `level`."""
        index = self.of.law.parameters.index(name)
        return self.interval(self.parameters[:, index], self.of.parameters[name])

    def function(self, value: Callable[[dict[str, Array]], Array]) -> tuple[float, float]:
        """Interval of any function of the parameters, given as a dictionary of arrays."""
        names = self.of.law.parameters
        drawn = value({name: self.parameters[:, index] for index, name in enumerate(names)})
        point = value({name: np.array([number]) for name, number in self.of.parameters.items()})
        return self.interval(np.asarray(drawn), float(point[0]))

    def response(self, **columns: Any) -> tuple[Array, Array]:
        """Lower and upper ends [n] of the law's y at other places, of the mean and not of a single run."""
        arrays = {name: np.atleast_1d(np.asarray(values, dtype=float)) for name, values in columns.items()}
        drawn = predict(self.of.scale.at(arrays), self.fits)
        ends = [
            self.interval(drawn[:, index], float(point))
            for index, point in enumerate(self.of.response(**columns))
        ]
        return np.array([end[0] for end in ends]), np.array([end[1] for end in ends])

    def interval(self, drawn: Array, point: float) -> tuple[float, float]:
        """Percentiles, at the tail areas that give Student's t with `degrees` (Hesterberg 2015).

        `drawn` may stop after fewer draws; those that are not finite are left out.
        """
        tail = expanded_tail(self.level, self.degrees(drawn))
        low, high = np.quantile(drawn[np.isfinite(drawn)], [tail, 1 - tail])
        return float(min(low, point)), float(max(high, point))

    def degrees(self, drawn: Array) -> float:
        """Degrees of freedom of a drawn quantity's variance, from 1 to the number of units less parameters.

        Satterthwaite's, of the bias-reduced sandwich (Bell and McCaffrey 2002): a quantity that hangs on few
        units has few. Its gradient is taken from the draws themselves.
        """
        basis, moved = self._coordinates
        good = np.flatnonzero(np.isfinite(drawn))
        if not len(good) or not float(np.ptp(drawn[good])) > 0:
            return 1.0
        # In units of the largest move: the result is a ratio, and draws of a degenerate fit have no bounds.
        centred = drawn[good] / np.abs(drawn[good]).max()
        centred -= centred.mean()
        gradient = np.linalg.lstsq(moved[good], centred / np.abs(centred).max(), rcond=None)[0]
        weights = basis @ gradient
        rest = _block_roots(basis, self.unit_of, weights)
        parts = np.zeros((len(weights), self.units))
        parts[np.arange(len(weights)), self.unit_of] = rest
        parts -= basis @ (basis.T @ parts)
        products = parts.T @ parts
        found = float(np.trace(products) ** 2 / (products**2).sum())
        return float(np.clip(found, 1.0, max(1, self.units - basis.shape[1])))

    @cached_property
    def _coordinates(self) -> tuple[Array, Array]:
        """An orthonormal basis [n, r] of what the law can follow, and the draws in it [draws, r], centred."""
        basis = _basis(self.of)
        point = np.concatenate([self.of.fit.coefficients[0], self.of.fit.theta[0]])
        drawn = np.concatenate([self.fits.coefficients, self.fits.theta], axis=1) - point
        moved = drawn @ jacobian(self.of.scale, self.of.fit).T @ basis
        return basis, moved - moved.mean(axis=0)


def expanded_tail(level: float, degrees: float) -> float:
    """The tail area at which normal quantiles are Student's: Phi(t)."""
    return float(stats.norm.cdf(stats.t.ppf((1 - level) / 2, max(degrees, 1.0))))


def bootstrap(fit: LawFit, *, draws: int = DRAWS, level: float = LEVEL, rng: int = 0) -> Bootstrap | None:
    """Resample a fit; None for one without predictions, or with no more units than parameters."""
    if not fit.usable:
        return None
    unit, name, p = units(fit)
    count = int(unit.max()) + 1
    if count <= len(fit.law.parameters):
        return None
    generator = np.random.default_rng(rng)
    if fit.delta < WILD_DEVIATIONS * fit.deviation:
        fits = reweighted(fit, generator.exponential(size=(draws, count))[:, unit])
    else:
        fits = refit(fit, _signs(generator, draws, count)[:, unit] * corrected(fit, unit))
    return Bootstrap(
        of=fit,
        fits=fits,
        parameters=fit.scale.raw(fits.coefficients, fits.theta),
        unit=name,
        units=count,
        lack_of_fit_p=p,
        level=level,
        unit_of=unit,
    )


def refit(fit: LawFit, shifts: Array) -> Fits:
    """The law fitted to its own predictions shifted by residuals [S, n] (of log y where the law is
    logarithmic).
    """
    problem = fit.scale.problem
    predicted = predict(problem, fit.fit)
    response = predicted * np.exp(shifts) if problem.logarithmic else predicted + shifts
    ones = np.ones(len(fit.data))
    relative = 1 / response**2 if problem.logarithmic else ones
    start = np.repeat(fit.fit.theta, len(shifts), axis=0)
    found = project(problem, response, relative, start, most=30, tolerance=1e-5)
    return polish(problem, response, ones, found, fit.delta, most=40)


def reweighted(fit: LawFit, weights: Array) -> Fits:
    """The law fitted to the same runs under other weights [S, n]."""
    problem, y = fit.scale.problem, fit.data.response
    relative = weights / y**2 if problem.logarithmic else weights
    start = np.repeat(fit.fit.theta, len(weights), axis=0)
    return polish(
        problem, y, weights, project(problem, y, relative, start, most=30, tolerance=1e-5), fit.delta, most=40
    )


def units(fit: LawFit) -> tuple[Array, Any, float | None]:
    """(number of the unit of each point, what a unit is, p of the lack of fit)."""
    data = fit.data
    p = lack_of_fit(fit)
    shared = len(np.unique(data.unit)) < len(data)
    if p is None or p >= LACK_OF_FIT:
        return data.unit, "teacher" if shared else "seed", p
    if not shared:
        return data.cell, "experiment", p
    cells, teachers = int(data.cell.max()) + 1, int(data.unit.max()) + 1
    links = sparse.coo_matrix(
        (np.ones(len(data)), (data.cell, cells + data.unit)), shape=(cells + teachers,) * 2
    )
    _, labels = sparse.csgraph.connected_components(links, directed=False)
    return np.unique(labels[data.cell], return_inverse=True)[1], "teacher and experiment", p


def lack_of_fit(fit: LawFit) -> float | None:
    """p of the F test: residuals of the law against residuals of a free mean per experiment; None where no
    experiment has two seeds, or none is left to test.
    """
    data = fit.data
    rest = residuals(fit.scale.problem, data.response, predict(fit.scale.problem, fit.fit))[0]
    cells = int(data.cell.max()) + 1
    number = np.bincount(data.cell, minlength=cells)
    means = np.bincount(data.cell, rest, minlength=cells) / np.maximum(number, 1)
    pure = float(((rest - means[data.cell]) ** 2).sum())
    freedom, extra = len(data) - int((number > 0).sum()), int((number > 0).sum()) - len(fit.law.parameters)
    if freedom < 1 or extra < 1:
        return None
    lack = float((number * means**2).sum())
    floor = 1e-20 * float((fit.data.response**2).sum())
    if pure <= floor:  # seeds without any spread cannot excuse what the law misses
        return 0.0 if lack > floor else None
    return float(stats.f.sf((lack / extra) / (pure / freedom), extra, freedom))


def corrected(fit: LawFit, unit: Array) -> Array:
    """Residuals [n] with each unit's block multiplied by (I - H)^-1/2, H the hat matrix of the linearised
    law.
    """
    problem = fit.scale.problem
    rest = residuals(problem, fit.data.response, predict(problem, fit.fit))[0]
    return _block_roots(_basis(fit), unit, rest)


def _basis(fit: LawFit) -> Array:
    """Orthonormal columns [n, r] that span what the law can follow near its fit."""
    basis, values, _ = np.linalg.svd(jacobian(fit.scale, fit.fit), full_matrices=False)
    return np.asarray(basis[:, values > 1e-10 * values[0]])


def _block_roots(basis: Array, unit: Array, values: Array) -> Array:
    """(I - H)^-1/2 times `values` [n], block by block of the units."""
    if len(np.unique(unit)) == len(unit):
        return np.asarray(values / np.sqrt(np.maximum(1 - (basis**2).sum(axis=1), 1e-6)))
    result = np.empty_like(values)
    for number in np.unique(unit):
        inside = np.flatnonzero(unit == number)
        block = np.eye(len(inside)) - basis[inside] @ basis[inside].T
        size, vectors = np.linalg.eigh(block)
        result[inside] = vectors @ ((vectors.T @ values[inside]) / np.sqrt(np.maximum(size, 1e-6)))
    return result


def _signs(rng: np.random.Generator, draws: int, count: int) -> Array:
    signs = rng.integers(0, 2, size=(draws, count)) * 2.0 - 1.0
    if count < _FEW_UNITS:
        signs *= _WEBB[rng.integers(0, 3, size=(draws, count))]
    return signs
