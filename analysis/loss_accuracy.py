"""Does the training loss tell the probe's accuracy? Only within one teacher: targets differ between
teachers, and between arms.

A checkpoint's loss can rank runs that share their targets (arXiv 2509.24317 reports R2 of 0.95 to 0.98 over
the checkpoints of single runs, which are serially correlated). Here a point is a finished run, so that
points are independent but for seeds that several runs share.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

from analysis.pareto import arm_order, arm_rows, usable
from analysis.plain import flops_text
from salt.errors import UserError

Array = NDArray[Any]
LEVEL = 0.90
DRAWS = 2000
#: Fewer runs have no R2 worth a number.
FEWEST = 4
#: What may stand in for labels, and how it is called.
PREDICTORS = {"final_loss": "training loss", "rankme": "RankMe", "lidar": "LiDAR", "alpha_req": "alpha-ReQ"}


def loss_points(table: pd.DataFrame, across: bool = False) -> pd.DataFrame:
    """One row per run and score (ordered frames) of the arms: accuracy, loss and label-free metrics, and
    its group.

    A group holds runs whose losses can be compared: of one arm and data, and where frozen teachers give the
    targets, of one teacher configuration; `targets` names the very run that gave them, and only runs with
    the same targets are set against each other. With `across` each label and probe is one group, over
    teachers and arms.

    Raises `UserError` if no run has both numbers.
    """
    rows = arm_rows(table).dropna(subset=["kind"])
    rows = rows[(rows["frames"] == "ordered") & usable(rows) & np.isfinite(rows["final_loss"])]
    if rows.empty:
        raise UserError("no run of this table has both a training loss and a probe's accuracy")
    if across:
        group = targets = pd.Series("all arms and teachers", index=rows.index)
    else:
        own = rows["arm"].astype(str) + ", " + rows["data"].fillna("data not named").astype(str)
        taught = rows["teacher_run_id"].notna()
        trained = rows.get("above_flops_matmul", rows["teacher_flops"]).map(_flops, na_action="ignore")
        named = rows["arm"].astype(str) + ", teacher " + rows["teacher"].astype(str) + trained.fillna("")
        group = own.where(~taught, named)
        targets = own.where(~taught, rows["teacher_run_id"].astype(str))
    columns = [
        "label",
        "kind",
        "arm",
        "config",
        "budget_flops",
        "seed",
        "run_id",
        "teacher",
        "teacher_run_id",
    ]
    found = rows[[*columns, "accuracy", "n_report"]].assign(group=group, targets=targets)
    for name in PREDICTORS:
        found[name] = rows.get(name, np.nan)
    return found.sort_values(["label", "kind", "group", "run_id"]).reset_index(drop=True)


def _flops(value: float) -> str:
    return f" of {flops_text(value)} FLOPs"


def predictions(points: pd.DataFrame, level: float = LEVEL, rng: int = 0) -> pd.DataFrame:
    """One row per group, score and predictor: how well it tells accuracy, and how sure that is.

    Both numbers are taken as differences from the mean of the runs with the same targets (fixed effects),
    `teachers` of which there are k; a run that is alone with its targets says nothing and is not counted.
    `r2` the squared correlation of those differences, with `r2_low`, `r2_high` (Fisher's z, at effective n
    - k + 1) and `boot_low`, `boot_high` (bootstrap over runs); `spearman`; `n` runs; `effective_n` = n (1 -
    icc) + s icc over s seeds, where icc is the share of the residual variance that seeds have in common;
    `left_out` the root mean square error, in shares, of predicting each run by the fit to the others,
    beside `spread`, by the others' mean. `status`: "ok", "fewer than 4 runs" (beyond one per teacher),
    "does not vary", or "not measured".
    """
    generator = np.random.default_rng(rng)
    rows = []
    order = {arm: index for index, arm in enumerate(arm_order(points["arm"]))}
    for (label, kind, group), part in points.groupby(["label", "kind", "group"], sort=False):
        for name in PREDICTORS:
            row = {
                "label": label,
                "kind": kind,
                "group": group,
                "arm": part["arm"].iloc[0],
                "predictor": name,
            }
            rows.append(row | _prediction(part, name, level, generator))
    found = pd.DataFrame(rows)
    found["rank"] = found["arm"].map(order)
    return found.sort_values(["label", "kind", "rank", "group"], kind="stable").drop(columns="rank")


_NUMBERS = (
    *("r2", "r2_low", "r2_high", "boot_low", "boot_high", "spearman", "effective_n", "left_out", "spread"),
    "slope",
)


def _prediction(part: pd.DataFrame, name: str, level: float, rng: np.random.Generator) -> dict[str, Any]:
    measured = part[np.isfinite(part[name].astype("float64"))]
    several = measured.groupby("targets")["run_id"].transform("size") > 1
    good = measured[several | (measured["targets"].nunique() == 1)]
    teachers = int(good["targets"].nunique())
    empty: dict[str, Any] = {"n": len(good), "teachers": teachers, "run_ids": tuple(good["run_id"])}
    empty |= dict.fromkeys(_NUMBERS, math.nan)
    if measured.empty:
        return empty | {"status": "not measured"}
    if len(good) - teachers + 1 < FEWEST:
        return empty | {"status": f"fewer than {FEWEST} runs"}
    groups = good.groupby("targets")
    x = (good[name] - groups[name].transform("mean")).to_numpy(dtype=float)
    y = (good["accuracy"] - groups["accuracy"].transform("mean")).to_numpy(dtype=float)
    if np.ptp(x) <= 1e-12 * float(good[name].abs().max()) or np.ptp(y) <= 1e-12:
        return empty | {"status": "does not vary"}
    slope = float(x @ y / (x @ x))
    r = float(x @ y / math.sqrt((x @ x) * (y @ y)))
    n_eff = effective_number(y - slope * x, good["seed"].to_numpy())
    low, high = fisher(r, n_eff - teachers + 1, level)
    drawn = _bootstrap(x, y, rng)
    tail = (1 - level) / 2
    ends = np.quantile(drawn, [tail, 1 - tail]) if len(drawn) else (math.nan, math.nan)
    out, spread = left_out(good[name].to_numpy(dtype=float), good["accuracy"].to_numpy(), good["targets"])
    return empty | {
        "status": "ok",
        "r2": r * r,
        "r2_low": low,
        "r2_high": high,
        "boot_low": float(ends[0]),
        "boot_high": float(ends[1]),
        "spearman": float(np.corrcoef(_ranks(x), _ranks(y))[0, 1]),
        "effective_n": n_eff,
        "left_out": out,
        "spread": spread,
        "slope": slope,
    }


def fisher(r: float, n: float, level: float) -> tuple[float, float]:
    """Interval of r squared from Fisher's z, atanh(r) with variance 1 / (n - 3); from 0 where r may be 0.
    NaN for n of 3 and less.
    """
    if n <= 3 or abs(r) >= 1:
        return (math.nan, math.nan) if n <= 3 else (1.0, 1.0)
    reach = float(special.ndtri(0.5 + level / 2)) / math.sqrt(n - 3)
    ends = math.tanh(math.atanh(r) - reach), math.tanh(math.atanh(r) + reach)
    squares = sorted((ends[0] ** 2, ends[1] ** 2))
    return (0.0 if ends[0] * ends[1] < 0 else squares[0]), squares[1]


def effective_number(rest: Array, seed: Array) -> float:
    """n (1 - icc) + s icc: between all n runs and the s seeds, by the share of variance that a seed has in
    common.

    The intraclass correlation comes from a one-way analysis of variance of residuals over seeds, 0 where
    negative.
    """
    names, place, counts = np.unique(seed, return_inverse=True, return_counts=True)
    n, groups = len(rest), len(names)
    if groups in (1, n) or float(rest @ rest) <= 0:
        return float(n)
    means = np.bincount(place, rest) / counts
    between = float((counts * (means - rest.mean()) ** 2).sum()) / (groups - 1)
    within = float(((rest - means[place]) ** 2).sum()) / (n - groups)
    size = (n - float((counts**2).sum()) / n) / (groups - 1)
    total = between + (size - 1) * within
    icc = min(1.0, max(0.0, (between - within) / total)) if total > 0 else 0.0
    return n * (1 - icc) + groups * icc


def left_out(x: Array, y: Array, targets: Any) -> tuple[float, float]:
    """Root mean square errors of predicting each run from the others: (by a common slope in x with a level
    for each of the targets, by that level alone).

    From residuals and leverages, which is what refitting without each run gives.
    """
    levels = pd.get_dummies(pd.Series(np.asarray(targets))).to_numpy(dtype=float)
    found = []
    for columns in (np.column_stack([levels, x - x.mean()]), levels):
        basis, _ = np.linalg.qr(columns)
        rest = y - basis @ (basis.T @ y)
        room = 1 - (basis**2).sum(axis=1)
        good = room > 1e-9
        found.append(float(np.sqrt(np.mean((rest[good] / room[good]) ** 2))) if good.any() else math.nan)
    return found[0], found[1]


def _bootstrap(x: Array, y: Array, rng: np.random.Generator) -> Array:
    """R2 of resamples of runs; those without spread are drawn and left out."""
    index = rng.integers(0, len(x), (DRAWS, len(x)))
    a, b = x[index], y[index]
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    below = (a * a).sum(axis=1) * (b * b).sum(axis=1)
    good = below > 1e-30
    return np.asarray((a * b).sum(axis=1)[good] ** 2 / below[good])


def _ranks(values: Array) -> Array:
    """Ranks from 0, equal values at their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray(((ends - counts) + (ends - 1))[place] / 2)
