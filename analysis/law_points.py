"""From the tidy table to the points that a law is fitted to, one set per arm and score (or loss)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.gather import SCORE_KEY
from analysis.laws import Law, Metric, Points, points
from analysis.pareto import arm_order, arm_rows, compared_flops, configurations, selected, usable
from salt.errors import UserError

#: Table columns behind the columns of laws.
SOURCES = {"compute": "total_flops", "size": "parameters", "data": "clips_seen"}


@dataclass(frozen=True, kw_only=True)
class PointSet:
    """Points of one arm and one score. `lost` rows were asked for and have no finite number; `what` says
    which rows these are.
    """

    arm: str
    label: str
    kind: str
    data: Points
    lost: int
    what: str

    @property
    def name(self) -> str:
        return f"{self.arm}, {self.label}" + (f", {self.kind}" if self.kind else "")


def point_sets(
    table: pd.DataFrame, law: Law, metric: Metric, *, every: bool = False, across: bool = False
) -> list[PointSet]:
    """All sets of points that a table holds for a law, arms in their usual order.

    A law in compute alone takes each arm's choice on the selection clips per budget (all seeds), unless
    `every` or the table has no selection scores; the others take every run. Losses of students are on one
    scale only within one teacher, so there each teacher size is a set of its own, unless `across`.

    Raises `UserError` if no row has what the law needs.
    """
    rows = arm_rows(table)
    if metric == "loss":
        rows = rows.drop_duplicates(["cell_id"])
        found = _loss_sets(rows, law, across)
    else:
        found = _accuracy_sets(table, rows, law, every)
    if not found:
        raise UserError(
            f"no run of this table has a finite {metric} and {', '.join(law.columns)}: "
            + (
                "results of other projects name them with --columns"
                if metric == "accuracy"
                else "take --metric accuracy"
            )
        )
    return found


def _loss_sets(rows: pd.DataFrame, law: Law, across: bool) -> list[PointSet]:
    found = []
    for arm in arm_order(rows["arm"]):
        mine = rows[rows["arm"] == arm]
        groups = [("", mine)]
        if mine["teacher"].notna().any() and not across:
            groups = [(f" of teacher {name}", part) for name, part in mine.groupby("teacher", sort=True)]
        for name, part in groups:
            found += _set(part, law, "loss", arm, f"training loss{name}", "", "all runs")
    return found


def _accuracy_sets(table: pd.DataFrame, rows: pd.DataFrame, law: Law, every: bool) -> list[PointSet]:
    rows = rows.dropna(subset=["kind"])
    rows = rows[rows["frames"] == "ordered"]
    what = "all runs"
    if (
        law.powers == ("compute",)
        and not law.covariates
        and not every
        and rows["selection_accuracy"].notna().any()
    ):
        chosen = selected(configurations(table))
        keys = [*SCORE_KEY, "config_id", "budget_flops"]
        rows = rows.merge(chosen[keys], on=keys, how="inner", validate="many_to_one")
        what = "the arm's choice on the selection clips at each budget"
    found = []
    for (label, kind), group in rows.groupby(["label", "kind"], sort=False):
        for arm in arm_order(group["arm"]):
            found += _set(group[group["arm"] == arm], law, "accuracy", arm, str(label), str(kind), what)
    return found


def _set(
    rows: pd.DataFrame, law: Law, metric: Metric, arm: str, label: str, kind: str, what: str
) -> list[PointSet]:
    """The set of these rows, or none where no row has all that the law needs."""
    value = rows["accuracy"] if metric == "accuracy" else rows["final_loss"]
    good = np.isfinite(value) & (value > 0)
    good &= (usable(rows) & (value < 1)) if metric == "accuracy" else np.isfinite(rows["total_flops"])
    columns: dict[str, pd.Series] = {}
    for name, source in SOURCES.items():
        column = rows[source].astype("float64")
        if name in law.columns or column[good].gt(0).all():
            columns[name] = column
            good &= np.isfinite(column) & (column > 0)
    if "teacher" in law.covariates:
        share = rows["teacher_accuracy"].astype("float64")
        good &= (share > 0) & (share < 1)
        columns["teacher"] = np.log(share / (1 - share)).where((share > 0) & (share < 1))
    if not good.any():
        return []
    kept = rows[good]
    teachers = kept["teacher_run_id"]
    data = points(
        value[good],
        metric=metric,
        cell=kept["config_id"].astype(str) + " " + kept["budget_flops"].astype(str),
        unit=teachers.where(teachers.notna(), kept["run_id"]).astype(str),
        budget=kept["budget_flops"].where(kept["budget_flops"] > 0, compared_flops(kept)),
        run_ids=tuple(kept["run_id"]),
        **{name: column[good] for name, column in columns.items()},
    )
    return [PointSet(arm=arm, label=label, kind=kind, data=data, lost=int(len(rows) - good.sum()), what=what)]
