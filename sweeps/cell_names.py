"""What a point of the grid is called: unique, plain ASCII names for files, and sentences for people."""

from __future__ import annotations

from sweeps.grid import Grid


def short_flops(flops: int) -> str:
    """Exact and short: 800G, 1200G, 60M, or all digits."""
    for unit, size in (("E", 10**18), ("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if flops % size == 0:
            return f"{flops // size}{unit}"
    return str(flops)


def budget_name(grid: Grid, budget: int) -> str:
    """A budget in its unit, for names: 1000E, 240ksteps, 24gpuh."""
    from sweeps.teachers import short_steps

    value = grid.study.budgets[budget]
    if grid.study.match == "flops":
        return short_flops(int(value))
    return short_steps(int(value)) if grid.study.match == "steps" else f"{value:g}gpuh"


class CellNames:
    """Names of the points of a grid; their parts are made once for each place on an axis."""

    def __init__(self, grid: Grid) -> None:
        self._budgets = [budget_name(grid, place) for place in range(len(grid.study.budgets))]
        self._teachers = [[f"from-{way.name}-" for way in axes.teachers] for axes in grid.axes]
        self._students = [[f"{axes.arm}-{size}-" for size in axes.students] for axes in grid.axes]
        self._changes = [
            ["".join(f"-{key}={value}" for key, value in change.items()) for change in axes.changes]
            for axes in grid.axes
        ]

    def axes(self) -> list[list[str]]:
        """The names along every axis of every arm; equal ones would make equal cells."""
        return [self._budgets, *self._students, *self._teachers, *self._changes]

    def name(self, arm: int, student: int, teacher: int, budget: int, change: int) -> str:
        """The name of a point, without its seed."""
        above = "" if teacher < 0 else self._teachers[arm][teacher]
        return f"{self._students[arm][student]}{above}{self._budgets[budget]}{self._changes[arm][change]}"


def point_text(grid: Grid, point: int) -> str:
    """A point of the grid as words."""
    axes = grid.axes_of(point)
    text = f"arm {axes.arm}, student {axes.students[int(grid.student[point])]}"
    way = grid.teacher_of(point)
    if way is not None:
        text += f", teacher {way.text}"
    changes = axes.changes[int(grid.change[point])]
    budget = grid.study.budgets[int(grid.budget[point])]
    unit = {"flops": "", "steps": " steps", "gpu-hours": " GPU-hours"}[grid.study.match]
    return f"{text}, budget {budget:.4g}{unit}" + "".join(f", {k}={v}" for k, v in changes.items())
