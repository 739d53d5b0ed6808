"""From a run store to one tidy table: a row per (cell, probe kind, label, frames).

Nothing is left out: a run that is missing, failed or diverged keeps its rows, with its state and the
reason, and its numbers are missing (NaN), never 0. Teachers that are runs of the plan but not cells have
rows too. FLOPs are floats (exact to 2^53, relative error below 2e-16 above), as a budget of 1e21 fits no
64-bit integer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd

from analysis.configs import configuration_ids, configuration_label, variants
from salt.errors import UserError
from salt.plan_specs import Cell, Plan, PlannedRun
from salt.plans import charged_flops, read_plan
from salt.result_specs import ProbeResult, ProbeScore, RunResult
from salt.sizes import encoder_parameters, patch_values
from salt.store import RunDir

#: What identifies a score within a run.
SCORE_KEY = ("kind", "label", "frames")
_TEXT = [
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
]
_NUMBERS = [
    "teacher_share",
    "seed",
    "budget_flops",
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
]


@dataclass(frozen=True)
class RunRecord:
    """What the files of one run say. `state` is done, missing, failed or diverged."""

    run: PlannedRun
    state: str
    reason: str | None
    result: RunResult | None


def gather(store: Path, plan_name: str) -> pd.DataFrame:
    """The table of a plan: one row per (cell, kind, label, frames), and per teacher that is no cell.

    Columns: identity (`role` cell or teacher, `cell_id`, `arm`, `student`, `teacher`, `config_id`,
    `seed`, ...); FLOPs (`budget_flops` as asked, `planned_flops`, and of finished runs `total_flops` =
    `own_flops` + `teacher_flops`, the teacher's training by the plan's `charge`; `flops_<part>` splits
    the student's whole way); `state` and `reason`; the score and everything beside it; `teacher_accuracy`,
    the teacher's own score on the same probe suite, kind, label and frames. Probe FLOPs are outside all
    of these.

    Raises `UserError` for a plan that is not there, a score that is there twice, or a cell that is.
    """
    plan = read_plan(store, plan_name)
    records = {run.run_id: _read_run(store, run) for run in plan.runs}
    rows = [row for cell in plan.cells for row in _cell_rows(store, plan, cell, records)]
    cell_runs = {cell.run_id for cell in plan.cells}
    names, ids = variants(plan), configuration_ids(plan)
    for row in rows:
        cell = row.pop("cell")
        row |= {"variant": names[cell.cell_id], "config": configuration_label(cell, names[cell.cell_id])}
    teacher_names = {cell.teacher_run_id: cell.teacher for cell in plan.cells if cell.teacher_run_id}
    teacher_rows = [
        row
        for run_id, name in teacher_names.items()
        if run_id in records
        for row in _teacher_rows(store, plan, str(name), records[run_id])
    ]
    rows += [row for row in teacher_rows if row["run_id"] not in cell_runs]
    for row in rows:
        row["config_id"] = ids.get(row["run_id"], row["run_id"])
    table = _typed(pd.DataFrame(rows))
    _refuse_duplicates(table)
    return _with_teacher_scores(table, _typed(pd.DataFrame(teacher_rows)))


def cells_used(table: pd.DataFrame) -> tuple[int, int]:
    """(cells with at least one finite score, all cells)."""
    cells = table[table["role"] == "cell"]
    return int(cells.loc[cells["accuracy"].notna(), "cell_id"].nunique()), int(cells["cell_id"].nunique())


# --- one run ------------------------------------------------------------------------------------


def _read_run(store: Path, run: PlannedRun) -> RunRecord:
    """State of a run from its files. An unreadable file is a failure with its reason, not an end of the
    analysis.
    """
    folder = RunDir(store, run.run_id)
    try:
        result, error = folder.read_result(), folder.read_error()
    except (UserError, OSError) as problem:
        return RunRecord(run, "failed", str(problem), None)
    if result is not None:
        return RunRecord(run, "done", None, result)
    if error is not None:
        state = "diverged" if error.kind == "diverged" else "failed"
        at = "" if error.step is None else f" at step {error.step}"
        return RunRecord(run, state, f"{error.kind}{at}: {error.message}", None)
    reason = "started, not finished" if folder.path.exists() else "not started"
    return RunRecord(run, "missing", reason, None)


def _score_rows(store: Path, plan: Plan, record: RunRecord) -> list[dict[str, Any]]:
    """One row per score that the plan asks of a run, whether it is there or not."""
    rows: list[dict[str, Any]] = []
    for probe_id in record.run.probe_ids:
        spec = plan.probes[probe_id]
        found, state, reason = _read_probe(store, record, probe_id)
        scores = _scores_by_key(found, RunDir(store, record.run.run_id).probe(probe_id))
        for kind in spec.kinds:
            for label in spec.labels:
                for frames in spec.frames:
                    row = {"probe_id": probe_id, "kind": kind, "label": label, "frames": frames}
                    row |= _score_columns(found, scores.get((kind, label, frames)), state, reason)
                    rows.append(row)
    return rows or [
        {"state": record.state, "reason": record.reason or "the plan asks for no probe of this run"}
    ]


def _read_probe(store: Path, record: RunRecord, probe_id: str) -> tuple[ProbeResult | None, str, str | None]:
    if record.state != "done":
        return None, record.state, record.reason
    folder = RunDir(store, record.run.run_id)
    try:
        found, error = folder.read_probe(probe_id), folder.read_error()
    except (UserError, OSError) as problem:
        return None, "failed", str(problem)
    if found is None and error is not None:
        return None, "failed", f"{error.kind}: {error.message}"
    if found is None:
        return None, "missing", f"trained, but probe {probe_id} is not there"
    if found.run_id != record.run.run_id:
        return None, "failed", f"{folder.probe(probe_id)} belongs to run {found.run_id}"
    trained = record.result.artefact_sha256 if record.result is not None else None
    if trained is not None and found.encoder_sha256 != trained:
        return None, "failed", f"{folder.probe(probe_id)} was made with other weights than the run's artefact"
    return found, "done", None


def _scores_by_key(found: ProbeResult | None, path: Path) -> dict[tuple[str, ...], ProbeScore]:
    scores: dict[tuple[str, ...], ProbeScore] = {}
    for score in found.scores if found is not None else ():
        key = (score.kind, score.label, score.frames)
        if key in scores:
            raise UserError(
                f"{path}: two scores for {'/'.join(key)}; delete the file and submit the study again"
            )
        scores[key] = score
    return scores


def _score_columns(
    found: ProbeResult | None, score: ProbeScore | None, state: str, reason: str | None
) -> dict[str, Any]:
    if found is None:
        return {"state": state, "reason": reason}
    about = {"branch": found.branch, "feature_flops": found.feature_flops}
    if score is None:
        return about | {"state": "missing", "reason": f"probe {found.probe_id} holds no such score"}
    if not (math.isfinite(score.accuracy) and 0.0 <= score.accuracy <= 1.0):
        return about | {
            "state": "failed",
            "reason": f"accuracy {score.accuracy} is not a share between 0 and 1",
        }
    return about | {
        "state": "done",
        "accuracy": score.accuracy,
        "n_report": score.n_report,
        "n_train": score.n_train,
        "n_selection": score.n_selection,
        "classes": score.classes,
        "chance": score.chance,
        "selection_accuracy": score.selection_accuracy,
        "selected": msgspec.json.encode(score.selected, order="sorted").decode(),
        "probe_flops": score.flops,
    }


# --- one cell, one teacher ----------------------------------------------------------------------


def _run_columns(plan: Plan, record: RunRecord) -> dict[str, Any]:
    run, spec = record.run, record.run.spec
    columns: dict[str, Any] = {
        "plan": plan.name,
        "arm": spec.arm,
        "seed": spec.seed,
        "run_id": run.run_id,
        "charge": plan.charge,
        "convention": plan.convention,
        "trained_label": spec.label,
        "data": spec.data.name,
        "steps": spec.steps,
    }
    if spec.arm != "raw":
        columns["parameters"] = encoder_parameters(spec.model.encoder, patch_values(spec.model, spec.clip))
    result = record.result
    if result is None:
        return columns
    columns |= {
        "own_flops": result.cost.total_flops,
        "epochs": result.epochs,
        "clips_seen": result.clips_seen,
        "unique_clips": result.unique_clips,
        "train_wall_s": result.train_wall_s,
        "probe_wall_s": result.probe_wall_s,
        "final_loss": result.final_loss,
    }
    for name, part in result.cost.parts.items():
        columns[f"flops_{name}"] = part.forward + part.backward
    return columns


def _charged(plan: Plan, cell: Cell) -> tuple[int, int]:
    """FLOPs that a cell answers for: (its student's whole way, of its teachers' training).

    By the plan's charge, the teachers' is all of it, a k-th or nothing. Planned steps are the steps done and
    planned tokens the tokens processed, so of a finished cell these are the realised FLOPs.
    """
    own = charged_flops(cell.cost, None, plan.charge, cell.teacher_students)
    return own, cell.charged_flops - own


def _cell_rows(store: Path, plan: Plan, cell: Cell, records: dict[str, RunRecord]) -> list[dict[str, Any]]:
    record = records.get(cell.run_id)
    if record is None:
        raise UserError(
            f"plan {plan.name}: cell {cell.cell_id} names run {cell.run_id}, which the plan does not hold"
        )
    teacher = records.get(cell.teacher_run_id) if cell.teacher_run_id else None
    columns = _run_columns(plan, record)
    columns |= {
        "cell": cell,
        "role": "cell",
        "cell_id": cell.cell_id,
        "arm": cell.arm,
        "student": cell.student,
        "teacher": cell.teacher,
        "teacher_share": cell.teacher_share,
        "seed": cell.seed,
        "budget_flops": cell.budget_flops,
        "teacher_run_id": cell.teacher_run_id,
        "scored_teacher": cell.teacher_run_id,
        "planned_flops": cell.charged_flops,
        "residual": cell.residual,
    }
    if record.result is not None:
        columns["own_flops"], columns["teacher_flops"] = _charged(plan, cell)
        columns["total_flops"] = cell.charged_flops
        for name, part in cell.cost.parts.items():  # the whole way, a trunk's steps included
            columns[f"flops_{name}"] = part.forward + part.backward
    if _is_trained_on(cell, teacher):
        columns["scored_teacher"] = None  # the probes saw its last weights, not those used here
    rows = [columns | row for row in _score_rows(store, plan, record)]
    changed = _teacher_changed(record, teacher)
    if changed:
        rows = [row | {"state": "failed", "reason": changed, "accuracy": None} for row in rows]
    elif record.state == "missing" and teacher is not None and teacher.state != "done":
        why = f"its teacher {teacher.run.run_id} is {teacher.state}: {teacher.reason}"
        rows = [row | {"reason": why} for row in rows]
    return rows


def _is_trained_on(cell: Cell, teacher: RunRecord | None) -> bool:
    """Whether the teacher's run goes on after the weights that the student learns from."""
    return teacher is not None and cell.teacher_steps != teacher.run.spec.steps


def _teacher_changed(record: RunRecord, teacher: RunRecord | None) -> str | None:
    if record.result is None or teacher is None or teacher.result is None:
        return None
    reference = record.run.spec.teacher
    if reference is not None and reference.step != teacher.run.spec.steps:
        return None  # a state on its way, which the run itself held against its hash
    used, now = record.result.teacher_sha256, teacher.result.artefact_sha256
    if used is None or now is None or used == now:
        return None
    return f"trained against teacher artefact {used[:12]}, but {teacher.run.run_id} now holds {now[:12]}"


def _teacher_rows(store: Path, plan: Plan, name: str, record: RunRecord) -> list[dict[str, Any]]:
    columns = _run_columns(plan, record)
    columns |= {"role": "teacher", "student": name, "config": f"teacher {name}"}
    columns["planned_flops"] = record.run.cost.total_flops
    if record.result is not None:
        columns["teacher_flops"], columns["total_flops"] = 0.0, columns["own_flops"]
    return [columns | row for row in _score_rows(store, plan, record)]


# --- the table ----------------------------------------------------------------------------------


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    """Text columns as objects with None, numbers as float64 with NaN, in a fixed order of columns."""
    parts = sorted(name for name in table.columns if name.startswith("flops_"))
    table = table.reindex(columns=[*_TEXT, *_NUMBERS, *parts])
    for name in _TEXT:
        column = table[name].astype(object)
        table[name] = column.where(column.notna(), None)
    for name in [*_NUMBERS, *parts]:
        table[name] = table[name].astype("float64")
    return table


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


def _with_teacher_scores(table: pd.DataFrame, teachers: pd.DataFrame) -> pd.DataFrame:
    """Join each teacher's own score, many students to one teacher."""
    keys = ["probe_id", *SCORE_KEY]
    scores = teachers.dropna(subset=["probe_id"])[["run_id", *keys, "accuracy", "state"]]
    scores = scores.rename(
        columns={"run_id": "scored_teacher", "accuracy": "teacher_accuracy", "state": "teacher_state"}
    )
    table = table.drop(columns=["teacher_accuracy", "teacher_state"])
    joined = table.merge(scores, on=["scored_teacher", *keys], how="left", validate="many_to_one")
    if len(joined) != len(table):
        raise RuntimeError(f"joining the teachers' scores changed {len(table)} rows into {len(joined)}")
    return _typed(joined)
