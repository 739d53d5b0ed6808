"""`salt-analyze weak-teacher`."""

from __future__ import annotations

import argparse
import math

from analysis.command import Command, Job, per_label
from salt.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `weak-teacher` alone."""
    parser.add_argument(
        "--within",
        type=float,
        default=0.5,
        metavar="POINTS",
        help="how far behind the best student the weakest teacher's may be, in points (default: 0.5)",
    )
    parser.add_argument(
        "--reference", choices=("salt2025",), help="draw published numbers beside the study's, in grey"
    )


def run(job: Job) -> None:
    """Write the figures of students against teachers, and say who limits whom."""
    options = job.options
    if not (math.isfinite(options.within) and 0 <= options.within <= 100):
        raise UserError(f"--within {options.within}: give points of accuracy between 0 and 100, such as 0.5")
    table, out = job.table(), job.out
    from analysis.figure_regime import regime_data, write_regime
    from analysis.figure_weak_teacher import weak_teacher_data, write_weak_teacher
    from analysis.published import LABEL, teacher_statements
    from analysis.records import records
    from analysis.reference import NAME, reference_table
    from analysis.regime import teacher_points, without_compute
    from analysis.regime_text import regime_sentences, regime_table
    from analysis.tables import weak_teacher_table
    from analysis.weak_teacher import share_above

    data = weak_teacher_data(table)
    if data.cells.empty:
        raise UserError(
            "no cell of this study has a frozen teacher, so there is nothing to set a student against: add "
            "an arm with teachers to the study file"
        )
    within = options.within / 100
    found = regime_data(table, within)
    published = table if options.table == NAME else None
    overlay = None
    if options.reference:
        published = reference_table(options.reference)
        overlay = (options.reference, teacher_points(published[published["label"] == LABEL]))
    paths = write_weak_teacher(table, out / "figures")
    paths += write_regime(found, out / "figures", overlay)
    lines = regime_sentences(found.regimes, found.turns, found.weakest, within)
    unknown = without_compute(table)
    if unknown:
        lines.append(
            f"{unknown} scores of students are in no group of equal student compute: the table says neither "
            "what they spent themselves nor their teacher's share"
        )
    if published is not None and (published["label"] == LABEL).any():
        lines += teacher_statements(published, within)
    if options.json:
        parts = {
            "table": data.cells,
            "pairs": data.pairs,
            "share_above": share_above(data.pairs),
            "regimes": found.regimes,
            "turning_points": found.turns,
            "weakest": found.weakest,
            "surface": found.surface,
        }
        job.print_json(paths, {name: records(rows) for name, rows in parts.items()} | {"statements": lines})
        return
    job.print_tables(per_label(weak_teacher_table(data.cells)))
    if len(found.weakest):
        job.print_tables(per_label(regime_table(found.regimes, found.turns, found.weakest, within)), "")
    job.print_lines(lines)
    job.print_paths(paths, "weak-teacher.")


COMMAND = Command(
    name="weak-teacher",
    text="Students against teachers: who limits, the weakest teacher that will do, pixels at equal FLOPs.",
    examples=(
        "salt-analyze weak-teacher",
        "salt-analyze weak-teacher miniature --label motion --probe linear --within 1",
        "salt-analyze weak-teacher miniature --reference salt2025 --out figures/",
        "salt-analyze weak-teacher --table salt2025 --label avg4",
    ),
    run=run,
    arguments=arguments,
)
