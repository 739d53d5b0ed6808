"""Two sides compared, paired by seed and cell: difference, intervals, probability, and how many seeds would
tell.

A side is a set of conditions on configurations (`arm=salt, student=micro`). At each budget it is
represented by its choice on the selection clips, made without looking at the report clips. What is paired
are runs of equal seed, which share initialisation, masks and data order.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from analysis.compare import paired
from analysis.gather import SCORE_KEY
from analysis.intervals import holm, t_interval
from analysis.pareto import arm_order, arm_rows, selected, usable
from analysis.power import seeds_needed
from salt.errors import UserError

Array = NDArray[Any]
#: Conditions that a side may set.
FIELDS = ("arm", "student", "teacher", "teacher_share", "variant", "config")
#: All sign patterns of up to this many pairs are gone through; more are drawn.
_EXACT_PAIRS = 14
_DRAWS = 20_000


def side(text: str, configs: pd.DataFrame, option: str) -> dict[str, str]:
    """Conditions from `arm=salt,student=micro`. Raises `UserError` that names what is not there."""
    found: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        name = {"share": "teacher_share"}.get(name, name)
        if not equals or name not in FIELDS:
            known = ", ".join(FIELDS)
            raise UserError(f"{option} {text!r}: {part!r} is no condition; write name=value with {known}")
        there = {_told(known) for known in configs[name]}
        if value not in there:
            names = ", ".join(sorted(there)[:12])
            raise UserError(f"{option} {text!r}: no configuration has {name} {value!r}; there are {names}")
        found[name] = value
    return found


def _told(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def all_arms(configs: pd.DataFrame) -> list[tuple[dict[str, str], dict[str, str]]]:
    """Every pair of arms."""
    return [({"arm": a}, {"arm": b}) for a, b in combinations(arm_order(configs["arm"]), 2)]


def comparisons(
    table: pd.DataFrame,
    configs: pd.DataFrame,
    pairs: list[tuple[dict[str, str], dict[str, str]]],
    level: float = 0.95,
    rng: int = 0,
) -> pd.DataFrame:
    """One row per pair of sides, label, probe and budget, and one over all budgets (`budget_flops` missing).

    In shares of the report clips: `difference` a minus b with `low`, `high` (Student's t over seeds; with
    one seed the sampling of the report clips alone, and `basis` says so); `p` of the t test and `p_flip` of
    the exact paired sign-flip test (Fisher 1935: 3 seeds can give no less than 0.25); `probability` that a
    is better (the t distribution around the difference, as in a flat-prior posterior; normal for clips);
    `spread` of the differences; `seeds_observed` and `seeds_point`: pairs for 80 % power at this difference
    and at 1 point. Over budgets, each seed's differences are averaged first (seeds are the clusters), over
    the budgets at which all of them are there. `family` counts the rows with a p of the same label and
    probe, over which `p_holm` is corrected (Holm 1979); the mean over budgets is no further member: it is
    one question less, asked of the same data.
    """
    generator = np.random.default_rng(rng)
    ordered = configs[configs["frames"] == "ordered"]
    rows: list[dict[str, Any]] = []
    for a, b in pairs:
        chosen = [_chosen(ordered, conditions) for conditions in (a, b)]
        shared = chosen[0].merge(chosen[1], on=["label", "kind", "budget_flops"], suffixes=("_a", "_b"))
        for (label, kind), group in shared.groupby(["label", "kind"], sort=False):
            place = {"label": label, "kind": kind, "a": _named(a), "b": _named(b)}
            found = [_pairs(table, cell, str(label), str(kind)) for cell in group.to_dict("records")]
            for cell, (values, clips, runs) in zip(group.to_dict("records"), found, strict=True):
                row = place | {"budget_flops": cell["budget_flops"], "config_a": cell["config_a"]}
                row |= {"config_b": cell["config_b"], "run_ids": runs}
                rows.append(row | _told_apart(values.to_numpy(), clips, level, generator))
            if len(found) > 1:
                rows.append(place | _over_budgets(found, level, generator))
    return _corrected(pd.DataFrame(rows, columns=_COLUMNS))


_COLUMNS = [
    *("label", "kind", "a", "b", "budget_flops", "config_a", "config_b", "n", "difference", "low", "high"),
    *("p", "p_flip", "probability", "spread", "seeds_observed", "seeds_point", "basis", "p_holm", "family"),
    "run_ids",
]


def _named(conditions: dict[str, str]) -> str:
    return ", ".join(value if name == "arm" else f"{name} {value}" for name, value in conditions.items())


def _chosen(configs: pd.DataFrame, conditions: dict[str, str]) -> pd.DataFrame:
    rows = configs
    for name, value in conditions.items():
        rows = rows[[_told(there) == value for there in rows[name]]]
    if rows["selection"].notna().any():
        rows = selected(rows.assign(arm="side"))
    elif rows.duplicated(["label", "kind", "budget_flops"]).any():
        raise UserError(
            f"{_named(conditions)}: several configurations at one budget and no selection accuracy to "
            "choose by; "
            "name the configuration with config=..."
        )
    return rows[["label", "kind", "budget_flops", "config_id", "config"]]


def _pairs(
    table: pd.DataFrame, cell: dict[str, Any], label: str, kind: str
) -> tuple[pd.Series, float, tuple[str, ...]]:
    """(differences by seed, standard error of one difference by the sampling of clips, run ids)."""
    rows = arm_rows(table)
    rows = rows[usable(rows)]
    for name, value in zip(SCORE_KEY, (kind, label, "ordered"), strict=True):
        rows = rows[rows[name] == value]
    rows = rows[rows["budget_flops"] == cell["budget_flops"]]
    sides = [rows[rows["config_id"] == cell[f"config_id_{which}"]] for which in "ab"]
    both = paired(sides[0], sides[1])
    errors = [part["accuracy"] * (1 - part["accuracy"]) / part["n_report"] for part in sides]
    clips = math.sqrt(sum(float(error.mean()) for error in errors))
    values = pd.Series((both["a"] - both["b"]).to_numpy(), index=both["seed"])
    return values, clips, (*both["a_run_id"], *both["b_run_id"])


def _over_budgets(
    found: list[tuple[pd.Series, float, tuple[str, ...]]], level: float, rng: Any
) -> dict[str, Any]:
    there = pd.concat([values for values, _, _ in found if len(values)], axis=1)
    whole = there.dropna().mean(axis=1)
    clips = math.sqrt(sum(clip**2 for _, clip, _ in found)) / len(found)
    row = {"budget_flops": math.nan, "config_a": None, "config_b": None}
    runs = tuple(dict.fromkeys(run for _, _, ids in found for run in ids))
    return row | {"run_ids": runs} | _told_apart(whole.to_numpy(), clips, level, rng)


def _told_apart(values: Array, clips: float, level: float, rng: Any) -> dict[str, Any]:
    interval = t_interval(values, level)
    row: dict[str, Any] = {
        "n": interval.n,
        "difference": interval.mean,
        "low": interval.low,
        "high": interval.high,
    }
    row |= {"p": interval.p, "p_flip": flip_p(values, rng), "probability": None, "basis": "seeds"}
    row |= {"spread": None, "seeds_observed": None, "seeds_point": None}
    if interval.n == 0:
        return row | {"basis": "no common seed"}
    if interval.low is None:
        if interval.n > 1 or not (math.isfinite(clips) and clips > 0):
            return row | {"basis": "no spread"}
        reach = float(special.ndtri(0.5 + level / 2)) * clips
        chance = float(special.ndtr(float(values[0]) / clips))
        ends = {"low": float(values[0]) - reach, "high": float(values[0]) + reach}
        return row | ends | {"probability": chance, "basis": "report clips alone (one seed)"}
    spread = float(values.std(ddof=1))
    error = spread / math.sqrt(len(values))
    return row | {
        "probability": float(special.stdtr(len(values) - 1, float(values.mean()) / error)),
        "spread": spread,
        "seeds_observed": seeds_needed(abs(float(values.mean())), spread) if values.mean() else None,
        "seeds_point": seeds_needed(0.01, spread),
    }


def flip_p(values: Array, rng: np.random.Generator) -> float | None:
    """Two-sided p of the paired sign-flip test on the mean: exact up to 14 pairs, else by draws; None for
    one pair.
    """
    n = len(values)
    if n < 2:
        return None
    if n <= _EXACT_PAIRS:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        means = np.abs(signs @ values)
        return float((means >= abs(values.sum()) * (1 - 1e-12)).mean())
    signs = rng.integers(0, 2, (_DRAWS, n)) * 2 - 1
    reached = (np.abs(signs @ values) >= abs(values.sum()) * (1 - 1e-12)).sum()
    return float((reached + 1) / (_DRAWS + 1))


def _corrected(rows: pd.DataFrame) -> pd.DataFrame:
    numbers = ("n", "difference", "low", "high", "p", "p_flip", "probability", "spread", "p_holm", "family")
    for name in (*numbers, "seeds_observed", "seeds_point", "budget_flops"):
        rows[name] = rows[name].astype("float64")
    alone = rows["budget_flops"].notna()
    for mask in (alone, ~alone):
        for _, group in rows[mask].groupby(["label", "kind"], sort=False):
            adjusted = holm([None if pd.isna(p) else float(p) for p in group["p"]])
            rows.loc[group.index, "p_holm"] = [math.nan if p is None else p for p in adjusted]
            rows.loc[group.index, "family"] = float(group["p"].notna().sum())
    return rows
