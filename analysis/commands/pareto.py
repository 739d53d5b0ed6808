"""`salt-analyze pareto`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.command import Command, Job, per_label

if TYPE_CHECKING:
    import pandas as pd


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
    from analysis.conventions import under_every_rule, verdicts
    from analysis.cost_axis import cost_axis
    from analysis.frontier_draws import attainment, choices, frontier_curves, hypervolumes
    from analysis.multiplier import crossovers, multipliers
    from analysis.noise import measured_noise
    from analysis.pareto import configurations
    from analysis.records import records, stacked, write_csv

    cost = cost_axis(table, options.cost, options.price)
    configs = configurations(cost.table)
    noises, chosen = measured_noise(table), choices(configs)
    curves = frontier_curves(chosen, noises)
    ordered = configs[configs["frames"] == "ordered"]
    parts: dict[str, pd.DataFrame] = {
        "attainment": stacked([attainment(each) for each in curves]),
        "multipliers": stacked([multipliers(each) for each in curves]),
        "crossovers": stacked([crossovers(each) for each in curves]),
        "hypervolumes": stacked([hypervolumes(each) for each in curves]),
        "conventions": under_every_rule(table, chosen, noises) if options.cost == "flops" else stacked([]),
    }
    said = verdicts(parts["conventions"]) if len(parts["conventions"]) else []
    folder = out / "figures"
    paths = [write_csv(rows, folder / f"pareto-{name}.csv") for name, rows in parts.items() if len(rows)]
    paths += _figures(job, cost, configs, curves, parts["attainment"], folder)
    reference = _reference(options.reference)
    if reference is not None and not options.no_figures:
        paths += _reference_figure(options.reference, folder)
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
    job.print_lines(_sentences(parts, curves))
    job.print_lines([each.text for each in said])
    if not options.no_figures:
        job.print_paths(paths, "pareto.")


def _figures(
    job: Job, cost: Any, configs: pd.DataFrame, curves: Any, attained: pd.DataFrame, folder: Path
) -> list[Path]:
    from analysis.figure_pareto_data import pareto_data, write_pareto_data

    if job.options.no_figures:
        return write_pareto_data(pareto_data(cost.table, configs=configs), folder, cost.table)
    from analysis.figure_attainment import write_attainment
    from analysis.figure_pareto import write_pareto

    about = f"Study {job.name}."
    axis = cost.axis if cost.name != "flops" else "pretraining FLOPs, teacher included"
    if cost.name == "flops":
        first = cost.table.iloc[0]
        about += f" FLOPs: {first['convention']} convention, teacher training charged {first['charge']}."
    paths = write_pareto(cost.table, folder, cost.axis)
    return paths + write_attainment(curves, attained, folder, axis, about)


def _reference(name: str | None) -> pd.DataFrame | None:
    """Configurations of the published numbers, in their own convention and probes."""
    if name is None:
        return None
    from analysis.pareto import configurations
    from analysis.reference import reference_table

    configs = configurations(reference_table(name))
    return configs[configs["label"] == "avg4"]


def _reference_figure(name: str, folder: Path) -> list[Path]:
    """The published frontier as a figure of its own: its tasks, probes and FLOPs are on other scales."""
    from analysis.figure_pareto import draw_pareto
    from analysis.figure_pareto_data import panels, pareto_data
    from analysis.plots import write_figure
    from analysis.reference import reference_table

    table = reference_table(name)
    data = pareto_data(table[table["label"] == "avg4"].reset_index(drop=True))
    return write_figure(draw_pareto(data, panels(data)), folder, f"pareto-{name}")


def _sentences(parts: dict[str, pd.DataFrame], curves: Any) -> list[str]:
    lines = []
    for each in curves:
        rows = _of(parts["crossovers"], each)
        for row in rows.itertuples():
            lines.append(f"{each.label}, {each.kind}: {_crossing(row)}")
        rows = _of(parts["multipliers"], each)
        top = rows[rows["cost_b"] == rows.groupby("b")["cost_b"].transform("max")] if len(rows) else rows
        lines += [f"{each.label}, {each.kind}: {_multiplier(row)}" for row in top.itertuples()]
    return lines


def _of(rows: pd.DataFrame, each: Any) -> pd.DataFrame:
    return rows[(rows["label"] == each.label) & (rows["kind"] == each.kind)] if len(rows) else rows


def _crossing(row: Any) -> str:
    from analysis.plain import flops_text

    if row.status == "no common costs":
        return f"{row.a} and {row.b} have no costs in common"
    status = f"{row.a} and {row.b} cross several times" if row.status == "several crossings" else row.status
    text = f"{row.a} against {row.b}: {status} ({row.probability:.2f} of draws say so)"
    if not math.isnan(row.crossover):
        text += f", last at {flops_text(row.crossover)}"
        if not math.isnan(row.low):
            text += f" [{flops_text(row.low)}, {flops_text(row.high)}]"
    return text


def _multiplier(row: Any) -> str:
    from analysis.plain import flops_text

    place = f"for {row.b}'s {100 * row.accuracy_b:.1f} % at {flops_text(row.cost_b)}"
    ends = f"[{row.low:.2f}, {'beyond what was run' if math.isinf(row.high) else f'{row.high:.2f}'}]"
    ends += f", P(needs less) {row.probability:.2f}"
    if row.bound == "at most":
        return f"{row.a} does not get there {place}: less than {row.limit:.2f} times as efficient {ends}"
    if row.bound == "at least":
        return f"{row.a} is there at its smallest {place}: at least {row.limit:.2f} times as efficient {ends}"
    times = f"{1 / row.multiplier:.2f} times the compute of {row.b}"
    return f"{row.a} needs {times} {place}: multiplier {row.multiplier:.2f} {ends}"


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
