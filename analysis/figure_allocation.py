"""The allocation figure: accuracy along the teacher's share, a line per budget, and where the best one lies.

Filled markers are within noise of the best of their line, hollow ones behind it; a ring marks the best.
Published numbers stand in panels of their own, in grey: another task, another scale.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from analysis.allocation import PLACE, Allocation
from analysis.allocation_text import budget_text
from analysis.plain import flops_text
from analysis.plots import (
    COLUMN_IN,
    PAGE_IN,
    PROBE_NAMES,
    empty_note,
    file_name,
    printable,
    style,
    wrapped,
    write_figure,
)
from analysis.records import write_csv
from analysis.seed_draws import LEVEL

_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (3, 1, 1, 1)))
#: At most this many panels of shares in a figure; the CSV has all curves.
MAXIMUM_PANELS = 6


@dataclass(frozen=True)
class Overlay:
    """Published results beside the study's: their name and the analysis of one label and probe."""

    name: str
    result: Allocation


def write_allocation(
    result: Allocation, about: dict[str, str], folder: Path, overlay: Overlay | None = None
) -> list[Path]:
    """Write `allocation-<label>-<probe>.{png,pdf}` for each, and the numbers as CSV.

    `about` has `plan`, `charge` and `convention`.
    """
    paths = [
        write_csv(result.points, folder / "allocation-points.csv"),
        write_csv(result.optima, folder / "allocation-optima.csv"),
        write_csv(result.trends, folder / "allocation-trends.csv"),
    ]
    if overlay is not None:
        paths.append(write_csv(overlay.result.points, folder / f"allocation-{overlay.name}-points.csv"))
        paths.append(write_csv(overlay.result.optima, folder / f"allocation-{overlay.name}-optima.csv"))
    for label, kind in allocation_panels(result):
        figure = draw_allocation(result, about, label, kind, overlay)
        paths += write_figure(figure, folder, file_name("allocation", label, kind))
    return paths


def allocation_panels(result: Allocation) -> list[tuple[str, str]]:
    """(label, kind) with curves, in order."""
    kinds = list(PROBE_NAMES)
    found = dict.fromkeys(zip(result.optima["label"], result.optima["kind"], strict=True))
    return sorted(found, key=lambda pair: (pair[0], kinds.index(pair[1]) if pair[1] in kinds else 99))


def draw_allocation(
    result: Allocation, about: dict[str, str], label: str, kind: str, overlay: Overlay | None = None
) -> Figure:
    """One label and probe: a panel per teacher and student, then the best share against the budget."""
    with style():
        panels, hidden = _panels(result, label, kind)
        kinds = ["curve"] * max(1, len(panels)) + ["best"] + (["overlay"] if overlay else [])
        columns = 1 if len(kinds) < 3 else 2 if len(kinds) < 7 else 3
        width = COLUMN_IN if columns < 3 else PAGE_IN
        rows = -(-len(kinds) // columns)
        key = _Key.of(result.optima[_of(result.optima, label, kind)])
        caption = wrapped(_caption(result, about, label, kind, hidden, overlay), width)
        handles, names = key.legend()
        legend_columns = 2 if width < 5 else 4
        foot_in = 0.15 * -(-len(handles) // legend_columns) + 0.12 + 0.106 * (caption.count("\n") + 1)
        panel_in = 2.1 if columns == 1 else 1.75
        body_in = panel_in * rows
        figure = Figure(figsize=(width, body_in + foot_in))
        halves: Any = figure.subfigures(2, 1, height_ratios=[body_in, foot_in])
        halves[0].subplots_adjust(
            left=0.45 / width,
            right=1 - 0.08 / width,
            bottom=0.4 / body_in,
            top=1 - 0.22 / body_in,
            hspace=0.62 if columns > 1 else 0.5,
            wspace=0.36 if width < 5 else 0.26,
        )
        grid = halves[0].subplots(rows, columns, squeeze=False).ravel()
        for axes in grid[len(kinds) :]:
            axes.set_axis_off()
        limits = _limits([points for _, points in panels])
        for axes, (name, points) in zip(grid, panels, strict=False):
            _curves(axes, points, key, name, limits)
        if not panels:
            _axes_of_shares(grid[0], "no share of a teacher")
            empty_note(grid[0], "no run with a teacher's share")
        _best(grid[max(1, len(panels))], result, label, kind, key)
        if overlay is not None:
            _draw_overlay(grid[len(kinds) - 1], overlay)
        foot = halves[1]
        if handles:
            foot.legend(
                handles, names, loc="upper center", ncols=legend_columns, bbox_to_anchor=(0.5, 1.0),
                handletextpad=0.4, columnspacing=1.2, borderaxespad=0.2, fontsize=6.8,
            )  # fmt: skip
        foot.text(0.012, 0.03 / foot_in, caption, fontsize=6, va="bottom", ha="left", color="#333333")
        return figure


@dataclass(frozen=True)
class _Key:
    """How budgets look."""

    budgets: list[float]
    names: list[str]

    @classmethod
    def of(cls, optima: pd.DataFrame) -> _Key:
        rows = optima.drop_duplicates("budget").sort_values("budget")
        return cls([float(b) for b in rows["budget"]], [budget_text(row) for row in rows.itertuples()])

    def look(self, budget: float) -> dict[str, Any]:
        place = self.budgets.index(budget)
        part = place / max(1, len(self.budgets) - 1)
        return {
            "color": matplotlib.colormaps["viridis_r"](0.2 + 0.75 * part),
            "marker": _MARKERS[place % len(_MARKERS)],
            "ls": _DASHES[(len(self.budgets) - 1 - place) % len(_DASHES)],
        }

    def legend(self) -> tuple[list[Line2D], list[str]]:
        handles = [Line2D([], [], ms=4.5, lw=1.1, **self.look(budget)) for budget in self.budgets]
        common: dict[str, Any] = {"ls": "", "marker": "o", "color": "#444444"}
        handles += [
            Line2D([], [], ms=4.5, **common),
            Line2D([], [], ms=4.5, mfc="white", **common),
            Line2D([], [], ms=8, mfc="none", mew=0.8, **common),
        ]
        return handles, [*self.names, "within noise of the best", "behind the best", "best of its line"]


def _of(rows: pd.DataFrame, label: str, kind: str) -> pd.Series:
    return (rows["label"] == label) & (rows["kind"] == kind)


def _panels(result: Allocation, label: str, kind: str) -> tuple[list[tuple[str, pd.DataFrame]], int]:
    """(name, points) per teacher, student and variant that has several shares; how many are not shown."""
    points = result.points[_of(result.points, label, kind)]
    found = []
    several_arms = points["arm"].nunique() > 1
    for key, group in points.groupby(PLACE, sort=True, dropna=False):
        place = dict(zip(PLACE, key, strict=True))
        arm = f"{place['arm']} " if several_arms else ""
        variant = f", {place['variant']}" if place["variant"] else ""
        found.append((f"{arm}{place['teacher']} > {place['student']}{variant}", group))
    several = [panel for panel in found if panel[1]["share"].nunique() > 1]
    shown = (several or found)[:MAXIMUM_PANELS]
    return shown, len(found) - len(shown)


def _limits(groups: list[pd.DataFrame]) -> tuple[float, float]:
    if not groups:
        return 0.0, 100.0
    low = 100 * min(group["minimum"].min() for group in groups)
    high = 100 * max(group["maximum"].max() for group in groups)
    reach = max(high - low, 1.0)
    return low - 0.12 * reach, high + 0.12 * reach


def _axes_of_shares(axes: Axes, title: str) -> None:
    size = max(4.8, min(7.5, 7.5 * 30 / max(1, len(title))))
    axes.set_title(printable(title), loc="left", fontsize=size)
    axes.set_xlabel("teacher's share of the budget (%)", fontsize=6.8)
    axes.set_ylabel("accuracy (%)", fontsize=6.8)
    axes.tick_params(labelsize=6.5)


def _share_ticks(axes: Axes, shares: list[float]) -> None:
    """A log axis in percent whose ticks are few and round."""
    axes.set_xscale("log")
    low, high = min(shares), max(shares)
    axes.set_xlim(low / 1.35, high * 1.35)
    near = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 80, 95) if low / 1.35 <= t <= high * 1.35]
    axes.xaxis.set_major_locator(FixedLocator(near or [low]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _curves(axes: Axes, points: pd.DataFrame, key: _Key, title: str, limits: tuple[float, float]) -> None:
    _axes_of_shares(axes, title)
    for place, (budget, rows) in enumerate(points.groupby("budget", sort=True)):
        look = key.look(float(budget))
        _line(axes, rows.sort_values("share"), look, shift=1 + 0.015 * place)
    axes.set_ylim(*limits)
    _share_ticks(axes, [100 * float(share) for share in points["share"]])


def _line(axes: Axes, rows: pd.DataFrame, look: dict[str, Any], shift: float) -> None:
    """One budget. Bars: range of the seeds; with one seed its binomial standard error."""
    x, y = 100 * rows["share"] * shift, 100 * rows["mean"]
    one = rows["n"] == 1
    error = 100 * np.sqrt(rows["mean"] * (1 - rows["mean"]) / rows["n_report"])
    below = np.where(one, error, y - 100 * rows["minimum"])
    above = np.where(one, error, 100 * rows["maximum"] - y)
    bars = np.nan_to_num(np.stack([below, above]), nan=0.0)
    axes.errorbar(x, y, yerr=np.maximum(bars, 0), color=look["color"], ls=look["ls"], lw=1.1, elinewidth=0.6)
    for within in (True, False):
        chosen = rows["within"] == within
        face = look["color"] if within else "white"
        axes.scatter(
            x[chosen], y[chosen], marker=look["marker"], s=20, facecolors=[face], edgecolors=[look["color"]],
            linewidths=0.9, zorder=3,
        )  # fmt: skip
    best = rows["best"] & (len(rows) > 1)
    axes.scatter(x[best], y[best], s=75, facecolors="none", edgecolors="#222222", linewidths=0.8, zorder=4)


def _best(axes: Axes, result: Allocation, label: str, kind: str, key: _Key) -> None:
    """The best share against the budget, with its interval; the quadratic's optimum where there is one."""
    optima = result.optima[_of(result.optima, label, kind)]
    optima = optima[optima["shares"] > 1]
    axes.set_title("best share", loc="left", fontsize=7.5)
    axes.set_ylabel("best share (%)", fontsize=6.8)
    axes.tick_params(labelsize=6.5)
    unit = str(optima["unit"].iloc[0]) if len(optima) else "FLOPs"
    axes.set_xlabel(f"budget ({unit})", fontsize=6.8)
    if optima.empty:
        axes.set(xticks=[], yticks=[])
        empty_note(axes, "one share per budget")
        return
    axes.set(xscale="log", yscale="log")
    groups = list(optima.groupby(PLACE, sort=True, dropna=False))
    for place, (_, rows) in enumerate(groups):
        shift = 1 + 0.05 * (place - (len(groups) - 1) / 2)
        quadratic = np.isfinite(rows["optimum"])
        y = 100 * rows["optimum"].where(quadratic, rows["best_share"])
        low = (100 * rows["optimum_low"].where(quadratic, rows["low"])).fillna(y)
        high = (100 * rows["optimum_high"].where(quadratic, rows["high"])).fillna(y)
        axes.errorbar(
            rows["budget"] * shift, y, yerr=np.maximum(np.stack([y - low, high - y]), 0), color="#555555",
            ls=":" if len(groups) < 3 else "", lw=0.8, elinewidth=0.8, capsize=1.5, zorder=2,
        )  # fmt: skip
        for row, value in zip(rows.itertuples(), y, strict=True):
            look = key.look(float(row.budget))
            flat = row.status in ("flat", "too few shares")
            axes.scatter(
                [row.budget * shift], [value], s=22, marker=look["marker"], edgecolors=[look["color"]],
                facecolors=["white" if flat else look["color"]], linewidths=0.9, zorder=3,
            )  # fmt: skip
    shares = [100 * float(v) for v in (*optima["smallest_share"], *optima["largest_share"])]
    axes.set_ylim(min(shares) / 1.3, min(max(shares) * 1.3, 100))
    ticks = [t for t in (0.5, 1, 2, 5, 10, 20, 50, 80) if min(shares) / 1.3 <= t <= max(shares) * 1.3]
    axes.yaxis.set_major_locator(FixedLocator(ticks or [shares[0]]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    _budget_ticks(axes, sorted(set(optima["budget"])), unit)


def _budget_ticks(axes: Axes, budgets: list[float], unit: str) -> None:
    axes.set_xlim(min(budgets) / 1.3, max(budgets) * 1.3)
    ratio = math.log10(max(budgets) / min(budgets)) / max(1, len(budgets) - 1)
    shown = budgets if len(budgets) < 5 and (ratio > 0.15 or len(budgets) == 1) else [budgets[0], budgets[-1]]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value / 1000:g}k" if unit == "steps" else flops_text(value))
    )
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_overlay(axes: Axes, overlay: Overlay) -> None:
    points = overlay.result.points
    shown = points[points.groupby([*PLACE, "budget"], dropna=False)["share"].transform("nunique") > 1]
    first = shown.iloc[0]
    _axes_of_shares(axes, f"{overlay.name}: {first['label']}, {first['teacher']} > {first['student']}")
    for place, (_, rows) in enumerate(shown.groupby("budget", sort=True)):
        rows = rows.sort_values("share")
        error = 100 * np.sqrt(rows["mean"] * (1 - rows["mean"]) / rows["n_report"])
        grey = ("#999999", "#666666", "#222222")[min(place, 2)]
        axes.errorbar(
            100 * rows["share"], 100 * rows["mean"], yerr=error, color=grey, mfc="white",
            label=budget_text(next(rows.itertuples())),
            marker=_MARKERS[place % len(_MARKERS)], ms=4, ls=_DASHES[place % len(_DASHES)], lw=0.9,
            elinewidth=0.6,
        )  # fmt: skip
    _share_ticks(axes, [100 * float(share) for share in shown["share"]])
    axes.margins(y=0.12)
    axes.set_ylim(axes.get_ylim()[0] - 0.35 * np.ptp(axes.get_ylim()))
    axes.legend(loc="lower left", fontsize=5.5, borderaxespad=0.1, handlelength=2.2)


def _caption(
    result: Allocation,
    about: dict[str, str],
    label: str,
    kind: str,
    hidden: int,
    overlay: Overlay | None,
) -> str:
    optima = result.optima[_of(result.optima, label, kind)]
    points = result.points[_of(result.points, label, kind)]
    bases = sorted(set(optima["basis"]) - {"none"})
    one_seed = bool((points["n"] == 1).all())
    clips = sorted({int(value) for value in points["n_report"].dropna()})
    text = (
        f"{printable(label)}, {PROBE_NAMES.get(kind, kind)}; study {printable(about['plan'])}. FLOPs: "
        f"{about['convention']} convention, teacher training charged: {about['charge']}. "
    )
    if (optima["unit"] == "steps").any():
        text += "Budgets are matched in steps; shares are of the FLOPs. "
    bars = (
        "binomial standard error, one seed" if one_seed else f"range over seeds (n = {_range(points['n'])})"
    )
    text += f"Bars: {bars}. Within noise: {' or '.join(bases) or 'not known'}, 95 %, Holm over a line. "
    text += (
        f"Best share: {100 * LEVEL:.0f} % interval; of a quadratic in logit(share) where it has a maximum "
    )
    text += f"between the ends; hollow: flat or too few shares. Report clips: {_few(clips)}."
    if hidden:
        text += f" {hidden} more teacher-student pairs are only in the CSV files."
    if overlay is not None:
        text += f" Grey: {overlay.name}, one seed, binomial standard errors, another task and scale."
    return text


def _few(values: list[int]) -> str:
    if not values:
        return "not known"
    return f"{values[0]:,}" if len(values) == 1 else f"{values[0]:,} to {values[-1]:,}"


def _range(values: pd.Series) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"
