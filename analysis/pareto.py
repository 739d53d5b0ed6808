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
from analysis.intervals import t_intervals
from analysis.nondominated import nondominated
from salt.errors import UserError
from salt.specs import CELL_ARMS

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
    beside = table["arm"].isin(REFERENCES) | is_external_reference(table)
    return table[(table["role"] == "cell") & ~beside]


def is_external_reference(table: pd.DataFrame) -> pd.Series:
    """Rows of weights from elsewhere themselves, beside the budgets; their students are an arm so named."""
    return (table["arm"] == "external") & (table["budget_flops"] == 0)


def arm_order(arms: Iterable[str]) -> list[str]:
    """Each arm once: ours in their usual order, then the others by name."""
    there = set(arms)
    return [arm for arm in CELL_ARMS if arm in there] + sorted(there - set(CELL_ARMS))


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
    rows = rows.assign(usable=usable(rows), compared_flops=compared_flops(rows)).sort_values("seed")
    keys = [*SCORE_KEY, "config_id", "budget_flops"]
    whole = rows.groupby(keys, sort=True, dropna=False)
    found = whole[[*_CONFIG[:-1], "parameters"]].agg(_first).assign(asked=whole.size())
    found = found.join(_measures(rows[rows["usable"]].groupby(keys, sort=True, dropna=False)))
    found["n"] = found["n"].fillna(0)
    found["n_lost"] = found.pop("asked") - found["n"]
    found["run_ids"] = [ids if isinstance(ids, tuple) else () for ids in found["run_ids"]]
    found = found.reset_index()
    columns = [*SCORE_KEY, "budget_flops", *_CONFIG, *_MEASURES]
    result = found[columns]
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


def _first(values: pd.Series) -> Any:
    return values.iloc[0]


def _measures(good: Any) -> pd.DataFrame:
    """All numbers of configurations over their finite seeds: `good` groups rows by configuration."""
    accuracy, gain = good["accuracy"], good["gain"]
    parts = {
        "n": accuracy.size(),
        "minimum": accuracy.min(),
        "maximum": accuracy.max(),
        "deviation": accuracy.std(ddof=1),
        "selection": good["selection_accuracy"].mean(),
        "flops": good["total_flops"].mean(),
        "compared_flops": good["compared_flops"].mean(),
        "chance": good["chance"].mean(),
        "n_report": good["n_report"].min(),
        "run_ids": good["run_id"].agg(tuple),
    }
    found = pd.DataFrame(parts)
    for prefix, values in (("", accuracy), ("gain_", gain)):
        intervals = t_intervals(
            values.count(), values.mean(), values.std(ddof=1), values.max() - values.min()
        )
        for name, column in intervals.items():
            found[f"{prefix}{name}" if name != "mean" else (prefix.rstrip("_") or "mean")] = column
    return found.rename(columns={"p": "unused_p"}).drop(columns="unused_p").assign(gain_n=gain.count())


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
    order = [*keys, "n", "selection", "parameters", "config", "config_id"]
    ranked = rows.sort_values(order, ascending=[name not in ("n", "selection") for name in order])
    counts = rows.groupby(keys, sort=True, dropna=False).size().rename("n_choices").reset_index()
    chosen = ranked.drop_duplicates(keys).merge(counts, on=keys, how="left", validate="one_to_one")
    return chosen[[*configs.columns, "n_choices"]].reset_index(drop=True)
