"""`salt-analyze compare`."""

from __future__ import annotations

import argparse

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
    from analysis.versus_text import versus_sentences, versus_table

    job.print_tables(per_label(versus_table(rows, options.level)))
    job.print_lines(versus_sentences(rows))
    job.print_paths(paths, "compare-")


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
