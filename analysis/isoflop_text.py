"""What isoFLOP profiles say: a table per group of runs, and sentences on exponents and parabolas."""

from __future__ import annotations

import math
from typing import Any

from analysis.isoflop_results import IsoflopResult
from analysis.plain import flops_text
from analysis.tables import MISSING, Table


def isoflop_table(result: IsoflopResult, metric: str) -> Table:
    def size(value: float) -> str:
        return MISSING if math.isnan(value) else f"{value:.4g}"

    rows = []
    for row in result.table.itertuples():
        surface = size(getattr(row, "size_surface", math.nan))
        ends = "" if math.isnan(row.size_low) else f" [{row.size_low:.3g}, {row.size_high:.3g}]"
        rows.append(
            (
                *(flops_text(row.budget_flops), f"{row.n}", f"{row.sizes}", row.status),
                *(size(row.size_parabola), size(row.size_profile), surface + ends),
            )
        )
    caption = f"{result.of.name}: surface {result.surface.status}"
    if result.surface.notes:
        caption += f" ({'; '.join(result.surface.notes)})"
    headers = ("budget", "runs", "sizes", "status", "best size: parabola", "profile", "surface [90 %]")
    return Table(caption, headers, rows)


def isoflop_sentences(row: Any) -> list[str]:
    place = ", ".join(part for part in (row.arm, row.label, row.kind) if part)
    if math.isnan(row.exponent_surface):
        return [
            f"{place}: the surface is {row.surface_status}, so the best size is not known beyond the profiles"
        ]
    ends = "" if math.isnan(row.exponent_low) else f" [{row.exponent_low:.3f}, {row.exponent_high:.3f}]"
    lines = [
        f"{place}: best size grows as C^{row.exponent_surface:.3f}{ends}; "
        f"{row.budgets_bracketed} of {row.budgets} budgets bracket it"
    ]
    for name, what in (("measured", "these runs' parabolas"), ("bias", "parabolas without any noise")):
        wasted = getattr(row, f"{name}_wasted_flops")
        if math.isnan(wasted):
            continue
        hours = getattr(row, f"{name}_wasted_gpu_hours")
        text = (
            f"  at {flops_text(row.target_flops)} FLOPs ({row.extrapolation:.3g} times the largest "
            f"budget tried) {what} "
            f"say {getattr(row, f'{name}_size_parabola'):.3g} parameters, the surface "
            f"{row.size_surface:.3g}: "
            f"{flops_text(wasted)} FLOPs wasted, {100 * getattr(row, f'{name}_wasted_share'):.2g} %"
        )
        if name == "bias" and not math.isnan(row.bias_share_low):
            text += f" [{100 * row.bias_share_low:.2g}, {100 * row.bias_share_high:.2g}]"
        lines.append(text + ("" if math.isnan(hours) else f", {hours:.3g} GPU-hours"))
    return lines
