"""`salt-analyze suggest`."""

from __future__ import annotations

import argparse
import math

from analysis.command import Command, Job
from salt.errors import UserError

QUESTIONS = ("best-share", "frontier", "crossover", "arms")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--question",
        choices=QUESTIONS,
        default="arms",
        help="what to narrow: the best teacher share, the best configuration at each budget, the budget "
        "where two arms change places, or the differences of arms (default)",
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="how many to suggest (default: 10)")
    parser.add_argument(
        "--seed-sd",
        type=float,
        metavar="POINTS",
        help="noise between seeds of one configuration, where it is not to be measured on the results",
    )


def run(job: Job) -> None:
    """Print what to run next, and write it as CSV."""
    options = job.options
    if options.table:
        raise UserError("--table: what to run next needs a plan with its prices; name a study of the store")
    if options.top < 1:
        raise UserError(f"--top {options.top}: give 1 or more")
    if options.seed_sd is not None and not (math.isfinite(options.seed_sd) and options.seed_sd > 0):
        raise UserError(f"--seed-sd {options.seed_sd:g}: give a standard deviation in points, above 0")
    table, out = job.table(), job.out
    from analysis.records import records, write_csv
    from analysis.suggest import suggest
    from analysis.suggest_table import batch_lines, study_lines, suggestion_rows, suggestion_table
    from salt.plans import read_plan
    from salt.store import RunDir

    plan = read_plan(job.store, job.name)
    done = [run.run_id for run in plan.runs if RunDir(job.store, run.run_id).result.exists()]
    batch = suggest(plan, table, done, options.question, options.top, options.seed_sd)
    rows = suggestion_rows(batch)
    lines, study = batch_lines(batch), study_lines(batch, plan)
    out.mkdir(parents=True, exist_ok=True)
    path = write_csv(rows, out / f"suggest-{options.question}.csv")
    if options.json:
        parts = {"question": options.question, "label": batch.label, "kind": batch.kind}
        job.print_json([path], parts | {"suggestions": records(rows), "study_lines": study, "lines": lines})
        return
    if len(rows):
        job.print_tables([suggestion_table(batch, rows)])
    job.print_lines(lines)
    if study:
        job.print_lines(["", "in the study file:", *study, ""])
    print(f"data: {path}")


COMMAND = Command(
    name="suggest",
    text="What to run next per GPU-hour to narrow a question, charging each new teacher once.",
    examples=(
        "salt-analyze suggest --question best-share",
        "salt-analyze suggest miniature --question arms --top 5 --label motion --probe linear",
        "salt-analyze suggest miniature --question crossover --json > next.json",
    ),
    run=run,
    arguments=arguments,
)
