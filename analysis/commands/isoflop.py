"""`salt-analyze isoflop`."""

from __future__ import annotations

import argparse
import math

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
    from analysis.isoflop_text import isoflop_sentences, isoflop_table
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
        job.print_tables([isoflop_table(result, options.metric)], "")
    job.print_lines([line for row in laws.itertuples() for line in isoflop_sentences(row)])
    job.print_paths(paths, "isoflop-")


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
