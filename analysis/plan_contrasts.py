"""Which comparisons a plan holds: arms at equal budget, teacher shares, teacher sizes, all paired by seed.

A *level* is what is compared (an arm, a share, a size), a *stratum* what is equal on both sides.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.configs import configuration_ids, variants
from salt.plan_specs import Cell, Plan
from salt.specs import CELL_ARMS

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Two levels (places in `Family.levels`), averaged over strata, paired over `seeds` (bool [seeds])."""

    a: int
    b: int
    strata: tuple[int, ...]
    seeds: Bools

    @property
    def n(self) -> int:
        return int(self.seeds.sum())


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """All comparisons of one question. `seeds` says which runs there are: bool [strata, levels, seeds]."""

    question: str
    basis: str
    levels: tuple[str, ...]
    strata: tuple[str, ...]
    seeds: Bools
    comparisons: tuple[Comparison, ...]

    @property
    def most_compared(self) -> int:
        """The level in most comparisons of two seeds or more; of several the first."""
        places = range(len(self.levels))
        counts = [sum((1 + 1000 * (c.n > 1)) * (x in (c.a, c.b)) for c in self.comparisons) for x in places]
        return counts.index(max(counts))

    @property
    def fewest_seeds(self) -> int:
        return min(comparison.n for comparison in self.comparisons)

    @property
    def most_seeds(self) -> int:
        return max(comparison.n for comparison in self.comparisons)


#: (stratum, level) -> seeds of the runs there
Placed = dict[tuple[Any, Any], set[int]]


def arm_families(plan: Plan) -> list[Family]:
    """Arms at each budget, and over all budgets, each arm by one configuration of the most seeds.

    Which configuration that will be, the selection clips decide when there are results; those with the most
    seeds compete.
    """
    ids = configuration_ids(plan)
    by_config: dict[tuple[float, str, str], set[int]] = defaultdict(set)
    for cell in plan.cells:
        if cell.arm in CELL_ARMS and cell.budget > 0:
            by_config[(cell.budget, cell.arm, ids[cell.run_id])].add(cell.seed)
    placed: Placed = {}
    for (budget, arm, _), seeds in by_config.items():
        if len(seeds) > len(placed.get((budget, arm), ())):
            placed[(budget, arm)] = seeds
    order = [arm for arm in CELL_ARMS if any(arm == level for _, level in placed)]
    return _families("arms", placed, order, str, lambda budget: f"budget {budget:.4g}", None, "budgets")


def share_families(plan: Plan) -> list[Family]:
    """Teacher shares at equal budget, student and teacher; and over all of these."""
    placed, names = _salt_cells(
        plan, lambda cell: cell.teacher_share, lambda cell: (cell.budget, cell.teacher, cell.student)
    )
    levels = sorted({level for _, level in placed})
    return _families("teacher shares", placed, levels, _percent, names.get, (0, 1, 3), "budgets and teachers")


def teacher_families(plan: Plan) -> list[Family]:
    """Teacher sizes at equal budget, student and share (or length); and over all of these."""
    placed, names = _salt_cells(
        plan,
        lambda cell: cell.teacher,
        lambda cell: (cell.budget, cell.teacher_share or f"{cell.teacher_steps} steps", cell.student),
    )
    levels = list(dict.fromkeys(level for _, level in placed))
    return _families("teacher sizes", placed, levels, str, names.get, (0, 1, 3), "budgets and shares")


def share_seeds(plan: Plan) -> dict[str, tuple[tuple[float, ...], tuple[int, ...]]]:
    """Stratum -> (shares in rising order, seeds of each), where there are two shares or more.

    The last one joins all strata that have all of these shares, one student of each teacher: there the best
    share is taken to be the same everywhere, and every share has the seeds of all.
    """
    placed, names = _salt_cells(
        plan, lambda cell: cell.teacher_share, lambda cell: (cell.budget, cell.teacher, cell.student)
    )
    found = {}
    for stratum, name in names.items():
        shares = sorted(level for key, level in placed if key == stratum)
        if len(shares) > 1:
            found[name] = (tuple(shares), tuple(len(placed[(stratum, share)]) for share in shares))
    every = sorted({level for _, level in placed})
    whole = [stratum for stratum in names if all((stratum, share) in placed for share in every)]
    apart: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    for budget, teacher, student, variant in whole:
        apart.setdefault((budget, teacher, variant), (budget, teacher, student, variant))
    if len(apart) > 1 and len(every) > 1:
        counts = [sum(len(placed[(stratum, share)]) for stratum in apart.values()) for share in every]
        found[f"all {len(apart)} budgets and teachers together"] = (tuple(every), tuple(counts))
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _salt_cells(
    plan: Plan, level: Callable[[Cell], Any], stratum: Callable[[Cell], tuple[Any, ...]]
) -> tuple[Placed, dict[Any, str]]:
    """Seeds of the frozen-teacher cells by (stratum, level), and a name for each stratum.

    Cells without such a level (of fixed length, of a chain's imported teacher) take no part.
    """
    texts = variants(plan)
    placed: Placed = defaultdict(set)
    names: dict[Any, str] = {}
    for cell in plan.cells:
        value = level(cell)
        if cell.arm != "salt" or cell.budget <= 0 or value is None or cell.stages:
            continue
        budget, second, student = stratum(cell)
        key = (budget, second, student, texts[cell.cell_id])
        placed[(key, value)].add(cell.seed)
        beside = _percent(second) if isinstance(second, float) else second
        names[key] = f"budget {budget:.4g}, {beside}, student {student}" + (f", {key[3]}" if key[3] else "")
    return dict(placed), names


def _families(
    question: str,
    placed: Placed,
    levels: list[Any],
    level_name: Callable[[Any], str],
    stratum_name: Callable[[Any], str | None],
    merge: tuple[int, ...] | None,
    over: str,
) -> list[Family]:
    """The family of single strata and that of averages over strata; none where nothing is compared.

    `merge` are the places of a stratum's key that make it independent: students of one teacher's run share
    that teacher's luck, so averaging over them is not taken to lower the noise.
    """
    strata = list(dict.fromkeys(stratum for stratum, _ in placed))
    numbers = sorted({seed for seeds in placed.values() for seed in seeds})
    grid = np.zeros((len(strata), len(levels), len(numbers)), dtype=bool)
    for (stratum, level), seeds in placed.items():
        grid[strata.index(stratum), levels.index(level)] = np.isin(numbers, list(seeds))
    single = _single(grid)
    if not single:
        return []
    names = tuple(level_name(level) for level in levels)
    texts = tuple(str(stratum_name(stratum)) for stratum in strata)
    about: dict[str, Any] = {"question": question, "levels": names}
    found = [Family(**about, basis="each", strata=texts, seeds=grid, comparisons=tuple(single))]
    if len(strata) > 1:
        keys = [stratum if merge is None else tuple(stratum[i] for i in merge) for stratum in strata]
        distinct = list(dict.fromkeys(keys))
        merged = np.stack(
            [_together(grid[[i for i, key in enumerate(keys) if key == one]]) for one in distinct]
        )
        averaged = _averaged(merged)
        if averaged:
            found.append(
                Family(
                    **about,
                    basis=f"over {over}",
                    strata=tuple(map(str, distinct)),
                    seeds=merged,
                    comparisons=tuple(averaged),
                )
            )
    return found


def _together(grid: Bools) -> Bools:
    """Runs that all of these strata have, where they have the level at all: [strata, L, S] -> [L, S]."""
    there = grid.any(axis=2, keepdims=True)
    return np.asarray((grid | ~there).all(axis=0) & there.any(axis=0))


def _single(grid: Bools) -> list[Comparison]:
    return [
        Comparison(a=a, b=b, strata=(place,), seeds=grid[place, a] & grid[place, b])
        for place in range(grid.shape[0])
        for a, b in combinations(range(grid.shape[1]), 2)
        if grid[place, a].any() and grid[place, b].any()
    ]


def _averaged(grid: Bools) -> list[Comparison]:
    """Each pair of levels over all strata that have both; only seeds that all of these have."""
    found = []
    for a, b in combinations(range(grid.shape[1]), 2):
        places = tuple(i for i in range(grid.shape[0]) if grid[i, a].any() and grid[i, b].any())
        if places:
            seeds: Bools = np.logical_and.reduce(grid[list(places), a] & grid[list(places), b], axis=0)
            found.append(Comparison(a=a, b=b, strata=places, seeds=seeds))
    return found
