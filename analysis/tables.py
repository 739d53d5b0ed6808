"""Tables as people read them: numbers in words of the study, missing values as a dash, run ids beside each
row.

The command line and the report print the same tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.gather import SCORE_KEY
from analysis.pareto import is_external_reference, usable
from analysis.plain import flops_text

MISSING = "–"


@dataclass(frozen=True)
class Table:
    """A caption, headers and rows of text; `run_ids` holds the runs behind each row, in the same order."""

    caption: str
    headers: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    run_ids: Sequence[tuple[str, ...]] = ()


def percent(value: Any, signed: bool = False) -> str:
    """A share in percent (or a difference in points, signed) with one decimal."""
    if value is None or pd.isna(value):
        return MISSING
    number = round(100 * float(value), 1) + 0.0  # no minus zero
    return f"{number:+.1f}" if signed else f"{number:.1f}"


def interval(low: Any, high: Any, signed: bool = False) -> str:
    """`[low, high]` in percent or points."""
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return MISSING
    return f"[{percent(low, signed)}, {percent(high, signed)}]"


def flops(value: Any) -> str:
    return MISSING if value is None or pd.isna(value) else flops_text(float(value))


def count(value: Any) -> str:
    return MISSING if value is None or pd.isna(value) else f"{int(value):,}"


def frontier_table(configs: pd.DataFrame, only_frontier: bool = True) -> Table:
    """Configurations on their arm's frontier (or all of them), with spread over seeds and gain over "
    "random."""
    rows = configs[configs["on_frontier"]] if only_frontier else configs
    several_frames = configs["frames"].nunique() > 1
    lines: list[tuple[str, ...]] = []
    runs: list[tuple[str, ...]] = []
    for row in rows.itertuples():
        probe = f"{row.kind} ({row.frames})" if several_frames else row.kind
        lines.append(
            (
                row.label,
                probe,
                row.arm,
                row.config.removeprefix(f"{row.arm} "),
                flops(row.budget_flops),
                flops(row.flops),
                percent(row.mean),
                _range(row),
                interval(row.low, row.high),
                _seeds(row.n, row.n_lost),
                percent(row.gain, signed=True),
                interval(row.gain_low, row.gain_high, signed=True),
                "yes" if row.on_frontier else "",
            )
        )
        runs.append(row.run_ids)
    headers: tuple[str, ...] = (
        *("label", "probe", "arm", "configuration", "budget", "FLOPs", "accuracy %", "range over seeds"),
        *("95 % t interval", "seeds", "gain over random", "95 % t interval of the gain", "frontier"),
    )
    if only_frontier:
        lines, headers = [line[:-1] for line in lines], headers[:-1]
    what = "Configurations on their arm's frontier" if only_frontier else "All configurations"
    return Table(
        f"{what}. Accuracy on the report clips in %, gains in points, paired by seed and size.",
        headers,
        lines,
        runs,
    )


def _range(row: Any) -> str:
    """Lowest to highest seed; a single seed has no range."""
    return f"{percent(row.minimum)} to {percent(row.maximum)}" if row.n > 1 else MISSING


def _seeds(n: Any, lost: Any) -> str:
    return f"{int(n)}" + (f" of {int(n + lost)}" if lost else "")


def control_table(table: pd.DataFrame) -> Table:
    """What accuracies must be read against: chance, raw pixels, order destroyed, random and supervised
    encoders.
    """
    rows = table[(table["role"] == "cell") & usable(table)]
    lines, runs = [], []
    elsewhere = is_external_reference(rows)
    for (label, kind), group in rows.groupby(["label", "kind"], sort=True):
        ordered = group[group["frames"] == "ordered"]
        disordered = group[(group["frames"] != "ordered") & ~group["arm"].isin(["raw"])]
        parts = [
            ordered[ordered["arm"] == "raw"],
            group[(group["frames"] != "ordered") & (group["arm"] == "raw")],
            disordered[disordered["frames"] == "shuffled"],
            disordered[disordered["frames"].isin(["first", "middle"])],
            ordered[ordered["arm"] == "random"],
            ordered[(ordered["arm"] == "supervised") & (ordered["trained_label"] == label)],
        ]
        if elsewhere.any():
            parts.append(ordered[elsewhere.loc[ordered.index]])
        lines.append(
            (
                str(label),
                str(kind),
                percent(group["chance"].mean()),
                *(_mean_and_range(part) for part in parts),
            )
        )
        runs.append(tuple(dict.fromkeys(run for part in parts for run in part["run_id"])))
    headers = (
        "label",
        "probe",
        "chance",
        "raw pixels",
        "raw, order destroyed",
        "encoders, shuffled frames",
        "encoders, one frame",
        "random encoder",
        "supervised",
        *(["external models"] if elsewhere.any() else []),
    )
    caption = (
        "Accuracy in %: mean (lowest to highest; number of scores). Chance is the most frequent class of "
        "the report clips. Raw pixels are taken as they are, unprocessed. Supervised: only on the label it "
        "was trained for."
    )
    return Table(caption, headers, lines, runs)


def _mean_and_range(part: pd.DataFrame) -> str:
    values = part["accuracy"]
    if values.empty:
        return MISSING
    if len(values) == 1:
        return f"{percent(values.iloc[0])} (1)"
    return f"{percent(values.mean())} ({percent(values.min())} to {percent(values.max())}; {len(values)})"


def weak_teacher_table(cells: pd.DataFrame) -> Table:
    """Teacher x student at each budget, and beside it the pixel arm at equal FLOPs; arms where several."""
    several = cells["arm"].nunique() > 1
    lines = [
        (
            row.label,
            row.kind,
            flops(row.budget_flops),
            " ".join(text for text in (row.teacher, row.arm if several else "", row.variant) if text),
            row.student,
            percent(row.teacher_mean),
            percent(row.mean),
            _range(row),
            _seeds(row.n, row.n_lost),
            percent(row.gap, signed=True),
            interval(row.gap_low, row.gap_high, signed=True),
            f"{int(row.above)}",
            percent(row.pixel_mean),
            percent(row.over_pixel, signed=True),
            interval(row.over_pixel_low, row.over_pixel_high, signed=True),
        )
        for row in cells.itertuples()
    ]
    headers = (
        "label",
        "probe",
        "budget",
        "teacher, arm" if several else "teacher",
        "student",
        "teacher %",
        "student %",
        "range over seeds",
        "seeds",
        "student − teacher",
        "95 % t interval",
        "above teacher",
        "pixel, equal FLOPs %",
        "student − pixel",
        "95 % t interval",
    )
    caption = (
        "Students beside their teachers. The pixel arm spends the same total on one encoder of the "
        "student's size: without a lead over it, being above the teacher is no evidence for distillation."
    )
    return Table(caption, headers, lines, list(cells["run_ids"]))


def difference_table(differences: pd.DataFrame, caption: str) -> Table:
    """Paired differences a − b with intervals, corrected p and what may be said."""
    lines = [
        (
            row.label,
            row.kind,
            flops(row.budget_flops),
            row.a,
            row.b,
            count(row.n),
            percent(row.difference, signed=True),
            interval(row.low, row.high, signed=True),
            MISSING if pd.isna(row.p_holm) else f"{row.p_holm:.3f}",
            row.verdict,
        )
        for row in differences.itertuples()
    ]
    headers = (
        "label",
        "probe",
        "budget",
        "a",
        "b",
        "seeds",
        "a − b, points",
        "95 % t interval",
        "p (Holm)",
        "what may be said",
    )
    return Table(caption, headers, lines, list(differences["run_ids"]))


def cost_table(table: pd.DataFrame) -> Table:
    """Where the FLOPs went per arm and budget: teacher training, the run's own parts, and probes outside the
    budget.
    """
    cells = table[table["role"] == "cell"]
    parts = sorted(name for name in table.columns if name.startswith("flops_") and cells[name].notna().any())
    lines, runs = [], []
    for (arm, budget), group in cells.groupby(["arm", "budget_flops"], sort=True):
        per_run = group.drop_duplicates("cell_id")
        probes = probe_flops(group)
        lines.append(
            (
                str(arm),
                flops(budget) if budget else "reference",
                count(per_run["own_flops"].notna().sum()),
                flops(per_run["total_flops"].mean()),
                flops(per_run["teacher_flops"].mean()),
                *(flops(per_run[name].mean()) for name in parts),
                flops(probes),
                MISSING if per_run["epochs"].isna().all() else f"{per_run['epochs'].max():.2f}",
                MISSING if per_run["train_wall_s"].isna().all() else f"{per_run['train_wall_s'].sum():,.0f}",
            )
        )
        runs.append(tuple(per_run.loc[per_run["own_flops"].notna(), "run_id"]))
    names = tuple(name.removeprefix("flops_").replace("_", " ") for name in parts)
    headers = (
        "arm",
        "budget",
        "runs",
        "total",
        "teacher training",
        *names,
        "probes (outside)",
        "most epochs",
        "training s, sum",
    )
    return Table(
        "Mean FLOPs per run, by part. Probes are outside the budget, in no other column.",
        headers,
        lines,
        runs,
    )


def probe_flops(rows: pd.DataFrame) -> float:
    """Mean probe FLOPs per run: every score's own, and once per suite the encoding of the clips."""
    done = rows[rows["state"] == "done"]
    if done.empty:
        return float("nan")
    suites = done.drop_duplicates(["run_id", "probe_id"])
    return float((done["probe_flops"].sum() + suites["feature_flops"].sum()) / done["run_id"].nunique())


def lost_table(table: pd.DataFrame) -> Table:
    """Every score that the plan asks for and that is not there, grouped by run and reason."""
    lost = table[table["state"] != "done"]
    lines, runs = [], []
    for (run_id, state, reason), group in lost.groupby(
        ["run_id", "state", "reason"], sort=True, dropna=False
    ):
        first = group.iloc[0]
        budget = flops(first["budget_flops"]) if first["budget_flops"] else "reference"
        scores = len(group.drop_duplicates(["cell_id", *SCORE_KEY]))
        line = (str(first["config"]), budget, count(first["seed"]), str(state), str(reason), str(scores))
        lines.append(line)
        runs.append((str(run_id),))
    headers = ("configuration", "budget", "seed", "state", "reason", "scores lost")
    return Table("What the plan asks for and is not there.", headers, lines, runs)
