"""From a run store to one tidy table: a row per (cell, probe kind, label, frames).

Nothing is left out: a run that is missing, failed or diverged keeps its rows, with its state and the
reason, and its numbers are missing (NaN), never 0. Teachers that are runs of the plan but not cells have
rows too. FLOPs are floats (exact to 2^53, relative error below 2e-16 above), as a budget of 1e21 fits no
64-bit integer.

Attempts are no duplicates: a run has one folder, whose `result.json` is that of its latest complete attempt.
Neither are seeds. The same score twice, within a file or by two suites or cells of one plan, is refused.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.gather_cache import load, save
from analysis.gather_rows import tidy
from analysis.run_files import RunFiles, stamp
from analysis.table_columns import SCORE_KEY
from salt.errors import UserError
from salt.plans import plan_dir, read_plan

__all__ = ["SCORE_KEY", "cells_used", "gather"]


def gather(store: Path, plan_name: str) -> pd.DataFrame:
    """The table of a plan: one row per (cell, kind, label, frames), and per teacher that is no cell.

    Columns (`analysis.table_columns`): identity (`role` cell or teacher, `cell_id`, `arm`, `student`,
    `teacher`, `config_id`, `seed`, ...); FLOPs (`budget_flops` as asked, `planned_flops`, and of finished
    runs `total_flops` = `own_flops` + `teacher_flops`, the teacher's training by the plan's `charge`;
    `flops_<part>` splits the student's whole way); `own_flops_matmul`, `above_flops_matmul` and the same
    with `paper`: the student's whole way and all of its teachers' training in each convention, before any
    charge (`cache_flops_...` is the part of the former that encodes cached targets); `gpu_hours` of the run
    itself, probes outside; `state` and `reason`; the score and everything beside it; `teacher_accuracy`, the
    teacher's own score on the same probe suite, kind, label and frames. Probe FLOPs are outside all of these.

    Plans of a thousand runs and more are kept in the store's cache folder until a file changes.

    Raises `UserError` for a plan that is not there, a score that is there twice, or a cell that is.
    """
    path = plan_dir(store, plan_name) / "plan.jsonl"
    with _paused_collector():
        before = stamp(str(path))
        kept = load(store, plan_name, before)
        if kept is not None:
            return kept
        plan = read_plan(store, plan_name)
        files = RunFiles(store)
        table = tidy(plan, files)
        _refuse_duplicates(table)
        save(store, plan_name, before, files.stamps, table)
    return table


def cells_used(table: pd.DataFrame) -> tuple[int, int]:
    """(cells with at least one finite score, all cells)."""
    cells = table[table["role"] == "cell"]
    finite = np.isfinite(cells["accuracy"])
    return int(cells.loc[finite, "cell_id"].nunique()), int(cells["cell_id"].nunique())


@contextmanager
def _paused_collector() -> Iterator[None]:
    """No search for reference cycles meanwhile: among a million new objects without any it takes half the
    time.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _refuse_duplicates(table: pd.DataFrame) -> None:
    """Seeds are not duplicates; two rows for one score of one configuration and seed are."""
    cells = table[table["role"] == "cell"]
    for key in (["cell_id"], ["config_id", "seed", "budget_flops", "arm", "student", "teacher"]):
        twice = cells[cells.duplicated([*key, *SCORE_KEY], keep=False)]
        if len(twice):
            shown = sorted(
                {f"{row.cell_id} {row.kind}/{row.label}/{row.frames}" for row in twice.itertuples()}
            )
            raise UserError(
                f"{len(twice)} rows of this plan are there more than once ({'; '.join(shown[:4])}): let only "
                "one cell and one probe suite of the study file ask for each of them, and plan again "
                "(finished runs are kept)"
            )
