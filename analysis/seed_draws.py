"""What other seeds would have given: draws of the means of several configurations, paired by seed.

With two seeds and more: the seeds are drawn with replacement, the same ones for all configurations, so that
what a seed does to all of them cancels in differences. Deviations are stretched by sqrt(n / (n - 1)), as
the plain bootstrap of n values is that much too narrow (Rao and Wu 1988, doi:10.1080/01621459.1988.10478591).
With one seed there is only the sampling error of the report clips (binomial), taken as independent between
configurations; on shared clips differences are surer than that.
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


def draw_means(values: Array, n_report: Array, draws: int = DRAWS, rng: int = 0, stream: int = 0) -> Draws:
    """Draws for accuracies [m, seeds] (NaN: not there), `n_report` [m] clips behind each (NaN: not known).

    Only seeds that every configuration has take part in the draws; if they are fewer than two, the clips do.
    Calls of one `rng` draw the same seeds, so that they stay paired, but clips of their own by `stream`.
    """
    means = np.nanmean(values, axis=1)
    whole = values[:, np.isfinite(values).all(axis=0)]
    count = whole.shape[1]
    if count > 1:
        weights = np.random.default_rng(rng).multinomial(count, np.full(count, 1 / count), size=draws) / count
        away = (weights @ (whole - whole.mean(axis=1, keepdims=True)).T) * np.sqrt(count / (count - 1))
        return Draws(means=means, drawn=means + away, source="seeds", seeds=count)
    if np.isfinite(n_report).all() and (n_report > 0).all():
        error = np.sqrt(np.clip(means * (1 - means), 0, None) / n_report)
        generator = np.random.default_rng([rng, 1 + stream])
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
