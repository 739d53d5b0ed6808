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
        self._prices: dict[tuple[Any, ...], dict[Convention, tuple[int, int]]] = {}
        self._above: dict[tuple[str, Convention], int] = {}

    def way(self, run_id: str, convention: Convention) -> Way:
        """FLOPs of the whole way to the last weights of a run, a trunk's steps included."""
        spec = self._specs[run_id]
        step, cache = self._price(spec, convention)
        return Way(step * spec.steps + cache, cache, self._teachers(run_id, convention))

    def _teachers(self, run_id: str, convention: Convention) -> int:
        key = (run_id, convention)
        if key not in self._above:
            reference = self._specs[run_id].teacher
            total = 0
            if reference is not None and reference.run_id in self._specs:
                step, cache = self._price(self._specs[reference.run_id], convention)
                total = step * reference.step + cache + self._teachers(reference.run_id, convention)
            self._above[key] = total
        return self._above[key]

    def _price(self, spec: RunSpec, convention: Convention) -> tuple[int, int]:
        """(FLOPs of a step, of the cached targets). Runs of one base share the parts of their specs."""
        key = (
            *map(id, _priced(spec)),
            spec.optim.batch_clips,
            None if spec.teacher is None else id(spec.teacher.encoder),
        )
        known = self._prices.setdefault(key, {})
        if convention not in known:
            step = step_cost(spec, convention).total_flops
            known[convention] = step, cache_cost(spec, convention).total_flops
        return known[convention]
