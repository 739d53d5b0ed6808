"""The frontier's uncertainty: attained accuracy with its band, and below it the probability to be the best
arm.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.frontier import Frontier
from analysis.frontier_draws import LEVEL, Curves
from analysis.plots import (
    ARM_NAMES,
    COLUMN_IN,
    few_log_labels,
    file_name,
    looks_of,
    panel_title,
    printable,
    style,
    wrapped,
    write_figure,
)


def write_attainment(
    curves: list[Curves], attained: pd.DataFrame, folder: Path, axis: str, about: str
) -> list[Path]:
    """One single-column figure per label and probe, `pareto-attainment-<label>-<probe>`.

    `attained` is `analysis.frontier_draws.attainment` of all curves; `axis` names the cost with its unit,
    `about` the study and the FLOP convention.
    """
    paths = []
    for each in curves:
        rows = attained[(attained["label"] == each.label) & (attained["kind"] == each.kind)]
        figure = draw_attainment(each, rows, axis, about)
        paths += write_figure(figure, folder, file_name("pareto-attainment", each.label, each.kind))
    return paths


def write_attainments(found: Frontier, name: str, folder: Path) -> list[Path]:
    """The figures of a study's frontiers, with what the axis and the caption must say of its cost."""
    about, axis = f"Study {name}.", found.cost.axis
    if found.cost.name == "flops":
        first = found.cost.table.iloc[0]
        about += f" FLOPs: {first['convention']} convention, teacher training charged {first['charge']}."
        axis = "pretraining FLOPs, teacher included"
    return write_attainment(found.curves, found.parts["attainment"], folder, axis, about)


def draw_attainment(curves: Curves, rows: pd.DataFrame, axis: str, about: str) -> Figure:
    """Steps, as an arm attains at a cost what it has reached up to there."""
    with style():
        noise = curves.noise
        spread = (
            "no configuration has two seeds, so bands hold the sampling of report clips alone"
            if noise is None
            else f"seeds: {noise.seed_sd:.2g} points, {noise.degrees} degrees of freedom; and report clips"
        )
        caption = wrapped(
            f"{about} Lines: best accuracy up to a cost, of each arm's choice on the selection clips. Bands: "
            f"{100 * LEVEL:.0f} % of draws ({spread}). Below: share of draws in which an arm attains "
            "the most.",
            COLUMN_IN,
        )
        foot = 0.106 * (caption.count("\n") + 1) + 0.1
        body = 3.1
        figure = Figure(figsize=(COLUMN_IN, body + foot))
        top, low = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
        figure.subplots_adjust(
            left=0.145,
            right=0.97,
            top=1 - 0.26 / (body + foot),
            bottom=(foot + 0.4) / (body + foot),
            hspace=0.12,
        )
        panel_title(top, curves.label, curves.kind)
        end = float(rows["cost"].max()) * 1.25
        for arm, look in looks_of(curves.arms).items():
            mine = rows[rows["arm"] == arm].sort_values("cost")
            x = np.append(mine["cost"], end)
            for axes, columns in ((top, ("attained", "low", "high")), (low, ("probability_best",))):
                scale = 100.0 if axes is top else 1.0
                steps = [scale * np.append(mine[name], mine[name].iloc[-1]) for name in columns]
                axes.step(x, steps[0], where="post", color=look.colour, ls=look.line, lw=1.1)
                axes.plot(
                    mine["cost"],
                    scale * mine[columns[0]],
                    ls="",
                    marker=look.marker,
                    ms=3.5,
                    color=look.colour,
                )
                if len(steps) > 1:
                    axes.fill_between(x, steps[1], steps[2], step="post", color=look.colour, alpha=0.13, lw=0)
            top.plot([], [], color=look.colour, ls=look.line, marker=look.marker, ms=3.5, label=_name(arm))
        _finish(top, low, rows, end, axis)
        figure.text(0.015, 0.03 / (body + foot), caption, fontsize=6, va="bottom", color="#333333")
        return figure


def _name(arm: str) -> str:
    return ARM_NAMES.get(arm, printable(arm))


def _finish(top: Axes, low: Axes, rows: pd.DataFrame, end: float, axis: str) -> None:
    top.set_xscale("log")
    top.set_xlim(float(rows["cost"].min()) / 1.25, end)
    few_log_labels(top)
    top.set_ylabel("accuracy (%)")
    top.legend(loc="best", fontsize=6)
    low.set_ylim(-0.04, 1.04)
    low.set_yticks([0, 0.5, 1])
    low.set_ylabel("P(best)")
    low.set_xlabel(axis)
