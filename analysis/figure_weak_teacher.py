"""The weak-teacher figure: every student against its own teacher, and a teacher x student table of means.

Above the diagonal a student has passed its teacher. It has also spent the teacher's FLOPs and more, so
the table carries the control: the pixel arm at the same total budget and student size.
"""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from analysis.figure_weak_teacher_key import Key
from analysis.plain import flops_text
from analysis.plots import (
    COLUMN_IN,
    NOTE_BOX,
    PAGE_IN,
    PROBE_NAMES,
    empty_note,
    file_name,
    hover,
    panel_title,
    printable,
    style,
    write_figure,
)
from analysis.records import write_csv
from analysis.tables import flops
from analysis.weak_teacher import student_teacher_pairs, teacher_student_table

#: At most this many lines of the table are drawn; the CSV has them all.
MAXIMUM_TABLE_ROWS = 18


@dataclass(frozen=True)
class WeakTeacherData:
    """`pairs`: one row per student run beside its teacher; `cells`: the teacher x student table per "
    "budget."""

    pairs: pd.DataFrame
    cells: pd.DataFrame
    plan: str
    charge: str
    convention: str
    sizes: dict[str, float]  # encoder parameters by name of the size


def weak_teacher_data(table: pd.DataFrame, frames: str = "ordered") -> WeakTeacherData:
    """Data of the weak-teacher figure."""
    rows = table[table["frames"] == frames]
    first = table.iloc[0]
    known = table[["student", "parameters"]].dropna()
    sizes = {
        str(name): float(value) for name, value in zip(known["student"], known["parameters"], strict=True)
    }
    plan, charge, convention = (str(first[name]) for name in ("plan", "charge", "convention"))
    return WeakTeacherData(
        student_teacher_pairs(rows), teacher_student_table(rows), plan, charge, convention, sizes
    )


def weak_teacher_panels(data: WeakTeacherData) -> list[tuple[str, str]]:
    """(label, kind) for which the plan has students with teachers; linear before knn before attentive."""
    order = list(PROBE_NAMES)
    found = dict.fromkeys(zip(data.cells["label"], data.cells["kind"], strict=True))
    # Labels whose students gain most over their teachers come first: they are what the figure is about.
    # A label without any gap comes last.
    gaps = data.cells.dropna(subset=["gap"]).groupby("label")["gap"].mean().to_dict()

    def place(pair: tuple[str, str]) -> tuple[float, str, int, str]:
        label, kind = pair
        rank = order.index(kind) if kind in order else len(order)  # kinds of other projects
        return -gaps.get(label, float("-inf")), label, rank, kind

    return sorted(found, key=place)


def write_weak_teacher(table: pd.DataFrame, folder: Path) -> list[Path]:
    """Write `weak-teacher.{png,pdf}` (all scatters), a single-column figure per label and probe, and the
    data.
    """
    data = weak_teacher_data(table)
    paths = [
        write_csv(data.pairs, folder / "weak-teacher-pairs.csv"),
        write_csv(data.cells, folder / "weak-teacher-table.csv"),
    ]
    wanted = weak_teacher_panels(data)
    paths += write_figure(draw_scatters(data, wanted), folder, "weak-teacher")
    for label, kind in wanted:
        paths += write_figure(draw_column(data, label, kind), folder, file_name("weak-teacher", label, kind))
    return paths


# --- drawing ------------------------------------------------------------------------------------


def draw_scatters(data: WeakTeacherData, wanted: list[tuple[str, str]]) -> Figure:
    """All scatters on one page: a row per label, a column per probe."""
    with style():
        labels = list(dict.fromkeys(label for label, _ in wanted))
        there = dict.fromkeys(kind for _, kind in wanted)
        kinds = [*(kind for kind in PROBE_NAMES if kind in there), *sorted(there.keys() - PROBE_NAMES.keys())]
        rows, columns = max(1, len(labels)), max(1, len(kinds))
        width = max(COLUMN_IN, PAGE_IN * min(columns, 3) / 3)
        key = Key.of(data.cells, data.sizes)
        caption = _wrapped(_caption(data, data.pairs), width)
        handles, names = key.legend()
        legend_columns = 2 if width < 5 else 4
        foot_in = 0.15 * -(-len(handles) // legend_columns) + 0.12 + 0.106 * (caption.count("\n") + 1)
        body_in = 2.5 * rows
        figure = Figure(figsize=(width, body_in + foot_in))
        halves: Any = figure.subfigures(2, 1, height_ratios=[body_in, foot_in])
        body, foot = halves
        body.subplots_adjust(
            left=0.5 / width,
            right=1 - 0.1 / width,
            bottom=0.42 / body_in,
            top=1 - 0.26 / body_in,
            hspace=0.36,
            wspace=0.26,
        )
        grid = body.subplots(rows, columns, squeeze=False)
        for i in range(rows):
            for j in range(columns):
                if not wanted:
                    empty_note(grid[i, j], "no student with a frozen teacher")
                    continue
                _scatter(grid[i, j], data, key, labels[i], kinds[j])
        _foot(foot, handles, names, legend_columns, caption)
        return figure


def draw_column(data: WeakTeacherData, label: str, kind: str) -> Figure:
    """One label and probe in a single column: the scatter, and under it the teacher x student table."""
    with style():
        key = Key.of(data.cells, data.sizes)
        pairs = data.pairs[(data.pairs["label"] == label) & (data.pairs["kind"] == kind)]
        cells = data.cells[(data.cells["label"] == label) & (data.cells["kind"] == kind)]
        lines = _table_lines(cells, key)
        hidden = max(0, len(lines) - MAXIMUM_TABLE_ROWS)
        lines = lines[hidden:]  # the largest budgets stay
        note = f" {hidden} lines of smaller budgets are only in the CSV file." if hidden else ""
        caption = _wrapped(_caption(data, pairs) + _TABLE_CAPTION + note, COLUMN_IN)
        handles, names = key.legend()
        legend_in = 0.15 * -(-len(handles) // 3) + 0.08
        foot_in = 0.106 * (caption.count("\n") + 1) + 0.06
        scatter_in, table_in = 2.75, 0.42 + 0.185 * max(1, len(lines))
        parts = [scatter_in, legend_in, table_in, foot_in]
        figure = Figure(figsize=(COLUMN_IN, sum(parts)))
        quarters: Any = figure.subfigures(4, 1, height_ratios=parts)
        top, middle, table, foot = quarters
        top.subplots_adjust(left=0.14, right=0.97, bottom=0.4 / scatter_in, top=1 - 0.26 / scatter_in)
        _scatter(top.subplots(), data, key, label, kind)
        _legend(middle, handles, names, 3)
        table.subplots_adjust(left=0.03, right=0.985, bottom=0.02, top=0.98)
        _draw_table(table.subplots(), lines, key)
        foot.text(0.012, 0.03 / foot_in, caption, fontsize=6, va="bottom", ha="left", color="#333333")
        return figure


_TABLE_CAPTION = (
    " Table: student mean ± standard deviation over seeds (n); then student minus its teacher (also the "
    "colour) and, after the bar, minus the pixel arm at equal FLOPs, both in points."
)


def _scatter(axes: Axes, data: WeakTeacherData, key: Key, label: str, kind: str) -> None:
    pairs = data.pairs[(data.pairs["label"] == label) & (data.pairs["kind"] == kind)]
    cells = data.cells[(data.cells["label"] == label) & (data.cells["kind"] == kind)]
    panel_title(axes, label, kind)
    axes.set_xlabel("accuracy of its teacher (%)")
    axes.set_ylabel("accuracy of the student (%)")
    planned = int((cells["n"] + cells["n_lost"]).sum())
    if pairs.empty:
        axes.set(xlim=(0, 100), ylim=(0, 100))
        empty_note(axes, "not measured" if not planned else "no finite pair of scores")
        return
    x, y = 100 * pairs["teacher_accuracy"], 100 * pairs["student_accuracy"]
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    middle, reach = (
        (low + high) / 2,
        max((high - low) / 2, 6.0),
    )  # a few points of noise must not fill the panel
    limits = (max(middle - 1.12 * reach, -2.0), middle + 1.12 * reach)
    axes.set(xlim=limits, ylim=limits)
    axes.plot(limits, limits, color="#666666", lw=0.8, ls=(0, (5, 2)), zorder=1)
    for (arm, teacher, student, budget), group in pairs.groupby(
        ["arm", "teacher", "student", "budget_flops"]
    ):
        edge, edge_width = key.edge(str(arm))
        points = axes.scatter(
            100 * group["teacher_accuracy"],
            100 * group["student_accuracy"],
            marker=key.marker(str(teacher)),
            s=key.area(str(student)),
            color=key.colour(float(budget)),
            edgecolors=edge,
            linewidths=edge_width,
            zorder=3,
        )
        hover(points, [_pair_text(row) for row in group.itertuples()])
    above = int(pairs["passed"].sum())
    text = f"{above} of {len(pairs)} above\ntheir teacher"
    if planned > len(pairs):
        text += f"\n{planned - len(pairs)} of {planned} not shown"
    axes.text(
        0.97,
        0.03,
        text,
        transform=axes.transAxes,
        ha="right",
        va="bottom",
        fontsize=6.5,
        zorder=4,
        bbox=NOTE_BOX,
    )


def _pair_text(row: Any) -> str:
    """What the pointer shows of a student and its teacher."""
    return (
        f"{row.config}, seed {row.seed:.0f}\n{row.label}, {row.kind}: {100 * row.student_accuracy:.1f} %, "
        f"its teacher {100 * row.teacher_accuracy:.1f} %\nbudget {flops(row.budget_flops)} FLOPs\n"
        f"run {row.run_id}, teacher {row.teacher_run_id}"
    )


def _table_lines(cells: pd.DataFrame, key: Key) -> list[tuple[str, dict[str, pd.Series]]]:
    """(line's name, student -> row) per budget, teacher and whatever else tells configurations apart."""
    lines: dict[tuple[Any, ...], dict[str, pd.Series]] = {}
    several = cells["teacher_share"].nunique() > 1
    for _, row in cells.iterrows():
        share = f" {100 * row['teacher_share']:.3g}%" if several and pd.notna(row["teacher_share"]) else ""
        variant = f" {row['variant']}" if row["variant"] else ""
        place = key.teachers.index(row["teacher"]) if row["teacher"] in key.teachers else -1
        arm = f" {row['arm']}" if len(key.arms) > 1 else ""
        name = f"{flops_text(row['budget_flops'])}  {row['teacher']}{share}{arm}{variant}"
        lines.setdefault((row["budget_flops"], place, name), {})[row["student"]] = row
    return [(line[-1], found) for line, found in sorted(lines.items(), key=lambda item: item[0])]


def _draw_table(axes: Axes, lines: list[tuple[str, dict[str, pd.Series]]], key: Key) -> None:
    axes.set_axis_off()
    if not lines:
        empty_note(axes, "no student with a frozen teacher")
        return
    students = key.students
    longest = max(len(name) for name, _ in lines)
    first = 0.24 if longest < 19 else 0.32 if longest < 24 else 0.38
    width = (1 - first) / len(students)
    height = len(lines)
    axes.set(xlim=(0, 1), ylim=(height, -1.6))
    gaps = [abs(row["gap"]) for _, found in lines for row in found.values() if pd.notna(row["gap"])]
    reach = max([*gaps, 0.01])
    norm, colours = TwoSlopeNorm(0.0, -reach, reach), matplotlib.colormaps["PuOr_r"]
    axes.text(0, -0.4, "budget, teacher", fontsize=6.2, va="center")
    for column, student in enumerate(students):
        x = first + (column + 0.5) * width
        axes.text(
            x,
            -1.15,
            f"{'student ' if len(students) < 4 else ''}{printable(student)}",
            fontsize=6.5,
            ha="center",
            va="center",
            fontweight="bold",
        )
        what = "mean±sd (n)  Δteacher | Δpixel" if len(students) < 4 else "(n) Δt. | Δp."
        axes.text(x, -0.4, what, fontsize=5.2, ha="center", va="center", color="#333333")
    for line, (name, found) in enumerate(lines):
        axes.text(
            0, line + 0.5, printable(textwrap.shorten(name, 26, placeholder="…")), fontsize=6.2, va="center"
        )
        for column, student in enumerate(students):
            row = found.get(student)
            _draw_cell(axes, first + column * width, line, width, row, norm, colours, len(students))


def _draw_cell(
    axes: Axes,
    x: float,
    line: int,
    width: float,
    row: pd.Series | None,
    norm: TwoSlopeNorm,
    colours: Colormap,
    columns: int,
) -> None:
    if row is None:
        axes.add_patch(
            Rectangle((x, line), width, 1, facecolor="white", edgecolor="#CCCCCC", hatch="////", lw=0.4)
        )
        return
    # Pale enough at both ends for black text.
    face = "#EEEEEE" if pd.isna(row["gap"]) else colours(0.5 + 0.55 * (float(norm(row["gap"])) - 0.5))
    axes.add_patch(Rectangle((x, line), width, 1, facecolor=face, edgecolor="white", lw=0.8))
    if row["n"] == 0:
        text = f"no scores ({int(row['n_lost'])} lost)"
    else:
        spread = "" if pd.isna(row["deviation"]) else f"±{100 * row['deviation']:.1f}"
        text = f"{100 * row['mean']:.1f}{spread} ({int(row['n'])})   "
        text += f"{_signed(row['gap'])} | {_signed(row['over_pixel'])}"
    size = 6.2 if columns <= 2 else max(3.5, 12.4 / columns)
    axes.text(x + width / 2, line + 0.5, text, fontsize=size, ha="center", va="center")


def _signed(value: float | None) -> str:
    if value is None or pd.isna(value):
        return "–"
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", "\u2212")


def _foot(foot: Any, handles: list[Line2D], names: list[str], columns: int, caption: str) -> None:
    _legend(foot, handles, names, columns)
    foot.text(0.012, 0.03, caption, fontsize=6, va="bottom", ha="left", color="#333333")


def _legend(part: Any, handles: list[Line2D], names: list[str], columns: int) -> None:
    if handles:
        part.legend(
            handles,
            names,
            loc="upper center",
            ncols=columns,
            bbox_to_anchor=(0.5, 1.0),
            handletextpad=0.3,
            columnspacing=1.4,
            borderaxespad=0.2,
            fontsize=6.8,
        )


def _caption(data: WeakTeacherData, pairs: pd.DataFrame) -> str:
    clips = sorted({int(value) for value in pairs["n_report"].dropna()})
    seeds = pairs["seed"].nunique()
    return (
        f"Study {printable(data.plan)}. Every point is one student run beside its own teacher; above the "
        f"dashed line it has passed it. Budgets are totals, teacher included ({data.convention} convention, "
        f"charge {data.charge}). {seeds} seed(s), {' or '.join(map(str, clips)) or 'no'} report clips."
    )


def _wrapped(text: str, width_in: float) -> str:
    return "\n".join(textwrap.wrap(text, int(width_in * 22.5)))
