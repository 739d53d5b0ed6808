"""What a run store says of tuning: how many trials each arm had. Unequal effort is a threat."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec
import pandas as pd

from analysis.findings import Finding
from analysis.pareto import arm_order, arm_rows
from salt.store import read_json


@dataclass(frozen=True)
class Tuning:
    """A tuning study: its name, and the finished trials of each arm."""

    name: str
    trials: dict[str, int]


class _Arm(msgspec.Struct):
    complete: int
    pruned: int = 0
    failed: int = 0


class _Record(msgspec.Struct):
    name: str
    arms: dict[str, _Arm]


def read_tuning(store: Path) -> list[Tuning]:
    """All tunings of a store that left a `tuning.json`, with the trials that ended, however they did."""
    found = []
    for path in sorted((store / "tuning").glob("*/tuning.json")):
        record = read_json(path, _Record)
        trials = {arm: each.complete + each.pruned + each.failed for arm, each in record.arms.items()}
        found.append(Tuning(record.name, trials))
    return found


def tuning_threats(table: pd.DataFrame, tuning: list[Tuning]) -> list[Finding]:
    """Arms of a study that had other numbers of trials than others, or none that is known of."""
    arms = arm_order(arm_rows(table)["arm"])
    if len(arms) < 2:
        return []
    trials = {arm: sum(each.trials.get(arm, 0) for each in tuning) for arm in arms}
    counts = ", ".join(f"{arm} {number}" for arm, number in trials.items())
    if not any(trials.values()):
        text = (
            "The run store holds no tuning of these arms (`salt-sweep tune` leaves one). Whether each arm's "
            "hyperparameters were searched for with equal effort cannot be told from these runs."
        )
        return [Finding("Tuning is not recorded", text)]
    if len(set(trials.values())) == 1:
        return []
    text = f"Trials per arm: {counts}. An arm with more trials is ahead in part because it was tuned more."
    return [Finding("Unequal tuning", text)]
