"""`salt-analyze compare`."""

from __future__ import annotations

import argparse
from typing import Any

from analysis.command import Command, Job
from salt.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `compare` alone."""
    conditions = "conditions, such as arm=salt,student=micro (also teacher, share, variant, config)"
    parser.add_argument("--a", metavar="WHAT", help=f"one side: {conditions}")
    parser.add_argument("--b", metavar="WHAT", help="the other side (default of both: every pair of arms)")
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals (default: 0.95)")


def run(job: Job) -> None:
    """Compare, write figure and data, and say what may be said."""
    options = job.options
    if (options.a is None) != (options.b is None):
        raise UserError("--a and --b go together: name both sides, or neither for every pair of arms")
    if not 0.5 <= options.level < 1:
        raise UserError(f"--level {options.level}: give a share from 0.5 to below 1, such as 0.95")
    table, out = job.table(), job.out
    from analysis.figure_compare import write_compare
    from analysis.pareto import configurations
    from analysis.records import records
    from analysis.versus import all_arms, comparisons, side

    configs = configurations(table)
    pairs = all_arms(configs)
    if options.a is not None:
        pairs = [(side(options.a, configs, "--a"), side(options.b, configs, "--b"))]
    if not pairs:
        raise UserError("one arm in this table: name two sides with --a and --b")
    rows = comparisons(table, configs, pairs, options.level)
    if rows.empty:
        raise UserError("the two sides have no label, probe and budget in common, so nothing can be compared")
    paths = write_compare(rows, table, out / "figures", options.level)
    if options.json:
        job.print_json(paths, {"comparisons": records(rows)})
        return
    from analysis.command import per_label

    job.print_tables(per_label(_table(rows, options.level)))
    job.print_lines(_said(rows))
    job.print_paths(paths, "compare-")


def _table(rows: Any, level: float) -> Any:
    import pandas as pd

    from analysis.plain import flops_text
    from analysis.tables import MISSING, Table, count, interval, percent

    def number(value: float) -> str:
        return MISSING if pd.isna(value) else f"{value:.3f}"

    lines = [
        (
            *(row.label, row.kind, row.a, row.b),
            "all, by seed" if pd.isna(row.budget_flops) else flops_text(row.budget_flops),
            *(count(row.n), percent(row.difference, signed=True), interval(row.low, row.high, signed=True)),
            *(number(row.p), number(row.p_flip), number(row.p_holm), number(row.probability)),
            *(count(row.seeds_observed), count(row.seeds_point), row.basis),
        )
        for row in rows.itertuples()
    ]
    headers = (
        *("label", "probe", "a", "b", "budget", "seeds", "a − b, points", f"{100 * level:.3g} % interval"),
        *("p (t)", "p (sign flips)", "p (Holm)", "P(a better)", "seeds to see this", "seeds to see 1 point"),
        "interval from",
    )
    return Table("Paired comparisons", headers, lines, list(rows["run_ids"]))


def _said(rows: Any) -> list[str]:
    lines = []
    for (label, kind), group in rows[rows["budget_flops"].notna()].groupby(["label", "kind"], sort=False):
        family = int(group["family"].fillna(0).max())
        raw, kept = int((group["p"] < 0.05).sum()), int((group["p_holm"] < 0.05).sum())
        lines.append(
            f"{label}, {kind}: of {family} comparisons with an interval, {raw} have p below 0.05 alone "
            f"and {kept} after "
            f"Holm's correction; without any true difference {0.05 * family:.1f} of them would be "
            "expected by chance"
        )
        single = int((group["basis"] == "report clips alone (one seed)").sum())
        if single:
            lines.append(
                f"{label}, {kind}: {single} rest on one seed; their intervals hold the sampling of "
                "report clips alone, "
                "not what another seed would give"
            )
    return lines


COMMAND = Command(
    name="compare",
    text="Two sides, paired by seed and cell: difference, interval, how many seeds would tell.",
    examples=(
        "salt-analyze compare                                   every pair of arms",
        "salt-analyze compare --a arm=salt,student=micro --b arm=pixel,student=micro",
        "salt-analyze compare --a arm=salt,teacher=nano --b arm=salt,teacher=micro --json",
    ),
    run=run,
    arguments=arguments,
)
