"""Intervals over seeds, and what may be said when many of them are looked at.

The interval is Student's t over seeds, two-sided, with n - 1 degrees of freedom: for three seeds a half-
width of 4.30 standard errors. It holds the variation from seed to seed with the report clips fixed; the
sampling of the report clips is apart (`clip_margin`). It assumes roughly normal seeds, which three of
them cannot show.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy import special

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over n seeds with its two-sided interval; bounds and p are None where n or the spread gives
    none.
    """

    n: int
    mean: float | None
    low: float | None
    high: float | None
    p: float | None  # two-sided, of a mean of zero

    @property
    def half_width(self) -> float | None:
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def holds(self, value: float) -> bool | None:
        """Whether the interval covers a value; None without an interval."""
        return None if self.low is None or self.high is None else self.low <= value <= self.high


def t_interval(values: Iterable[float], level: float = LEVEL) -> Interval:
    """Student's t interval of the mean. Values must be finite: leave missing ones out, and count them,
    before.

    One value gives a mean without an interval. Values that are all equal give none either: a spread of
    zero over a few seeds says that the seeds did not vary, not that the mean is known exactly.
    """
    array = np.asarray(list(values), dtype=float)
    if not np.isfinite(array).all():
        raise ValueError(f"an interval needs finite values, got {array.tolist()}")
    n = len(array)
    if n == 0:
        return Interval(0, None, None, None, None)
    mean = float(array.mean())
    # The spread of equal floats can come out as rounding noise instead of 0.
    if n == 1 or float(np.ptp(array)) <= 1e-12 * max(1.0, abs(mean)):
        return Interval(n, mean, None, None, None)
    error = float(array.std(ddof=1)) / math.sqrt(n)
    reach = _quantile(level, n - 1) * error
    p = 2 * float(special.stdtr(n - 1, -abs(mean) / error))
    return Interval(n, mean, mean - reach, mean + reach, p)


def t_intervals(
    n: pd.Series, mean: pd.Series, deviation: pd.Series, range_: pd.Series, level: float = LEVEL
) -> dict[str, pd.Series]:
    """`t_interval` of many groups at once, from their counts, means, standard deviations (n - 1) and ranges.

    Columns mean, low, high and p; missing (NaN) where one value, or equal ones, give none.
    """
    good = (n > 1) & (range_ > 1e-12 * mean.abs().clip(lower=1.0))
    error = (deviation / np.sqrt(n)).where(good)
    degrees = (n - 1).where(good)
    reach = special.stdtrit(degrees, 0.5 + level / 2) * error
    p = 2 * special.stdtr(degrees, -(mean.abs() / error))
    return {"mean": mean, "low": mean - reach, "high": mean + reach, "p": pd.Series(p, index=mean.index)}


@cache
def _quantile(level: float, degrees: int) -> float:
    return float(special.stdtrit(degrees, 0.5 + level / 2))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (Holm 1979): family-wise error over all given p values.

    A missing p stays missing but counts as a member of the family.
    """
    m = len(p_values)
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * m
    running = 0.0
    for rank, (p, index) in enumerate(order):
        running = max(running, min(1.0, (m - rank) * p))
        adjusted[index] = running
    return adjusted


def clip_margin(accuracy: float, n_report: float, level: float = LEVEL) -> float:
    """Half-width that the report clips alone leave on one accuracy: normal approximation of the binomial."""
    return float(special.ndtri(0.5 + level / 2)) * math.sqrt(max(accuracy * (1 - accuracy), 0.0) / n_report)
