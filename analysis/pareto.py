"""The accuracy-FLOPs frontier: configurations, their spread over seeds, and which of them are not dominated.

Pure functions over the table of `analysis.gather`. Rows without a finite accuracy or finite FLOPs take no
part in any number here; they are counted (`n_lost`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from analysis.gather import SCORE_KEY
from analysis.intervals import t_interval
from analysis.nondominated import nondominated
from salt.errors import UserError
from salt.specs import ARMS

#: Realised FLOPs this close to the budget are the budget: a cell 0.3 % cheaper is not thereby on the
#: frontier.
COST_TOLERANCE = 0.01
#: What accuracies are read against: no arms, and on no frontier.
REFERENCES = ("raw", "random", "supervised")
_CONFIG = ["arm", "student", "teacher", "teacher_share", "variant", "config", "config_id"]


def usable(table: pd.DataFrame) -> pd.Series:
    """Rows that may enter numbers: done, with finite accuracy and FLOPs."""
    finite = np.isfinite(table["accuracy"]) & np.isfinite(table["total_flops"])
    return finite & (table["state"] == "done")


def compared_flops(table: pd.DataFrame) -> pd.Series:
    """The cost a row is compared at: its budget where the realised FLOPs are within 1 % of it, else those
    FLOPs.
    """
    total, budget = table["total_flops"], table["budget_flops"]
    near = (budget > 0) & ((total - budget).abs() <= COST_TOLERANCE * budget)
    return budget.where(near, total)


def arm_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the arms under study, foreign ones included: cells, without the references."""
    return table[(table["role"] == "cell") & ~table["arm"].isin(REFERENCES)]


def arm_order(arms: Iterable[str]) -> list[str]:
    """Each arm once: ours in their usual order, then the others by name."""
    there = set(arms)
    return [arm for arm in ARMS if arm in there] + sorted(there - set(ARMS))


def random_baseline(table: pd.DataFrame) -> pd.DataFrame:
    """Accuracy of the random encoder per (student, seed, kind, label, frames): unique by construction or
    refused.
    """
    rows = table[(table["role"] == "cell") & (table["arm"] == "random") & usable(table)]
    keys = ["student", "seed", *SCORE_KEY]
    twice = rows[rows.duplicated(keys, keep=False)]
    if len(twice):
        cells = ", ".join(sorted(set(twice["cell_id"]))[:4])
        raise UserError(
            f"two random encoders of one size and seed ({cells}): the gain over random would be ambiguous; "
            "keep one random reference per size and seed in the study file"
        )
    return rows[[*keys, "accuracy", "run_id"]].rename(
        columns={"accuracy": "random_accuracy", "run_id": "random_run_id"}
    )


def with_gain(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `random_accuracy` of the same size and seed, and `gain` over it; missing where there is
    none.
    """
    keys = ["student", "seed", *SCORE_KEY]
    joined = table.merge(random_baseline(table), on=keys, how="left", validate="many_to_one")
    joined["gain"] = joined["accuracy"] - joined["random_accuracy"].astype("float64")
    return joined


def configurations(table: pd.DataFrame) -> pd.DataFrame:
    """One row per (label, kind, frames, configuration, budget) of the arms, over seeds.

    `n` finite seeds; `mean`, `minimum`, `maximum`, `deviation` (n - 1) of the accuracy; `low`, `high` its
    t interval; `selection` the mean accuracy on the selection split; `gain`, `gain_low`, `gain_high` over
    the random encoder, paired by seed and size; `flops` the mean realised total; `compared_flops` the
    cost on the frontier; `n_lost` seeds without a finite value; `run_ids`. Configurations without any
    finite seed stay, with n 0 and missing numbers.
    """
    rows = arm_rows(with_gain(table)).dropna(subset=["kind"])
    rows = rows.assign(usable=usable(rows), compared_flops=compared_flops(rows))
    found = [
        _configuration(group)
        for _, group in rows.groupby([*SCORE_KEY, "config_id", "budget_flops"], sort=True)
    ]
    columns = [*SCORE_KEY, "budget_flops", *_CONFIG, *_MEASURES]
    result = pd.DataFrame(found, columns=columns)
    result["on_frontier"] = mark_frontiers(result)
    rank = {arm: index for index, arm in enumerate(arm_order(result["arm"]))}
    for name in _CONFIG:
        if name != "teacher_share":
            result[name] = result[name].astype(object).where(result[name].notna(), None)
    for name in _MEASURES[:-1]:
        result[name] = result[name].astype("float64")
    order = result.assign(rank=result["arm"].map(rank)).sort_values(
        ["label", "kind", "frames", "rank", "budget_flops", "config", "config_id"], kind="stable"
    )
    return order.drop(columns="rank").reset_index(drop=True)


_MEASURES = [
    "n",
    "n_lost",
    "mean",
    "minimum",
    "maximum",
    "deviation",
    "low",
    "high",
    "selection",
    "gain",
    "gain_low",
    "gain_high",
    "gain_p",
    "gain_n",
    "flops",
    "compared_flops",
    "parameters",
    "chance",
    "n_report",
    "run_ids",
]


def _configuration(group: pd.DataFrame) -> dict[str, Any]:
    first = group.iloc[0]
    good = group[group["usable"]].sort_values("seed")
    interval = t_interval(good["accuracy"])
    gain = t_interval(good["gain"].dropna())
    return {name: first[name] for name in [*SCORE_KEY, "budget_flops", *_CONFIG]} | {
        "n": len(good),
        "n_lost": len(group) - len(good),
        "mean": interval.mean,
        "minimum": good["accuracy"].min(),
        "maximum": good["accuracy"].max(),
        "deviation": good["accuracy"].std(ddof=1),
        "low": interval.low,
        "high": interval.high,
        "selection": good["selection_accuracy"].mean(),
        "gain": gain.mean,
        "gain_low": gain.low,
        "gain_high": gain.high,
        "gain_p": gain.p,
        "gain_n": gain.n,
        "flops": good["total_flops"].mean(),
        "compared_flops": good["compared_flops"].mean(),
        "parameters": first["parameters"],
        "chance": good["chance"].mean(),
        "n_report": good["n_report"].min(),
        "run_ids": tuple(good["run_id"]),
    }


def frontier(flops: pd.Series, accuracy: pd.Series) -> pd.Series:
    """Which points no other point dominates: at most these FLOPs and at least this accuracy, better in one.

    Exact and independent of the order of the rows. Equal points are on the frontier together. Points that
    are not finite in both coordinates are never on it and dominate nothing.
    """
    return pd.Series(nondominated([flops], [accuracy]), index=flops.index)


def mark_frontiers(configs: pd.DataFrame) -> pd.Series:
    """`frontier` of the mean accuracies, apart for each label, kind, frames and arm."""
    marks = pd.Series(False, index=configs.index)
    for _, group in configs.groupby([*SCORE_KEY, "arm"]):
        marks.loc[group.index] = frontier(group["compared_flops"], group["mean"].astype("float64"))
    return marks


def selected(configs: pd.DataFrame, per_student: bool = False) -> pd.DataFrame:
    """Per label, kind, frames, arm and budget (and student size, if asked) the best configuration on
    selection clips.

    The choice never looks at the report split, so that the reported accuracy of the choice is not a
    maximum over configurations. Only configurations with the most seeds compete; ties go to the smaller
    encoder, then by name. `n_choices` says how many configurations there were.
    """
    rows = configs[configs["selection"].notna()]
    keys = [*SCORE_KEY, "arm", "budget_flops", *(["student"] if per_student else [])]
    chosen = []
    for _, group in rows.groupby(keys, sort=True):
        full = group[group["n"] == group["n"].max()]
        best = full[full["selection"] == full["selection"].max()].sort_values(
            ["parameters", "config", "config_id"]
        )
        chosen.append(best.iloc[0].to_dict() | {"n_choices": len(group)})
    return pd.DataFrame(chosen, columns=[*configs.columns, "n_choices"])
