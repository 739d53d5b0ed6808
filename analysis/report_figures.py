"""The pictures of a report: drawn into a folder, with their data; and how they stand in the page."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from analysis import tables
from analysis.figure_allocation import write_allocation
from analysis.figure_attainment import write_attainments
from analysis.figure_compare import write_compare
from analysis.figure_fit import write_fit
from analysis.figure_isoflop import write_isoflop
from analysis.figure_loss_accuracy import write_loss_accuracy
from analysis.figure_pareto import draw_pareto, write_pareto, write_published
from analysis.figure_pareto_data import panels, pareto_data
from analysis.figure_regime import write_regime
from analysis.figure_weak_teacher import (
    draw_scatters,
    weak_teacher_data,
    weak_teacher_panels,
    write_weak_teacher,
)
from analysis.machine import flops_per_gpu_hour
from analysis.plain import flops_text
from analysis.plots import PROBE_NAMES, Hover, hovers
from analysis.records import write_csv
from analysis.reference import NAME
from analysis.report_analyses import Analyses
from analysis.report_blocks import Picture

#: With more points than this a page has no texts under the pointer: it would be slow. The CSV files hold all.
MAXIMUM_HOVERS = 4000


def write_figures(made: Analyses, folder: Path) -> list[Path]:
    """Draw everything that there is, as PNG and PDF, with its data as CSV; all paths."""
    table = made.table
    paths = write_pareto(table, folder) + write_attainments(made.frontier, made.about["plan"], folder)
    for part, rows in made.frontier.parts.items():
        paths += [write_csv(rows, folder / f"pareto-{part}.csv")] if len(rows) else []
    paths += write_weak_teacher(table, folder) + write_regime(made.regime, folder)
    paths += write_allocation(made.allocated, made.about, folder)
    for results in made.laws.values():
        paths += write_fit(results, table, folder, None) if results else []
    if made.isoflop:
        paths += write_isoflop(made.isoflop, table, folder, flops_per_gpu_hour(table))
    if made.losses is not None and made.predictors is not None:
        paths += write_loss_accuracy(made.losses, made.predictors, table, folder, False)
    if len(made.versus):
        paths += write_compare(made.versus, table, folder, 0.95)
    return paths + (write_published(NAME, folder) if made.about["plan"] != NAME else [])


def frontier_picture(made: Analyses, folder: Path) -> Picture:
    """All frontiers on one page; the pointer shows each run."""
    configs, parts = made.frontier.ordered, []
    for (label, kind, arm), group in configs[configs["on_frontier"]].groupby(
        ["label", "kind", "arm"], sort=False
    ):
        points = ", ".join(
            f"{tables.percent(row.mean)} % at {flops_text(row.compared_flops)}"
            for row in group.sort_values("compared_flops").itertuples()
        )
        parts.append(f"{label}, {PROBE_NAMES.get(str(kind), str(kind))}, {arm}: {points}")
    data = pareto_data(made.table, configs=made.frontier.configs)
    return Picture(
        folder / "pareto.png",
        f"Accuracy against pretraining FLOPs. Frontiers: {'; '.join(parts) or 'none, no finite scores'}.",
        "Accuracy against total pretraining FLOPs, one panel per label and probe.",
        _hovers(lambda: draw_pareto(data, panels(data)), len(data.runs)),
    )


def teacher_picture(made: Analyses, folder: Path) -> Picture:
    """Every student against its own teacher; the pointer shows each pair."""
    data = weak_teacher_data(made.table)
    return Picture(
        folder / "weak-teacher.png",
        "Student accuracy against the accuracy of its teacher, one panel per label and probe; numbers are "
        "in the table below.",
        "Every student run against its own teacher. Above the dashed line the student has passed its "
        "teacher.",
        _hovers(lambda: draw_scatters(data, weak_teacher_panels(data)), len(data.pairs)),
    )


def columns(folder: Path, prefix: str, alt: str, caption: str, column: bool = True) -> list[Picture]:
    """Figures whose file names begin with a prefix, single-column ones or (`column` False) of a page's width.

    The alt text and the caption take the label and probe of the name in the place of `{}`.
    """
    found = []
    for path in sorted(folder.glob(f"{glob.escape(prefix)}*png")):
        what = path.stem.removeprefix(prefix).replace("-", ", ")
        found.append(Picture(path, alt.format(what), caption.format(what), column=column))
    return found


def _hovers(draw: Callable[[], Figure], number: int) -> tuple[Hover, ...]:
    return hovers(draw()) if number <= MAXIMUM_HOVERS else ()
