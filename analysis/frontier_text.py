"""What frontiers say: crossovers and compute multipliers as sentences."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from analysis.plain import flops_text


def frontier_sentences(parts: dict[str, pd.DataFrame], curves: Any) -> list[str]:
    lines = []
    for each in curves:
        rows = _of(parts["crossovers"], each)
        for row in rows.itertuples():
            lines.append(f"{each.label}, {each.kind}: {_crossing(row)}")
        rows = _of(parts["multipliers"], each)
        top = rows[rows["cost_b"] == rows.groupby("b")["cost_b"].transform("max")] if len(rows) else rows
        lines += [f"{each.label}, {each.kind}: {_multiplier(row)}" for row in top.itertuples()]
    return lines


def _of(rows: pd.DataFrame, each: Any) -> pd.DataFrame:
    return rows[(rows["label"] == each.label) & (rows["kind"] == each.kind)] if len(rows) else rows


def _crossing(row: Any) -> str:
    if row.status == "no common costs":
        return f"{row.a} and {row.b} have no costs in common"
    status = f"{row.a} and {row.b} cross several times" if row.status == "several crossings" else row.status
    text = f"{row.a} against {row.b}: {status} ({row.probability:.2f} of draws say so)"
    if not math.isnan(row.crossover):
        text += f", last at {flops_text(row.crossover)}"
        if not math.isnan(row.low):
            text += f" [{flops_text(row.low)}, {flops_text(row.high)}]"
    return text


def _multiplier(row: Any) -> str:
    place = f"for {row.b}'s {100 * row.accuracy_b:.1f} % at {flops_text(row.cost_b)}"
    ends = f"[{row.low:.2f}, {'beyond what was run' if math.isinf(row.high) else f'{row.high:.2f}'}]"
    ends += f", P(needs less) {row.probability:.2f}"
    if row.bound == "at most":
        return f"{row.a} does not get there {place}: less than {row.limit:.2f} times as efficient {ends}"
    if row.bound == "at least":
        return f"{row.a} is there at its smallest {place}: at least {row.limit:.2f} times as efficient {ends}"
    times = f"{1 / row.multiplier:.2f} times the compute of {row.b}"
    return f"{row.a} needs {times} {place}: multiplier {row.multiplier:.2f} {ends}"
