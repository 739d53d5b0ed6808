"""How teachers, students, budgets and arms look in the weak-teacher figure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.lines import Line2D

from analysis.pareto import arm_order
from analysis.plain import flops_text
from analysis.plots import looks_of, printable

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
#: At most this many budgets stand in the legend.
MAXIMUM_BUDGETS = 6


@dataclass(frozen=True)
class Key:
    """How teachers, budgets and students look, the same in all panels."""

    teachers: list[str]
    students: list[str]
    budgets: list[float]
    arms: list[str]  # of a single arm nothing needs telling apart

    @classmethod
    def of(cls, cells: pd.DataFrame, sizes: dict[str, float]) -> Key:
        """The key to a teacher x student table; `sizes` are parameters by name."""

        def by_size(names: pd.Series) -> list[str]:
            return sorted(
                {str(name) for name in names.dropna()}, key=lambda name: (sizes.get(name, 0.0), name)
            )

        budgets = sorted({float(value) for value in cells["budget_flops"].dropna()})
        arms = arm_order(cells["arm"])
        return cls(by_size(cells["teacher"]), by_size(cells["student"]), budgets, arms)

    def marker(self, teacher: str) -> str:
        return _MARKERS[self.teachers.index(teacher) % len(_MARKERS)]

    def edge(self, arm: str) -> tuple[str, float]:
        """Colour and width of a point's edge: its arm's, where there are several."""
        return (looks_of(self.arms)[arm].colour, 0.9) if len(self.arms) > 1 else ("white", 0.4)

    def area(self, student: str) -> float:
        return 12.0 + 22.0 * self.students.index(student) / max(1, len(self.students) - 1)

    def colour(self, budget: float) -> Any:
        # From light to dark: the order of budgets reads in grey too.
        place = self.budgets.index(budget) / max(1, len(self.budgets) - 1)
        return matplotlib.colormaps["viridis_r"](0.12 + 0.8 * place)

    def shown_budgets(self) -> list[float]:
        """All budgets, or of many the ends and some between: the colours run from light to dark."""
        count = len(self.budgets)
        if count <= MAXIMUM_BUDGETS:
            return self.budgets
        places = [round(i * (count - 1) / (MAXIMUM_BUDGETS - 1)) for i in range(MAXIMUM_BUDGETS)]
        return [self.budgets[place] for place in places]

    def legend(self) -> tuple[list[Line2D], list[str]]:
        handles = [Line2D([], [], ls="", marker=self.marker(t), color="#444444", ms=5) for t in self.teachers]
        names = [f"teacher {printable(t)}" for t in self.teachers]
        for student in self.students:
            handles.append(
                Line2D([], [], ls="", marker="o", mfc="none", color="#444444", ms=self.area(student) ** 0.5)
            )
            names.append(f"student {printable(student)}")
        for budget in self.shown_budgets():
            handles.append(Line2D([], [], ls="", marker="o", color=self.colour(budget), ms=5))
            names.append(f"{flops_text(budget)} FLOPs")
        for arm in self.arms if len(self.arms) > 1 else ():
            colour, width = self.edge(arm)
            handles.append(
                Line2D([], [], ls="", marker="o", mfc="#DDDDDD", mec=colour, mew=width + 0.3, ms=5)
            )
            names.append(f"arm {printable(arm)}")
        return handles, names
