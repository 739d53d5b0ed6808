"""The isoFLOP figure: profiles per budget with parabola and surface, and the best size against compute."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.isoflop import budget_groups
from analysis.isoflop_results import IsoflopResult, law_table, profile_table
from analysis.laws import as_metric
from analysis.plain import flops_text
from analysis.plots import PAGE_IN, empty_note, file_name, printable, style, wrapped, write_figure
from analysis.records import write_csv

_MARKERS = "osD^vPX*<>"
_CURVE = 80


def write_isoflop(
    results: list[IsoflopResult], table: pd.DataFrame, folder: Path, flops_per_gpu_hour: float | None
) -> list[Path]:
    """Write one figure per arm and score, and the profiles, exponents and points as CSV."""
    paths = [
        write_csv(profile_table(results), folder / "isoflop-profiles.csv"),
        write_csv(law_table(results, flops_per_gpu_hour), folder / "isoflop-exponents.csv"),
        write_csv(_points(results), folder / "isoflop-points.csv"),
    ]
    for result in results:
        place = (result.of.arm, result.of.label, result.of.kind)
        name = file_name("isoflop", *(part.replace(" ", "-") for part in place if part))
        paths += write_figure(draw_isoflop(result, table), folder, name)
    return paths


def _points(results: list[IsoflopResult]) -> pd.DataFrame:
    parts = []
    for result in results:
        data = result.of.data
        part = pd.DataFrame({"run_id": data.run_ids, "budget_flops": data.budget} | data.columns)
        part["measured"] = as_metric(data.response, data.metric)
        for name in ("kind", "label", "arm"):
            part.insert(0, name, getattr(result.of, name))
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def draw_isoflop(result: IsoflopResult, table: pd.DataFrame) -> Figure:
    """Left: the metric against size, a curve per budget. Right: the best size against compute."""
    with style():
        caption = wrapped(_caption(result, table), PAGE_IN)
        foot = 0.106 * (caption.count("\n") + 1) + 0.1
        body = 2.7
        figure = Figure(figsize=(PAGE_IN, body + foot))
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(
            left=0.07,
            right=0.985,
            top=1 - 0.28 / (body + foot),
            bottom=(foot + 0.42) / (body + foot),
            wspace=0.24,
        )
        _profiles(left, result)
        _sizes(right, result)
        figure.text(0.008, 0.03 / (body + foot), caption, fontsize=6, va="bottom", ha="left", color="#333333")
        return figure


def _profiles(axes: Axes, result: IsoflopResult) -> None:
    data = result.of.data
    name, scale = ("accuracy (%)", 100.0) if data.metric == "accuracy" else ("loss", 1.0)
    axes.set_title(printable(result.of.name), loc="left")
    axes.set_xscale("log")
    groups = budget_groups(data)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.82, len(groups)))
    for number, (budget, index) in enumerate(groups):
        size, y = data.columns["size"][index], data.response[index]
        marker = _MARKERS[number % len(_MARKERS)]
        colour = colours[number]
        axes.plot(
            size,
            scale * as_metric(y, data.metric),
            ls="",
            marker=marker,
            ms=3,
            color=colour,
            label=flops_text(budget),
        )
        grid = np.geomspace(size.min(), size.max(), _CURVE)
        if len(np.unique(size)) >= 3:
            centre = np.log10(size).mean()
            curve = np.polyval(np.polyfit(np.log10(size) - centre, y, 2), np.log10(grid) - centre)
            axes.plot(grid, scale * as_metric(curve, data.metric), color=colour, lw=0.8, ls=(0, (2, 1.5)))
        if result.solved:
            columns: dict[str, Any] = {"size": grid, "data": result.cost.data(budget, grid)}
            axes.plot(grid, scale * result.surface.value(**columns), color=colour, lw=1.2)
    axes.set_xlabel("encoder parameters")
    axes.set_ylabel(name)
    axes.legend(title="budget, FLOPs", title_fontsize=6, fontsize=5.6, ncols=2, loc="best", handletextpad=0.2)


def _sizes(axes: Axes, result: IsoflopResult) -> None:
    rows = result.table
    axes.set_title("best size", loc="left")
    axes.set_xscale("log")
    axes.set_yscale("log")
    hollow: dict[str, Any] = {"ls": "", "ms": 4.5, "mfc": "none", "mew": 0.9}
    budget = rows["budget_flops"]
    axes.plot(budget, rows["size_parabola"], marker="s", mec="#0072B2", label="parabola", **hollow)
    axes.plot(
        budget,
        rows["size_profile"],
        marker="^",
        mec="#117755",
        label="profile, surface's exponents",
        **hollow,
    )
    if result.solved:
        axes.plot(budget, rows["size_surface"], color="#D55E00", lw=1.2, label="surface")
        axes.fill_between(budget, rows["size_low"], rows["size_high"], color="#D55E00", alpha=0.15, lw=0)
    else:
        empty_note(axes, f"no surface: {result.surface.status}")
    axes.plot(budget, rows["smallest"], color="#999999", lw=0.6, ls=(0, (1, 2)))
    axes.plot(budget, rows["largest"], color="#999999", lw=0.6, ls=(0, (1, 2)), label="sizes tried")
    axes.set_xlabel("pretraining FLOPs")
    axes.set_ylabel("encoder parameters")
    axes.legend(fontsize=6, loc="best")


def _caption(result: IsoflopResult, table: pd.DataFrame) -> str:
    first = table.iloc[0]
    text = (
        f"Study {printable(first['plan'])}, n = {len(result.of.data)} runs. Left: solid the surface "
        f"{result.surface.law.formula(result.of.data.metric)} ({result.surface.status}), dashed a "
        "parabola per budget."
    )
    if result.solved:
        value, low, high = result.exponent
        ends = "" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"
        text += f" Right: best size grows as C^{value:.3f}{ends} by the surface"
        if not math.isnan(result.parabola_exponent):
            text += f", C^{result.parabola_exponent:.3f} by parabolas"
        text += "; band: interval of the surface's optimum."
    return text + f" FLOPs: {first['convention']} convention, teacher training charged {first['charge']}."
