"""The figure of probe accuracy against training loss, each group of runs whose losses are on one scale by
itself.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.plots import (
    COLUMN_IN,
    PAGE_IN,
    empty_note,
    looks_of,
    panel_title,
    printable,
    style,
    wrapped,
    write_figure,
)
from analysis.records import write_csv

_MARKERS = "osD^vPX*<>"


def write_loss_accuracy(
    points: pd.DataFrame, found: pd.DataFrame, table: pd.DataFrame, folder: Path, across: bool
) -> list[Path]:
    """Write `loss-accuracy.{png,pdf}` and points and predictions as CSV."""
    return [
        write_csv(points, folder / "loss-accuracy-points.csv"),
        write_csv(found, folder / "loss-accuracy-predictions.csv"),
        *write_figure(draw_loss_accuracy(points, found, table, across), folder, "loss-accuracy"),
    ]


def draw_loss_accuracy(
    points: pd.DataFrame, found: pd.DataFrame, table: pd.DataFrame, across: bool
) -> Figure:
    """A panel per label, probe and arm."""
    with style():
        arms = ["arm"] if not across else []
        keys = list(dict.fromkeys(points[["label", "kind", *arms]].itertuples(index=False, name=None)))[:12]
        columns = min(3, len(keys))
        rows = -(-len(keys) // columns)
        width = COLUMN_IN if columns == 1 else PAGE_IN * columns / 3
        first = table.iloc[0]
        scale = (
            "Losses of several teachers and arms on one axis: they have different targets and are on no "
            "common scale."
            if across
            else "Each marker: one teacher configuration (or, without a frozen teacher, one arm)."
        )
        caption = wrapped(
            f"Study {printable(first['plan'])}. {scale} Lines: slope among runs with the same targets, "
            "where 4 and more. "
            f"n = {points['run_id'].nunique()} runs.",
            width,
        )
        foot = 0.106 * (caption.count("\n") + 1) + 0.1
        body = 2.0 * rows
        figure = Figure(figsize=(width, body + foot))
        grid = figure.subplots(rows, columns, squeeze=False)
        figure.subplots_adjust(
            left=0.55 / width,
            right=1 - 0.1 / width,
            top=1 - 0.26 / (body + foot),
            bottom=(foot + 0.42) / (body + foot),
            hspace=0.55,
            wspace=0.3,
        )
        for number, axes in enumerate(grid.flat):
            if number >= len(keys):
                axes.set_axis_off()
                continue
            mine = points
            for name, value in zip(["label", "kind", *arms], keys[number], strict=True):
                mine = mine[mine[name] == value]
            _panel(axes, mine, found)
        figure.text(0.012, 0.03 / (body + foot), caption, fontsize=6, va="bottom", color="#333333")
        return figure


def _panel(axes: Axes, mine: pd.DataFrame, found: pd.DataFrame) -> None:
    first = mine.iloc[0]
    panel_title(axes, str(first["label"]), str(first["kind"]))
    colour = looks_of([str(first["arm"])])[str(first["arm"])].colour
    told = []
    for number, (group, part) in enumerate(mine.groupby("group", sort=False)):
        x, y = part["final_loss"].to_numpy(dtype=float), 100 * part["accuracy"].to_numpy(dtype=float)
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(x, y, ls="", marker=marker, ms=3.2, color=colour, alpha=0.75, mew=0)
        row = found[
            (found["label"] == first["label"])
            & (found["kind"] == first["kind"])
            & (found["group"] == group)
            & (found["predictor"] == "final_loss")
        ].iloc[0]
        if row["status"] == "ok":
            ends = np.array([x.min(), x.max()])
            axes.plot(
                ends,
                y.mean() + 100 * row["slope"] * (ends - x.mean()),
                color=colour,
                lw=0.8,
                ls=(0, (3, 1.5)),
            )
            told.append(row)
    text = str(first["arm"]) if mine["arm"].nunique() == 1 else "all arms"
    if told:
        best = [f"{row['r2']:.2f}" for row in told[:3]]
        text += f": R² {', '.join(best)}" + (", …" if len(told) > 3 else "")
    axes.text(0.97, 0.97, printable(text), transform=axes.transAxes, fontsize=6, ha="right", va="top")
    if not len(mine) or not math.isfinite(float(mine["final_loss"].max())):
        empty_note(axes, "no finite loss")
    low, high = 100 * float(mine["accuracy"].min()), 100 * float(mine["accuracy"].max())
    margin = max(0.12 * (high - low), 0.5)
    axes.set_ylim(low - margin, high + 2 * margin)  # a line beyond its runs leaves the panel
    axes.set_xlabel("training loss")
    axes.set_ylabel("accuracy (%)")
