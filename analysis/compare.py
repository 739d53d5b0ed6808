"""Differences between arms at equal budget, and over budgets, paired by seed.

The verdict claims nothing unless the difference survives Holm's correction over all comparisons of the
same label and probe. Pairing: the seed fixes initialisation, masks and data order of both sides.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pandas as pd

from analysis.gather import SCORE_KEY
from analysis.intervals import Interval, holm, t_interval
from analysis.pareto import arm_rows, selected, usable

_COLUMNS = [
    "label",
    "kind",
    "frames",
    "basis",
    "budget_flops",
    "a",
    "b",
    "n",
    "difference",
    "low",
    "high",
    "p",
    "p_holm",
    "family",
    "claimed",
    "verdict",
    "run_ids",
]


def arm_differences(
    table: pd.DataFrame, configs: pd.DataFrame, frames: str = "ordered", per_student: bool = False
) -> pd.DataFrame:
    """Every pair of arms at every budget, a minus b, paired by seed, in shares of the report clips.

    Per budget: the two configurations chosen on the selection split, whatever their sizes, or with
    `per_student` for each student size apart. `family` counts the comparisons of the same label and
    probe; `p_holm` is corrected over it. `configs` is `configurations(table)`.
    """
    chosen = selected(configs[configs["frames"] == frames], per_student)
    basis = "choice on the selection split" + (", same student size" if per_student else "")
    rows = []
    size = ["student"] if per_student else []
    for keys, group in chosen.groupby([*SCORE_KEY, "budget_flops", *size], sort=True):
        kind, label, _, budget = keys[:4]
        ranked = group.reset_index(drop=True)
        for first, second in combinations(range(len(ranked)), 2):
            a, b = ranked.iloc[first], ranked.iloc[second]
            base = {"label": label, "kind": kind, "frames": frames, "basis": basis, "budget_flops": budget}
            rows.append(base | _difference(table, a, b, (kind, label, frames), budget, budget))
    return _with_verdicts(pd.DataFrame(rows, columns=_COLUMNS))


def budget_differences(table: pd.DataFrame, configs: pd.DataFrame, frames: str = "ordered") -> pd.DataFrame:
    """What more compute brings: each arm's choice at its largest budget minus its choice at its smallest, by
    seed.
    """
    chosen = selected(configs[configs["frames"] == frames])
    rows = []
    for keys, group in chosen.groupby([*SCORE_KEY, "arm"], sort=True):
        kind, label, _, _ = keys
        ordered = group.sort_values("budget_flops")
        if len(ordered) < 2:
            continue
        high, low = ordered.iloc[-1], ordered.iloc[0]
        basis = "choice on the selection split, largest against smallest budget"
        base = {
            "label": label,
            "kind": kind,
            "frames": frames,
            "basis": basis,
            "budget_flops": high["budget_flops"],
        }
        pair = _difference(table, high, low, (kind, label, frames), high["budget_flops"], low["budget_flops"])
        pair["a"], pair["b"] = (
            f"{pair['a']} at {high['budget_flops']:.3g}",
            f"{pair['b']} at {low['budget_flops']:.3g}",
        )
        rows.append(base | pair)
    return _with_verdicts(pd.DataFrame(rows, columns=_COLUMNS))


def paired(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    """Rows of a and b with the same seed side by side; a seed that one side lacks is left out."""
    left = a[["seed", "accuracy", "run_id"]].rename(columns={"accuracy": "a", "run_id": "a_run_id"})
    right = b[["seed", "accuracy", "run_id"]].rename(columns={"accuracy": "b", "run_id": "b_run_id"})
    return left.merge(right, on="seed", validate="one_to_one").sort_values("seed")


def _difference(
    table: pd.DataFrame,
    a: pd.Series,
    b: pd.Series,
    key: tuple[str, str, str],
    a_budget: float,
    b_budget: float,
) -> dict[str, Any]:
    rows = arm_rows(table)
    rows = rows[usable(rows)]
    for name, value in zip(SCORE_KEY, key, strict=True):
        rows = rows[rows[name] == value]
    sides = [
        rows[(rows["config_id"] == side["config_id"]) & (rows["budget_flops"] == budget)]
        for side, budget in ((a, a_budget), (b, b_budget))
    ]
    pairs = paired(sides[0], sides[1])
    interval = t_interval(pairs["a"] - pairs["b"])
    return {
        "a": a["config"],
        "b": b["config"],
        "n": interval.n,
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "p": interval.p,
        "run_ids": (*pairs["a_run_id"], *pairs["b_run_id"]),
    }


def _with_verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """Holm's correction within each label and probe, and the sentence that may be said."""
    for name in ("difference", "low", "high", "p", "n"):
        rows[name] = rows[name].astype("float64")
    found: dict[str, dict[Any, Any]] = {name: {} for name in ("p_holm", "family", "claimed", "verdict")}
    for _, group in rows.groupby(["label", "kind", "frames"]):
        adjusted = holm([None if pd.isna(p) else float(p) for p in group["p"]])
        for (index, row), p_holm in zip(group.iterrows(), adjusted, strict=True):
            bounds = [None if pd.isna(row[name]) else float(row[name]) for name in _INTERVAL]
            interval = Interval(int(row["n"]), *bounds)
            claimed, text = verdict(interval, p_holm, len(group), str(row["a"]), str(row["b"]))
            for name, value in zip(found, (p_holm, len(group), claimed, text), strict=True):
                found[name][index] = value
    for name, values in found.items():
        kind: Any = {"claimed": bool, "verdict": object}.get(name, "float64")
        rows[name] = pd.Series(values, index=rows.index, dtype=kind)
    return rows


_INTERVAL = ("difference", "low", "high", "p")


def verdict(interval: Interval, p_holm: float | None, family: int, a: str, b: str) -> tuple[bool, str]:
    """(whether a difference is claimed, the sentence). Nothing is claimed when the interval holds 0."""
    if interval.n == 0 or interval.mean is None:
        return False, "no seed has both: nothing can be said"
    if interval.p is None or p_holm is None:
        return False, f"{interval.n} seed(s) without spread: no interval, nothing claimed"
    if interval.holds(0.0):
        return False, "the interval holds 0: no difference shown"
    if p_holm >= 0.05:
        return (
            False,
            f"the interval excludes 0, but not after correction for {family} comparisons: not claimed",
        )
    better, worse = (a, b) if interval.mean > 0 else (b, a)
    return True, f"{better} is above {worse}, also after correction for {family} comparisons"
