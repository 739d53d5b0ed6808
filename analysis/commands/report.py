"""`salt-analyze report`."""

from __future__ import annotations

from analysis.command import Command, Job


def run(job: Job) -> None:
    """Write the page with its figures, and say where they are."""
    table, out = job.table(), job.out
    from analysis.report import collect, evidence_records, write_report

    paths = write_report(job.store, table, out, lambda text: job.say(f"report: {text}"))
    if job.options.json:
        job.print_json(paths, evidence_records(collect(table)))
        return
    print(f"report: {paths[0]}")
    print(f"figures: {out / 'figures'}")


COMMAND = Command(
    name="report",
    text="One self-contained HTML file with figures, tables, and what may not be concluded.",
    examples=(
        "salt-analyze report",
        "salt-analyze report miniature --store /data/salt-store --out /tmp/report",
    ),
    run=run,
)
