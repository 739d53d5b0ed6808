"""The frontier figure: accuracy against total pretraining FLOPs, one panel per label and probe.

First the data (`pareto_data`), then the drawing. Every run is a small point; configurations on their arm's
frontier are large markers with the range of their seeds, joined by a line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from analysis.figure_pareto_data import ParetoData, panels, pareto_data, write_pareto_data
from analysis.pareto import arm_order
from analysis.plots import (
    ARM_NAMES,
    COLUMN_IN,
    NOTE_BOX,
    PAGE_IN,
    RANDOM_BAND,
    REFERENCES,
    Look,
    empty_note,
    few_log_labels,
    file_name,
    hover,
    looks_of,
    panel_title,
    printable,
    style,
    wrapped,
    write_figure,
)
from analysis.published import LABEL
from analysis.reference import reference_table
from analysis.tables import flops


def write_pareto(table: pd.DataFrame, folder: Path, axis: str | None = None) -> list[Path]:
    """Write `pareto.{png,pdf}` with all panels, one single-column figure per panel, and the data as CSV.

    `axis` names the cost where `total_flops` of the table holds another one (`analysis.cost_axis`).
    """
    data = pareto_data(table)
    paths = write_pareto_data(data, folder, table)
    wanted = panels(data)
    paths += write_figure(draw_pareto(data, wanted, axis), folder, "pareto")
    if len(wanted) > 1:
        for label, kind in wanted:
            figure = draw_pareto(data, [(label, kind)], axis)
            paths += write_figure(figure, folder, file_name("pareto", label, kind))
    return paths


def write_published(name: str, folder: Path) -> list[Path]:
    """Published numbers as a figure of their own: their tasks, probes and FLOPs are on other scales."""
    table = reference_table(name)
    data = pareto_data(table[table["label"] == LABEL].reset_index(drop=True))
    return write_figure(draw_pareto(data, panels(data)), folder, f"pareto-{name}")


# --- drawing ------------------------------------------------------------------------------------


def draw_pareto(data: ParetoData, wanted: list[tuple[str, str]], axis: str | None = None) -> Figure:
    """One panel per (label, kind): a single column for one panel, else a page with a row per label."""
    with style():
        single = len(wanted) <= 1
        labels = list(dict.fromkeys(label for label, _ in wanted))
        kinds = list(dict.fromkeys(kind for _, kind in wanted))
        rows, columns = max(1, len(labels)), max(1, len(kinds))
        width = COLUMN_IN if single else max(COLUMN_IN, PAGE_IN * min(columns, 3) / 3)
        caption = wrapped(_caption(data, wanted), width)
        handles, names = _legend(data)
        legend_columns = 2 if width < 5 else 4
        legend_in = 0.148 * -(-len(handles) // legend_columns) + 0.08
        caption_in = 0.106 * (caption.count("\n") + 1) + 0.06
        body_in = (2.25 if single else 1.95) * rows
        height = body_in + legend_in + caption_in
        figure = Figure(figsize=(width, height))
        top: Any = figure.subfigures(2, 1, height_ratios=[body_in, legend_in + caption_in])
        top[0].subplots_adjust(
            left=0.5 / width,
            right=1 - 0.1 / width,
            bottom=0.42 / body_in,
            top=1 - 0.26 / body_in,
            hspace=0.42,
            wspace=0.2,
        )
        grid = top[0].subplots(rows, columns, squeeze=False, sharex=True)
        for i in range(rows):
            for j in range(columns):
                axes = grid[i, j]
                if not wanted:
                    empty_note(axes, "no scores to draw")
                elif (labels[i], kinds[j]) in wanted:
                    _panel(axes, data, labels[i], kinds[j])
                else:
                    empty_note(axes, "not measured")
                    axes.set_yticks([])
                    panel_title(axes, labels[i], kinds[j])
                if j == 0:
                    axes.set_ylabel("accuracy (%)")
                if i == rows - 1:
                    axes.set_xlabel(
                        axis or ("pretraining FLOPs, teacher included" if not single else _x_label(data))
                    )
        foot = top[1]
        foot.legend(
            handles,
            names,
            loc="upper center",
            ncols=legend_columns,
            bbox_to_anchor=(0.5, 1.0),
            handlelength=2.6,
            columnspacing=1.2,
            borderaxespad=0.2,
        )
        foot.text(
            0.012,
            0.03 / (legend_in + caption_in),
            caption,
            fontsize=6,
            va="bottom",
            ha="left",
            color="#333333",
        )
        return figure


def _x_label(data: ParetoData) -> str:
    return f"pretraining FLOPs ({data.convention} convention, charge {data.charge})"


def _panel(axes: Axes, data: ParetoData, label: str, kind: str) -> None:
    panel_title(axes, label, kind)
    axes.set_xscale("log")
    runs = data.runs[(data.runs["label"] == label) & (data.runs["kind"] == kind)]
    configs = data.configs[(data.configs["label"] == label) & (data.configs["kind"] == kind)]
    everywhere = data.runs.loc[data.runs["shown"], "compared_flops"]
    if len(everywhere):
        axes.set_xlim(everywhere.min() / 1.35, everywhere.max() * 1.35)
        _ticks(axes, np.unique(everywhere[data.runs["shown"]].to_numpy()))
    else:
        axes.set_xlim(1.0, 10.0)
    levels = _draw_references(axes, data.references, label, kind)
    for arm, look in looks_of(arm_order(data.runs["arm"])).items():
        _draw_arm(axes, arm, look, runs[(runs["arm"] == arm) & runs["shown"]], configs[configs["arm"] == arm])
    hidden = len(runs) - int(runs["shown"].sum())
    if len(runs) == hidden:
        empty_note(axes, "no finite scores")
    if hidden:
        axes.text(
            0.985,
            0.02,
            f"{hidden} of {len(runs)} runs not shown",
            transform=axes.transAxes,
            fontsize=6,
            ha="right",
            va="bottom",
            color="#333333",
            bbox=NOTE_BOX,
        )
    _limits(axes, [*(100 * runs.loc[runs["shown"], "accuracy"]), *levels.near], levels.supervised)


def _limits(axes: Axes, near: list[float], supervised: float | None) -> None:
    """Fit the axis to runs and baselines. A supervised level far above is an arrow with its value, not a
    squeeze.
    """
    if not near:
        axes.set_ylim(0, 100)
        return
    low, high = min(near), max(near)
    span = high - low
    if span < 12.0:  # a few points of noise must not fill the panel
        low, high, span = max(0.0, (low + high) / 2 - 6.0), (low + high) / 2 + 6.0, 12.0
    if supervised is not None and supervised > high + 0.5 * span:
        axes.text(
            0.985,
            0.985,
            f"supervised {supervised:.0f} % \u25b2",
            transform=axes.transAxes,
            ha="right",
            va="top",
            fontsize=6.5,
            color=REFERENCES["supervised"][0],
        )
        high += 0.09 * span
    elif supervised is not None:
        high = max(high, supervised)
    axes.set_ylim(low - 0.08 * span, high + 0.08 * span)


def _ticks(axes: Axes, budgets: np.ndarray) -> None:
    """Label the budgets themselves where they are few and apart, else leave the decades."""
    if len(budgets) > 6 or (len(budgets) > 1 and np.diff(np.log10(budgets)).min() < 0.12):
        few_log_labels(axes)
        return
    exponents = np.floor(np.log10(budgets))
    names = [f"{b / 10**e:.3g}e{int(e)}" for b, e in zip(budgets, exponents, strict=True)]
    axes.set_xticks(budgets, labels=names)
    axes.set_xticks([], minor=True)


class _Levels(NamedTuple):
    near: list[float]  # in %: what the axis must hold
    supervised: float | None


def _draw_references(axes: Axes, references: pd.DataFrame, label: str, kind: str) -> _Levels:
    here = references[(references["label"] == label) & (references["kind"] == kind)]
    near: list[float] = []
    supervised = None
    for name, rows in here.groupby("reference"):
        values = 100 * rows["accuracy"].astype("float64")
        if not np.isfinite(values).all():
            continue  # a table of another project that knows no chance level
        if name == "supervised":
            supervised = float(values.mean())
        else:
            near += list(values)
        if name == "external":
            _draw_external(axes, rows)
        elif name == "random":
            axes.axhspan(values.min(), values.max(), color=RANDOM_BAND, alpha=0.55, lw=0, zorder=0)
            axes.axhline(values.mean(), color="#8A8A8A", lw=0.6, zorder=0.5)
        else:
            colour, line = REFERENCES[str(name)]
            axes.axhline(values.mean(), color=colour, ls=line, lw=0.9, zorder=1)
    return _Levels(near, supervised)


def _draw_external(axes: Axes, rows: pd.DataFrame) -> None:
    """A line for each model that was trained elsewhere, with its name."""
    colour, line = REFERENCES["external"]
    for place, (name, own) in enumerate(rows.groupby("student")):
        level = 100 * float(own["accuracy"].mean())
        axes.axhline(level, color=colour, ls=line, lw=0.9, zorder=1)
        axes.annotate(
            printable(str(name)),
            (0.012 + 0.24 * (place % 4), level),  # levels may be close, names side by side never are
            xycoords=("axes fraction", "data"),
            xytext=(0, 1.2),
            textcoords="offset points",
            fontsize=5.5,
            color=colour,
            zorder=2.5,
        )


def _draw_arm(axes: Axes, arm: str, look: Look, runs: pd.DataFrame, configs: pd.DataFrame) -> None:
    # Arms share their budgets: a small shift keeps their points apart. The data files are not shifted.
    shift = {"pixel": 0.94, "external": 0.97, "hybrid": 1.032, "vjepa": 1.064}.get(arm, 1.0)
    # Within an arm, configurations are spread a little, so that their seeds do not hide each other.
    names = sorted(set(runs["config"]))
    spread_by = {name: 0.022 * (2 * (i + 0.5) / len(names) - 1) for i, name in enumerate(names)}
    places = runs["compared_flops"] * shift * (1 + runs["config"].map(spread_by).astype("float64"))
    points = axes.scatter(
        places,
        100 * runs["accuracy"],
        s=6,
        marker=look.marker,
        color=look.colour,
        alpha=0.4,
        linewidths=0,
        zorder=2,
    )
    hover(points, [run_text(row) for row in runs.itertuples()])
    front = configs[configs["on_frontier"] & (configs["compared_flops"] > 0)].sort_values("compared_flops")
    if front.empty:
        return
    mean = 100 * front["mean"]
    spread = [mean - 100 * front["minimum"], 100 * front["maximum"] - mean]
    axes.errorbar(
        front["compared_flops"] * shift,
        mean,
        yerr=np.maximum(np.asarray(spread), 0.0),
        color=look.colour,
        ls=look.line,
        marker=look.marker,
        ms=4.5,
        mec="white",
        mew=0.5,
        capsize=1.8,
        elinewidth=0.8,
        zorder=3,
    )


def run_text(row: Any) -> str:
    """What the pointer shows of a run: which, what it scored and cost, and its id."""
    return (
        f"{row.config}, seed {row.seed:.0f}\n{row.label}, {row.kind}: {100 * row.accuracy:.1f} %\n"
        f"{flops(row.total_flops)} FLOPs in total, budget {flops(row.budget_flops)}\n"
        f"run {row.run_id}"
    )


def _legend(data: ParetoData) -> tuple[list[Line2D | Patch], list[str]]:
    handles: list[Line2D | Patch] = []
    names: list[str] = []
    for arm, look in looks_of(arm_order(data.runs["arm"])).items():
        style = {"color": look.colour, "ls": look.line, "marker": look.marker, "mec": "white"}
        handles.append(Line2D([], [], ms=4.5, mew=0.5, **style))
        names.append(ARM_NAMES.get(arm, printable(arm)))
    there = set(data.references.loc[np.isfinite(data.references["accuracy"].astype("float64")), "reference"])
    if "random" in there:
        handles.append(Patch(color=RANDOM_BAND, alpha=0.55, lw=0))
        names.append("random encoder (range)")
    for name, text in (
        ("supervised", "supervised"),
        ("external", "external teacher itself"),
        ("raw", "raw pixels"),
        ("chance", "chance"),
    ):
        if name in there:
            colour, line = REFERENCES[name]
            handles.append(Line2D([], [], color=colour, ls=line, lw=0.9))
            names.append(text)
    return handles, names


def _caption(data: ParetoData, wanted: list[tuple[str, str]]) -> str:
    pairs = set(wanted)
    inside = [pair in pairs for pair in zip(data.runs["label"], data.runs["kind"], strict=True)]
    runs = data.runs[inside]
    shown = runs[runs["shown"]]
    per_config = shown.groupby(["label", "kind", "config_id", "budget_flops"]).size()
    seeds = _range(per_config) if len(per_config) else "0"
    clips = _range(shown["n_report"]) if len(shown) else "0"
    return (
        f"Study {printable(data.plan)}. FLOPs: {data.convention} convention, teacher training charged: "
        f"{data.charge}; runs within 1 % of their budget stand at it, arms shifted sideways to be seen. "
        "Small points: single runs. Large markers: means of the configurations on their arm's frontier; "
        f"bars: range over seeds (n = {seeds}). {clips} report clips. {len(shown)} of {len(runs)} scores "
        "shown."
    )


def _range(values: pd.Series) -> str:
    values = values.dropna()
    if values.empty:
        return "an unknown number of"
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"
