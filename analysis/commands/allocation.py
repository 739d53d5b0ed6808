"""`salt-analyze allocation`."""

from __future__ import annotations

import argparse

from analysis.command import Command, Job, per_label
from salt.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `allocation` alone."""
    parser.add_argument(
        "--reference", choices=("salt2025",), help="draw published numbers beside the study's, in grey"
    )
    parser.add_argument(
        "--draws", type=int, default=4000, metavar="N", help="bootstrap draws (default: 4000)"
    )


def run(job: Job) -> None:
    """Write the figures of accuracy along the teacher's share, and say where it is best and how flat."""
    options = job.options
    if options.draws < 50:
        raise UserError(f"--draws {options.draws}: give at least 50")
    table, out = job.table(), job.out
    from analysis.allocation import allocation
    from analysis.allocation_text import FOOTER, allocation_sentences, allocation_table
    from analysis.figure_allocation import Overlay, write_allocation
    from analysis.published import LABEL, allocation_statements
    from analysis.records import records
    from analysis.reference import NAME, reference_table

    result = allocation(table, draws=options.draws)
    if result.optima.empty:
        raise UserError(
            "no finished run of this study has a teacher with a share of the budget, so there is no split to "
            "judge: add an arm with teachers to the study file"
        )
    overlay, published = None, table if options.table == NAME else None
    if options.reference:
        published = reference_table(options.reference)
        overlay = Overlay(
            options.reference, allocation(published[published["label"] == LABEL], draws=options.draws)
        )
    first = table.iloc[0]
    about = {name: str(first[name]) for name in ("plan", "charge", "convention")}
    paths = write_allocation(result, about, out / "figures", overlay)
    lines = allocation_sentences(result)
    if published is not None and (published["label"] == LABEL).any():
        lines += allocation_statements(published)
    if options.json:
        parts = {"optima": result.optima, "points": result.points, "trends": result.trends}
        job.print_json(paths, {name: records(rows) for name, rows in parts.items()} | {"statements": lines})
        return
    footer = f"FLOPs: {about['convention']} convention, teacher training charged {about['charge']}. "
    footer += FOOTER.format(draws=options.draws)
    job.print_tables(per_label(allocation_table(result.optima)), footer)
    job.print_lines(lines)
    job.print_paths(paths, "allocation-")


COMMAND = Command(
    name="allocation",
    text="Accuracy along the teacher's share of the budget: the best share, how flat, its trend.",
    examples=(
        "salt-analyze allocation",
        "salt-analyze allocation miniature --label motion --reference salt2025",
        "salt-analyze allocation --table salt2025 --label avg4",
    ),
    run=run,
    arguments=arguments,
)
