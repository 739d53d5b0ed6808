"""Is there a teacher accuracy beyond which students get worse (or better) again? Two tests that must agree.

The quadratic test of Lind and Mehlum (2010, doi:10.1111/j.1468-0084.2009.00569.x): the fitted slope has
opposite signs at both ends of the data, each beyond noise; the p value is the larger of the two one-sided
ones. A curve that merely levels off bends a quadratic too (Simonsohn 2018, doi:10.1177/2515245918805755), so
that straight lines are fitted to both sides of the quadratic's extremum as well, as in his test of two lines:
both slopes must differ from 0 with opposite signs. His own choice of the break needs many points; the test
holds for any break.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from analysis.regime import GROUP

Array = NDArray[Any]
#: A quadratic through fewer points has too few degrees of freedom to speak of.
LEAST_QUADRATIC = 5
#: Points on each side of the break.
LEAST_SIDE = 3
LEVEL = 0.05
FEW, MONOTONE, BENDS, PEAK, VALLEY = "too few teachers", "none shown", "levels off or turns", "peak", "valley"

COLUMNS = [
    *GROUP, "teachers", "shape", "extremum", "extremum_low", "extremum_high", "p_quadratic",
    "slope_before", "slope_after", "p_lines", "n_before", "n_after",
]  # fmt: skip


def turning_points(points: pd.DataFrame) -> pd.DataFrame:
    """One row per group of `analysis.regime.teacher_points`.

    `shape`: `peak` (students get worse beyond it) or `valley` where both tests say so at 5 %; `levels off or
    turns` where only the quadratic does; `none shown`; `too few teachers` below five. `extremum` of the
    quadratic as a teacher accuracy, with Fieller's 95 % interval (infinite where the curvature is not sure);
    `p_lines` is the larger one-sided p, NaN with fewer than three points on a side.
    """
    found = []
    for key, group in points.groupby(GROUP, sort=False):
        row = dict(zip(GROUP, key, strict=True)) | {"teachers": len(group)}
        found.append(row | turning(group["teacher_mean"].to_numpy(), group["student_mean"].to_numpy()))
    return pd.DataFrame(found, columns=COLUMNS)


def turning(x: Array, y: Array) -> dict[str, Any]:
    """Both tests on points (x, y); the fields of `turning_points` without the group."""
    names = (
        "extremum",
        "extremum_low",
        "extremum_high",
        "p_quadratic",
        "slope_before",
        "slope_after",
        "p_lines",
    )
    row: dict[str, Any] = dict.fromkeys(names, math.nan) | {"n_before": 0, "n_after": 0, "shape": FEW}
    if len(np.unique(x)) < LEAST_QUADRATIC:
        return row
    middle = float(x.mean())
    quadratic = _Fit(np.stack([np.ones_like(x), x - middle, (x - middle) ** 2], axis=1), y)
    linear, square = quadratic.beta[1:]
    extremum = middle - linear / (2 * square) if square else math.nan
    row |= {"p_quadratic": _ends(quadratic, x - middle), "shape": MONOTONE}
    if not x.min() < extremum < x.max():
        return row
    row["extremum"] = extremum
    row["extremum_low"], row["extremum_high"] = (middle + end for end in _fieller(quadratic))
    before = x < extremum
    row["n_before"], row["n_after"] = int(before.sum()), int((~before).sum())
    if min(row["n_before"], row["n_after"]) >= LEAST_SIDE:
        sides = _Fit(
            np.stack([before, ~before, before * (x - extremum), ~before * (x - extremum)], axis=1) * 1.0, y
        )
        row["slope_before"], row["slope_after"] = sides.beta[2:]
        sign = -math.copysign(1.0, square)  # a peak rises before it
        row["p_lines"] = max(
            sides.p_above(np.array([0, 0, sign, 0.0])), sides.p_above(np.array([0, 0, 0.0, -sign]))
        )
    if row["p_quadratic"] < LEVEL:
        agree = row["p_lines"] < LEVEL
        row["shape"] = (PEAK if square < 0 else VALLEY) if agree else BENDS
    return row


class _Fit:
    """Ordinary least squares with its covariance."""

    def __init__(self, design: Array, y: Array) -> None:
        self.beta, *_ = np.linalg.lstsq(design, y, rcond=None)
        residual = y - design @ self.beta
        self.degrees = len(y) - design.shape[1]
        variance = float(residual @ residual) / self.degrees if self.degrees > 0 else math.nan
        self.covariance = variance * np.linalg.pinv(design.T @ design)

    def p_above(self, weights: Array) -> float:
        """One-sided p of `weights @ beta` <= 0."""
        error = math.sqrt(max(float(weights @ self.covariance @ weights), 1e-300))
        if self.degrees < 1:
            return math.nan
        return float(special.stdtr(self.degrees, -float(weights @ self.beta) / error))


def _ends(quadratic: _Fit, x: Array) -> float:
    """Lind and Mehlum's p: slopes at both ends, in the directions that the curvature gives them."""
    sign = -math.copysign(1.0, quadratic.beta[2])
    first = quadratic.p_above(sign * np.array([0.0, 1.0, 2 * x.min()]))
    last = quadratic.p_above(-sign * np.array([0.0, 1.0, 2 * x.max()]))
    return max(first, last)


def _fieller(quadratic: _Fit, level: float = 0.95) -> tuple[float, float]:
    """Fieller's interval of -b / 2c; infinite where c may be 0."""
    _, b, c = quadratic.beta
    t = float(special.stdtrit(quadratic.degrees, 0.5 + level / 2))
    s11, s12, s22 = (quadratic.covariance[i, j] for i, j in ((1, 1), (1, 2), (2, 2)))
    # Values m with (b + 2 c m)^2 <= t^2 var(b + 2 c m).
    a2, a1, a0 = c**2 - t**2 * s22, b * c - t**2 * s12, b**2 - t**2 * s11
    root = a1**2 - a2 * a0
    if a2 <= 0 or root < 0:
        return -math.inf, math.inf
    ends = sorted((-a1 + sign * math.sqrt(root)) / a2 / 2 for sign in (-1, 1))
    return ends[0], ends[1]
