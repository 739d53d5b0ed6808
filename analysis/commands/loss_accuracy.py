"""`salt-analyze loss-accuracy`."""

from __future__ import annotations

import argparse
from typing import Any

from analysis.command import Command, Job


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `loss-accuracy` alone."""
    parser.add_argument(
        "--across",
        action="store_true",
        help="all teachers and arms on one axis, though their losses have different targets",
    )


def run(job: Job) -> None:
    """Write the figure and data, and say how well loss and label-free metrics tell accuracy."""
    table, out = job.table(), job.out
    from analysis.figure_loss_accuracy import write_loss_accuracy
    from analysis.loss_accuracy import PREDICTORS, loss_points, predictions
    from analysis.loss_accuracy_text import predictor_table
    from analysis.records import records

    across = job.options.across
    points = loss_points(table, across)
    if across:
        job.say(
            "--across: losses of different teachers and arms have different targets and are on no "
            "common scale"
        )
    found = predictions(points)
    paths = write_loss_accuracy(points, found, table, out / "figures", across)
    if job.options.json:
        job.print_json(paths, {"predictions": records(found), "across": across})
        return
    job.print_tables([predictor_table(found)], _footer(points))
    missing = set(PREDICTORS) - set(found.loc[found["status"] != "not measured", "predictor"])
    if missing:
        job.print_lines(
            [f"not measured: {', '.join(PREDICTORS[name] for name in PREDICTORS if name in missing)}"]
        )
    job.print_paths(paths, "loss-accuracy.")


def _footer(points: Any) -> str:
    return (
        f"{points['run_id'].nunique()} runs. Loss is compared only among runs with the same targets. "
        "Error left out: "
        "each run predicted by a line through the others. Nothing here is corrected for looking at "
        "several groups."
    )


COMMAND = Command(
    name="loss-accuracy",
    text="Does training loss, RankMe, LiDAR or alpha-ReQ tell accuracy, within one teacher?",
    examples=(
        "salt-analyze loss-accuracy --label motion --probe linear",
        "salt-analyze loss-accuracy miniature --across     all teachers on one axis, said so",
    ),
    run=run,
    arguments=arguments,
)
