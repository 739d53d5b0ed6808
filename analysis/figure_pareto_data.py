"""Data of the frontier figure, and of its CSV files: without drawing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.pareto import arm_rows, compared_flops, configurations, is_external_reference, usable
from analysis.records import write_csv


@dataclass(frozen=True)
class ParetoData:
    """What the figure shows: single runs, configurations over seeds, and reference levels."""

    runs: pd.DataFrame  # label, kind, arm, config, seed, compared_flops, accuracy, shown, reason
    configs: pd.DataFrame
    references: pd.DataFrame  # label, kind, reference, student, seed, accuracy, run_id; chance has no run
    plan: str
    charge: str
    convention: str


def pareto_data(
    table: pd.DataFrame, frames: str = "ordered", configs: pd.DataFrame | None = None
) -> ParetoData:
    """Data of the frontier figure. Rows that a log axis or an accuracy axis cannot show stay, with `shown`
    False.
    """
    rows = arm_rows(table).dropna(subset=["kind"])
    rows = rows[rows["frames"] == frames]
    cost = compared_flops(rows).astype("float64")
    shown = usable(rows) & (cost > 0)
    zero = usable(rows) & ~shown
    reason = rows["reason"].where(~zero, "zero FLOPs have no place on a log axis")
    columns = ["label", "kind", "arm", "config", "config_id", "budget_flops", "seed", "run_id", "total_flops"]
    runs = rows[[*columns, "accuracy", "n_report", "state"]].assign(
        reason=reason, compared_flops=cost, shown=shown
    )
    configs = configurations(table) if configs is None else configs
    configs = configs[configs["frames"] == frames].reset_index(drop=True)
    first = table.iloc[0]
    references = _references(table[table["frames"] == frames], set(rows["student"]))
    return ParetoData(
        runs.reset_index(drop=True),
        configs,
        references,
        str(first["plan"]),
        str(first["charge"]),
        str(first["convention"]),
    )


def _references(table: pd.DataFrame, students: set[str]) -> pd.DataFrame:
    """Levels to read accuracies against. A supervised encoder is headroom only for the label it was trained
    on.
    """
    rows = table[(table["role"] == "cell") & usable(table)]
    random = rows[(rows["arm"] == "random") & rows["student"].isin(students)]
    supervised = rows[(rows["arm"] == "supervised") & (rows["trained_label"] == rows["label"])]
    raw = rows[rows["arm"] == "raw"]
    external = rows[is_external_reference(rows)]
    columns = ["label", "kind", "reference", "student", "seed", "accuracy", "run_id"]
    parts = [part.assign(reference=part["arm"])[columns] for part in (random, supervised, raw, external)]
    chance = (
        rows.groupby(["label", "kind"])["chance"].mean().reset_index().rename(columns={"chance": "accuracy"})
    )
    parts.append(chance.assign(reference="chance").reindex(columns=columns))
    return pd.DataFrame([row for part in parts for row in part.to_dict("records")], columns=columns)


def panels(data: ParetoData) -> list[tuple[str, str]]:
    """(label, kind) in order: labels as in the plan's table, linear before knn before attentive."""
    order = {"linear": 0, "knn": 1, "attentive": 2}
    found = dict.fromkeys(zip(data.runs["label"], data.runs["kind"], strict=True))
    labels = list(dict.fromkeys(label for label, _ in found))
    return sorted(found, key=lambda pair: (labels.index(pair[0]), order.get(pair[1], len(order))))


def frontier_cells(table: pd.DataFrame, configs: pd.DataFrame) -> pd.DataFrame:
    """Cells of the configurations on a frontier, one row per label, kind and seed.

    A study's `extra_seeds: where: {frontier: FILE}` reads the column `cell_id`.
    """
    cells = table[table["role"] == "cell"].dropna(subset=["kind"])
    keys = ["label", "kind", "frames", "config_id", "budget_flops"]
    front = configs.loc[configs["on_frontier"], keys]
    found = cells.merge(front, on=keys, how="inner", validate="many_to_one")
    return found[["cell_id", "run_id", "arm", "student", "teacher", "seed", "budget_flops", "label", "kind"]]


def write_pareto_data(data: ParetoData, folder: Path, table: pd.DataFrame) -> list[Path]:
    """Write runs, configurations, reference levels and the frontier's cells as CSV."""
    return [
        write_csv(data.runs, folder / "pareto-runs.csv"),
        write_csv(data.configs, folder / "pareto-configurations.csv"),
        write_csv(data.references, folder / "pareto-references.csv"),
        write_csv(frontier_cells(table, data.configs), folder / "pareto-frontier-cells.csv"),
    ]
