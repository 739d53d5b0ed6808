"""Students against teachers at equal student compute, and the teacher x student surface under it.

A line joins the means of students of one size and compute, from the weakest teacher to the best; a ring marks
the weakest teacher that will do. Published numbers stand in a panel of their own, hollow and grey.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from analysis.plots import (
    COLUMN_IN,
    PROBE_NAMES,
    empty_note,
    file_name,
    panel_title,
    printable,
    style,
    wrapped,
    write_figure,
)
from analysis.records import write_csv
from analysis.regime import GROUP, regimes, teacher_points
from analysis.turning import turning_points
from analysis.weakest import surface, weakest_teachers

_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (3, 1, 1, 1)))
#: At most this many lines of the surface are drawn; the CSV has them all.
MAXIMUM_ROWS = 16
#: At most this many groups of students are drawn: those with most teachers, then of the largest compute.
MAXIMUM_GROUPS = 8


@dataclass(frozen=True)
class RegimeData:
    """Points, lines and surface (`analysis.regime`, `turning`, `weakest`), and what the caption says."""

    points: pd.DataFrame
    regimes: pd.DataFrame
    turns: pd.DataFrame
    weakest: pd.DataFrame
    surface: pd.DataFrame
    within: float
    about: dict[str, str]  # plan, charge, convention


def regime_data(table: pd.DataFrame, within: float = 0.005) -> RegimeData:
    """Students against teachers of a gathered table; `within` is how far behind the best student the weakest
    teacher's may be, as a share (0.005: half a point).
    """
    points, first = teacher_points(table), table.iloc[0]
    about = {name: str(first[name]) for name in ("plan", "charge", "convention")}
    return RegimeData(
        points,
        regimes(points),
        turning_points(points),
        weakest_teachers(points, within),
        surface(points),
        within,
        about,
    )


def write_regime(
    data: RegimeData, folder: Path, overlay: tuple[str, pd.DataFrame] | None = None
) -> list[Path]:
    """Write `weak-teacher-regime-<label>-<probe>.{png,pdf}`, where there are two teachers to compare, and the
    numbers as CSV. `overlay`: a name, and points of published numbers of one label and probe.
    """
    paths = [
        write_csv(data.points, folder / "weak-teacher-points.csv"),
        write_csv(data.regimes, folder / "weak-teacher-regimes.csv"),
        write_csv(data.turns, folder / "weak-teacher-turning-points.csv"),
        write_csv(data.weakest, folder / "weak-teacher-weakest.csv"),
        write_csv(data.surface, folder / "weak-teacher-surface.csv"),
    ]
    if overlay is not None:
        paths.append(write_csv(overlay[1], folder / f"weak-teacher-{overlay[0]}-points.csv"))
    for label, kind in dict.fromkeys(zip(data.weakest["label"], data.weakest["kind"], strict=True)):
        figure = draw_regime(data, label, kind, overlay)
        paths += write_figure(figure, folder, file_name("weak-teacher-regime", label, kind))
    return paths


def draw_regime(
    data: RegimeData, label: str, kind: str, overlay: tuple[str, pd.DataFrame] | None = None
) -> Figure:
    """One label and probe in a single column."""
    with style():
        points = _of(data.points, label, kind)
        surface = _lines(_of(data.surface, label, kind))
        hidden = max(0, len(surface) - MAXIMUM_ROWS)
        surface = surface[hidden:]
        groups, left_out = _chosen([group for _, group in points.groupby(GROUP, sort=False)])
        handles, names = _legend(groups)
        caption = wrapped(_caption(data, points, hidden, left_out, overlay), COLUMN_IN)
        scatter_in, overlay_in = 2.7, 2.3 if overlay else 0.0
        legend_in = 0.15 * -(-len(handles) // 2) + 0.08
        surface_in = 0.5 + 0.19 * max(1, len(surface))
        foot_in = 0.106 * (caption.count("\n") + 1) + 0.06
        parts = [scatter_in, legend_in, surface_in, *([overlay_in] if overlay else []), foot_in]
        figure = Figure(figsize=(COLUMN_IN, sum(parts)))
        stripes: Any = figure.subfigures(len(parts), 1, height_ratios=parts)
        _margins(stripes[0], scatter_in)
        axes = stripes[0].subplots()
        panel_title(axes, label, kind)
        _students(axes, groups, data.weakest)
        stripes[1].legend(
            handles, names, loc="upper center", ncols=2, bbox_to_anchor=(0.5, 1.0), handletextpad=0.4,
            columnspacing=1.2, borderaxespad=0.1, fontsize=6.3,
        )  # fmt: skip
        stripes[2].subplots_adjust(left=0.03, right=0.985, bottom=0.02, top=0.98)
        _draw_surface(stripes[2].subplots(), surface, list(dict.fromkeys(points["student"])))
        if overlay is not None:
            _margins(stripes[3], overlay_in)
            _draw_overlay(stripes[3].subplots(), *overlay)
        stripes[-1].text(0.012, 0.03 / foot_in, caption, fontsize=6, va="bottom", ha="left", color="#333333")
        return figure


def _chosen(groups: list[pd.DataFrame]) -> tuple[list[pd.DataFrame], int]:
    """Groups to draw, in their order, and how many are left out."""

    def rank(place: int) -> tuple[int, float]:
        return -len(groups[place]), -float(groups[place]["compute_flops"].iloc[0])

    kept = sorted(sorted(range(len(groups)), key=rank)[:MAXIMUM_GROUPS])
    return [groups[place] for place in kept], len(groups) - len(kept)


def _of(rows: pd.DataFrame, label: str, kind: str) -> pd.DataFrame:
    return rows[(rows["label"] == label) & (rows["kind"] == kind)]


def _margins(part: Any, height_in: float) -> None:
    part.subplots_adjust(left=0.14, right=0.97, bottom=0.4 / height_in, top=1 - 0.26 / height_in)


# --- students against teachers ----------------------------------------------------------------------


def _look(place: int, count: int) -> dict[str, Any]:
    return {
        "color": matplotlib.colormaps["viridis_r"](0.2 + 0.75 * place / max(1, count - 1)),
        "marker": _MARKERS[place % len(_MARKERS)],
        "ls": _DASHES[place % len(_DASHES)],
    }


def _looks(groups: list[pd.DataFrame]) -> list[dict[str, Any]]:
    """How each group is drawn: colour, marker and line, but grey and hollow if it has one teacher."""
    lines = [group for group in groups if len(group) > 1]
    single: dict[str, Any] = {"color": "#777777", "mfc": "white", "marker": "o", "ls": ""}
    looks, place = [], 0
    for group in groups:
        if len(group) > 1:
            looks.append(_look(place, len(lines)))
            place += 1
        else:
            looks.append(single)
    return looks


def _legend(groups: list[pd.DataFrame]) -> tuple[list[Line2D], list[str]]:
    handles, names = [], []
    for group, look in zip(groups, _looks(groups), strict=True):
        first = group.iloc[0]
        name = f"student {printable(first['student'])}, {first['compute']}"
        if len(group) == 1:
            name = "one teacher only"
            if name in names:
                continue
        handles.append(Line2D([], [], ms=4, lw=1, **look))
        names.append(name)
    handles.append(Line2D([], [], ls="", marker="o", mfc="none", color="#222222", ms=8, mew=0.8))
    names.append("weakest that will do")
    handles.append(Line2D([], [], ls=(0, (5, 2)), color="#666666", lw=0.8))
    names.append("student as good as teacher")
    return handles, names


def _students(axes: Axes, groups: list[pd.DataFrame], weakest: pd.DataFrame) -> None:
    axes.set_xlabel("accuracy of the teacher (%)")
    axes.set_ylabel("accuracy of the student (%)")
    if not groups:
        axes.set(xlim=(0, 100), ylim=(0, 100))
        empty_note(axes, "no finite pair of scores")
        return
    for group, look in zip(groups, _looks(groups), strict=True):
        _bars(axes, group, ms=4, lw=1, **look)
        found = weakest.merge(group[GROUP].iloc[:1], on=GROUP)
        axes.scatter(
            100 * found["weakest_accuracy"], 100 * found["weakest_student"], s=70, facecolors="none",
            edgecolors="#222222", linewidths=0.8, zorder=4,
        )  # fmt: skip
    _diagonal(axes, pd.concat(groups))


def _bars(axes: Axes, group: pd.DataFrame, **look: Any) -> None:
    """Means with standard errors of both; unknown errors have no bar."""
    axes.errorbar(
        100 * group["teacher_mean"],
        100 * group["student_mean"],
        xerr=100 * group["teacher_error"].fillna(0),
        yerr=100 * group["student_error"].fillna(0),
        elinewidth=0.5,
        **look,
    )


def _diagonal(axes: Axes, points: pd.DataFrame) -> None:
    """The diagonal as far as it runs through the panel; each axis keeps its own range, so that small
    differences between students stay visible.
    """
    x, y = 100 * points["teacher_mean"], 100 * points["student_mean"]
    for values, set_limits in ((x, axes.set_xlim), (y, axes.set_ylim)):
        middle, reach = (values.max() + values.min()) / 2, max((values.max() - values.min()) / 2, 2.0)
        set_limits(middle - 1.25 * reach, middle + 1.25 * reach)
    limits = axes.get_xlim(), axes.get_ylim()
    low, high = min(limits[0][0], limits[1][0]), max(limits[0][1], limits[1][1])
    axes.plot([low, high], [low, high], color="#666666", lw=0.8, ls=(0, (5, 2)), zorder=1)
    axes.set(xlim=limits[0], ylim=limits[1])
    if limits[1][0] > limits[0][1]:
        axes.text(
            0.97, 0.03, "all students above the diagonal", transform=axes.transAxes, ha="right", va="bottom",
            fontsize=6, color="#555555",
        )  # fmt: skip


def _draw_overlay(axes: Axes, name: str, points: pd.DataFrame) -> None:
    label = str(points["label"].iloc[0])
    axes.set_title(f"{name}: {label}, one seed", loc="left", fontsize=7.5)
    axes.set_xlabel("accuracy of the teacher (%)")
    axes.set_ylabel("accuracy of the student (%)")
    groups = [group for _, group in points.groupby(GROUP, sort=False) if len(group) > 1]
    for place, group in enumerate(groups):
        first = group.iloc[0]
        _bars(
            axes, group, color=("#888888", "#222222")[place % 2], mfc="white", ms=4, lw=0.9,
            marker=_MARKERS[place % len(_MARKERS)], ls=_DASHES[place % len(_DASHES)],
            label=f"student {first['student']}, {first['compute']}",
        )  # fmt: skip
    if groups:
        _diagonal(axes, pd.concat(groups))
        axes.legend(loc="upper left", fontsize=5.8, borderaxespad=0.2)


# --- surface ----------------------------------------------------------------------------------------


def _lines(surface: pd.DataFrame) -> list[tuple[str, str, dict[str, pd.Series]]]:
    """(compute, teacher, student -> cell), by compute, then from the weakest teacher."""
    found: dict[tuple[float, str, str], dict[str, pd.Series]] = {}
    for _, row in surface.iterrows():
        found.setdefault((row["compute_flops"], row["compute"], row["teacher_name"]), {})[row["student"]] = (
            row
        )
    ordered = sorted(found.items(), key=lambda item: item[0][0])
    return [(key[1], key[2], cells) for key, cells in ordered]


def _draw_surface(axes: Axes, lines: list[tuple[str, str, dict[str, pd.Series]]], order: list[str]) -> None:
    axes.set_axis_off()
    if not lines:
        empty_note(axes, "no student with a frozen teacher")
        return
    students = list(dict.fromkeys(student for _, _, cells in lines for student in cells))
    students.sort(key=order.index)  # by size
    first = 0.4
    width = (1 - first) / len(students)
    axes.set(xlim=(0, 1), ylim=(len(lines), -1.6))
    means = [c["mean"] for _, _, cells in lines for c in cells.values() if c["n"]]
    low, high = min(means), max(means)
    colours = matplotlib.colormaps["Blues"]
    axes.text(0, -0.4, "student compute, teacher", fontsize=6, va="center")
    size = 6.2 if len(students) < 3 else max(3.8, 15 / len(students))
    for column, student in enumerate(students):
        axes.text(
            first + (column + 0.5) * width, -0.4, printable(student), fontsize=6.2, ha="center", va="center",
            fontweight="bold",
        )  # fmt: skip
    axes.text(first + (1 - first) / 2, -1.2, "student: mean±sd (n)", fontsize=6.2, ha="center", va="center")
    before = ""
    for line, (compute, teacher, cells) in enumerate(lines):
        head = compute.replace(" FLOPs", "") if compute != before else ""
        before = compute
        axes.text(0, line + 0.5, head, fontsize=5.8, va="center")
        name = teacher.replace("teacher is a student", "student").replace("masks ", "").replace("data ", "")
        name = printable(textwrap.shorten(name, 28, placeholder="…"))
        axes.text(
            first - 0.015, line + 0.5, name, fontsize=5.6 if len(name) < 22 else 4.9, va="center", ha="right"
        )
        for column, student in enumerate(students):
            cell = cells.get(student)
            place = (first + column * width, float(line))
            if cell is None or not cell["n"]:
                axes.add_patch(
                    Rectangle(place, width, 1, facecolor="white", edgecolor="#AAAAAA", hatch="////", lw=0.4)
                )
                continue
            shade = 0.08 + 0.5 * (cell["mean"] - low) / max(high - low, 1e-9)
            axes.add_patch(Rectangle(place, width, 1, facecolor=colours(shade), edgecolor="white", lw=0.8))
            spread = f"±{100 * cell['deviation']:.1f}" if np.isfinite(cell["deviation"]) else ""
            axes.text(
                place[0] + width / 2, line + 0.5, f"{100 * cell['mean']:.1f}{spread} ({int(cell['n'])})",
                fontsize=size, ha="center", va="center",
            )  # fmt: skip


def _caption(
    data: RegimeData,
    points: pd.DataFrame,
    hidden: int,
    left_out: int,
    overlay: tuple[str, pd.DataFrame] | None,
) -> str:
    about = data.about
    one_seed = bool((points["n"] == 1).all()) if len(points) else False
    clips = sorted({int(value) for value in points["n_report"].dropna()})
    shown = "not known" if not clips else f"{clips[0]:,}" + (f" to {clips[-1]:,}" if len(clips) > 1 else "")
    seeds = sorted(set(points["n"]))
    text = (
        f"Study {printable(about['plan'])}; {PROBE_NAMES.get(str(points['kind'].iloc[0]), '')}. "
        if len(points)
        else f"Study {printable(about['plan'])}. "
    )
    text += (
        "Lines join students of one size that spent the same themselves, teachers' training not counted "
        f"({about['convention']} convention). Bars: standard error, "
    )
    text += "binomial (one seed)" if one_seed else f"over seeds (n = {', '.join(map(str, seeds))})"
    text += (
        f". Ring: weakest teacher whose student is within {100 * data.within:g} points of the best of its "
    )
    text += f"line. Hatched: not run or no score. Report clips: {shown}."
    if left_out:
        text += f" {left_out} more groups of students (fewer teachers or less compute) only in the CSV files."
    if hidden:
        lines = "1 line" if hidden == 1 else f"{hidden} lines"
        text += f" {lines} of less student compute only in the CSV file."
    if overlay is not None:
        text += f" Grey: {overlay[0]}, one seed, binomial standard errors, another task and scale."
    return text
