"""Fits of sums of power laws: linear in all but a few exponents, many fits at a time.

A prediction is p = sum_m v_m V_m + sum_j A_j exp(-sum_k theta_k U_jk): linear columns V (the asymptote is a
column of ones), power terms with amplitudes A_j, and exponents theta on centred logarithms U. For given
exponents the linear part is a small least-squares problem, so only the exponents are searched (variable
projection, Golub and Pereyra 1973, with Kaufman's 1975 Jacobian; for scaling laws arXiv 2603.22339). A
robust polish then minimises the sum of Huber losses in all parameters by Newton's method.

Arrays: S fits at a time, n points, P linear coefficients (M columns, then J amplitudes), K exponents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Exponents are searched within these bounds. Published ones lie between 0.1 and 0.7; an exponent at a bound
#: says that the data do not hold one.
EXPONENT_BOUNDS = (1e-3, 4.0)
#: Fits whose points take at most this many bytes in one array are made together: they stay in the cache.
_CHUNK_VALUES = 60_000
_RIDGE = 1e-13  # relative, against exactly collinear columns


@dataclass(frozen=True)
class Problem:
    """A law on points: its columns, and how residuals are measured.

    `powers` U [J, K, n]; `linear` V [M, n]; `positive` [M + J] says which coefficients must not be negative.
    `logarithmic`: residuals are differences of logarithms, log y - log p, else y - p. `exponent_of` [J, K]
    is implied by the zeros of U.
    """

    powers: Array
    linear: Array
    positive: tuple[bool, ...]
    logarithmic: bool

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """(M, J, K, n)."""
        terms, exponents, points = self.powers.shape
        return len(self.linear), int(terms), int(exponents), int(points)

    def columns(self, theta: Array) -> Array:
        """Phi [S, P, n] at exponents [S, K]."""
        terms = np.exp(-np.einsum("sk,jkn->sjn", theta, self.powers))
        linear = np.broadcast_to(self.linear, (len(theta), *self.linear.shape))
        return np.concatenate([linear, terms], axis=1)

    def slopes(self, columns: Array, coefficients: Array) -> Array:
        """d p / d theta [S, K, n]."""
        first = len(self.linear)
        weighted = coefficients[:, first:, None] * columns[:, first:]
        return np.asarray(-np.einsum("sjn,jkn->skn", weighted, self.powers))

    def at(self, powers: Array, linear: Array) -> Problem:
        """The same law on other points."""
        return Problem(powers, linear, self.positive, self.logarithmic)


@dataclass(frozen=True)
class Fits:
    """Results of S fits: exponents [S, K], coefficients [S, P], objectives, steps taken, and whether they
    came to rest.
    """

    theta: Array
    coefficients: Array
    objective: Array
    iterations: Array
    converged: Array

    def pick(self, index: Any) -> Fits:
        return Fits(
            self.theta[index],
            self.coefficients[index],
            self.objective[index],
            self.iterations[index],
            self.converged[index],
        )


def predict(problem: Problem, fits: Fits) -> Array:
    """Predictions [S, n]."""
    return np.asarray(np.einsum("sp,spn->sn", fits.coefficients, problem.columns(fits.theta)))


def project(
    problem: Problem, response: Array, weights: Array, starts: Array, most: int = 60, tolerance: float = 1e-11
) -> Fits:
    """Weighted least squares by variable projection, from exponents `starts` [S, K].

    `response` and `weights` are [n] or [S, n]. The objective is sum w (y - p)^2. Coefficients that must not
    be negative are held at 0 where they would be (their exponent then says nothing).
    """
    size = len(starts)
    chunk = max(1, _CHUNK_VALUES // problem.counts[3])
    parts = [
        _project(problem, _rows(response, part), _rows(weights, part), starts[part], most, tolerance)
        for part in (slice(at, min(at + chunk, size)) for at in range(0, size, chunk))
    ]
    return _joined(parts)


def polish(
    problem: Problem, response: Array, weights: Array, start: Fits, delta: Array | float, most: int = 60
) -> Fits:
    """Minimise sum w huber(residual) in all parameters, from `start`; `delta` [S] or one number is where the
    Huber loss turns from quadratic to linear (infinite: least squares).

    Newton's method on the points within delta, with a part of the others' curvature (iteratively reweighted
    least squares) that is taken away as steps succeed: plain reweighting needs some ten times as many steps.
    """
    size = len(start.theta)
    deltas = np.broadcast_to(np.asarray(delta, dtype=float), (size,))
    chunk = max(1, _CHUNK_VALUES // problem.counts[3])
    parts = [
        _polish(problem, _rows(response, part), _rows(weights, part), start.pick(part), deltas[part], most)
        for part in (slice(at, min(at + chunk, size)) for at in range(0, size, chunk))
    ]
    return _joined(parts)


def residuals(problem: Problem, response: Array, predicted: Array) -> Array:
    """log y - log p, or y - p, in the shape of `predicted`. A prediction that is not positive has no
    logarithm: infinite.
    """
    if not problem.logarithmic:
        return np.asarray(response - predicted)
    good = predicted > 0
    return np.where(good, np.log(response) - np.log(np.where(good, predicted, 1.0)), np.inf)


def huber(residual: Array, delta: Array | float) -> Array:
    """Huber's loss: r^2 / 2 within delta, delta (|r| - delta / 2) beyond."""
    size = np.abs(residual)
    bound = np.minimum(size, delta)
    return bound * (size - 0.5 * bound)


# --- inside ---------------------------------------------------------------------------------------


def _rows(values: Array, part: slice) -> Array:
    return values if values.ndim == 1 else values[part]


def _joined(parts: list[Fits]) -> Fits:
    names = ("theta", "coefficients", "objective", "iterations", "converged")
    return Fits(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _solve(gram: Array, right: Array) -> Array:
    """Solutions [S, p] of symmetric systems, scaled to a unit diagonal and with a ridge far below it."""
    scale = np.sqrt(np.maximum(np.einsum("spp->sp", gram), 1e-300))
    scaled = gram / (scale[:, :, None] * scale[:, None, :])
    scaled += _RIDGE * np.eye(gram.shape[1])
    return np.asarray(np.linalg.solve(scaled, (right / scale)[:, :, None])[:, :, 0] / scale)


def _linear_part(problem: Problem, columns: Array, response: Array, weights: Array) -> Array:
    """Best coefficients [S, P] at given columns, none negative that must not be."""
    weighted = columns * (weights[None, None, :] if weights.ndim == 1 else weights[:, None, :])
    gram = weighted @ columns.transpose(0, 2, 1)
    right = np.einsum("spn,sn->sp", weighted, np.broadcast_to(response, (len(columns), columns.shape[2])))
    found = _solve(gram, right)
    positive = np.asarray(problem.positive)
    for index in np.flatnonzero(((found < 0) & positive).any(axis=1)):
        found[index] = _non_negative(gram[index], right[index], positive)
    return found


def _non_negative(gram: Array, right: Array, positive: Array) -> Array:
    """Least squares with some coefficients not negative: the best of all sets of them at 0."""
    best, best_value = np.zeros(len(right)), 0.0
    bounded = np.flatnonzero(positive)
    for mask in range(2 ** len(bounded)):
        held = {int(b) for i, b in enumerate(bounded) if mask >> i & 1}
        free = [index for index in range(len(right)) if index not in held]
        if not free:
            continue
        part = _solve(gram[np.ix_(free, free)][None], right[free][None])[0]
        if (part[positive[free]] < 0).any():
            continue
        value = float(part @ gram[np.ix_(free, free)] @ part - 2 * part @ right[free])
        if value < best_value:
            best, best_value = np.zeros(len(right)), value
            best[free] = part
    return best


def _state(
    problem: Problem, theta: Array, response: Array, weights: Array
) -> tuple[Array, Array, Array, Array]:
    columns = problem.columns(theta)
    coefficients = _linear_part(problem, columns, response, weights)
    rest = response - np.einsum("sp,spn->sn", coefficients, columns)
    return columns, coefficients, rest, (weights * rest * rest).sum(axis=1)


def _project(
    problem: Problem, response: Array, weights: Array, starts: Array, most: int, tolerance: float
) -> Fits:
    theta = np.clip(starts, *EXPONENT_BOUNDS)
    size, exponents = theta.shape
    damping = np.full(size, 1e-3)
    columns, coefficients, rest, value = _state(problem, theta, response, weights)
    steps = np.zeros(size, dtype=int)
    done = np.zeros(size, dtype=bool)
    for _ in range(most):
        live = np.flatnonzero(~done)
        if not len(live):
            break
        y, w = _live(response, live), _live(weights, live)
        slopes = problem.slopes(columns[live], coefficients[live])
        matrix = np.concatenate([columns[live], slopes], axis=1)
        weighted = matrix * (w[None, None, :] if w.ndim == 1 else w[:, None, :])
        gram = weighted @ matrix.transpose(0, 2, 1)
        right = np.einsum("spn,sn->sp", weighted, rest[live])
        cut = gram.shape[1] - exponents
        inner = np.arange(cut, gram.shape[1])
        gram[:, inner, inner] *= 1 + damping[live, None]
        step = _solve(gram, right)[:, cut:]
        trial = np.clip(theta[live] + np.clip(step, -1.0, 1.0), *EXPONENT_BOUNDS)
        new_columns, new_coefficients, new_rest, new_value = _state(problem, trial, y, w)
        better = new_value <= value[live]
        moved = np.abs(trial - theta[live]).max(axis=1)
        steps[live] += 1
        # At rest: a step that no longer moves, whether or not rounding makes it look better.
        done[live[moved < tolerance]] = True
        took = live[better]
        theta[took], coefficients[took] = trial[better], new_coefficients[better]
        columns[took], rest[took], value[took] = new_columns[better], new_rest[better], new_value[better]
        damping[live] = np.where(better, np.maximum(damping[live] * 0.1, 1e-12), damping[live] * 10)
        done[live[damping[live] > 1e8]] = True
    return Fits(theta, coefficients, value, steps, done)


def _live(values: Array, live: Array) -> Array:
    return values if values.ndim == 1 else values[live]


def _objective(problem: Problem, response: Array, weights: Array, predicted: Array, delta: Array) -> Array:
    with np.errstate(invalid="ignore"):
        loss = (weights * huber(residuals(problem, response, predicted), delta[:, None])).sum(axis=1)
    return np.where(np.isnan(loss), np.inf, loss)


def _polish(problem: Problem, response: Array, weights: Array, start: Fits, delta: Array, most: int) -> Fits:
    theta, coefficients = start.theta.copy(), start.coefficients.copy()
    size, count = coefficients.shape
    columns = problem.columns(theta)
    predicted = np.einsum("sp,spn->sn", coefficients, columns)
    value = _objective(problem, response, weights, predicted, delta)
    share = np.ones(size)  # of the outer points' reweighted curvature
    steps, quiet = np.zeros(size, dtype=int), np.zeros(size, dtype=int)
    done = ~np.isfinite(value)
    failed = done.copy()
    for _ in range(most):
        live = np.flatnonzero(~done)
        if not len(live):
            break
        y, w = _live(response, live), _live(weights, live)
        step, promised = _newton_step(
            problem, y, w, columns[live], coefficients[live], predicted[live], delta[live], share[live]
        )
        new_coefficients, new_theta = _inside(problem, coefficients[live], theta[live], step)
        new_columns = problem.columns(new_theta)
        new_predicted = np.einsum("sp,spn->sn", new_coefficients, new_columns)
        new_value = _objective(problem, y, w, new_predicted, delta[live])
        better = new_value <= value[live]
        steps[live] += 1
        # At rest: nothing is promised any more, on the curvature of all points and on that of the inner ones.
        small = promised <= 1e-13 * value[live]
        quiet[live] = np.where(small, quiet[live] + 1, 0)
        took = live[better]
        theta[took], coefficients[took] = new_theta[better], new_coefficients[better]
        columns[took], predicted[took] = new_columns[better], new_predicted[better]
        value[took] = new_value[better]
        share[live] = np.where(better, share[live] * 0.5, share[live] * 4)
        done[live[(quiet[live] >= 2) | (share[live] > 1e6) | (value[live] <= 0)]] = True
    return Fits(theta, coefficients, value, start.iterations + steps, done & ~failed)


def _newton_step(
    problem: Problem,
    response: Array,
    weights: Array,
    columns: Array,
    coefficients: Array,
    predicted: Array,
    delta: Array,
    share: Array,
) -> tuple[Array, Array]:
    """The step in coefficients and exponents [S, P + K], and twice the fall that it promises [S]."""
    matrix = np.concatenate([columns, problem.slopes(columns, coefficients)], axis=1)
    if problem.logarithmic:
        matrix = matrix / predicted[:, None, :]
    rest = residuals(problem, response, predicted)
    size = np.abs(rest)
    inner = size <= delta[:, None]
    curvature = np.where(inner, 1.0, share[:, None] * delta[:, None] / np.where(inner, 1.0, size))
    pull = np.clip(rest, -delta[:, None], delta[:, None])
    gram = (matrix * (weights * curvature)[:, None, :]) @ matrix.transpose(0, 2, 1)
    right = np.einsum("spn,sn->sp", matrix, weights * pull)
    step = _solve(gram, right)
    return step, (right * step).sum(axis=1)


def _inside(problem: Problem, coefficients: Array, theta: Array, step: Array) -> tuple[Array, Array]:
    """The point after a step, shortened so that no coefficient that must stay positive loses more than 9 in
    10 parts, and exponents stay within their bounds.
    """
    count = coefficients.shape[1]
    positive = np.asarray(problem.positive)
    falling = (step[:, :count] < 0) & positive & (coefficients > 0)
    ratio = np.where(falling, 0.9 * coefficients / np.where(falling, -step[:, :count], 1.0), np.inf)
    length = np.minimum(1.0, ratio.min(axis=1, initial=np.inf))[:, None]
    moved = coefficients + length * step[:, :count]
    moved = np.where(positive, np.maximum(moved, 0.0), moved)
    return moved, np.clip(theta + np.clip(length * step[:, count:], -0.5, 0.5), *EXPONENT_BOUNDS)
