"""The same frontier under every FLOP convention and charging rule: does the conclusion survive?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.frontier_draws import frontier_curves
from analysis.gather import SCORE_KEY
from analysis.noise import MeasuredNoise
from analysis.pareto import usable

CONVENTIONS = ("matmul", "paper")
CHARGES = ("full", "shared", "none")


_DRAWS = 1000
_COLUMNS = [
    *("convention", "charge", "label", "kind", "arm", "cost", "attained", "probability_best", "leads"),
    "as_planned",
]


@dataclass(frozen=True)
class Verdict:
    """Of one label and probe: a sentence, and whether the same arm leads under all rules."""

    label: str
    kind: str
    survives: bool
    text: str


def charged(table: pd.DataFrame, convention: str, charge: str) -> pd.Series | None:
    """FLOPs that each row answers for under a convention and a charging rule; None where the table does not
    hold what they are made of.

    full: the student's own way and all of its teachers' training; shared: a k-th of that training and of
    cached targets, for k students; none: the own way alone.
    """
    names = (f"own_flops_{convention}", f"above_flops_{convention}")
    if not set(names) <= set(table.columns) or table[names[0]].isna().all():
        return None
    own, above = (table[name].astype("float64") for name in names)
    without = table["teacher_run_id"].isna() & above.isna()  # no teacher, nothing above
    above = above.where(~without, 0.0)
    if charge == "none":
        return own
    if charge == "full":
        return own + above
    # A run whose own FLOPs are known has its cached targets in them: where none are named, there are none.
    cache = table.get(f"cache_flops_{convention}", pd.Series(0.0, index=table.index)).fillna(0.0)
    students = table["teacher_students"].where(table["teacher_students"] > 0, 1.0)
    return own - cache + (cache + above) / students


def _at_cost(configs: pd.DataFrame, table: pd.DataFrame, cost: pd.Series) -> pd.DataFrame:
    """Configurations with another cost: the mean over the runs that their accuracy is the mean of."""
    keys = [*SCORE_KEY, "config_id", "budget_flops"]
    rows = table[usable(table)]
    means = rows[keys].assign(cost=cost).groupby(keys, dropna=False)["cost"].mean().reset_index()
    joined = configs[keys].merge(means, on=keys, how="left", validate="many_to_one")
    return configs.assign(compared_flops=joined["cost"].to_numpy())


def under_every_rule(table: pd.DataFrame, chosen: pd.DataFrame, noises: list[MeasuredNoise]) -> pd.DataFrame:
    """One row per convention, charging rule, label, probe and arm, at the largest cost that all arms have
    reached.

    `cost` that cost, `attained` the best accuracy up to it (of `chosen`, see
    `analysis.frontier_draws.choices`), `probability_best` as in `analysis.frontier_draws`, `leads` whether
    it attains the most, `as_planned` whether this is the rule that the study was planned by. Arms that
    begin above the common cost have no row. Empty for tables without FLOPs by convention.
    """
    first = table.iloc[0]
    rows = []
    for convention in CONVENTIONS:
        for charge in CHARGES:
            cost = charged(table, convention, charge)
            if cost is None:
                continue
            same = (convention, charge) == (first["convention"], first["charge"])
            for curves in frontier_curves(_at_cost(chosen, table, cost), noises, draws=_DRAWS):
                at = min(float(curves.cost[arm][-1]) for arm in curves.arms)
                place = np.array([at])
                drawn = np.stack([curves.attained(arm, place, drawn=True)[:, 0] for arm in curves.arms])
                lead = np.where(np.isnan(drawn), -np.inf, drawn)
                best = lead == lead.max(axis=0)
                share = (best / best.sum(axis=0)).mean(axis=1)
                attained = np.array([float(curves.attained(arm, place)[0]) for arm in curves.arms])
                for index, arm in enumerate(curves.arms):
                    if np.isfinite(attained[index]):
                        rows.append(
                            {
                                "convention": convention,
                                "charge": charge,
                                "label": curves.label,
                                "kind": curves.kind,
                                "arm": arm,
                                "cost": at,
                                "attained": attained[index],
                                "probability_best": float(share[index]),
                                "leads": bool(attained[index] == np.nanmax(attained)),
                                "as_planned": same,
                            }
                        )
    return pd.DataFrame(rows, columns=_COLUMNS)


def verdicts(rules: pd.DataFrame) -> list[Verdict]:
    """Per label and probe, whether the arm that leads at the largest common cost is the same under every
    rule.
    """
    found = []
    for (label, kind), group in rules.groupby(["label", "kind"], sort=False):
        if group["arm"].nunique() < 2:
            continue
        leaders: dict[str, list[str]] = {}
        number = 0
        sure = 1.0
        for (convention, charge), part in group.groupby(["convention", "charge"], sort=False):
            number += 1
            arm = " and ".join(part.loc[part["leads"], "arm"])
            leaders.setdefault(arm, []).append(f"{convention}/{charge}")
            sure = min(sure, float(part["probability_best"].max()))
        if len(leaders) == 1:
            text = (
                f"{label}, {kind}: {next(iter(leaders))} leads at the largest common cost under all {number} "
                f"conventions and charges (probability to be best at least {sure:.2f}"
                + (")" if sure >= 0.95 else "; that is not sure)")
            )
        else:
            parts = "; ".join(f"{arm} under {', '.join(rules_)}" for arm, rules_ in leaders.items())
            text = (
                f"{label}, {kind}: who leads at the largest common cost depends on the convention or "
                "the charge: "
                f"{parts}"
            )
        found.append(Verdict(str(label), str(kind), len(leaders) == 1, text))
    return found
