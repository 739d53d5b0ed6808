"""A forest of differences: each comparison with its interval, those over all budgets set apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.plain import flops_text
from analysis.plots import COLUMN_IN, file_name, panel_title, printable, style, wrapped, write_figure
from analysis.records import write_csv


def write_compare(rows: pd.DataFrame, table: pd.DataFrame, folder: Path, level: float) -> list[Path]:
    """Write one figure per label and probe, `compare-<label>-<probe>`, and the rows as CSV."""
    paths = [write_csv(rows, folder / "compare.csv")]
    for (label, kind), group in rows.groupby(["label", "kind"], sort=False):
        figure = draw_compare(group, table, level)
        paths += write_figure(figure, folder, file_name("compare", str(label), str(kind)))
    return paths


def draw_compare(rows: pd.DataFrame, table: pd.DataFrame, level: float) -> Figure:
    """Differences in points, in the order of the rows; what has no interval is a mark alone."""
    with style():
        first, head = table.iloc[0], rows.iloc[0]
        family = rows.loc[rows["budget_flops"].notna(), "family"].max()
        counted = 0 if pd.isna(family) else int(family)
        caption = wrapped(
            f"Study {printable(first['plan'])}. Each side's choice on the selection clips; bars: "
            f"{100 * level:.0f} % "
            f"intervals (Student's t over paired seeds, n beside), uncorrected for {counted} "
            "comparisons; filled: "
            "claimed after Holm's correction. Diamonds: mean over budgets. "
            f"FLOPs: {first['convention']} convention, teacher training charged {first['charge']}.",
            COLUMN_IN,
        )
        foot = 0.106 * (caption.count("\n") + 1) + 0.1
        body = 0.75 + 0.2 * len(rows)
        figure = Figure(figsize=(COLUMN_IN, body + foot))
        axes = figure.subplots()
        figure.subplots_adjust(
            left=0.46, right=0.93, top=1 - 0.26 / (body + foot), bottom=(foot + 0.4) / (body + foot)
        )
        panel_title(axes, str(head["label"]), str(head["kind"]))
        axes.axvline(0, color="#666666", lw=0.7, ls=(0, (4, 2)))
        names = []
        for place, row in enumerate(rows.itertuples()):
            whole = pd.isna(row.budget_flops)
            names.append(
                f"{printable(row.a)} − {printable(row.b)}, "
                + ("all budgets" if whole else flops_text(row.budget_flops))
            )
            if pd.isna(row.difference):
                continue
            if not pd.isna(row.low):
                axes.plot([100 * row.low, 100 * row.high], [place, place], color="#0072B2", lw=1.0)
            claimed = not pd.isna(row.p_holm) and row.p_holm < 0.05
            axes.plot(
                100 * row.difference,
                place,
                marker="D" if whole else "o",
                ms=4,
                mec="#0072B2",
                mfc="#0072B2" if claimed else "white",
            )
            axes.text(
                1.01, place, f"{int(row.n)}", transform=axes.get_yaxis_transform(), fontsize=6, va="center"
            )
        axes.set_yticks(np.arange(len(names)), labels=names)
        axes.tick_params(axis="y", labelsize=6)
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.set_xlabel("difference, points")
        figure.text(0.012, 0.03 / (body + foot), caption, fontsize=6, va="bottom", color="#333333")
        return figure
