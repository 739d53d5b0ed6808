"""How sure a frontier is: draws of what other seeds and other report clips would have given.

Model of an accuracy's mean over the seeds of a configuration: its value, plus an effect of the seeds that
arms share (a seed fixes initialisation, masks and data order of all of them), plus what is its own, plus
the sampling of the report clips (binomial). Spread and share of the common part are pooled within
configurations (`analysis.noise`); the spread itself is drawn, by its degrees of freedom. Clips are taken as
drawn anew for each configuration, which makes differences look less sure than they are. Everything is a
pure function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.noise import MeasuredNoise
from analysis.pareto import arm_order, selected

Array = NDArray[Any]
DRAWS = 4000
LEVEL = 0.90


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Each arm's choices along the cost, with draws of their accuracies.

    Per arm in `arms`: `cost` [m] ascending, `accuracy` [m] as measured, `drawn` [draws, m]; `attained` and
    `attained_drawn` are the best up to each cost. `noise` None: no configuration has two seeds, and draws
    hold the sampling of clips alone.
    """

    label: str
    kind: str
    arms: tuple[str, ...]
    cost: dict[str, Array]
    accuracy: dict[str, Array]
    drawn: dict[str, Array]
    noise: MeasuredNoise | None
    chance: float

    def attained(self, arm: str, at: Array, drawn: bool = False) -> Array:
        """Best accuracy up to each cost [k] (draws: [draws, k]); NaN below the smallest cost of the arm."""
        values = self.drawn[arm] if drawn else self.accuracy[arm][None]
        best = np.maximum.accumulate(values, axis=1)
        place = np.searchsorted(self.cost[arm], at, side="right") - 1
        found = np.where(place >= 0, best[:, np.maximum(place, 0)], np.nan)
        return np.asarray(found if drawn else found[0])

    def costs(self) -> Array:
        """All costs of all arms, ascending."""
        return np.unique(np.concatenate(list(self.cost.values())))


def choices(configs: pd.DataFrame) -> pd.DataFrame:
    """Configurations that stand for their arm: per budget the choice on the selection clips (ordered frames).

    Where a table has no selection scores (results of other projects) every configuration is a choice.
    `configs` is `analysis.pareto.configurations(table)`.
    """
    rows = configs[configs["frames"] == "ordered"]
    return selected(rows) if rows["selection"].notna().any() else rows


def frontier_curves(
    chosen: pd.DataFrame, noises: list[MeasuredNoise], draws: int = DRAWS, rng: int = 0
) -> list[Curves]:
    """Curves of every label and probe from `choices` and `analysis.noise.measured_noise` of one table.

    Configurations without a finite accuracy or cost are left out.
    """
    chosen = chosen[np.isfinite(chosen["mean"]) & np.isfinite(chosen["compared_flops"])]
    known = {(noise.label, noise.kind): noise for noise in noises}
    generator = np.random.default_rng(rng)
    found = []
    for (label, kind), group in chosen.groupby(["label", "kind"], sort=False):
        noise = known.get((str(label), str(kind)))
        found.append(_curves(str(label), str(kind), group, noise, draws, generator))
    return found


def _curves(
    label: str,
    kind: str,
    group: pd.DataFrame,
    noise: MeasuredNoise | None,
    draws: int,
    rng: np.random.Generator,
) -> Curves:
    arms = tuple(arm_order(group["arm"]))
    common, own = _spreads(noise, draws, rng)
    shared = rng.standard_normal((draws, 1))  # of the seeds, the same for all configurations
    cost, accuracy, drawn = {}, {}, {}
    for arm in arms:
        rows = group[group["arm"] == arm].sort_values(["compared_flops", "config_id"])
        mean = rows["mean"].to_numpy(dtype=float)
        n = rows["n"].to_numpy(dtype=float)
        clips = rows["n_report"].to_numpy(dtype=float)
        with np.errstate(invalid="ignore"):
            sampling = np.sqrt(np.maximum(mean * (1 - mean), 0) / clips)
        sampling = np.where(np.isfinite(sampling), sampling, 0.0)
        parts = (shared * common + rng.standard_normal((draws, len(rows))) * own) / np.sqrt(n)
        cost[arm] = rows["compared_flops"].to_numpy(dtype=float)
        accuracy[arm] = mean
        drawn[arm] = mean + parts + rng.standard_normal((draws, len(rows))) * sampling
    return Curves(
        label=label,
        kind=kind,
        arms=arms,
        cost=cost,
        accuracy=accuracy,
        drawn=drawn,
        noise=noise,
        chance=float(group["chance"].mean()),
    )


def _spreads(noise: MeasuredNoise | None, draws: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Standard deviations [draws, 1] of the common part and of a configuration's own, as shares."""
    if noise is None:
        return np.zeros((draws, 1)), np.zeros((draws, 1))
    # sd^2 degrees / chi-square: draws of the mean are then Student's t.
    spread = noise.seed_sd / 100 * np.sqrt(noise.degrees / rng.chisquare(noise.degrees, (draws, 1)))
    share = 0.0 if noise.correlation is None else min(max(noise.correlation, 0.0), 1.0)
    return spread * math.sqrt(share), spread * math.sqrt(1 - share)


def attainment(curves: Curves, level: float = LEVEL) -> pd.DataFrame:
    """One row per arm and cost: the best accuracy up to there, its interval, and the probability to be the
    best.

    `probability` is the share of draws in which the arm attains at least as much as every other that has
    begun by this cost (a draw's ties are shared). The interval's ends are the attainment surfaces of the
    draws.
    """
    at = curves.costs()
    drawn = np.stack([curves.attained(arm, at, drawn=True) for arm in curves.arms])
    lead = np.where(np.isnan(drawn), -np.inf, drawn)
    best = lead == lead.max(axis=0)
    probability = (best / best.sum(axis=0)).mean(axis=1)
    tail = (1 - level) / 2
    rows = []
    for index, arm in enumerate(curves.arms):
        begun = at >= curves.cost[arm][0]
        low, high = np.quantile(drawn[index][:, begun], [tail, 1 - tail], axis=0)
        rows.append(
            pd.DataFrame(
                {
                    "label": curves.label,
                    "kind": curves.kind,
                    "arm": arm,
                    "cost": at[begun],
                    "attained": curves.attained(arm, at[begun]),
                    "low": low,
                    "high": high,
                    "probability_best": probability[index][begun],
                    "arms": (at[begun, None] >= [curves.cost[name][0] for name in curves.arms]).sum(axis=1),
                }
            )
        )
    return pd.concat(rows, ignore_index=True)


def attainment_surfaces(curves: Curves, arm: str, percentiles: list[float]) -> pd.DataFrame:
    """The draws' attainment surfaces of an arm (moocore's exact empirical attainment function): corners of
    the region that the given percentages of draws attain.
    """
    import moocore

    drawn = curves.drawn[arm]
    points = np.column_stack([np.tile(curves.cost[arm], len(drawn)), -drawn.ravel()])
    sets = np.repeat(np.arange(len(drawn)), drawn.shape[1])
    found = moocore.eaf(points, sets, percentiles=percentiles)
    return pd.DataFrame({"percentile": found[:, 2], "cost": found[:, 0], "accuracy": -found[:, 1]})


def hypervolumes(curves: Curves, level: float = LEVEL) -> pd.DataFrame:
    """Per arm the area between its frontier and chance, in points x decades of cost up to the largest cost
    of all.

    moocore's exact hypervolume over (log10 cost, accuracy), with an interval over draws.
    """
    import moocore

    costs = curves.costs()
    base = curves.chance if math.isfinite(curves.chance) else 0.0
    reference = [math.log10(costs[-1]), -100 * base]
    tail = (1 - level) / 2
    rows = []
    for arm in curves.arms:
        x = np.log10(curves.cost[arm])
        # Many draws at once: a frontier is a staircase, and its area a sum of steps.
        steps = np.diff(np.append(x, math.log10(costs[-1])))
        heights = np.maximum(np.maximum.accumulate(curves.drawn[arm], axis=1) - base, 0.0)
        low, high = np.quantile(100 * heights @ steps, [tail, 1 - tail])
        value = moocore.hypervolume(np.column_stack([x, -100 * curves.accuracy[arm]]), ref=reference)
        rows.append((curves.label, curves.kind, arm, float(value), float(low), float(high)))
    return pd.DataFrame(rows, columns=["label", "kind", "arm", "hypervolume", "low", "high"])
