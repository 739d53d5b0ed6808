"""FLOPs of a run's whole way and of all teachers above it, under both conventions.

What a step costs depends on little of a spec, so it is computed once for all runs that share it.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Any, NamedTuple

from salt.flops import cache_cost, step_cost
from salt.plan_specs import PlannedRun
from salt.specs import Convention, RunSpec

CONVENTIONS: tuple[Convention, ...] = ("matmul", "paper")
#: Parts of a spec that have no price: which run it is, how long it goes on, its recipe but for the batch.
_FREE = ("seed", "steps", "teacher", "trunk", "keep_steps", "optim")
_priced = attrgetter(*(name for name in RunSpec.__struct_fields__ if name not in _FREE))


class Way(NamedTuple):
    """FLOPs to a run's weights: `own`, the `cache` of teacher's targets within it, and all teachers'
    training `above`, each up to the weights that are used.
    """

    own: int
    cache: int
    above: int


class Lineage:
    """Ways of the runs of a plan."""

    def __init__(self, runs: Iterable[PlannedRun]) -> None:
        self._specs = {run.run_id: run.spec for run in runs}
        self._prices: dict[tuple[Any, ...], tuple[tuple[int, int], ...]] = {}
        self._above: dict[tuple[str, int], tuple[int, ...]] = {}

    def ways(self, run_id: str) -> tuple[Way, ...]:
        """The whole way to the last weights of a run, a trunk's steps included, in each of `CONVENTIONS`."""
        spec = self._specs[run_id]
        return tuple(
            Way(step * spec.steps + cache, cache, above)
            for (step, cache), above in zip(self._prices_of(spec), self._teachers(run_id), strict=True)
        )

    def _teachers(self, run_id: str) -> tuple[int, ...]:
        """Training of all teachers above a run, each up to the weights that are used."""
        reference = self._specs[run_id].teacher
        if reference is None or reference.run_id not in self._specs:
            return (0,) * len(CONVENTIONS)
        key = (reference.run_id, reference.step)
        if key not in self._above:
            prices = self._prices_of(self._specs[reference.run_id])
            self._above[key] = tuple(
                step * reference.step + cache + above
                for (step, cache), above in zip(prices, self._teachers(reference.run_id), strict=True)
            )
        return self._above[key]

    def _prices_of(self, spec: RunSpec) -> tuple[tuple[int, int], ...]:
        """(FLOPs of a step, of the cached targets) per convention. Runs of one base share the parts of their
        specs as objects, which tell them apart faster than their values.
        """
        key = (
            *map(id, _priced(spec)),
            spec.optim.batch_clips,
            None if spec.teacher is None else id(spec.teacher.encoder),
        )
        if key not in self._prices:
            self._prices[key] = tuple(
                (step_cost(spec, convention).total_flops, cache_cost(spec, convention).total_flops)
                for convention in CONVENTIONS
            )
        return self._prices[key]
