"""`salt-analyze report`."""

from __future__ import annotations

from analysis.command import Command, Job


def run(job: Job) -> None:
    """Write the page with its figures and tables, and say where they are."""
    table, out = job.table(), job.out
    from analysis.report import FIGURES, TABLES, write_report
    from analysis.report_source import source_of

    report = write_report(source_of(job), table, out, lambda text: job.say(f"report: {text}"))
    if job.options.json:
        job.print_json(report.paths, report.findings())
        return
    print(f"report: {report.paths[0]}")
    print(f"figures: {out / FIGURES}")
    print(f"tables: {out / TABLES} (CSV and LaTeX)")


COMMAND = Command(
    name="report",
    text="One self-contained HTML file with figures, tables, and what may not be concluded.",
    examples=(
        "salt-analyze report",
        "salt-analyze report miniature --store /data/salt-store --out /tmp/report",
    ),
    run=run,
)
