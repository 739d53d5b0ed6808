"""Which differences a study of given seeds and noise can see: power, before anything is spent.

One run's accuracy is level + seed effect + its own residual, in points. The seed effect is common to all
runs of a seed, so that it cancels in differences paired by seed; `Noise` splits the two. Formulas and their
sources: docs/power.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from analysis.plan_contrasts import Family

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

ALPHA = 0.05
POWER = 0.80
#: More seeds than this are as good as never.
MOST_SEEDS = 10_000
#: Simulated p values of one family, so that memory and time stay small whatever the plan.
_MOST_VALUES = 500_000
_MOST_DRAWS = 10_000


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What varies between runs that should be equal, in points of accuracy.

    `seed_sd` is the standard deviation between seeds of one configuration, `correlation` that of two arms at
    one seed, `probe_sd` the binomial error of the report clips where `seed_sd` does not hold it yet.
    """

    seed_sd: float
    correlation: float = 0.0
    probe_sd: float = 0.0

    @property
    def residual_sd(self) -> float:
        """Of one run, what its seed does not share with other runs."""
        return math.hypot(self.seed_sd * math.sqrt(1 - self.correlation), self.probe_sd)

    @property
    def pair_sd(self) -> float:
        """Standard deviation of a difference of two runs of one seed."""
        return math.sqrt(2) * self.residual_sd


def probe_sd(accuracy: float, clips: int) -> float:
    """Binomial standard deviation, in points, of an accuracy in percent on so many clips.

    An upper bound of what clips add between seeds: exact when all clips are equally hard, less otherwise.
    """
    return 100 * math.sqrt(accuracy / 100 * (1 - accuracy / 100) / clips)


# --- one comparison, closed form ------------------------------------------------------------------


def paired_power(difference: float, sd: float, seeds: int, alpha: float = ALPHA) -> float:
    """Probability that a two-sided paired t test over `seeds` pairs sees a true difference.

    `sd` is that of one difference, in the unit of `difference`. From the noncentral t distribution (Owen
    1965). One seed has no interval, so it sees nothing: 0.
    """
    if seeds < 2:
        return 0.0
    degrees = seeds - 1
    shift = abs(difference) / sd * math.sqrt(seeds)
    reach = -float(special.stdtrit(degrees, alpha / 2))
    # At large shifts the lower tail is 0, and scipy's series for it may say NaN.
    lower = float(special.nctdtr(degrees, shift, -reach))
    upper = 1 - float(special.nctdtr(degrees, shift, reach))
    return min(1.0, upper + (lower if math.isfinite(lower) else 0.0))


def smallest_difference(sd: float, seeds: int, alpha: float = ALPHA, power: float = POWER) -> float | None:
    """The difference that is seen with probability `power`; None with fewer than two seeds."""
    if seeds < 2:
        return None
    high = sd
    while paired_power(high, sd, seeds, alpha) < power:
        high *= 2
    return float(
        optimize.brentq(lambda d: paired_power(d, sd, seeds, alpha) - power, 0.0, high, xtol=1e-9 * sd)
    )


def seeds_needed(difference: float, sd: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """The fewest paired seeds that see `difference` with probability `power`; None if over `MOST_SEEDS`."""
    low, high = 1, 2
    while paired_power(difference, sd, high, alpha) < power:
        low, high = high, 2 * high
        if low > MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        if paired_power(difference, sd, middle, alpha) < power:
            low = middle
        else:
            high = middle
    return high


# --- a family of comparisons, after Holm ----------------------------------------------------------


def holm_claims(p: Floats, alpha: float = ALPHA) -> Bools:
    """Which hypotheses of each row Holm's step-down test (Holm 1979) rejects: p [..., m] -> bool [..., m].

    Missing p values (NaN) are never rejected and count as members.
    """
    members = p.shape[-1]
    order = np.argsort(p, axis=-1)  # NaN last
    ranked = np.take_along_axis(p, order, axis=-1)
    passed = np.logical_and.accumulate(ranked * (members - np.arange(members)) < alpha, axis=-1)
    claims = np.empty_like(passed)
    np.put_along_axis(claims, order, passed, axis=-1)
    return claims


class SimulatedFamily:
    """A family of paired comparisons drawn many times, to be shifted by any true difference afterwards.

    One level is truly better than all others, in every stratum; these are equal. The draws are those of
    `numpy.random.default_rng(rng)`: the same numbers at every call, and for every difference.
    """

    def __init__(self, family: Family, noise: Noise, rng: int = 0, draws: int | None = None) -> None:
        members = len(family.comparisons)
        size = family.seeds.size
        most = _MOST_VALUES // max(1, members, size // 4)
        self.draws = draws or max(1000, min(_MOST_DRAWS, most))
        generator = np.random.default_rng(rng)
        shape = (self.draws, *family.seeds.shape)
        residuals = generator.standard_normal(shape) * noise.residual_sd
        self.better = family.most_compared
        self.sign = np.array([(c.a == self.better) * 1.0 - (c.b == self.better) for c in family.comparisons])
        self.seeable = np.array([c.n > 1 for c in family.comparisons])
        self.degrees = np.array([max(0, c.n - 1) for c in family.comparisons], dtype=float)
        self._means = np.empty((self.draws, members))
        self._errors = np.full((self.draws, members), np.nan)
        for place, comparison in enumerate(family.comparisons):
            strata, chosen = list(comparison.strata), comparison.seeds
            both = residuals[:, strata][..., chosen]
            pairs = (both[:, :, comparison.a] - both[:, :, comparison.b]).mean(axis=1)  # [draws, n]
            n = comparison.n
            self._means[:, place] = pairs.mean(axis=1) if n else np.nan
            if n > 1:
                self._errors[:, place] = pairs.std(axis=1, ddof=1) / math.sqrt(n)

    def claims(self, difference: float, alpha: float = ALPHA) -> Bools:
        """What is claimed after Holm, bool [draws, members], where one level is `difference` points up."""
        t = np.abs(self._means + self.sign * difference) / self._errors
        return holm_claims(2 * special.stdtr(np.maximum(self.degrees, 1), -t), alpha)

    def power(self, difference: float, alpha: float = ALPHA, *, seeable: bool = False) -> float:
        """Mean probability that a true difference of the family is claimed with the right sign.

        With `seeable` the mean is over comparisons of two common seeds or more only; in the mean over all,
        the others count as never claimed.
        """
        true = (self.sign != 0) & (self.seeable if seeable else True)
        right = self.sign * (self._means + self.sign * difference) > 0
        return float((self.claims(difference, alpha) & right)[:, true].mean())

    def false_claims(self, difference: float, alpha: float = ALPHA) -> float:
        """Probability of at least one claim between levels that are equal; at most `alpha`, by Holm."""
        null = self.sign == 0
        return float(self.claims(difference, alpha)[:, null].any(axis=1).mean()) if null.any() else 0.0

    def smallest_difference(self, low: float, high: float, power: float = POWER) -> float:
        """The difference that is claimed with probability `power` where there are two seeds or more.

        Searched upwards from `low`, first to `high`, which Bonferroni's correction gives.
        """
        while self.power(high, seeable=True) < power:
            low, high = high, high * 1.25
        while high - low > 3e-3 * high:
            middle = (low + high) / 2
            low, high = (middle, high) if self.power(middle, seeable=True) < power else (low, middle)
        return (low + high) / 2


@dataclass(frozen=True, kw_only=True)
class FamilyPower:
    """What a family of comparisons can see. Differences in points; None where the seeds allow no interval.

    `alone` is the smallest difference of one comparison without correction, at that with the least power of
    those with two common seeds; `corrected` after Holm over the whole family, on average over them;
    `bounded` after Bonferroni, which Holm is never worse than, and which `seeds_for_one_point` rests on.
    `blind` comparisons have fewer than two common seeds, and count in `power_corrected` as never seen.
    """

    family: Family
    noise: Noise
    alone: float | None
    corrected: float | None
    bounded: float | None
    blind: int
    power_corrected: dict[float, float]
    false_claims: float
    seeds_for_one_point: int | None
    draws: int


def family_power(family: Family, noise: Noise, differences: Sequence[float], rng: int = 0) -> FamilyPower:
    """Power of a family: of single comparisons in closed form, of the whole by simulation."""
    members = len(family.comparisons)
    simulated = SimulatedFamily(family, noise, rng)
    sds = {c: noise.pair_sd / math.sqrt(len(c.strata)) for c in family.comparisons}
    seen = [c for c in family.comparisons if c.n > 1 and simulated.better in (c.a, c.b)]
    seen = seen or [c for c in family.comparisons if c.n > 1]
    alone = bounded = corrected = None
    if seen:
        kinds = {(sds[c], c.n) for c in seen}
        alone = max(smallest_difference(sd, n) or 0.0 for sd, n in kinds)
        bounded = max(smallest_difference(sd, n, ALPHA / members) or 0.0 for sd, n in kinds)
        corrected = alone if members == 1 else simulated.smallest_difference(0.0, bounded)
    return FamilyPower(
        family=family,
        noise=noise,
        alone=alone,
        corrected=corrected,
        bounded=bounded,
        blind=sum(c.n < 2 for c in family.comparisons),
        power_corrected={d: simulated.power(d) for d in differences},
        false_claims=simulated.false_claims(max(differences)),
        seeds_for_one_point=seeds_needed(1.0, max(sds.values()), ALPHA / members),
        draws=simulated.draws,
    )


# --- the best of several, and their order -----------------------------------------------------------


_GRID = np.linspace(-9.0, 9.0, 3601)


def chance_best(means: Sequence[float], sds: Sequence[float]) -> Floats:
    """Probability of each of several independent normal values to be the largest; they sum to 1.

    The integral over x of phi_i(x) prod_j Phi_j(x) (Bechhofer 1954), by the trapezoid rule.
    """
    centre, spread = np.asarray(means, dtype=float), np.asarray(sds, dtype=float)
    x = centre[:, None] + spread[:, None] * _GRID  # [i, grid]
    others = special.ndtr((x[:, None, :] - centre[None, :, None]) / spread[None, :, None])  # [i, j, grid]
    index = np.arange(len(centre))
    others[index, index] = 1.0
    density = np.exp(-0.5 * _GRID**2) / math.sqrt(2 * math.pi)
    found = np.trapezoid(density * others.prod(axis=1), _GRID, axis=1)
    return np.asarray(found / found.sum(), dtype=float)


def chance_of_order(means: Sequence[float], sd: float) -> float:
    """Probability that independent normal values of one `sd` come out in the order of their rising `means`.

    One integral after the other: the chance that the first k are in order and the k-th is below x.
    """
    centre = np.asarray(means, dtype=float) / sd
    x = np.arange(centre.min() - 9.0, centre.max() + 9.0, 0.005)
    below = np.ones_like(x)
    for mean in centre:
        density = np.exp(-0.5 * (x - mean) ** 2) / math.sqrt(2 * math.pi) * below
        steps = (density[1:] + density[:-1]) / 2 * 0.005
        below = np.concatenate([[0.0], np.cumsum(steps)])
    return float(min(1.0, below[-1]))


@dataclass(frozen=True, kw_only=True)
class BestShare:
    """Finding the best of some shares: `found[i]` and `lost[i]` if the i-th is truly best.

    `found` is the chance that it comes out highest, `lost` how many points the highest one is short of it on
    average, `one_off` the chance that the highest is the best or next to it.
    """

    shares: tuple[float, ...]
    seeds: tuple[int, ...]
    found: tuple[float, ...]
    one_off: tuple[float, ...]
    lost: tuple[float, ...]

    @cached_property
    def mean_found(self) -> float:
        return float(np.mean(self.found))


def best_share(shares: Sequence[float], seeds: Sequence[int], loss: float, noise: Noise) -> BestShare:
    """Chances for shares in rising order, where accuracy falls by `loss` x (log2(share / best))^2 points.

    `loss` is thus what one doubling away from the best share costs; two cost four times that.
    """
    place = np.log2(np.asarray(shares, dtype=float))
    sds = [noise.residual_sd / math.sqrt(n) for n in seeds]
    found, near, lost = [], [], []
    for best in range(len(place)):
        drop = loss * (place - place[best]) ** 2
        chances = chance_best((-drop).tolist(), sds)
        found.append(float(chances[best]))
        near.append(float(chances[max(0, best - 1) : best + 2].sum()))
        lost.append(float((chances * drop).sum()))
    return BestShare(
        shares=tuple(shares), seeds=tuple(seeds), found=tuple(found), one_off=tuple(near), lost=tuple(lost)
    )
