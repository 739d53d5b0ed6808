"""What other seeds would have given: draws of the means of several configurations, for comparing them.

A parametric bootstrap, as drawing three seeds with replacement gives intervals far too narrow. With two seeds
and more each mean varies by the spread that is left when the seed's own level, the same for all
configurations, is taken out (randomised blocks); the level itself cancels in every comparison and is not
drawn. The spread is pooled over the configurations and drawn too, by its degrees of freedom. With one seed
there is only the sampling error of the report clips (binomial), taken as independent between configurations;
on shared clips differences are surer than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Array = NDArray[Any]
DRAWS = 4000
LEVEL = 0.90
Source = Literal["seeds", "report clips", "none"]


@dataclass(frozen=True, kw_only=True)
class Draws:
    """`means` [m] as measured, `drawn` [draws, m], and what varies between draws; with `source` none there
    are no draws (a table of shape [0, m]).
    """

    means: Array
    drawn: Array
    source: Source
    seeds: int  # those that every configuration has


def by_seed(rows: pd.DataFrame, keys: list[str], value: str = "accuracy") -> pd.DataFrame:
    """Configurations (index `keys`) x seeds (columns), NaN where a seed is not there."""
    return rows.pivot_table(index=keys, columns="seed", values=value, sort=True, dropna=False).dropna(
        how="all"
    )


def block_spread(values: Array) -> tuple[float, int]:
    """(standard deviation, degrees of freedom) of accuracies [m, n] around the means of their configuration
    and seed; NaN and 0 if there are fewer than two of either.
    """
    degrees = (values.shape[0] - 1) * (values.shape[1] - 1)
    if degrees < 1:
        return float("nan"), 0
    residual = values - values.mean(axis=1, keepdims=True) - values.mean(axis=0) + values.mean()
    return float(np.sqrt((residual**2).sum() / degrees)), degrees


def draw_means(values: Array, n_report: Array, draws: int = DRAWS, rng: int = 0, stream: int = 0) -> Draws:
    """Draws for accuracies [m, seeds] (NaN: not there), `n_report` [m] clips behind each (NaN: not known).

    Only seeds that every configuration has give the spread; if they are fewer than two, the clips do. Calls
    of one `rng` and different `stream` are independent.
    """
    means = np.nanmean(values, axis=1)
    whole = values[:, np.isfinite(values).all(axis=0)]
    count = whole.shape[1]
    generator = np.random.default_rng([rng, stream])
    spread, degrees = block_spread(whole)
    if degrees:
        pooled = spread * np.sqrt(degrees / generator.chisquare(degrees, draws))
        seen = np.isfinite(values).sum(axis=1)
        error = pooled[:, None] / np.sqrt(seen)
        return Draws(
            means=means,
            drawn=means + error * generator.standard_normal((draws, len(means))),
            source="seeds",
            seeds=count,
        )
    if len(means) > 1 and np.isfinite(n_report).all() and (n_report > 0).all():
        error = np.sqrt(np.clip(means * (1 - means), 0, None) / n_report)
        drawn = means + error * generator.standard_normal((draws, len(means)))
        return Draws(means=means, drawn=drawn, source="report clips", seeds=count)
    return Draws(means=means, drawn=np.empty((0, len(means))), source="none", seeds=count)


def bounds(drawn: Array, level: float = LEVEL) -> tuple[float, float]:
    """The middle `level` of draws; NaN where there are none."""
    if not len(drawn):
        return float("nan"), float("nan")
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], method="inverted_cdf")
    return float(low), float(high)
