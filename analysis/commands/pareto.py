"""`salt-analyze pareto`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.command import Command, Job, per_label

if TYPE_CHECKING:
    import pandas as pd

    from analysis.frontier import Frontier


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `pareto` alone."""
    parser.add_argument(
        "--cost",
        choices=("flops", "gpu-hours", "money", "parameters"),
        default="flops",
        help="what accuracy is set against (default: flops)",
    )
    parser.add_argument("--price", type=float, metavar="MONEY", help="of a GPU-hour, for --cost money")
    parser.add_argument("--no-figures", action="store_true", help="numbers and CSV only, without drawing")
    parser.add_argument("--reference", choices=("salt2025",), help="set published numbers beside it")


def run(job: Job) -> None:
    """Write the frontier's figures and data, and print what can be said of it."""
    options = job.options
    table, out = job.table(), job.out
    from analysis.frontier import frontier
    from analysis.frontier_text import frontier_sentences
    from analysis.records import records, write_csv

    found = frontier(table, options.cost, options.price)
    ordered, parts, said = found.ordered, found.parts, found.verdicts
    folder = out / "figures"
    paths = [write_csv(rows, folder / f"pareto-{name}.csv") for name, rows in parts.items() if len(rows)]
    paths += _figures(job, found, folder)
    reference = _reference(options.reference)
    if reference is not None and not options.no_figures:
        from analysis.figure_pareto import write_published

        paths += write_published(options.reference, folder)
    if options.json:
        whole: dict[str, Any] = {"configurations": records(ordered)}
        whole |= {name: records(rows) for name, rows in parts.items()}
        whole["verdicts"] = [each.__dict__ for each in said]
        if reference is not None:
            whole["reference"] = records(reference)
        job.print_json(paths, whole)
        return
    from analysis.tables import frontier_table

    tables = per_label(frontier_table(ordered))
    if reference is not None:
        tables += per_label(frontier_table(reference))
    job.print_tables(tables)
    job.print_lines(frontier_sentences(parts, found.curves))
    job.print_lines([each.text for each in said])
    if not options.no_figures:
        job.print_paths(paths, "pareto.")


def _figures(job: Job, found: Frontier, folder: Path) -> list[Path]:
    from analysis.figure_pareto_data import pareto_data, write_pareto_data

    if job.options.no_figures:
        return write_pareto_data(
            pareto_data(found.cost.table, configs=found.configs), folder, found.cost.table
        )
    from analysis.figure_attainment import write_attainments
    from analysis.figure_pareto import write_pareto

    return write_pareto(found.cost.table, folder, found.cost.axis) + write_attainments(
        found, job.name, folder
    )


def _reference(name: str | None) -> pd.DataFrame | None:
    """Configurations of the published numbers, in their own convention and probes."""
    if name is None:
        return None
    from analysis.pareto import configurations
    from analysis.reference import reference_table

    configs = configurations(reference_table(name))
    return configs[configs["label"] == "avg4"]


COMMAND = Command(
    name="pareto",
    text="Accuracy-FLOPs frontier of each arm: bands, multipliers, crossovers, every convention.",
    examples=(
        "salt-analyze pareto                            the newest plan of ./salt-store",
        "salt-analyze pareto miniature --probe linear   one probe only",
        "salt-analyze pareto miniature --label motion --json > frontier.json",
        "salt-analyze pareto --cost gpu-hours --no-figures",
        "salt-analyze pareto --table salt2025 --label avg4",
    ),
    run=run,
    arguments=arguments,
)
