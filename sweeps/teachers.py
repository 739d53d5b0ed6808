"""Teachers of the arms that have some: how each is made, and what it costs at every budget.

A way is a chain of stages, nearly always one: a pixel run. In longer chains each further stage is a student
of the one before. What a stage may cost is a share of the budget, FLOPs, or steps. Weights that were trained
elsewhere can be the first stage: they have no length and cost nothing.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from salt.specs import CellArm
from sweeps.bases import Base, Bases, whole_steps
from sweeps.config import ExternalArmConfig, SaltConfig, StageConfig
from sweeps.study import Study, steps_number

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One teacher. Exactly one of share, flops, steps says how long it trains; `external` ones have none.

    `run_steps` is the length of the run that the weights are taken from, where it goes on after them.
    """

    size: str
    share: float | None = None
    flops: int | None = None
    steps: int | None = None
    run_steps: int | None = None
    external: bool = False

    def __str__(self) -> str:
        from sweeps.cell_names import short_flops

        if self.external:
            return "external"
        if self.share is not None:
            return f"share{self.share!r}"
        if self.flops is not None:
            return short_flops(self.flops)
        cut = "" if self.run_steps is None else f"of{short_steps(self.run_steps)}"
        return f"{short_steps(self.steps or 0)}{cut}"

    @property
    def text(self) -> str:
        """The same for people."""
        if self.external:
            return "trained elsewhere"
        if self.share is not None:
            return f"share {self.share:g}"
        if self.flops is not None:
            return f"{self.flops:.4g} FLOPs"
        cut = "" if self.run_steps is None else f" of {self.run_steps}, not annealed"
        return f"{self.steps} steps{cut}"


def short_steps(steps: int) -> str:
    return f"{steps // 1000}ksteps" if steps % 1000 == 0 else f"{steps}steps"


@dataclass(frozen=True, kw_only=True)
class TeacherWay:
    """How a teacher comes about: its stages, first one first, and the swept fields of the pixel stage."""

    stages: tuple[Stage, ...]
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> str:
        return self.stages[-1].size

    @property
    def is_external(self) -> bool:
        """Whether nothing of it is trained here."""
        return all(stage.external for stage in self.stages)

    @property
    def name(self) -> str:
        """Unique within a study; plain ASCII."""
        parts = [text for stage in self.stages for text in (stage.size, str(stage))]
        return "-".join([*parts, *(f"teacher.{key}={value}" for key, value in self.changes.items())])

    @property
    def text(self) -> str:
        stages = ", then ".join(f"{stage.size} ({stage.text})" for stage in self.stages)
        return stages + "".join(f", teacher {key}={value}" for key, value in self.changes.items())


def teacher_ways(study: Study, arm: CellArm) -> tuple[TeacherWay, ...]:
    """All teachers of an arm, in the order of the study file: sizes, then what each may cost."""
    config = study.arm(arm)
    if isinstance(config, ExternalArmConfig):
        return tuple(TeacherWay(stages=(Stage(size=name, external=True),)) for name in config.teachers)
    if not isinstance(config, SaltConfig):
        return ()
    chains: list[tuple[Stage, ...]] = [
        (stage,)
        for size in config.teachers
        for stage in ([Stage(size=size, external=True)] if size in study.external else _lengths(size, config))
    ]
    chains += [tuple(_stage(stage, stage.teacher in study.external) for stage in c) for c in config.chains]
    values = itertools.product(*config.teacher_sweep.values())
    swept = [dict(zip(config.teacher_sweep, combination, strict=True)) for combination in values]
    return tuple(
        TeacherWay(stages=chain, changes=changes)
        for chain in chains
        for changes in ([{}] if chain[0].external else swept)  # nothing of imported weights can be varied
    )


def _lengths(size: str, config: SaltConfig) -> list[Stage]:
    steps = [steps_number(value) for value in config.teacher_steps]
    longest = max(steps, default=0)
    cut = config.teacher_runs == "one"
    return [
        *(Stage(size=size, share=share) for share in config.teacher_share),
        *(Stage(size=size, flops=int(flops)) for flops in config.teacher_flops),
        *(Stage(size=size, steps=n, run_steps=longest if cut and n < longest else None) for n in steps),
    ]


def _stage(config: StageConfig, external: bool) -> Stage:
    return Stage(
        size=config.teacher,
        external=external,
        share=config.share,
        flops=None if config.flops is None else int(config.flops),
        steps=None if config.steps is None else steps_number(config.steps),
    )


class TeacherTable:
    """Steps and costs of every teacher at every budget: arrays [budgets, teachers].

    `group` numbers the distinct trained teachers: the same sizes, steps and swept fields are one, at whatever
    budget. `stage_steps` has the steps of each stage, int64 [stages, budgets, teachers], 0 where a chain is
    shorter. `spent` is in the unit of the study.
    """

    students: NDArray[np.int64]

    def __init__(self, study: Study, bases: Bases, ways: tuple[TeacherWay, ...]) -> None:
        import numpy as np

        self.study, self.ways = study, ways
        self.bases = [_stage_bases(bases, way) for way in ways]
        self.depth = max(len(way.stages) for way in ways)
        shape = (len(study.budgets), len(ways))
        self.stage_steps = np.zeros((self.depth, *shape), dtype=np.int64)
        self.spent = np.zeros(shape)
        self.verdict = np.zeros(shape, dtype=np.int64)
        budgets = np.array(study.budgets)
        for column, way in enumerate(ways):
            self._solve(column, way, budgets, bases.epoch_clips)
        self._number(shape)

    def _solve(self, column: int, way: TeacherWay, budgets: NDArray[np.float64], clips: float) -> None:
        import numpy as np

        from sweeps.grid import CANNOT_BE_BUILT, DOES_NOT_FIT, REPEATS, TOO_SMALL

        file = self.study.file
        for level, (stage, base) in enumerate(zip(way.stages, self.bases[column], strict=True)):
            if base.problems:
                self.verdict[:, column] |= CANNOT_BE_BUILT
            if base.fit is not None and base.fit.problem is not None:
                self.verdict[:, column] |= DOES_NOT_FIT
            if stage.external:
                self.spent[:, column] += base.unit_cache  # what the study states that it has cost
                continue
            if stage.steps is not None:
                wanted = np.full(len(budgets), float(stage.steps))
            elif stage.flops is not None:
                left = max(0, stage.flops - base.cache_flops)
                wanted = np.full(len(budgets), left / max(1, base.step_flops))
            else:
                assert stage.share is not None
                wanted = (stage.share * budgets - base.unit_cache) / base.unit_price
            steps = whole_steps(wanted, not base.problems, f"{self.study.path}: arms: teacher {stage.size}")
            self.stage_steps[level, :, column] = steps
            self.spent[:, column] += steps * base.unit_price + base.unit_cache
            few = (steps < self.study.least_steps) & (not base.problems)
            self.verdict[:, column] |= few * TOO_SMALL
            if file.maximum_epochs is not None:
                over = steps * base.batch > file.maximum_epochs * clips
                self.verdict[:, column] |= over * REPEATS

    def _number(self, shape: tuple[int, int]) -> None:
        """Number the distinct teachers in the order in which they first appear."""
        import numpy as np

        numbers: dict[tuple[Any, ...], int] = {}
        self.members: list[tuple[int, int]] = []  # a (budget, way) of each group
        self.group = np.zeros(shape, dtype=np.int64)
        steps = self.stage_steps.transpose(1, 2, 0).tolist()
        kinds = [
            (tuple((base.number, s.run_steps) for base, s in zip(bases, way.stages, strict=True)))
            for bases, way in zip(self.bases, self.ways, strict=True)
        ]
        for budget in range(shape[0]):
            for column in range(shape[1]):
                key = (kinds[column], *steps[budget][column])
                number = numbers.setdefault(key, len(numbers))
                if number == len(self.members):
                    self.members.append((budget, column))
                self.group[budget, column] = number
        self.groups = len(numbers)
        self.students = np.zeros(self.groups, dtype=np.int64)

    def by_group(self, per_step: dict[int, float], once: dict[int, float]) -> NDArray[np.float64]:
        """Sum over the stages of steps x a value of its base, and another value once, float64 [groups]."""
        import numpy as np

        total = np.zeros(self.spent.shape)
        for column, bases in enumerate(self.bases):
            for level, base in enumerate(bases):
                total[:, column] += self.stage_steps[level, :, column] * per_step[base.number]
                total[:, column] += once[base.number]
        budgets, ways = np.array(self.members).T
        by_member: NDArray[np.float64] = total[budgets, ways]
        return by_member

    def longest(self, used: NDArray[np.bool_], found: NDArray[np.int64]) -> None:
        """Raise `found`, the longest steps by base, to those of the stages of the used groups."""
        for column, bases in enumerate(self.bases):
            here = used[self.group[:, column]]
            if here.any():
                for level, base in enumerate(bases):
                    steps = int(self.stage_steps[level, here, column].max())
                    found[base.number] = max(found[base.number], steps)

    def stages_of(self, group: int) -> list[tuple[Stage, Base, int]]:
        """(stage, base, steps) of a group's chain, first one first."""
        budget, column = self.members[group]
        way = self.ways[column]
        return [
            (stage, self.bases[column][level], int(self.stage_steps[level, budget, column]))
            for level, stage in enumerate(way.stages)
        ]


def _stage_bases(bases: Bases, way: TeacherWay) -> list[Base]:
    first = way.stages[0]
    found = [
        bases.external(first.size) if first.external else bases.get("pixel", first.size, None, way.changes)
    ]
    for number, (before, stage) in enumerate(itertools.pairwise(way.stages), start=1):
        found.append(bases.get("salt", stage.size, before.size, stage=number))
    return found
