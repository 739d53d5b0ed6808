"""Which seeds a point of the grid is run with: the study's own, and more of them where they help."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from salt.errors import UserError
from sweeps.cell_names import CellNames
from sweeps.config import SeedsHere
from sweeps.grid import Grid
from sweeps.teachers import Stage, TeacherWay

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def seed_sets(grid: Grid, points: NDArray[np.int64]) -> tuple[list[tuple[int, ...]], NDArray[np.int64]]:
    """The distinct sets of seeds, and the place of each point's set among them, int64 [points]."""
    import numpy as np

    file = grid.study.file
    # Bit i: the point gets the seeds of extra_seeds[i].
    chosen = np.zeros(len(points), dtype=np.int64)
    for number, extra in enumerate(file.extra_seeds):
        here = _matches(grid, points, extra.where, f"extra_seeds[{number}].where")
        where = f"{grid.study.path}: extra_seeds[{number}].where"
        if not here.any():
            raise UserError(f"{where}: no cell of the plan is meant by it; widen it")
        if not _means_a_teacher(grid, extra.where):
            raise UserError(
                f"{where}: no cell with such a teacher is meant by it, only its baselines; name teachers and "
                "shares of arms.salt"
            )
        chosen |= here.astype(np.int64) << number
    bits, places = np.unique(chosen, return_inverse=True)
    sets = []
    for value in bits.tolist():
        extra_seeds = [s for n, extra in enumerate(file.extra_seeds) if value >> n & 1 for s in extra.seeds]
        sets.append(tuple(dict.fromkeys([*file.seeds, *extra_seeds])))
    return sets, places.astype(np.int64)


def _means_a_teacher(grid: Grid, where: SeedsHere) -> bool:
    """Whether restrictions on the teacher fit one of the study, left out of the plan or not."""
    ways = [way for axes in grid.axes for way in axes.teachers]
    return (where.teachers is None and where.teacher_share is None) or any(
        (where.teachers is None or way.size in where.teachers)
        and (where.teacher_share is None or way.stages[-1].share in where.teacher_share)
        for way in ways
    )


def _matches(grid: Grid, points: NDArray[np.int64], where: SeedsHere, place: str) -> NDArray[np.bool_]:
    import numpy as np

    here = np.ones(len(points), dtype=bool)
    if where.arms is not None:
        wanted = [i for i, axes in enumerate(grid.axes) if axes.arm in where.arms]
        here &= np.isin(grid.arm[points], wanted)
    if where.budgets is not None:
        wanted = [i for i, budget in enumerate(grid.study.budgets) if budget in where.budgets]
        here &= np.isin(grid.budget[points], wanted)
    if where.students is not None:
        here &= _on_axis(
            grid, points, [[s in where.students for s in a.students] for a in grid.axes], "student"
        )
    # Restrictions on the teacher leave arms without one alone: they are the comparison.
    if where.teachers is not None:
        here &= _on_axis(
            grid, points, [[w.size in where.teachers for w in a.teachers] for a in grid.axes], "teacher"
        )
    if where.teacher_share is not None:
        shares = [[w.stages[-1].share in where.teacher_share for w in a.teachers] for a in grid.axes]
        here &= _on_axis(grid, points, shares, "teacher")
    if where.frontier is not None:
        here &= _near_frontier(grid, points, where.frontier, place)
    return here


def _on_axis(grid: Grid, points: NDArray[np.int64], wanted: list[list[bool]], axis: str) -> NDArray[np.bool_]:
    """Whether each point's place on an axis is wanted; points without such an axis are."""
    import numpy as np

    found = np.ones(len(points), dtype=bool)
    arms, places = grid.arm[points], getattr(grid, axis)[points]
    for arm, flags in enumerate(wanted):
        mine = (arms == arm) & (places >= 0)
        if flags:
            found[mine] = np.array(flags)[places[mine]]
    return found


def _near_frontier(grid: Grid, points: NDArray[np.int64], file: str, place: str) -> NDArray[np.bool_]:
    """Points that the file names, and their neighbours: one place away along one axis of the same arm."""
    import numpy as np

    names = _frontier_names(grid.study.folder / file, f"{grid.study.path}: {place}.frontier")
    cell_names = CellNames(grid)
    columns = ("arm", "student", "teacher", "budget", "change")
    axes = {name: getattr(grid, name)[points] for name in columns}
    rows = zip(*(axes[name].tolist() for name in columns), strict=True)
    on = np.array([cell_names.name(*row) in names for row in rows], dtype=bool)
    coordinates = _coordinates(grid, points)  # [points, axes]
    near = on.copy()
    for centre in np.flatnonzero(on):
        distance = np.abs(coordinates - coordinates[centre]).sum(axis=1)
        near |= (distance <= 1) & (axes["arm"] == axes["arm"][centre])
    return near


def _coordinates(grid: Grid, points: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places along budget, student, teacher's size, teacher's length and all else, int64 [points, 6].

    Budgets and lengths count in the order of their values, sizes in that of the study file.
    """
    import numpy as np

    sizes = [list(dict.fromkeys(way.size for way in axes.teachers)) for axes in grid.axes]
    lengths = [sorted({_length(way.stages[-1]) for way in axes.teachers}) for axes in grid.axes]
    others = [list(dict.fromkeys(_all_else(way) for way in axes.teachers)) for axes in grid.axes]
    size, length, other = np.zeros((3, len(points)), dtype=np.int64)
    for arm, axes in enumerate(grid.axes):
        if axes.teachers:
            mine = grid.arm[points] == arm
            ways = grid.teacher[points][mine]
            size[mine] = np.array([sizes[arm].index(way.size) for way in axes.teachers])[ways]
            places = [lengths[arm].index(_length(way.stages[-1])) for way in axes.teachers]
            length[mine] = np.array(places)[ways]
            other[mine] = np.array([others[arm].index(_all_else(way)) for way in axes.teachers])[ways]
    rank = np.argsort(np.argsort(grid.study.budgets))
    columns = [rank[grid.budget[points]], grid.student[points], size, length]
    # Another swept value or other stages before the last are no neighbours.
    return np.stack([*columns, grid.change[points] * 2, other * 2], axis=1)


def _length(stage: Stage) -> tuple[str, float, int]:
    """What a teacher may cost, in an order in which its kind comes first."""
    for kind, value in (("share", stage.share), ("flops", stage.flops), ("steps", stage.steps)):
        if value is not None:
            return kind, float(value), stage.run_steps or 0
    return "external", 0.0, 0


def _all_else(way: TeacherWay) -> str:
    """Of a teacher, all but the size and the length of its last stage."""
    return repr((way.stages[:-1], way.changes))


def _frontier_names(path: Path, place: str) -> set[str]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "cell_id" not in (reader.fieldnames or ()):
                raise UserError(f"{place}: {path} has no column `cell_id`")
            rows = [row["cell_id"] or "" for row in reader]  # a short row has none
    except OSError as error:
        raise UserError(f"{place}: cannot read {path}: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{place}: {path} is no CSV file in UTF-8 ({error}); give one with a column `cell_id`, such as "
            "`salt-analyze pareto` writes"
        ) from error
    return {row.rpartition("-seed")[0] or row for row in rows}
