"""The figure of fitted laws: curves with bands over compute, or measured against predicted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.law_results import (
    LawResult,
    curve_table,
    held_table,
    parameter_table,
    point_table,
    start_table,
)
from analysis.plots import (
    ARM_NAMES,
    COLUMN_IN,
    NOTE_BOX,
    PAGE_IN,
    Look,
    empty_note,
    few_log_labels,
    looks_of,
    printable,
    style,
    wrapped,
    write_figure,
)
from analysis.records import write_csv

#: Panels of one figure; more are in the CSV.
_MOST_PANELS = 12


def write_fit(results: list[LawResult], table: pd.DataFrame, folder: Path, at: float | None) -> list[Path]:
    """Write `fit-<law>-<metric>.{png,pdf}`, and as CSV parameters, held-out budgets, starts, points and
    curves.
    """
    first = results[0]
    name = f"fit-{first.fit.law.name}-{first.fit.data.metric}"
    tables = fit_tables(results, at)
    paths = [write_csv(rows, folder / f"{name}-{part}.csv") for part, rows in tables.items()]
    return paths + write_figure(draw_fit(results, tables, table), folder, name)


def fit_tables(results: list[LawResult], at: float | None = None) -> dict[str, pd.DataFrame]:
    """What a figure of fits is drawn from, by name; `at` is a budget in FLOPs up to which curves go."""
    return {
        "parameters": parameter_table(results),
        "held-out": held_table(results),
        "starts": start_table(results),
        "points": point_table(results),
        "curves": curve_table(results, at),
    }


def draw_fit(results: list[LawResult], tables: dict[str, pd.DataFrame], table: pd.DataFrame) -> Figure:
    """One panel per label and probe with all arms (laws in compute), or per fit (measured against
    predicted).
    """
    with style():
        curves = results[0].fit.law.columns == ("compute",)
        keys = list(
            dict.fromkeys(
                (r.of.label, r.of.kind) if curves else (r.of.label, r.of.kind, r.of.arm) for r in results
            )
        )
        shown = keys[:_MOST_PANELS]
        columns = min(3, len(shown))
        rows = -(-len(shown) // columns)
        width = COLUMN_IN if columns == 1 else PAGE_IN * columns / 3 if columns < 3 else PAGE_IN
        caption = wrapped(_caption(results, table, len(keys) - len(shown)), width)
        foot = 0.106 * (caption.count("\n") + 1) + 0.1
        body = 2.15 * rows
        figure = Figure(figsize=(width, body + foot))
        grid = figure.subplots(rows, columns, squeeze=False)
        figure.subplots_adjust(
            left=0.55 / width,
            right=1 - 0.1 / width,
            top=1 - 0.26 / (body + foot),
            bottom=(foot + 0.42) / (body + foot),
            hspace=0.5,
            wspace=0.3,
        )
        for number, axes in enumerate(grid.flat):
            if number >= len(shown):
                axes.set_axis_off()
                continue
            mine = [
                r for r in results if (r.of.label, r.of.kind, r.of.arm)[: len(shown[number])] == shown[number]
            ]
            if curves:
                _curves(axes, mine, tables)
            else:
                _measured(axes, mine[0], tables["points"])
        figure.text(0.012, 0.03 / (body + foot), caption, fontsize=6, va="bottom", ha="left", color="#333333")
        return figure


def _axis(metric: str) -> tuple[str, float]:
    return ("accuracy (%)", 100.0) if metric == "accuracy" else ("training loss", 1.0)


def _curves(axes: Axes, results: list[LawResult], tables: dict[str, pd.DataFrame]) -> None:
    name, scale = _axis(results[0].fit.data.metric)
    looks = looks_of(list(dict.fromkeys(r.of.arm for r in results)))
    title = ", ".join(part for part in (results[0].of.label, results[0].of.kind) if part)
    axes.set_title(printable(title), loc="left")
    axes.set_xscale("log")
    for result in results:
        look = looks[result.of.arm]
        points, curve, held = (_mine(tables[part], result) for part in ("points", "curves", "held-out"))
        axes.scatter(
            points["compute"],
            scale * points["measured"],
            s=9,
            marker=look.marker,
            color=look.colour,
            alpha=0.6,
            lw=0,
        )
        label = f"{ARM_NAMES.get(result.of.arm, printable(result.of.arm))}: {result.fit.status}"
        if curve.empty:
            axes.plot([], [], color=look.colour, marker=look.marker, ls="", ms=4, label=label)
        else:
            axes.plot(curve["compute"], scale * curve["value"], color=look.colour, ls=look.line, label=label)
            axes.fill_between(
                curve["compute"],
                scale * curve["low"],
                scale * curve["high"],
                color=look.colour,
                alpha=0.13,
                lw=0,
            )
        _held_mark(axes, held, scale, look)
    _limits(axes, scale * np.concatenate([_mine(tables["points"], r)["measured"] for r in results]))
    compute = np.concatenate([_mine(tables["points"], r)["compute"] for r in results])
    if compute.max() < 2 * compute.min():  # else ticks at odd places run into each other
        centre = float(np.sqrt(compute.min() * compute.max()))
        axes.set_xlim(centre / 4, centre * 4)
    few_log_labels(axes)
    axes.set_xlabel("pretraining FLOPs, teacher included")
    axes.set_ylabel(name)
    axes.legend(loc="best", fontsize=5.8, handlelength=2.2)


def _held_mark(axes: Axes, held: pd.DataFrame, scale: float, look: Look) -> None:
    """Hollow: what the law without the largest budget said of it."""
    good = held[np.isfinite(held["predicted"].astype("float64"))]
    if len(good):
        axes.plot(
            good["budget_flops"],
            scale * good["predicted"],
            ls="",
            marker=look.marker,
            ms=6,
            mfc="none",
            mec=look.colour,
            mew=0.9,
            zorder=4,
        )


def _measured(axes: Axes, result: LawResult, points: pd.DataFrame) -> None:
    name, scale = _axis(result.fit.data.metric)
    look = looks_of([result.of.arm])[result.of.arm]
    title = ", ".join(part for part in (result.of.arm, result.of.label, result.of.kind) if part)
    axes.set_title(printable(title), loc="left")
    mine = _mine(points, result)
    if not result.fit.usable:
        empty_note(axes, f"{result.fit.status}:\n" + "\n".join(result.fit.notes).replace(": ", ":\n"))
        return
    ends = scale * np.array(
        [mine[["measured", "predicted"]].min().min(), mine[["measured", "predicted"]].max().max()]
    )
    axes.plot(ends, ends, color="#666666", lw=0.8, ls=(0, (4, 2)))
    axes.scatter(
        scale * mine["predicted"],
        scale * mine["measured"],
        s=11,
        marker=look.marker,
        color=look.colour,
        alpha=0.6,
        lw=0,
    )
    axes.set_xlabel(f"predicted {name}")
    axes.set_ylabel(f"measured {name}")
    axes.text(
        0.03,
        0.97,
        f"{result.fit.status}, n = {len(mine)}",
        transform=axes.transAxes,
        va="top",
        fontsize=6,
        bbox=NOTE_BOX,
    )


def _limits(axes: Axes, values: Any) -> None:
    """The axis fits the runs: a band that is wide says so by leaving the panel, not by flattening them."""
    low, high = float(np.min(values)), float(np.max(values))
    span = max(high - low, 1e-3 * max(abs(high), 1.0))
    axes.set_ylim(low - 0.45 * span, high + 0.45 * span)


def _mine(rows: pd.DataFrame, result: LawResult) -> pd.DataFrame:
    if rows.empty:
        return rows
    same = (
        (rows["arm"] == result.of.arm) & (rows["label"] == result.of.label) & (rows["kind"] == result.of.kind)
    )
    return rows[same]


def _caption(results: list[LawResult], table: pd.DataFrame, more: int) -> str:
    first, fit = table.iloc[0], results[0].fit
    counts = [len(result.fit.data) for result in results]
    lost = sum(result.of.lost for result in results)
    level = next((r.draws.level for r in results if r.draws is not None), math.nan)
    band = "" if math.isnan(level) else f" Bands: {100 * level:.3g} % intervals of the mean, wild bootstrap."
    n = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
    return (
        f"Study {printable(first['plan'])}. Law {fit.law.formula(fit.data.metric)}; n = {n} runs a fit"
        + (f", {lost} without a finite number left out" if lost else "")
        + f" ({results[0].of.what})."
        + (band if fit.law.columns == ("compute",) else "")
        + (
            " Hollow: the largest budget as predicted from the others."
            if fit.law.columns == ("compute",)
            and any(r.held and math.isfinite(r.held.predicted) for r in results)
            else ""
        )
        + f" FLOPs: {first['convention']} convention, teacher training charged {first['charge']}."
        + (f" {more} more panels in the CSV files." if more else "")
    )
