"""`salt-analyze weak-teacher`."""

from __future__ import annotations

from analysis.command import Command, Job, per_label
from salt.errors import UserError


def run(job: Job) -> None:
    """Write the figures of students against teachers, and print their table."""
    table, out = job.table(), job.out
    from analysis.figure_weak_teacher import weak_teacher_data, write_weak_teacher
    from analysis.records import records
    from analysis.tables import weak_teacher_table
    from analysis.weak_teacher import share_above

    data = weak_teacher_data(table)
    if data.cells.empty:
        raise UserError(
            "no cell of this study has a frozen teacher, so there is nothing to set a student against: add "
            "an arm with teachers to the study file"
        )
    paths = write_weak_teacher(table, out / "figures")
    if job.options.json:
        parts = {"table": data.cells, "pairs": data.pairs, "share_above": share_above(data.pairs)}
        job.print_json(paths, {name: records(rows) for name, rows in parts.items()})
        return
    job.print_tables(per_label(weak_teacher_table(data.cells)))
    job.print_paths(paths, "weak-teacher.")


COMMAND = Command(
    name="weak-teacher",
    text="Student accuracy against teacher accuracy, beside pixel training at equal FLOPs.",
    examples=(
        "salt-analyze weak-teacher",
        "salt-analyze weak-teacher miniature --label motion --probe linear --out figures/",
    ),
    run=run,
)
