"""The columns of the tidy table, and their types. Gathered plans and results of other projects share them."""

from __future__ import annotations

import pandas as pd

#: What identifies a score within a run.
SCORE_KEY = ("kind", "label", "frames")
TEXT = (
    "plan",
    "role",
    "cell_id",
    "arm",
    "student",
    "teacher",
    "variant",
    "config",
    "config_id",
    "run_id",
    "teacher_run_id",
    "scored_teacher",
    "charge",
    "convention",
    "trained_label",
    "data",
    "probe_id",
    "kind",
    "label",
    "frames",
    "state",
    "reason",
    "branch",
    "selected",
    "teacher_state",
)
NUMBERS = (
    "teacher_share",
    "seed",
    "budget_flops",
    "matched_steps",
    "planned_flops",
    "total_flops",
    "own_flops",
    "teacher_flops",
    "residual",
    "parameters",
    "steps",
    "epochs",
    "clips_seen",
    "unique_clips",
    "train_wall_s",
    "probe_wall_s",
    "gpu_hours",
    "burnt_flops",
    "final_loss",
    "accuracy",
    "n_report",
    "n_train",
    "n_selection",
    "classes",
    "chance",
    "selection_accuracy",
    "probe_flops",
    "feature_flops",
    "teacher_accuracy",
    "teacher_students",
    "rankme",
    "lidar",
    "alpha_req",
    "own_flops_matmul",
    "cache_flops_matmul",
    "above_flops_matmul",
    "own_flops_paper",
    "cache_flops_paper",
    "above_flops_paper",
)


def part_columns(table: pd.DataFrame) -> list[str]:
    """FLOPs of the student's whole way by part: `flops_encoder` and so on, sorted."""
    return sorted(str(name) for name in table.columns if str(name).startswith("flops_"))


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """Text columns as objects with None, numbers as float64 with NaN, in a fixed order of columns."""
    parts = part_columns(table)
    columns: dict[str, pd.Series] = {}
    for name in TEXT:
        if name in table:
            column = table[name].astype(object)
            columns[name] = column.where(column.notna(), None)
        else:
            columns[name] = pd.Series(None, index=table.index, dtype=object)
    for name in (*NUMBERS, *parts):
        column = table[name] if name in table else pd.Series(float("nan"), index=table.index)
        columns[name] = column.astype("float64")
    return pd.DataFrame(columns, index=table.index)
