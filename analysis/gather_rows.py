"""The rows of the tidy table, put together by columns: runs, then cells and teachers, then their scores.

Three small tables are made (one line a run, a cell or teacher, a score) and spread out over the rows at the
end: a dictionary for each row would take ten times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pandas as pd

from analysis.configs import configuration_ids, configuration_label, variants
from analysis.lineage import CONVENTIONS, Lineage, Way
from analysis.run_files import RunFiles, RunRecord
from analysis.table_columns import NUMBERS, TEXT
from salt.errors import UserError
from salt.plan_specs import Cell, Plan
from salt.plans import charged_flops
from salt.result_specs import ProbeResult, ProbeScore
from salt.sizes import encoder_parameters, patch_values
from salt.specs import Cost

#: A small table: column -> one value a line.
Columns = dict[str, list[Any]]
#: Columns of the large table: objects with None, and float64 with NaN.
Texts = dict[str, np.ndarray[Any, Any]]
Numbers = dict[str, np.ndarray[Any, Any]]
_LABEL_FREE = ("rankme", "lidar", "alpha_req")


def tidy(plan: Plan, files: RunFiles) -> pd.DataFrame:
    """The table of a plan, see `analysis.gather.gather`. `attrs["notes"]`: sentences on what was not read."""
    records = [files.record(run) for run in plan.runs]
    place = {run.run_id: number for number, run in enumerate(plan.runs)}
    scores = _Scores(plan, files)
    first, count = np.zeros(len(records), dtype=np.int64), np.zeros(len(records), dtype=np.int64)
    units = _Units(plan, records, place)
    for number in dict.fromkeys([*units.runs, *units.teachers]):
        first[number] = len(scores)
        scores.add(records[number])
        count[number] = len(scores) - first[number]
    runs = np.array(units.runs, dtype=np.int64)
    counts = count[runs]
    unit_of = np.repeat(np.arange(len(runs)), counts)
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    score_of = np.repeat(first[runs], counts) + np.arange(len(unit_of)) - starts
    texts, numbers = _spread(units.columns, unit_of, scores.columns, score_of)
    _join_teachers(texts, numbers, scores)
    table = frame(texts, numbers)
    if files.unreadable_environments:
        there = files.unreadable_environments
        table.attrs["notes"] = [f"{len(there)} runs have no GPU-hours: {there[0]} cannot be read"]
    return table


# --- cells and teachers -------------------------------------------------------------------------

_OF_RESULT = ("epochs", "clips_seen", "unique_clips", "train_wall_s", "probe_wall_s", "final_loss",
              "burnt_flops")  # fmt: skip
_result_values = attrgetter(*_OF_RESULT)


class _Own(NamedTuple):
    """What a line has of its own, beside what is known of its run. `changed` and `waiting` are sentences that
    overrule the state and the reason of its scores.
    """

    role: str
    cell_id: str | None
    arm: str
    student: str
    teacher: str | None
    teacher_share: float | None
    seed: int
    budget_flops: int | None
    matched_steps: float | None
    teacher_run_id: str | None
    scored_teacher: str | None
    teacher_students: int | None
    planned_flops: int
    residual: float | None
    own_flops: int | None
    teacher_flops: int | None
    total_flops: int | None
    variant: str | None
    config: str
    changed: str | None = None
    waiting: str | None = None


class _Units:
    """Lines of the table before scores: the plan's cells, then the teachers that are none.

    `runs` holds the place of each line's run, `teachers` those of all teachers that are runs of this plan.
    """

    def __init__(self, plan: Plan, records: list[RunRecord], place: dict[str, int]) -> None:
        self.plan, self.records, self.place = plan, records, place
        self.runs: list[int] = []
        self.lines: list[tuple[Any, ...]] = []
        self.lineage = Lineage(plan.runs)
        self.ids = configuration_ids(plan)
        self.names = variants(plan, self.ids)
        self._parameters: dict[tuple[int, int], int] = {}
        self._parts = sorted(
            {part for cell in plan.cells for part in cell.cost.parts}
            | {part for record in records if record.result for part in record.result.cost.parts}
        )
        for cell in plan.cells:
            self._cell(cell)
        names = {cell.teacher_run_id: cell.teacher for cell in plan.cells if cell.teacher_run_id}
        self.teachers = [place[run_id] for run_id in names if run_id in place]
        cells = {cell.run_id for cell in plan.cells}
        for number in self.teachers:
            run_id = records[number].run.run_id
            if run_id not in cells:
                self._teacher(str(names[run_id]), number)

    @property
    def columns(self) -> Columns:
        ways = [f"{part}_flops_{name}" for name in CONVENTIONS for part in Way._fields]
        names = [*_Own._fields, "run_id", "config_id", "trained_label", "data", "steps", "parameters",
                 "gpu_hours", *_OF_RESULT, *ways, *(f"flops_{part}" for part in self._parts)]  # fmt: skip
        columns = _columns(names, self.lines)
        for name in ("charge", "convention"):
            columns[name] = [getattr(self.plan, name)] * len(self.lines)
        columns["plan"] = [self.plan.name] * len(self.lines)
        return columns

    def _cell(self, cell: Cell) -> None:
        number = self.place.get(cell.run_id)
        if number is None:
            raise UserError(
                f"plan {self.plan.name}: cell {cell.cell_id} names run {cell.run_id}, which the plan does "
                "not hold"
            )
        record = self.records[number]
        above = self.place.get(cell.teacher_run_id) if cell.teacher_run_id else None
        teacher = None if above is None else self.records[above]
        own = teacher_flops = total = cost = None
        if record.result is not None:
            # Planned steps are the steps done, so of a finished cell these are the realised FLOPs.
            own = charged_flops(cell.cost, None, self.plan.charge, cell.teacher_students)
            teacher_flops, total = cell.charged_flops - own, cell.charged_flops
            cost = cell.cost  # the whole way, a trunk's steps included
        # Where the teacher's run goes on after the weights used here, its probes saw other weights.
        goes_on = teacher is not None and cell.teacher_steps != teacher.run.spec.steps
        variant = self.names[cell.cell_id]
        line = _Own(
            "cell", cell.cell_id, cell.arm, cell.student, cell.teacher, cell.teacher_share, cell.seed,
            cell.budget_flops, self._matched_steps(cell),
            cell.teacher_run_id, None if goes_on else cell.teacher_run_id,
            cell.teacher_students if cell.teacher_run_id else None, cell.charged_flops, cell.residual,
            own, teacher_flops, total, variant, configuration_label(cell, variant),
            _teacher_changed(record, teacher), _waiting(record, teacher),
        )  # fmt: skip
        self._add(number, line, cost)

    def _matched_steps(self, cell: Cell) -> float | None:
        """The budget of a plan that matches steps; there, FLOPs differ between the cells of one budget."""
        return cell.budget if self.plan.match == "steps" and cell.budget > 0 else None

    def _teacher(self, name: str, number: int) -> None:
        record = self.records[number]
        spec, cost = record.run.spec, None if record.result is None else record.result.cost
        flops = None if cost is None else cost.total_flops
        line = _Own(
            "teacher", None, spec.arm, name, None, None, spec.seed, None, None, None, None, None,
            record.run.cost.total_flops, None, flops, None if cost is None else 0, flops, None,
            f"teacher {name}",
        )  # fmt: skip
        self._add(number, line, cost)

    def _add(self, number: int, line: _Own, cost: Cost | None) -> None:
        record = self.records[number]
        run, spec, result = record.run, record.run.spec, record.result
        parameters = None if spec.arm == "raw" else self._encoder(record)
        about = (run.run_id, self.ids[run.run_id], spec.label, spec.data.name, spec.steps, parameters)
        if result is None or cost is None:
            found: tuple[Any, ...] = (None,) * (
                1 + len(_OF_RESULT) + len(CONVENTIONS) * len(Way._fields) + len(self._parts)
            )
        else:
            wall_s = result.train_wall_s
            hours = None if wall_s is None or record.gpus is None else wall_s * record.gpus / 3600
            parts = (cost.parts.get(name) for name in self._parts)
            found = (
                hours,
                *_result_values(result),
                *chain.from_iterable(self.lineage.ways(run.run_id)),
                *(None if part is None else part.forward + part.backward for part in parts),
            )
        self.runs.append(number)
        self.lines.append(line + about + found)

    def _encoder(self, record: RunRecord) -> int:
        """Parameters of the encoder; runs of one base share the parts of their specs."""
        spec = record.run.spec
        key = (id(spec.model), id(spec.clip))
        if key not in self._parameters:
            self._parameters[key] = encoder_parameters(
                spec.model.encoder, patch_values(spec.model, spec.clip)
            )
        return self._parameters[key]


def _columns(names: Sequence[str], lines: list[tuple[Any, ...]]) -> Columns:
    """Lines of a small table as columns."""
    if not lines:
        return {name: [] for name in names}
    return dict(zip(names, map(list, zip(*lines, strict=True)), strict=True))


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


def _waiting(record: RunRecord, teacher: RunRecord | None) -> str | None:
    if record.state != "missing" or teacher is None or teacher.state == "done":
        return None
    return f"its teacher {teacher.run.run_id} is {teacher.state}: {teacher.reason}"


# --- scores -------------------------------------------------------------------------------------


class _Scores:
    """Lines of scores: one for each that the plan asks of a run, whether it is there or not."""

    _NAMES = ("run_id", "probe_id", "kind", "label", "frames", "state", "reason", "branch", "selected",
              "accuracy", "n_report", "n_train", "n_selection", "classes", "chance", "selection_accuracy",
              "probe_flops", "feature_flops", *_LABEL_FREE)  # fmt: skip

    def __init__(self, plan: Plan, files: RunFiles) -> None:
        self.plan, self.files = plan, files
        self.lines: list[tuple[Any, ...]] = []
        self._selected: dict[tuple[tuple[str, float], ...], str] = {}
        self._wanted = {
            probe_id: [
                (kind, label, frames)
                for kind in spec.kinds
                for label in spec.labels
                for frames in spec.frames
            ]
            for probe_id, spec in plan.probes.items()
        }

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def columns(self) -> Columns:
        return _columns(self._NAMES, self.lines)

    def add(self, record: RunRecord) -> None:
        """All lines of a run; one without a score where the plan asks for no probe of it."""
        run_id = record.run.run_id
        nothing = (None,) * 14
        for probe_id in record.run.probe_ids:
            found, state, reason = self.files.probe(record, probe_id)
            if found is None:
                self.lines += [
                    (run_id, probe_id, *key, state, reason, *nothing) for key in self._wanted[probe_id]
                ]
                continue
            scores = self._by_key(found, run_id)
            metrics = [found.label_free.get(name) for name in _LABEL_FREE]
            for key in self._wanted[probe_id]:
                line = self._score(found, scores.get(key))
                self.lines.append((run_id, probe_id, *key, *line, found.feature_flops, *metrics))
        if not record.run.probe_ids:
            reason = record.reason or "the plan asks for no probe of this run"
            self.lines.append((run_id, None, None, None, None, record.state, reason, *nothing))

    def _by_key(self, found: ProbeResult, run_id: str) -> dict[tuple[str, str, str], ProbeScore]:
        scores: dict[tuple[str, str, str], ProbeScore]
        scores = {(score.kind, score.label, score.frames): score for score in found.scores}
        if len(scores) == len(found.scores):
            return scores
        keys = [(score.kind, score.label, score.frames) for score in found.scores]
        twice = next(key for key in keys if keys.count(key) > 1)
        path = self.files.store / "runs" / run_id[:2] / run_id / "probes" / f"{found.probe_id}.json"
        raise UserError(
            f"{path}: two scores for {'/'.join(twice)}; delete the file and submit the study again"
        )

    def _score(self, found: ProbeResult, score: ProbeScore | None) -> tuple[Any, ...]:
        """State, reason, branch, then the numbers of a score, up to `probe_flops`."""
        if score is None:
            return ("missing", f"probe {found.probe_id} holds no such score", found.branch, *(None,) * 9)
        if not 0.0 <= score.accuracy <= 1.0:
            why = f"accuracy {score.accuracy} is not a share between 0 and 1"
            return ("failed", why, found.branch, *(None,) * 9)
        key = tuple(score.selected.items())
        choice = self._selected.get(key)  # few choices come again and again
        if choice is None:
            choice = msgspec.json.encode(score.selected, order="sorted").decode()
            self._selected[key] = choice
        return (
            "done", None, found.branch, choice, score.accuracy, score.n_report, score.n_train,
            score.n_selection, score.classes, score.chance, score.selection_accuracy, score.flops,
        )  # fmt: skip


# --- rows -----------------------------------------------------------------------------------------


def _spread(
    units: Columns, unit_of: np.ndarray[Any, Any], scores: Columns, score_of: np.ndarray[Any, Any]
) -> tuple[Texts, Numbers]:
    """Both small tables over the rows of the large one: text as objects with None, numbers as float64."""
    parts = sorted(name for name in units if name.startswith("flops_"))
    rows = len(unit_of)
    texts: Texts = {}
    numbers: Numbers = {}
    for wanted, kind, found in ((TEXT, object, texts), ((*NUMBERS, *parts), np.float64, numbers)):
        for name in wanted:
            if name in units:
                found[name] = np.array(units[name], dtype=kind)[unit_of]
            elif name in scores:
                found[name] = np.array(scores[name], dtype=kind)[score_of]
            else:
                found[name] = np.full(rows, None, dtype=kind)
    changed = np.array(units.get("changed", []), dtype=object)[unit_of]
    waiting = np.array(units.get("waiting", []), dtype=object)[unit_of]
    for row in np.flatnonzero(changed != None):  # noqa: E711 - element by element
        texts["state"][row], texts["reason"][row], numbers["accuracy"][row] = "failed", changed[row], np.nan
    told = (waiting != None) & (changed == None)  # noqa: E711
    texts["reason"][told] = waiting[told]
    return texts, numbers


def frame(texts: Texts, numbers: Numbers) -> pd.DataFrame:
    """A table of two blocks: pandas is to infer no other type, and to copy nothing twice."""
    parts = []
    for columns, kind in ((texts, object), (numbers, np.float64)):
        block = np.empty((len(columns), len(next(iter(columns.values())))), dtype=kind)
        for place, values in enumerate(columns.values()):
            block[place] = values
        parts.append(pd.DataFrame(block.T, columns=list(columns), dtype=kind, copy=False))
    return pd.concat(parts, axis=1)


def _join_teachers(texts: Texts, numbers: Numbers, scores: _Scores) -> None:
    """Each teacher's own score on the same suite, kind, label and frames: many students to one teacher."""
    wanted = texts["scored_teacher"]
    rows = np.flatnonzero(wanted != None)  # noqa: E711 - element by element
    teachers = set(wanted[rows])
    known = {line[:5]: line for line in scores.lines if line[0] in teachers and line[1] is not None}
    keys = zip(*(texts[name][rows] for name in ("probe_id", "kind", "label", "frames")), strict=True)
    for row, key in zip(rows, keys, strict=True):
        line = known.get((wanted[row], *key))
        if line is not None:
            texts["teacher_state"][row] = line[5]
            numbers["teacher_accuracy"][row] = np.nan if line[9] is None else line[9]
