"""Trained runs behind the cells: teachers by seed, and under `schedule: wsd` trunks with their branches.

A trunk is one run with a constant rate per (arm, size, teacher, swept fields) and seed, as long as the
longest path needs; every run that ends is a cooldown that branches off it. Paths that share a trunk train its
steps once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from salt.errors import UserError
from salt.flops import cache_cost, step_cost
from salt.plans import base_of
from salt.specs import Convention, Cost, OptimSpec, Role, RunSpec, TrunkRef, spec_id
from sweeps.bases import Base, optim_at
from sweeps.grid import Grid

#: (run, step): a teacher's or trunk's weights.
Weights = tuple[str, int]


@dataclass(kw_only=True)
class Run:
    """A run that is not a plain student: a teacher, a trunk or a reference."""

    run_id: str
    role: Role
    spec: RunSpec
    step: Cost
    cache: Cost
    gpu_hours: float | None  # of its own steps and cached targets
    level: int  # how many runs have to be done one after the other before it
    budgets: set[int] = field(default_factory=set)  # places of those whose cells need it
    ends: set[int] = field(default_factory=set)  # places of those whose cells end in it

    @property
    def own_steps(self) -> int:
        return self.spec.steps - (self.spec.trunk.step if self.spec.trunk is not None else 0)

    @property
    def own_flops(self) -> int:
        return self.step.total_flops * self.own_steps + self.cache.total_flops


@dataclass(frozen=True, kw_only=True)
class Taught:
    """What a student of one seed learns from: the last teacher's weights, the runs before it."""

    weights: Weights
    stages: tuple[str, ...]
    level: int


class Schedule:
    """Makes the teachers and trunks of a grid, each once."""

    def __init__(self, grid: Grid) -> None:
        self.grid, self.study = grid, grid.study
        self.runs: dict[str, Run] = {}
        self.wsd = self.study.file.schedule == "wsd"
        self._keep = self._kept_states()
        self._branches: dict[tuple[int, Weights | None, int], set[int]] = {}
        self._paths: dict[tuple[int, Weights | None, int], set[int]] = {}
        self._trunks: dict[tuple[int, Weights | None, int], Run] = {}
        self.made: dict[tuple[int, int], Taught] = {}

    def prepare(self, points: list[int], seeds: list[tuple[int, ...]]) -> None:
        """Make all that the points need, `seeds` being those of each point."""
        pairs = [(point, seed) for point, own in zip(points, seeds, strict=True) for seed in own]
        if self.wsd:
            for point, seed in pairs:
                self._plan_pixel_branch(point, seed)
        for point, seed in pairs:
            group = int(self.grid.group[point])
            if group >= 0:
                taught = self.taught(group, seed)
                for run_id in (*taught.stages, taught.weights[0]):
                    self._mark(run_id, int(self.grid.budget[point]))
        if self.wsd:  # all branches of a trunk are known before it is made
            for point, seed in pairs:
                self._branch(self.grid.base_of(point), self._steps(point), self.above(point, seed), seed)
            for point, seed in pairs:
                trunk = self._trunk(self.grid.base_of(point), self.above(point, seed), seed)
                trunk.budgets.add(int(self.grid.budget[point]))

    def _steps(self, point: int) -> int:
        return int(self.grid.steps[point])

    def above(self, point: int, seed: int) -> Weights | None:
        """The teacher's weights of a point's student."""
        group = int(self.grid.group[point])
        return None if group < 0 else self.taught(group, seed).weights

    def taught(self, group: int, seed: int) -> Taught:
        """The teachers of a group for one seed, made when first asked for."""
        assert self.grid.table is not None
        key = (group, seed)
        if key in self.made:
            return self.made[key]
        weights: Weights | None = None
        ids: list[str] = []
        level = 0
        for stage, base, steps in self.grid.table.stages_of(group):
            if stage.external:
                run = self._external(base)
                weights, level = (run.run_id, base.spec.steps), run.level + 1
                ids.append(run.run_id)
                continue
            length = stage.run_steps or steps
            run = self._run(
                "teacher", base, length, weights, seed, level, self._keep.get((base.number, length), ())
            )
            weights, level = (run.run_id, steps), run.level + 1
            ids.append(run.run_id)
        assert weights is not None
        self.made[key] = Taught(weights=weights, stages=tuple(ids[:-1]), level=level)
        return self.made[key]

    def trunk_of(self, base: Base, steps: int, teacher: Weights | None, seed: int) -> Weights | None:
        """Where a run of this length branches off; None under cosine."""
        if not self.wsd:
            return None
        trunk = self._trunk(base, teacher, seed)
        return trunk.run_id, self.branch_step(steps)

    def optim_of(self, base: Base, steps: int, trunk: Weights | None) -> OptimSpec:
        """The recipe of a run of this length: its trunk's where it branches off one."""
        if trunk is not None:
            return msgspec.structs.replace(self.runs[trunk[0]].spec.optim, schedule="cooldown")
        return optim_at(self.study, base, base.arm, steps) or base.spec.optim

    def cosine_flops(self, points: list[int], seeds: list[tuple[int, ...]]) -> int:
        """What the same paths cost as whole runs of their own, teachers counted once."""
        total = 0
        teachers: set[tuple[int, int]] = set()
        for point, own in zip(points, seeds, strict=True):
            base = self.grid.base_of(point)
            total += len(own) * (int(self.grid.steps[point]) * base.step_flops + base.cache_flops)
            teachers |= {(int(self.grid.group[point]), seed) for seed in own if self.grid.group[point] >= 0}
        assert self.grid.table is not None or not teachers
        for group, _ in teachers:
            assert self.grid.table is not None
            for _, base, steps in self.grid.table.stages_of(group):
                total += steps * base.step_flops + base.cache_flops
        return total

    def in_order(self) -> Iterator[Run]:
        """Runs before those that need them; the dearest first among equals, trunks before their branches."""
        rank = {"trunk": 0, "teacher": 1}
        yield from sorted(
            self.runs.values(), key=lambda run: (run.level, rank[run.role], -run.own_flops, run.run_id)
        )

    # --- runs -------------------------------------------------------------------------------------

    def _run(
        self,
        role: Role,
        base: Base,
        steps: int,
        teacher: Weights | None,
        seed: int,
        level: int,
        keep: tuple[int, ...] = (),
    ) -> Run:
        trunk = self.trunk_of(base, steps, teacher, seed)
        if trunk is not None:
            level = max(level, self.runs[trunk[0]].level + 1)
        optim = self.optim_of(base, steps, trunk)
        spec = full_spec(base, steps, teacher, trunk, seed, keep, optim)
        return self._add(role, spec, base, level)

    def _add(self, role: Role, spec: RunSpec, base: Base, level: int) -> Run:
        teacher, trunk = spec.teacher, spec.trunk
        run_id = (
            spec_id(spec)
            if spec.keep_steps
            else base.ids.run_id(
                spec.seed,
                spec.steps,
                None if teacher is None else (teacher.run_id, teacher.step),
                None if trunk is None else (trunk.run_id, trunk.step),
                None if spec.optim == base.spec.optim else spec.optim,
            )
        )
        if run_id not in self.runs:
            own_steps = spec.steps - (0 if trunk is None else trunk.step)
            self.runs[run_id] = Run(
                run_id=run_id,
                role=role,
                spec=spec,
                step=base.step,
                cache=base.cache,
                gpu_hours=base.gpu_hours(own_steps),
                level=level,
            )
        return self.runs[run_id]

    def _external(self, base: Base) -> Run:
        run = external_run(base, "teacher")
        return self.runs.setdefault(run.run_id, run)

    def _mark(self, run_id: str, budget: int) -> None:
        run = self.runs[run_id]
        run.budgets.add(budget)
        if run.spec.trunk is not None:
            self.runs[run.spec.trunk.run_id].budgets.add(budget)

    def _kept_states(self) -> dict[tuple[int, int], tuple[int, ...]]:
        """(base, length of the run) -> the steps at which others take their weights from it."""
        kept: dict[tuple[int, int], set[int]] = {}
        table = self.grid.table
        if table is None or all(stage.run_steps is None for way in table.ways for stage in way.stages):
            return {}
        for group in range(table.groups):
            for stage, base, steps in table.stages_of(group):
                if stage.run_steps is not None:
                    kept.setdefault((base.number, stage.run_steps), set()).add(steps)
        return {key: tuple(sorted(steps)) for key, steps in kept.items()}

    # --- trunks -----------------------------------------------------------------------------------

    def branch_step(self, steps: int) -> int:
        return max(1, steps - max(1, round(self.study.file.cooldown_share * steps)))

    def _plan_pixel_branch(self, point: int, seed: int) -> None:
        """Pixel trunks serve the pixel arm and the teachers, so their lengths are known before any id is."""
        grid, group = self.grid, int(self.grid.group[point])
        if grid.axes_of(point).arm == "pixel":
            self._branch(grid.base_of(point), self._steps(point), None, seed)
        elif group >= 0:
            assert grid.table is not None
            stage, base, steps = grid.table.stages_of(group)[0]
            if not stage.external:
                self._branch(base, steps, None, seed)

    def _branch(self, base: Base, steps: int, teacher: Weights | None, seed: int) -> None:
        key = (base.number, teacher, seed)
        self._branches.setdefault(key, set()).add(self.branch_step(steps))
        self._paths.setdefault(key, set()).add(steps)

    def _trunk(self, base: Base, teacher: Weights | None, seed: int) -> Run:
        from salt.optim import warmup_steps

        key = (base.number, teacher, seed)
        if key not in self._trunks:
            branches = tuple(sorted(self._branches[key]))
            stage = 1 if base.spec.teacher is None else base.spec.teacher.stage
            constant = self.grid.bases.get(
                base.arm, base.size, base.teacher, base.training, stage=stage, phase="constant"
            )
            level = 0 if teacher is None else self.runs[teacher[0]].level + 1
            optim = self._trunk_optim(constant, branches[-1], min(self._paths[key]))
            spec = full_spec(constant, branches[-1], teacher, None, seed, branches, optim)
            warmup = warmup_steps(spec.optim, spec.steps)
            if branches[0] < warmup:
                raise UserError(
                    f"{self.study.path}: schedule: a cooldown of {base.arm} {base.size} would branch "
                    f"off after {branches[0]} steps, inside the trunk's warmup of {warmup}; lower "
                    "optim.warmup_share, or leave out the smallest budgets"
                )
            self._trunks[key] = self._add("trunk", spec, constant, level)
        return self._trunks[key]

    def _trunk_optim(self, base: Base, steps: int, shortest: int) -> OptimSpec:
        """The recipe of a trunk. Its warmup is a share of the shortest path that branches off, not of itself:
        else a trunk for the largest budget would still be warming up where the smallest one ends.
        """
        if base.recipe_on_steps:
            return optim_at(self.study, base, base.arm, steps) or base.spec.optim
        share = base.spec.optim.warmup_share * shortest / steps
        return msgspec.structs.replace(base.spec.optim, warmup_share=min(1.0, share))


def full_spec(
    base: Base,
    steps: int,
    teacher: Weights | None,
    trunk: Weights | None,
    seed: int,
    keep: tuple[int, ...],
    optim: OptimSpec,
) -> RunSpec:
    """The spec of one run of a base."""
    reference = base.spec.teacher
    if teacher is not None:
        assert reference is not None
        reference = msgspec.structs.replace(reference, run_id=teacher[0], step=teacher[1])
    return msgspec.structs.replace(
        base.spec,
        seed=seed,
        steps=steps,
        teacher=reference,
        trunk=None if trunk is None else TrunkRef(run_id=trunk[0], step=trunk[1]),
        keep_steps=keep,
        optim=optim,
    )


def reference_run(spec: RunSpec, convention: Convention, gpu_hours: float | None) -> Run:
    """A run beside the budgets."""
    return Run(
        run_id=spec_id(spec),
        role="reference",
        spec=spec,
        step=step_cost(base_of(spec), convention),
        cache=cache_cost(base_of(spec), convention),
        gpu_hours=gpu_hours,
        level=0,
    )


def external_run(base: Base, role: Role) -> Run:
    """The run of imported weights: whoever needs it, it is the one that was imported, and spends nothing."""
    return Run(
        run_id=spec_id(base.spec),
        role=role,
        spec=base.spec,
        step=base.step,
        cache=base.cache,
        gpu_hours=base.gpu_seconds,
        level=0,
    )
