"""What a further run tells about a question: expected narrowing, in points or in doublings of the budget.

Beliefs are normal: an accuracy of n seeds is known to residual_sd^2 / n, flat before the first seed unless a
neighbour tells of it. Criteria, their sources and limits: docs/power.md.
"""

from __future__ import annotations

import math
from collections import ChainMap, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Protocol

import numpy as np
from scipy import stats

from analysis.suggest_points import LEAST_RATIO, Point, PointKey, between_budgets

#: Seeds of each point that have a result, or will have one after the runs chosen so far.
Have = Mapping[PointKey, frozenset[int]]
Added = Sequence[tuple[Point, int]]


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """Standard deviation of what runs of one seed do not share, in points; `degrees` None where given."""

    residual_sd: float
    degrees: int | None
    basis: str

    @cached_property
    def reach(self) -> float:
        """Of a 95 % interval, in standard errors."""
        return float(stats.norm.ppf(0.975) if self.degrees is None else stats.t.ppf(0.975, self.degrees))


def seed_noise(groups: Iterable[Sequence[Point]]) -> SeedNoise | None:
    """Pooled over groups of points that are compared with each other.

    What is left of points x common seeds after the means of both, with (points - 1)(seeds - 1) degrees of
    freedom; where no two points share two seeds, the spread between seeds within points, which holds the
    seeds' own effect too. None if no point has two seeds.
    """
    squares, degrees = 0.0, 0
    points: dict[PointKey, Point] = {}
    for group in groups:
        points |= {point.key: point for point in group}
        several = [point for point in group if len(point.values) > 1]
        if len(several) < 2:
            continue
        seeds = sorted(frozenset.intersection(*(frozenset(point.values) for point in several)))
        if len(seeds) < 2:
            continue
        grid = np.array([[point.values[seed] for seed in seeds] for point in several])
        left = grid - grid.mean(axis=0) - grid.mean(axis=1, keepdims=True) + grid.mean()
        squares += float((left**2).sum())
        degrees += (len(several) - 1) * (len(seeds) - 1)
    if degrees and squares > 1e-18:
        return SeedNoise(residual_sd=math.sqrt(squares / degrees), degrees=degrees, basis="paired by seed")
    values = [np.array(list(point.values.values())) for point in points.values() if len(point.values) > 1]
    degrees = sum(len(each) - 1 for each in values)
    squares = sum(float(((each - each.mean()) ** 2).sum()) for each in values)
    if not degrees or squares <= 1e-18:
        return None
    return SeedNoise(residual_sd=math.sqrt(squares / degrees), degrees=degrees, basis="within configurations")


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Something to run together, and what it is good for."""

    kind: str  # "seed", "planned", "share" or "budget"
    runs: tuple[tuple[Point, int], ...]
    why: str


@dataclass(frozen=True, kw_only=True)
class Worth:
    """`gain` in the question's unit, and the half-width of the 95 % interval of `what` before and after.

    `step` is how much there is to be seen of it, in points or doublings.
    """

    gain: float
    step: float
    what: str
    before: float
    after: float


class Question(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...  # of the half-widths

    @property
    def gain_unit(self) -> str: ...

    def proposals(self, have: Have) -> list[Proposal]: ...

    def worth(self, proposal: Proposal, have: Have) -> Worth: ...


def with_runs(have: Have, runs: Added) -> Have:
    """What there is once these runs are done: a view over `have`, which stays as it is."""
    changed: dict[PointKey, frozenset[int]] = {}
    for point, seed in runs:
        changed[point.key] = changed.get(point.key, have.get(point.key, frozenset())) | {seed}
    return ChainMap(changed, have)  # type: ignore[arg-type]


def known_seeds(have: Have, points: Iterable[Point]) -> frozenset[int]:
    """All seeds that the study has or plans anywhere: where they fit, they are better than new ones."""
    return frozenset[int]().union(*have.values(), *(point.planned for point in points))


def seed_options(
    points: Sequence[Point], have: Have, known: frozenset[int]
) -> list[tuple[str, tuple[tuple[Point, int], ...]]]:
    """Ways of one more common seed of all points: complete one that some have, do a planned one, or a new
    one.
    """
    closed = frozenset[int]().union(*(point.closed for point in points))
    mine = [have.get(point.key, frozenset()) for point in points]
    common = frozenset.intersection(*mine)
    begun = frozenset[int]().union(*mine, *(point.planned for point in points)) - common - closed
    fresh = max([*known, *closed, -1]) + 1
    elsewhere = sorted(known - begun - common - closed)
    options = []
    for seed in [*sorted(begun), *elsewhere[:1], fresh]:
        runs = tuple((point, seed) for point, has in zip(points, mine, strict=True) if seed not in has)
        planned = all(seed in point.planned for point, _ in runs)
        options.append(("planned" if planned else "seed", runs))
    return options


def _narrowing(gain: float, what: str, variance: float, after: float, noise: SeedNoise) -> Worth:
    """What a lower variance is worth; the one of the largest fall is shown."""
    before, then = noise.reach * math.sqrt(variance), noise.reach * math.sqrt(after)
    return Worth(gain=gain, step=before - then, what=what, before=before, after=then)


# --- arms: the differences themselves ---------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ArmDifferences:
    """The variance of each paired difference of two arms at equal budget; all count alike.

    Where two arms share no seed, nothing is known of their difference: it is as uncertain as the differences
    seen elsewhere are large (`prior_variance`, their mean square), and one seed's noise more.
    """

    pairs: tuple[tuple[Point, Point], ...]
    noise: SeedNoise
    prior_variance: float
    name: str = "arms"
    unit: str = "points"
    gain_unit: str = "points^2"

    def variance(self, pair: tuple[Point, Point], have: Have) -> float:
        n = len(have.get(pair[0].key, frozenset()) & have.get(pair[1].key, frozenset()))
        spread = 2 * self.noise.residual_sd**2
        return spread / n if n else self.prior_variance + spread

    def proposals(self, have: Have) -> list[Proposal]:
        found = []
        known = known_seeds(have, (point for pair in self.pairs for point in pair))
        for a, b in self.pairs:
            for kind, runs in seed_options((a, b), have, known):
                why = f"{a.arm} - {b.arm} at budget {a.budget:.3g}"
                found.append(Proposal(kind=kind, runs=runs, why=why))
        return found

    def worth(self, proposal: Proposal, have: Have) -> Worth:
        after = with_runs(have, proposal.runs)
        changes = [(self.variance(pair, have), self.variance(pair, after), pair) for pair in self.pairs]
        old, new, (a, b) = max(changes, key=lambda change: change[0] - change[1])
        gain = sum(before - then for before, then, _ in changes)
        return _narrowing(gain, f"{a.arm} - {b.arm} at budget {a.budget:.3g}", old, new, self.noise)


# --- the best of several: shares, or configurations at a budget ---------------------------------------


@dataclass(frozen=True, kw_only=True)
class Prior:
    """Of a point without results: what its neighbours say."""

    mean: float
    variance: float


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """The knowledge gradient (Frazier, Powell and Dayanik 2008): by how many points the accuracy of what is
    chosen as best rises, expected, with one more run. Each group has a best of its own.
    """

    name: str
    groups: tuple[tuple[Point, ...], ...]
    priors: Mapping[PointKey, Prior]
    noise: SeedNoise
    unit: str = "points"
    gain_unit: str = "points"

    @cached_property
    def _group_of(self) -> dict[PointKey, tuple[Point, ...]]:
        return {point.key: group for group in self.groups for point in group}

    def belief(self, point: Point, have: Have) -> tuple[float, float]:
        """(mean, variance). Runs that are chosen but not done move no mean."""
        n, measured = len(have.get(point.key, frozenset())), len(point.values)
        spread = self.noise.residual_sd**2
        if measured:
            return point.mean, spread / n
        prior = self.priors[point.key]
        return prior.mean, 1 / (1 / prior.variance + n / spread)

    def proposals(self, have: Have) -> list[Proposal]:
        """Each point alone; and all points of different groups that learn from one teacher, together."""
        found = []
        known = known_seeds(have, (point for group in self.groups for point in group))
        together: dict[tuple[str, ...], list[tuple[int, Point, int]]] = defaultdict(list)
        for place, group in enumerate(self.groups):
            for point in group:
                for kind, runs in seed_options((point,), have, known):
                    what = point.new or kind
                    found.append(Proposal(kind=what, runs=runs, why=self._why(point, group)))
                    teachers = [part.identity for part in point.parts if part.is_teacher]
                    if teachers:
                        together[(what, str(runs[0][1]), *teachers)].append((place, *runs[0]))
        for (what, *_), members in together.items():
            # Of a group one point only, as what two of them are worth together is not the sum.
            apart = {place: (point, seed) for place, point, seed in reversed(members)}
            if len(apart) > 1:
                first = next(iter(apart.values()))[0]
                why = f"{first.teacher}'s {len(apart)} students at budget {first.budget:.3g}"
                found.append(Proposal(kind=what, runs=tuple(apart.values()), why=why))
        return found

    def _why(self, point: Point, group: Sequence[Point]) -> str:
        return f"{point.config} among {len(group)} at budget {point.budget:.3g}"

    def worth(self, proposal: Proposal, have: Have) -> Worth:
        """The sum over runs, which are of different groups; the interval is that of the run worth most."""
        worths = [self._worth(point, seed, have) for point, seed in proposal.runs]
        gain = sum(each.gain for each in worths)
        best = max(worths, key=lambda each: each.gain)
        return Worth(
            gain=gain,
            step=min(each.gain for each in worths),
            what=best.what,
            before=best.before,
            after=best.after,
        )

    def _worth(self, point: Point, seed: int, have: Have) -> Worth:
        group = self._group_of[point.key]
        after = with_runs(have, [(point, seed)])
        mean, variance = self.belief(point, have)
        left = self.belief(point, after)[1]
        others = [(*self.belief(each, have), each) for each in group if each.key != point.key]
        rival_mean, rival_variance, rival = max(others, key=lambda other: other[0])
        before, then = (math.sqrt(each + rival_variance) for each in (variance, left))
        gain = knowledge_gradient(mean, rival_mean, math.sqrt(max(0.0, variance - left)))
        return Worth(
            gain=gain,
            step=gain,
            what=f"{point.config} - {rival.config} at budget {point.budget:.3g}",
            before=self.noise.reach * before,
            after=self.noise.reach * then,
        )


def knowledge_gradient(mean: float, best_other: float, change_sd: float) -> float:
    """Expected rise of the largest mean when one mean is to change by a normal amount of `change_sd`.

    change_sd * f(-|mean - best_other| / change_sd) with f(z) = z Phi(z) + phi(z).
    """
    if change_sd <= 0:
        return 0.0
    z = -abs(mean - best_other) / change_sd
    below = math.erfc(-z / math.sqrt(2)) / 2
    return change_sd * max(0.0, z * below + math.exp(-z * z / 2) / math.sqrt(2 * math.pi))


# --- the crossover ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Two arms that change places between two budgets: pairs (a, b) of points at each, and one between."""

    low: tuple[Point, Point]
    high: tuple[Point, Point]
    between: tuple[Point, Point] | None
    place: float  # log2 of the budget where the line through both differences is 0
    slope: float  # points per doubling

    @property
    def pairs(self) -> tuple[tuple[Point, Point], ...]:
        return (self.low, self.high) if self.between is None else (self.low, self.high, self.between)

    @property
    def name(self) -> str:
        return f"crossover of {self.low[0].arm} and {self.low[1].arm}"


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """The variance of the budget at which a line through the paired differences is 0, in doublings^2.

    Weighted least squares over log2(budget) with as many seeds as there are; slope and place as they stand.
    """

    crossings: tuple[Crossing, ...]
    noise: SeedNoise
    name: str = "crossover"
    unit: str = "doublings of the budget"
    gain_unit: str = "doublings^2"

    def variance(self, crossing: Crossing, have: Have) -> float:
        places, weights = [], []
        for pair in crossing.pairs:
            n = len(have.get(pair[0].key, frozenset()) & have.get(pair[1].key, frozenset()))
            if n:
                places.append(math.log2(pair[0].budget))
                weights.append(n / (2 * self.noise.residual_sd**2))
        x, w = np.array(places), np.array(weights)
        centre = float((w * x).sum() / w.sum())
        moment = float((w * (x - centre) ** 2).sum())
        return (1 / float(w.sum()) + (crossing.place - centre) ** 2 / moment) / crossing.slope**2

    def proposals(self, have: Have) -> list[Proposal]:
        found = []
        pairs = [pair for each in self.crossings for pair in each.pairs]
        known = known_seeds(have, (point for pair in pairs for point in pair))
        for crossing in self.crossings:
            for pair in crossing.pairs:
                for kind, runs in seed_options(pair, have, known):
                    why = f"{crossing.name}, near {2**crossing.place:.3g}"
                    found.append(Proposal(kind=pair[0].new or kind, runs=runs, why=why))
        return found

    def worth(self, proposal: Proposal, have: Have) -> Worth:
        after = with_runs(have, proposal.runs)
        changes = [(self.variance(each, have), self.variance(each, after), each) for each in self.crossings]
        old, new, crossing = max(changes, key=lambda change: change[0] - change[1])
        gain = sum(before - then for before, then, _ in changes)
        return _narrowing(gain, crossing.name, old, new, self.noise)


def crossings_of(by_budget: Mapping[float, Mapping[str, Point]], charge: str) -> list[Crossing]:
    """Every change of sign of a paired difference of two arms between neighbouring budgets."""
    arms = sorted({arm for points in by_budget.values() for arm in points})
    found = []
    for first, second in combinations(arms, 2):
        known = []
        for budget in sorted(by_budget):
            points = by_budget[budget]
            if first in points and second in points:
                a, b = points[first], points[second]
                seeds = sorted(a.values.keys() & b.values.keys())
                if seeds:
                    difference = float(np.mean([a.values[seed] - b.values[seed] for seed in seeds]))
                    known.append((budget, (a, b), difference))
        for (low, low_pair, before), (high, high_pair, after) in zip(known, known[1:], strict=False):
            if before * after >= 0:
                continue
            gap = math.log2(high / low)
            slope = (after - before) / gap
            middle = float(f"{math.sqrt(low * high):.3g}")
            between = None
            if high / low > LEAST_RATIO**2:
                pairs = zip(low_pair, high_pair, strict=True)
                a, b = (between_budgets(one, other, middle, charge) for one, other in pairs)
                between = (a, b)
            place = math.log2(low) - before / slope
            found.append(Crossing(low=low_pair, high=high_pair, between=between, place=place, slope=slope))
    return found
