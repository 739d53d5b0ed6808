"""`salt-analyze pareto`."""

from __future__ import annotations

from analysis.command import Command, Job, per_label


def run(job: Job) -> None:
    """Write the frontier's figures and data, and print its table."""
    table, out = job.table(), job.out
    from analysis.figure_pareto import write_pareto
    from analysis.pareto import configurations
    from analysis.records import records
    from analysis.tables import frontier_table

    configs = configurations(table)
    configs = configs[configs["frames"] == "ordered"]
    paths = write_pareto(table, out / "figures")
    if job.options.json:
        job.print_json(paths, {"configurations": records(configs)})
        return
    job.print_tables(per_label(frontier_table(configs)))
    job.print_paths(paths, "pareto.")


COMMAND = Command(
    name="pareto",
    text="Accuracy-FLOPs frontier of each arm, with the spread over seeds.",
    examples=(
        "salt-analyze pareto                            the newest plan of ./salt-store",
        "salt-analyze pareto miniature --probe linear   one probe only",
        "salt-analyze pareto miniature --label motion --json > frontier.json",
    ),
    run=run,
)
