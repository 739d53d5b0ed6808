"""How much runs that differ only in their seed vary, and how much of it arms share: from results."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import special

from analysis.gather import SCORE_KEY
from analysis.pareto import arm_rows, usable


@dataclass(frozen=True, kw_only=True)
class MeasuredNoise:
    """Of one label and probe. Standard deviations in points of accuracy.

    `seed_sd` is pooled within configurations, with `degrees` degrees of freedom, `low` and `high` its 95 %
    interval (chi-square, normal seeds). `correlation` is between configurations of different arms with
    equal budget and student, at equal seed, over `pairs` pairs of configurations; None without any.
    """

    label: str
    kind: str
    seed_sd: float
    low: float
    high: float
    degrees: int
    configurations: int
    runs: int
    correlation: float | None
    pairs: int


def measured_noise(table: pd.DataFrame, frames: str = "ordered") -> list[MeasuredNoise]:
    """The noise of every label and probe whose seeds show any, the largest first.

    Takes a table of `analysis.gather`. Configurations of one seed say nothing and are left out.
    """
    rows = arm_rows(table)
    rows = rows[usable(rows) & (rows["frames"] == frames)]
    found = []
    for keys, group in rows.groupby(list(SCORE_KEY), sort=True):
        noise = _noise(str(keys[1]), str(keys[0]), group)
        if noise is not None:
            found.append(noise)
    return sorted(found, key=lambda noise: -noise.seed_sd)


def _noise(label: str, kind: str, rows: pd.DataFrame) -> MeasuredNoise | None:
    wide = rows.pivot_table(index=["budget_flops", "config_id"], columns="seed", values="accuracy")
    values = 100 * wide.to_numpy(dtype=float)
    counts = np.isfinite(values).sum(axis=1)
    several = values[counts > 1]
    degrees = int((counts[counts > 1] - 1).sum())
    if not degrees:
        return None
    squares = float(((several - np.nanmean(several, axis=1, keepdims=True)) ** 2)[np.isfinite(several)].sum())
    if squares <= 0:
        return None
    sd = math.sqrt(squares / degrees)
    low, high = (math.sqrt(squares / special.chdtri(degrees, 1 - q)) for q in (0.975, 0.025))
    correlation, pairs = _correlation(rows)
    return MeasuredNoise(
        label=label,
        kind=kind,
        seed_sd=sd,
        low=low,
        high=high,
        degrees=degrees,
        configurations=len(several),
        runs=int(counts[counts > 1].sum()),
        correlation=correlation,
        pairs=pairs,
    )


def _correlation(rows: pd.DataFrame) -> tuple[float | None, int]:
    """Pooled over pairs: 2 x sums of products over sums of squares, which lies in [-1, 1]."""
    products = squares = 0.0
    pairs = 0
    names = ["budget_flops", "student", "arm", "config_id"]
    wide = rows.pivot_table(index=names, columns="seed", values="accuracy", sort=True)
    values = wide.to_numpy(dtype=float)
    arms = wide.index.get_level_values("arm").to_numpy()
    for index in wide.groupby(level=["budget_flops", "student"], sort=True).indices.values():
        for a, b in combinations(index, 2):
            both = values[[a, b]]
            both = both[:, np.isfinite(both).all(axis=0)]
            if arms[a] == arms[b] or both.shape[1] < 2:
                continue
            centred = both - both.mean(axis=1, keepdims=True)
            products += 2 * float((centred[0] * centred[1]).sum())
            squares += float((centred**2).sum())
            pairs += 1
    return (products / squares if squares > 0 else None), pairs
