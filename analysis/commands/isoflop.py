"""`salt-analyze isoflop`."""

from __future__ import annotations

import argparse
import math
from typing import Any

from analysis.command import Command, Job
from salt.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `isoflop` alone."""
    parser.add_argument(
        "--metric", choices=("accuracy", "loss"), default="accuracy", help="what is best (default: accuracy)"
    )
    parser.add_argument(
        "--at", type=float, metavar="FLOPS", help="budget to extrapolate to (default: the largest one tried)"
    )
    parser.add_argument("--across", action="store_true", help="losses under different teachers together")
    parser.add_argument("--draws", type=int, default=2000, metavar="N", help="bootstrap fits (default: 2000)")


def run(job: Job) -> None:
    """Write profiles and figures, and say which size is best and what a parabola would have cost."""
    options = job.options
    if options.at is not None and not (math.isfinite(options.at) and options.at > 0):
        raise UserError(f"--at {options.at}: give a number of FLOPs above 0, such as 1e21")
    if options.draws < 50:
        raise UserError(f"--draws {options.draws}: give at least 50")
    table, out = job.table(), job.out
    from analysis.figure_isoflop import write_isoflop
    from analysis.isoflop_results import isoflop_results, law_table, profile_table
    from analysis.machine import flops_per_gpu_hour
    from analysis.records import records

    results = isoflop_results(
        table, options.metric, at=options.at, across=options.across, draws=options.draws
    )
    rate = flops_per_gpu_hour(table)
    paths = write_isoflop(results, table, out / "figures", rate)
    laws = law_table(results, rate)
    if options.json:
        job.print_json(paths, {"profiles": records(profile_table(results)), "exponents": records(laws)})
        return
    for result in results:
        job.print_tables([_table(result, options.metric)], "")
    job.print_lines([line for row in laws.itertuples() for line in _sentences(row)])
    job.print_paths(paths, "isoflop-")


def _table(result: Any, metric: str) -> Any:
    from analysis.plain import flops_text
    from analysis.tables import MISSING, Table

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


def _sentences(row: Any) -> list[str]:
    from analysis.plain import flops_text

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


COMMAND = Command(
    name="isoflop",
    text="The best encoder size at each budget, without the parabola's bias.",
    examples=(
        "salt-analyze isoflop --label motion --probe linear",
        "salt-analyze isoflop --table runs.csv --columns compute=budget,size=params,data=tokens \\",
        "      --metric loss --at 3.8e25",
    ),
    run=run,
    arguments=arguments,
)
