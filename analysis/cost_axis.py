"""What accuracy is set against: FLOPs, GPU-hours, money or parameters."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from salt.errors import UserError

COSTS = ("flops", "gpu-hours", "money", "parameters")


@dataclass(frozen=True)
class CostAxis:
    """A cost: the name of its axis, and a table in which `total_flops` holds it."""

    name: str
    axis: str
    table: pd.DataFrame


def cost_axis(table: pd.DataFrame, name: str, price_per_gpu_hour: float | None) -> CostAxis:
    """The table set against a cost.

    GPU-hours of a cell are its own run's and, by the study's charge, its teacher's: the teacher's FLOPs
    that it answers for, at the speed of the teacher's run. Rows whose hours are not known are out of every
    number. Raises `UserError` for a price that is none, and where no row has hours.
    """
    if name == "money" and not (price_per_gpu_hour is not None and 0 < price_per_gpu_hour < float("inf")):
        raise UserError("--cost money needs --price, what a GPU-hour costs, such as --price 2.50")
    if name != "money" and price_per_gpu_hour is not None:
        raise UserError(f"--price is for --cost money, not for --cost {name}")
    first = table.iloc[0]
    if name == "flops":
        axis = f"pretraining FLOPs ({first['convention']} convention, charge {first['charge']})"
        return CostAxis(name, axis, table)
    if name == "parameters":
        return CostAxis(name, "encoder parameters", table.assign(total_flops=table["parameters"]))
    hours = _hours(table)
    if not np.isfinite(hours).any():
        raise UserError(f"--cost {name}: no run of this table has GPU-hours (runs on a CPU have none)")
    axis = f"GPU-hours, teacher charged {first['charge']}"
    if name == "money":
        hours, axis = hours * (price_per_gpu_hour or 0.0), f"money, at {price_per_gpu_hour:g} per GPU-hour"
    return CostAxis(name, axis, table.assign(total_flops=hours))


def _hours(table: pd.DataFrame) -> pd.Series:
    own = table.get("gpu_hours", pd.Series(np.nan, index=table.index)).astype("float64")
    runs = table.drop_duplicates("run_id").set_index("run_id")
    rate = (runs["own_flops"] / runs["gpu_hours"]) if "gpu_hours" in runs else pd.Series(dtype=float)
    teacher = table["teacher_flops"] / table["teacher_run_id"].map(rate)
    nothing = table["teacher_run_id"].isna() | (table["teacher_flops"] == 0)
    return own + teacher.where(~nothing, 0.0)
