"""How fast the runs of a table were."""

from __future__ import annotations

import numpy as np
import pandas as pd


def flops_per_gpu_hour(table: pd.DataFrame) -> float | None:
    """Training FLOPs per GPU-hour over all runs whose time is known, weighted by time; None if none is.

    Only a run's own FLOPs count: its teacher's were trained in the teacher's time.
    """
    runs = table.drop_duplicates("run_id")
    if "gpu_hours" not in runs:
        return None
    good = np.isfinite(runs["gpu_hours"]) & (runs["gpu_hours"] > 0) & np.isfinite(runs["own_flops"])
    if not good.any():
        return None
    return float(runs.loc[good, "own_flops"].sum() / runs.loc[good, "gpu_hours"].sum())
