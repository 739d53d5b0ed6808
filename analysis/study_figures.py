"""The figures of a study by name, each of what its table holds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from analysis.figure_allocation import allocation_panels, draw_allocation
from analysis.figure_attainment import draw_attainment
from analysis.figure_compare import draw_compare
from analysis.figure_fit import draw_fit, fit_tables
from analysis.figure_isoflop import draw_isoflop
from analysis.figure_loss_accuracy import draw_loss_accuracy
from analysis.figure_pareto import draw_pareto
from analysis.figure_pareto_data import panels, pareto_data
from analysis.figure_regime import draw_regime
from analysis.figure_weak_teacher import draw_scatters, weak_teacher_data, weak_teacher_panels
from salt.errors import UserError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from analysis.study import Study


def _pareto(study: Study) -> Figure:
    data = pareto_data(study.table, configs=study.configurations)
    return draw_pareto(data, panels(data))


def _attainment(study: Study) -> Figure:
    found = study.pareto()
    if not found.curves:
        raise UserError("no arm has a frontier here: no finite scores")
    curves, rows = found.curves[0], found.parts["attainment"]
    rows = rows[(rows["label"] == curves.label) & (rows["kind"] == curves.kind)]
    return draw_attainment(curves, rows, "pretraining FLOPs, teacher included", _about(study))


def _about(study: Study) -> str:
    first = study.table.iloc[0]
    return (
        f"Study {study.name}. FLOPs: {first['convention']} convention, teacher training charged "
        f"{first['charge']}."
    )


def _weak_teacher(study: Study) -> Figure:
    data = weak_teacher_data(study.table)
    return draw_scatters(data, weak_teacher_panels(data))


def _regime(study: Study) -> Figure:
    found = study.weak_teacher()
    if found.weakest.empty:
        raise UserError("no two teachers have students of equal compute here, so there is nothing to compare")
    first = found.weakest.iloc[0]
    return draw_regime(found, first["label"], first["kind"])


def _allocation(study: Study) -> Figure:
    found, first = study.allocation(), study.table.iloc[0]
    places = allocation_panels(found)
    if not places:
        raise UserError("no finished run here has a teacher with a share of the budget: there is no split")
    about = {name: str(first[name]) for name in ("plan", "charge", "convention")}
    return draw_allocation(found, about, *places[0])


def _fit(study: Study) -> Figure:
    results = study.fit()
    return draw_fit(results, fit_tables(results), study.table)


def _isoflop(study: Study) -> Figure:
    return draw_isoflop(study.isoflop()[0], study.table)


def _loss_accuracy(study: Study) -> Figure:
    found = study.loss_accuracy()
    return draw_loss_accuracy(found.points, found.predictions, study.table, False)


def _compare(study: Study) -> Figure:
    rows = study.compare()
    if rows.empty:
        raise UserError("no two arms have a label, probe and budget in common here")
    first = rows.iloc[0]
    here = (rows["label"] == first["label"]) & (rows["kind"] == first["kind"])
    return draw_compare(rows[here], study.table, 0.95)


FIGURES: dict[str, Callable[[Study], Figure]] = {
    "pareto": _pareto,
    "attainment": _attainment,
    "weak-teacher": _weak_teacher,
    "regime": _regime,
    "allocation": _allocation,
    "fit": _fit,
    "isoflop": _isoflop,
    "loss-accuracy": _loss_accuracy,
    "compare": _compare,
}
