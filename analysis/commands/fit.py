"""`salt-analyze fit`."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from analysis.command import Command, Job
from salt.errors import UserError

if TYPE_CHECKING:
    pass


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `fit` alone."""
    parser.add_argument(
        "--law",
        choices=("compute", "surface", "teacher", "teacher-compute"),
        default="compute",
        help="in compute; in size and data; either with the teacher's quality (default: compute)",
    )
    parser.add_argument(
        "--metric",
        choices=("accuracy", "loss"),
        default="accuracy",
        help="what is fitted (default: accuracy)",
    )
    parser.add_argument(
        "--at", type=float, metavar="FLOPS", help="predict this budget too, with how far it lies"
    )
    parser.add_argument(
        "--every", action="store_true", help="law in compute: all runs, not each arm's choice per budget"
    )
    parser.add_argument(
        "--across",
        action="store_true",
        help="losses of students of different teachers in one fit (on no common scale)",
    )
    parser.add_argument(
        "--huber", type=float, metavar="DELTA", help="where the Huber loss turns linear, such as 1e-3"
    )
    parser.add_argument("--draws", type=int, default=2000, metavar="N", help="bootstrap fits (default: 2000)")
    parser.add_argument("--level", type=float, default=0.90, help="of the intervals (default: 0.90)")


def run(job: Job) -> None:
    """Fit, write figure and data, and say what may be believed."""
    options = job.options
    _check(options)
    table, out = job.table(), job.out
    from analysis.figure_fit import write_fit
    from analysis.law_results import held_table, law_results, parameter_table, prediction_table
    from analysis.law_text import law_table, prediction_sentences
    from analysis.laws import LAWS
    from analysis.records import records

    if options.across and options.metric == "loss":
        job.say("--across: losses under different teachers have different targets and are on no common scale")
    results = law_results(
        table,
        LAWS[options.law],
        options.metric,
        every=options.every,
        across=options.across,
        huber=options.huber,
        draws=options.draws,
        level=options.level,
    )
    paths = write_fit(results, table, out / "figures", options.at)
    parameters, held = parameter_table(results), held_table(results)
    parts: dict[str, Any] = {"parameters": records(parameters), "held_out": records(held)}
    if options.at is not None:
        parts["predictions"] = records(prediction_table(results, options.at))
    if options.json:
        job.print_json(paths, parts)
        return
    job.print_tables([law_table(results, options.metric)], _footer(job, options))
    if options.at is not None:
        job.print_lines(
            prediction_sentences(prediction_table(results, options.at), options.metric, options.level)
        )
    job.print_paths(paths, f"fit-{options.law}-{options.metric}.")


def _check(options: argparse.Namespace) -> None:
    if options.at is not None and not (math.isfinite(options.at) and options.at > 0):
        raise UserError(f"--at {options.at}: give a number of FLOPs above 0, such as 1e21")
    if options.at is not None and options.law != "compute":
        raise UserError(
            f"--at says a budget, and the law {options.law} is not in compute alone: take --law compute"
        )
    if options.huber is not None and not (math.isfinite(options.huber) and options.huber > 0):
        raise UserError(f"--huber {options.huber}: give a number above 0, such as 1e-3")
    if not 50 <= options.draws <= 1_000_000:
        raise UserError(f"--draws {options.draws}: give at least 50, and at most a million")
    if not 0.5 <= options.level < 1:
        raise UserError(f"--level {options.level}: give a share from 0.5 to below 1, such as 0.90")


def _footer(job: Job, options: argparse.Namespace) -> str:
    first = job.table().iloc[0]
    return (
        f"Intervals: {100 * options.level:.3g} %, wild bootstrap by independent runs ({options.draws} fits). "
        f"FLOPs: {first['convention']} convention, teacher training charged {first['charge']}. Unrounded "
        "parameters, all starts and residuals are in the CSV files."
    )


COMMAND = Command(
    name="fit",
    text="Scaling laws in compute, size and data, or the teacher's quality, with honest intervals.",
    examples=(
        "salt-analyze fit miniature --label motion --probe linear",
        "salt-analyze fit --law surface --metric loss",
        "salt-analyze fit --at 1e22",
        "salt-analyze fit --table results.csv --columns compute=C,size=N,data=D,loss=loss \\",
        "      --law surface --metric loss --huber 1e-3",
    ),
    run=run,
    arguments=arguments,
)
