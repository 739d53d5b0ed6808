"""All analyses of a study, made once, with their figures: what the sections of a report are written from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import pandas as pd

from analysis.allocation import Allocation, allocation
from analysis.compare import arm_differences, budget_differences
from analysis.figure_regime import RegimeData, regime_data
from analysis.findings import Evidence
from analysis.frontier import Frontier, frontier
from analysis.isoflop_results import IsoflopResult, isoflop_results
from analysis.law_results import LawResult, law_results
from analysis.laws import LAWS
from analysis.loss_accuracy import loss_points, predictions
from analysis.pareto import configurations, usable
from analysis.versus import all_arms, comparisons
from analysis.weak_teacher import teacher_student_table
from salt.errors import UserError

#: Laws that a report fits to accuracy, by name.
FITTED = ("compute", "surface", "teacher-compute")
T = TypeVar("T")


@dataclass(frozen=True)
class Analyses:
    """What was made of the table; `refused` says why something could not be made, by its name."""

    table: pd.DataFrame
    evidence: Evidence
    frontier: Frontier
    regime: RegimeData
    allocated: Allocation
    laws: dict[str, list[LawResult]]
    isoflop: list[IsoflopResult]
    losses: pd.DataFrame | None  # points of loss against accuracy
    predictors: pd.DataFrame | None
    versus: pd.DataFrame  # every pair of arms, `analysis.versus.comparisons`
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def about(self) -> dict[str, str]:
        """Plan, charge and FLOP convention."""
        first = self.table.iloc[0]
        return {name: str(first[name]) for name in ("plan", "charge", "convention")}

    def runs_of(self, label: str, kind: str) -> tuple[str, ...]:
        """Runs whose scores under a label and probe enter numbers, and their teachers."""
        rows = self.table[(self.table["label"] == label) & (self.table["kind"] == kind) & usable(self.table)]
        return tuple(dict.fromkeys([*rows["run_id"], *rows["teacher_run_id"].dropna()]))


def collect(table: pd.DataFrame) -> Evidence:
    """The tables that findings are read from."""
    return _evidence(table, configurations(table))


def _evidence(table: pd.DataFrame, configs: pd.DataFrame) -> Evidence:
    return Evidence(
        table=table,
        configs=configs,
        differences=arm_differences(table, configs),
        same_size=arm_differences(table, configs, per_student=True),
        budgets=budget_differences(table, configs),
        teachers=teacher_student_table(table),
    )


def _all_pairs(table: pd.DataFrame, configs: pd.DataFrame) -> pd.DataFrame:
    return comparisons(table, configs, all_arms(configs), 0.95)


def analyse(table: pd.DataFrame, say: Callable[[str], None] = lambda text: None) -> Analyses:
    """Make all analyses of a gathered table. What a table does not hold enough for is left out, with the
    reason in `refused`; `say` hears what is being done.
    """
    refused: dict[str, str] = {}

    def attempt(name: str, make: Callable[[], T], otherwise: T) -> T:
        say(name)
        try:
            return make()
        except UserError as error:
            refused[name] = str(error)
            return otherwise

    say("frontiers")
    found = frontier(table)
    laws: dict[str, list[LawResult]] = {}
    for name in FITTED:
        laws[name] = attempt(f"law {name}", partial(law_results, table, LAWS[name], "accuracy"), [])
    losses = attempt("loss and accuracy", lambda: loss_points(table), None)
    say("students and teachers")
    return Analyses(
        table=table,
        evidence=_evidence(table, found.configs),
        frontier=found,
        regime=regime_data(table),
        allocated=allocation(table),
        laws=laws,
        isoflop=attempt("isoFLOP profiles", lambda: isoflop_results(table, "accuracy"), []),
        losses=losses,
        predictors=None if losses is None else predictions(losses),
        versus=attempt("paired comparisons", partial(_all_pairs, table, found.configs), pd.DataFrame()),
        refused=refused,
    )
