"""From a solved grid to the lines of a plan, in columns: objects only for what is written at the moment.

The lines are those of `salt.plans`; a plan of a million cells passes through in chunks.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from salt.lists import VideoList
from salt.plans import (
    BaseNumbers,
    PlanHeader,
    ProbeLine,
    RefusedLine,
    RunLine,
    base_line,
    run_line,
)
from salt.specs import Cost, ExecSpec, OptimSpec, ProbeSpec, RunSpec
from sweeps.cell_names import CellNames
from sweeps.grid import Grid
from sweeps.plan_lines import cell_lines, pieces, student_lines
from sweeps.probing import Probing
from sweeps.references import Reference
from sweeps.schedule import Run, Schedule
from sweeps.seeds import seed_sets
from sweeps.verdicts import refusals

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(kw_only=True)
class Totals:
    """What the runs of a plan cost, each run once. GPU-hours are None without a site profile."""

    runs: int = 0
    flops: int = 0
    gpu_hours: float | None = 0.0

    def add(self, count: int, flops: int, gpu_hours: float | None) -> None:
        self.runs += count
        self.flops += flops
        if gpu_hours is None or self.gpu_hours is None:
            self.gpu_hours = None
        else:
            self.gpu_hours += gpu_hours


class Draft:
    """A plan before it is written. `kept` are the points of the grid that are planned, in its order; `seeds`
    the place of each one's seeds in `seed_sets`; `others` all runs but plain students and references.
    """

    def __init__(
        self,
        grid: Grid,
        execution: ExecSpec,
        suites: dict[str, ProbeSpec],
        references: list[Reference],
        lists: dict[Path, VideoList],
    ) -> None:
        import numpy as np

        self.grid, self.study, self.execution = grid, grid.study, execution
        self.references, self.lists = references, lists
        self.probing = Probing(grid.study, suites)
        self.names = CellNames(grid)
        self.kept = np.flatnonzero(grid.verdict == 0)  # in the order of the grid
        self.seed_sets, self.seeds = seed_sets(grid, self.kept)
        self.schedule = Schedule(grid)
        with_runs = self._points_with_other_runs()
        self.schedule.prepare(
            [int(self.kept[i]) for i in with_runs], [self.seed_sets[self.seeds[i]] for i in with_runs]
        )
        self.others = [*self.schedule.in_order()]
        # Imported weights may teach and be a reference; they are one run.
        self._also_references = {r.run.run_id for r in references} & {r.run_id for r in self.others}
        self.totals = {role: Totals() for role in ("teacher", "trunk", "student", "reference")}
        self._price()

    def _points_with_other_runs(self) -> list[int]:
        """Places in `kept` that need each distinct teacher at each budget, or all of them under wsd."""
        import numpy as np

        if self.study.file.schedule == "wsd":
            return list(range(len(self.kept)))
        group, budget = self.grid.group[self.kept], self.grid.budget[self.kept]
        taught = np.flatnonzero(group >= 0)
        if not len(taught):
            return []
        key = (group[taught] * len(self.study.budgets) + budget[taught]) * len(self.seed_sets)
        _, first = np.unique(key + self.seeds[taught], return_index=True)
        return [int(place) for place in taught[np.sort(first)]]

    # --- order and sums ---------------------------------------------------------------------------

    def dearest_first(self) -> NDArray[np.int64]:
        """Places in `kept`, in the order in which their students are run."""
        import numpy as np

        prices = np.zeros(len(self.grid.bases.all))
        for base in self.grid.bases.all:
            prices[base.number] = base.step_flops
        cost = self.grid.steps[self.kept] * prices[self.grid.base[self.kept]]
        return np.argsort(-cost, kind="stable")

    def _price(self) -> None:
        """Sum every run once. A student that is also someone's teacher is counted as a teacher, and gets the
        probes of both.
        """
        import numpy as np

        for run in self.others:
            self.totals[run.role].add(1, run.own_flops, run.gpu_hours)
        for reference in self._distinct_references():
            run = reference.run
            self.totals["reference"].add(1, run.own_flops, run.gpu_hours)
        counts = np.array([len(seeds) for seeds in self.seed_sets], dtype=np.int64)[self.seeds]
        bases, students = self.grid.base[self.kept], self.totals["student"]
        steps = self.own_steps()
        for number in np.unique(bases).tolist():
            base, mine = self.grid.bases.all[number], bases == number
            # The sum of many long runs is more than 64 bits hold.
            total, runs = int((steps[mine] * counts[mine]).sum(dtype=object)), int(counts[mine].sum())
            flops = total * base.step_flops + runs * base.cache_flops
            students.add(runs, flops, base.gpu_hours(total, runs))
        others = {run.run_id: run for run in self.others}
        for place, run_id in self._made_already(set(others)):
            point = int(self.kept[place])
            base, own = self.grid.base_of(point), int(steps[place])
            students.add(-1, -(own * base.step_flops + base.cache_flops), base.gpu_hours(-own, -1))
            if run_id in others:
                others[run_id].ends.add(int(self.grid.budget[point]))

    def own_steps(self) -> NDArray[np.int64]:
        """Steps that the students' runs train themselves: after the branch under wsd, int64 [kept]."""
        import numpy as np

        steps = self.grid.steps[self.kept]
        if self.study.file.schedule != "wsd":
            return steps
        cooldown = [n - self.schedule.branch_step(n) for n in steps.tolist()]
        return np.array(cooldown, dtype=np.int64)

    def _made_already(self, known: set[str]) -> Iterator[tuple[int, str]]:
        """(place in `kept`, run) of cells whose run is among the `known` or ends an earlier cell too."""
        from itertools import chain

        wanted = len(known) + sum(map(len, self.run_ids))
        if len(known.union(chain.from_iterable(self.run_ids))) == wanted:
            return
        for place, run_ids in enumerate(self.run_ids):
            for run_id in run_ids:
                if run_id in known:
                    yield place, run_id
                known.add(run_id)

    @functools.cached_property
    def run_ids(self) -> list[list[str]]:
        """Ids of the runs that end the cells: by place in `kept`, then by seed of its set."""
        grid, schedule = self.grid, self.schedule
        varying = schedule.wsd or any(base.recipe_on_steps for base in grid.bases.all)
        columns = (grid.base, grid.steps, grid.group)
        rows = zip(*(column[self.kept].tolist() for column in columns), self.seeds.tolist(), strict=True)
        taught = schedule.made
        found = []
        for number, steps, group, seeds in rows:
            base = grid.bases.all[number]
            ids = []
            for seed in self.seed_sets[seeds]:
                teacher = taught[group, seed].weights if group >= 0 else None
                trunk, optim = None, None
                if varying:
                    trunk = schedule.trunk_of(base, steps, teacher, seed)
                    optim = schedule.optim_of(base, steps, trunk)
                ids.append(base.ids.run_id(seed, steps, teacher, trunk, optim))
            found.append(ids)
        return found

    # --- lines ------------------------------------------------------------------------------------

    def lines(self) -> Iterator[bytes]:
        """The bytes of `plan.jsonl`, in pieces."""
        encoder = msgspec.json.Encoder(order="sorted")
        head: list[Any] = [
            PlanHeader(
                name=self.study.name,
                study_sha256=self.study.sha256,
                convention=self.study.file.convention,
                charge=self.study.file.charge,
                match=self.study.match,
                execution=self.execution,
                overrides=dict(self.study.overrides),
            )
        ]
        head += [ProbeLine(probe_id=name, spec=spec) for name, spec in self.probing.specs.items()]
        bases = self._base_numbers()
        others = [self._other_line(run, bases) for run in self.others]
        head += [base_line(n, spec, self.study.file.convention) for n, spec in enumerate(bases.specs)]
        yield encoder.encode_lines(head)
        yield encoder.encode_lines(others)
        known = {run.run_id for run in self.others}
        yield from pieces(student_lines(self, bases, known))
        yield encoder.encode_lines([self._other_line(ref.run, bases) for ref in self._distinct_references()])
        yield from pieces(cell_lines(self))
        yield encoder.encode_lines([ref.line() for ref in self.references])
        yield encoder.encode_lines([RefusedLine(refused=refused) for refused in refusals(self.grid)])

    def _distinct_references(self) -> list[Reference]:
        """References that are no other runs as well, each run once."""
        found = {reference.run.run_id: reference for reference in self.references}
        return [reference for run_id, reference in found.items() if run_id not in self._also_references]

    def _base_numbers(self) -> BaseNumbers:
        """Bases in the order in which the runs first use them."""
        import numpy as np

        bases = BaseNumbers()
        for run in self.others:
            bases.number(run.spec)
        order = self.dearest_first()
        _, first = np.unique(self.grid.base[self.kept][order], return_index=True)
        for place in order[np.sort(first)].tolist():
            point = int(self.kept[place])
            optim = self._optim(point, self.seed_sets[self.seeds[place]][0])
            bases.number(msgspec.structs.replace(self.grid.base_of(point).spec, optim=optim))
        for reference in self.references:
            bases.number(reference.run.spec)
        return bases

    def base_specs(self) -> list[RunSpec]:
        """One spec for each kind of run."""
        return self._base_numbers().specs

    def _other_line(self, run: Run, bases: BaseNumbers) -> RunLine:
        spec = run.spec
        probes = self.probing.places(spec.arm, run.role, spec.seed, self._at_largest(run.budgets))
        if run.ends:
            own = self.probing.places(spec.arm, "student", spec.seed, self._at_largest(run.ends))
            probes = tuple(dict.fromkeys([*probes, *own]))
        if run.run_id in self._also_references:
            own = self.probing.places(spec.arm, "reference", spec.seed, True)
            probes = tuple(dict.fromkeys([*probes, *own]))
        return run_line(bases, spec, run.run_id, run.role, probes)

    def _at_largest(self, budgets: set[int]) -> bool:
        return any(self.study.budgets[place] == max(self.study.budgets) for place in budgets)

    def _optim(self, point: int, seed: int) -> OptimSpec:
        """The recipe of the run that ends a cell."""
        base, steps = self.grid.base_of(point), int(self.grid.steps[point])
        trunk = self.schedule.trunk_of(base, steps, self.schedule.above(point, seed), seed)
        return self.schedule.optim_of(base, steps, trunk)

    @property
    def run_count(self) -> int:
        return sum(total.runs for total in self.totals.values())

    def teacher_steps(self, group: int) -> str:
        """Steps of the teachers on the way, such as `40000` or `40000+80000`; empty without one.

        Teachers that were trained elsewhere have none: `external`.
        """
        if group < 0 or self.grid.table is None:
            return ""
        stages = self.grid.table.stages_of(group)
        return "+".join(str(stage) if stage.external else str(steps) for stage, _, steps in stages)

    @functools.cached_property
    def _hours_by_group(self) -> list[float] | None:
        table, bases = self.grid.table, self.grid.bases
        if table is None or bases.site is None:
            return None
        hours = table.by_group(
            {base.number: (base.gpu_seconds or 0.0) / 3600 for base in bases.all},
            {base.number: (base.cache_gpu_seconds or 0.0) / 3600 for base in bases.all},
        )
        return [float(value) for value in hours]

    def teacher_gpu_hours(self, group: int) -> float | None:
        """GPU-hours of the teachers on the way; None without a site profile, 0 without a teacher."""
        if group < 0:
            return 0.0
        return None if self._hours_by_group is None else self._hours_by_group[group]

    @functools.cached_property
    def longest(self) -> dict[int, int]:
        """Number of each base in use -> steps of its longest run."""
        import numpy as np

        bases, steps = self.grid.base[self.kept], self.grid.steps[self.kept]
        found = np.zeros(len(self.grid.bases.all), dtype=np.int64)
        np.maximum.at(found, bases, steps)
        if self.grid.table is not None:
            used = np.zeros(self.grid.table.groups + 1, dtype=bool)
            used[self.grid.group[self.kept]] = True  # the last place stands for no teacher
            self.grid.table.longest(used[:-1], found)
        return {number: int(found[number]) for number in np.flatnonzero(found).tolist()}

    @functools.cached_property
    def shares(self) -> list[list[float | None]]:
        """The teachers' share of the budget, by budget and way: as asked, or as FLOPs or steps come out.

        None for teachers that were trained elsewhere at a cost that is not stated.
        """
        table = self.grid.table
        if table is None:
            return []
        asked = [way.stages[0].share if len(way.stages) == 1 else None for way in table.ways]
        return [
            [
                None if way.is_external and not spent else spent / budget if share is None else share
                for way, share, spent in zip(table.ways, asked, row, strict=True)
            ]
            for budget, row in zip(self.study.budgets, table.spent.tolist(), strict=True)
        ]


def teacher_cost(draft: Draft, group: int) -> Cost | None:
    """Training of a group's teachers, each up to the weights that are used; None where there is none.

    That of teachers from elsewhere is empty.
    """
    table = draft.grid.table
    if group < 0 or table is None:
        return None
    total: Cost | None = None
    for _, base, steps in table.stages_of(group):
        part = base.step * steps + base.cache
        total = part if total is None else total + part
    return total
