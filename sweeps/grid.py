"""The grid of a study: every way of spending a budget, priced, with whole steps, as columns.

The rule of equal cost: what a cell is charged of its teachers' training, the student's own training and its
teacher's inference together equal the budget within `TOLERANCE`. Arms without a trained teacher spend the
whole budget on the student. The unit is FLOPs, steps or GPU-hours, by the study's `match`. Everything is
arrays over the points of the grid; texts are made for the points that someone asks for.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from salt.specs import CELL_ARMS, CellArm
from sweeps.bases import Base, Bases, whole_steps
from sweeps.study import Study
from sweeps.teachers import TeacherTable, TeacherWay, teacher_ways

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]
    Bools = NDArray[np.bool_]

#: Largest |charged - budget| / budget of a cell.
TOLERANCE = 0.01

#: Verdicts of a point, as bits; a point may have several.
CANNOT_BE_BUILT, TOO_SMALL, TEACHER_EXCEEDS, MISSES, REPEATS, DOES_NOT_FIT = 1, 2, 4, 8, 16, 32
#: Rounds of counting who shares a teacher in which a point may come back; after that it stays out.
FREE_ROUNDS = 8
VERDICTS = {
    CANNOT_BE_BUILT: "cannot be built",
    TOO_SMALL: "too small",
    TEACHER_EXCEEDS: "teacher exceeds budget",
    MISSES: "misses budget",
    REPEATS: "repeats data",
    DOES_NOT_FIT: "does not fit",
}


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The names along the axes of one arm.

    Arms with teachers have those of all arms on this axis, so that a place means the same in each; `own` are
    the places of this arm's.
    """

    arm: CellArm
    students: tuple[str, ...]
    teachers: tuple[TeacherWay, ...]  # empty but for arms that have some
    own: tuple[int, ...]
    changes: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All points, in the order of the study file: budgets, arms, students, teachers, swept fields.

    Columns have one entry a point. `arm`, `budget`, `student`, `teacher`, `change` are places on the axes
    (teacher -1: none), `group` numbers the trained teacher (-1: none), `base` the base of the run that ends
    the cell.
    """

    study: Study
    bases: Bases
    axes: tuple[Axes, ...]
    table: TeacherTable | None
    arm: Ints
    budget: Ints
    student: Ints
    teacher: Ints
    change: Ints
    base: Ints
    group: Ints
    steps: Ints
    charged: Floats  # in the unit of the study
    residual: Floats
    verdict: Ints
    students_per_group: Ints  # by group

    def __len__(self) -> int:
        return len(self.steps)

    def axes_of(self, point: int) -> Axes:
        return self.axes[int(self.arm[point])]

    def base_of(self, point: int) -> Base:
        return self.bases.all[int(self.base[point])]

    def teacher_of(self, point: int) -> TeacherWay | None:
        place = int(self.teacher[point])
        return None if place < 0 else self.axes_of(point).teachers[place]


def solve_grid(study: Study, bases: Bases) -> Grid:
    """Whole steps and a verdict for every point of the grid."""
    import numpy as np

    all_axes = _axes(study)
    ways = next((axes.teachers for axes in all_axes if axes.teachers), ())
    table = TeacherTable(study, bases, ways) if ways else None
    blocks = [
        _Block(study, bases, place, axes, table if axes.own else None) for place, axes in enumerate(all_axes)
    ]
    for block in blocks:
        block.prepare()
        if block.table is None:
            block.pay(None)
    if table is not None:
        _pay_with_teachers(table, [block for block in blocks if block.table is not None])
    columns = {
        name: np.concatenate([getattr(block, name).ravel() for block in blocks])
        for name in ("arm", "budget", "student", "teacher", "change", "base", "group", "steps", "charged")
    } | {
        name: np.concatenate([getattr(block, name).ravel() for block in blocks])
        for name in ("residual", "verdict")
    }
    order = np.argsort(columns["budget"], kind="stable")  # arms within budgets, as in the file
    return Grid(
        study=study,
        bases=bases,
        axes=tuple(block.axes for block in blocks),
        table=table,
        students_per_group=table.students if table is not None else np.zeros(0, dtype=np.int64),
        **{name: column[order] for name, column in columns.items()},
    )


def _axes(study: Study) -> list[Axes]:
    ways, places = _ways(study)
    found = []
    for arm in CELL_ARMS:
        config = study.arm(arm)
        if config is None:
            continue
        values = itertools.product(*config.sweep.values())
        found.append(
            Axes(
                arm=arm,
                students=config.students or study.file.students,
                teachers=ways if places[arm] else (),
                own=places[arm],
                changes=tuple(dict(zip(config.sweep, combination, strict=True)) for combination in values),
            )
        )
    return found


def _ways(study: Study) -> tuple[tuple[TeacherWay, ...], dict[CellArm, tuple[int, ...]]]:
    """The teachers of all arms, those that arms share once, and the places of each arm's among them."""
    ways: list[TeacherWay] = []
    places: dict[CellArm, tuple[int, ...]] = {}
    for arm in CELL_ARMS:
        known = {way.name: place for place, way in enumerate(ways)}
        mine = []
        for way in teacher_ways(study, arm):
            place = known.get(way.name)
            if place is None:  # one that an arm names twice is there twice, and refused
                place = len(ways)
                ways.append(way)
            mine.append(place)
        places[arm] = tuple(mine)
    return tuple(ways), places


def _pay_with_teachers(table: TeacherTable, blocks: list[_Block]) -> None:
    """Pay the points of arms with teachers; under `charge: shared` until the sharers' number stands still."""
    import numpy as np

    def count(groups: list[Ints]) -> Ints:
        return sum(
            (np.bincount(group, minlength=table.groups) for group in groups),
            start=np.zeros(table.groups, dtype=np.int64),
        )

    charge = table.study.file.charge
    sharers = count([block.group.ravel() for block in blocks])
    for number in itertools.count(1):
        for block in blocks:
            block.pay(sharers)
        counted = count([block.group[block.verdict == 0] for block in blocks])
        # Fewer sharers pay more each, so more points are too small, and fewer repeat the data.
        if charge != "shared" or (counted == sharers).all():
            break
        sharers = counted
        if number >= FREE_ROUNDS:  # from here on the count only falls, so this ends
            for block in blocks:
                block.out = block.verdict > 0
    table.students = counted


class _Block:
    """The points of one arm, as arrays [budgets, students, teachers, changes]."""

    steps: Ints
    charged: Floats
    residual: Floats
    verdict: Ints
    teacher: Ints

    def __init__(
        self, study: Study, bases: Bases, place: int, axes: Axes, table: TeacherTable | None
    ) -> None:
        import numpy as np

        self.study, self.bases, self.axes, self.table = study, bases, axes, table
        counts = (len(axes.students), max(1, len(axes.own)), len(axes.changes))
        self.shape = (len(study.budgets), *counts)
        self.own = self._own_bases(counts)
        names = ("budget", "student", "teacher", "change")
        for name, index in zip(names, np.indices(self.shape, dtype=np.int64), strict=True):
            setattr(self, name, index)
        self.arm = np.full(self.shape, place, dtype=np.int64)
        self.out = np.zeros(self.shape, dtype=bool)  # points that stay as they are
        self.columns = np.array(axes.own, dtype=np.int64)
        self.teacher = (
            np.full(self.shape, -1, dtype=np.int64) if table is None else self.columns[self.teacher]
        )

    def _own_bases(self, counts: tuple[int, ...]) -> Ints:
        """Number of the base of every (student, teacher, change), int64 [S, T, C]."""
        import numpy as np

        axes = self.axes
        ways = [axes.teachers[place] for place in axes.own]
        targets: list[tuple[str | None, int]] = [(way.size, len(way.stages)) for way in ways]
        targets = targets or [(None, 1)]
        by_target: dict[tuple[str | None, int], Ints] = {}
        for target in dict.fromkeys(targets):
            numbers = [
                self.bases.get(axes.arm, student, target[0], change, stage=target[1]).number
                for student in axes.students
                for change in axes.changes
            ]
            by_target[target] = np.array(numbers).reshape(counts[0], counts[2])
        return np.stack([by_target[target] for target in targets], axis=1)

    def prepare(self) -> None:
        """Prices and verdicts that no charge changes, and the groups of the teachers."""
        import numpy as np

        own = [self.bases.all[number] for number in np.unique(self.own)]
        lookup = np.zeros((4, len(self.bases.all)))
        for base in own:
            problems = bool(base.problems)
            misfit = base.fit is not None and base.fit.problem is not None
            lookup[:, base.number] = (base.unit_price, base.unit_cache, base.batch, problems + 2 * misfit)
        self.price, self.cache, self.batch, flags = lookup[:, self.own]
        fixed = (flags.astype(np.int64) & 1) * CANNOT_BE_BUILT + (flags >= 2) * DOES_NOT_FIT
        self.base = np.broadcast_to(self.own, self.shape)
        self._fixed_verdict = np.broadcast_to(fixed.astype(np.int64), self.shape)
        self.group = np.full(self.shape, -1, dtype=np.int64)
        if self.table is not None:
            self.group = np.broadcast_to(self.table.group[:, None, self.columns, None], self.shape)

    def pay(self, sharers: Ints | None) -> None:
        """Steps, charges and verdicts; `sharers` counts the points of each teacher (None: no teachers)."""
        import numpy as np

        if self.table is None or sharers is None:
            self._pay(np.zeros((1, 1, 1, 1)), np.zeros_like(self.cache))
            return
        part, cached = _shares(self.study.file.charge, sharers[self.group])
        self._pay(self.table.spent[:, None, self.columns, None] * part, self.cache * cached)

    def _pay(self, above: Floats, cache: Floats) -> None:
        """Spend what is left of the budgets. Points that are `out` keep their numbers and verdicts."""
        import numpy as np

        price, out = self.price, self.out
        budgets = np.array(self.study.budgets)[:, None, None, None]
        before = (self.steps, self.charged, self.residual, self.verdict) if out.any() else None
        file = self.study.file
        fixed = self._fixed_verdict.copy()
        if self.table is not None:
            fixed |= self.table.verdict[:, None, self.columns, None]
        unbuilt = (fixed & CANNOT_BE_BUILT) > 0
        left = budgets - above - cache
        self.steps = whole_steps(left / price, ~unbuilt, f"{self.study.path}: budgets of arm {self.axes.arm}")
        self.charged = above + cache + self.steps * price
        self.residual = (self.charged - budgets) / budgets
        exceeds = np.broadcast_to((above + cache > 0) & (left < price), self.shape)
        few = self.steps < self.study.least_steps
        verdict = fixed | exceeds * TEACHER_EXCEEDS | (~exceeds & few) * TOO_SMALL
        verdict |= (~exceeds & ~few & (np.abs(self.residual) > TOLERANCE)) * MISSES
        if file.maximum_epochs is not None:
            verdict |= (self.steps * self.batch > file.maximum_epochs * self.bases.epoch_clips) * REPEATS
        # What cannot be built has no price, so nothing else is known of it.
        self.verdict = np.where(unbuilt, CANNOT_BE_BUILT, verdict)
        if before is not None:
            now = (self.steps, self.charged, self.residual, self.verdict)
            kept = [np.where(out, old, new) for old, new in zip(before, now, strict=True)]
            self.steps, self.charged, self.residual, self.verdict = kept


def _shares(charge: str, sharers: Ints) -> tuple[Any, Any]:
    """The parts of the teachers' training and of the cached targets that a point is charged."""
    import numpy as np

    if charge == "full":
        return 1.0, 1.0
    if charge == "none":
        return 0.0, 1.0
    part = 1.0 / np.maximum(1, sharers)
    return part, part
