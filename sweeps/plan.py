"""From a checked study to a plan: runs named by their content, teachers first, and the plan's files.

    <store>/plans/<name>/{study.yaml, plan.jsonl, costs.csv}

The same study and data give the same bytes.
"""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import msgspec

from salt.errors import UserError
from salt.flops import run_cost
from salt.lists import VideoList, data_spec, read_list
from salt.specs import (
    Arm,
    Cell,
    Cost,
    DataSpec,
    ObjectiveSpec,
    OptimSpec,
    Plan,
    PlannedRun,
    ProbeSpec,
    RunSpec,
    spec_id,
)
from salt.store import encode_plan, plan_dir, read_plan, write_atomically
from sweeps.config import SPLITS, ProbeConfig, Recipe, Role, Study
from sweeps.grid import Solved, build_problems, epochs, run_spec, solve_grid

REFERENCE_ARMS: tuple[Arm, ...] = ("random", "supervised", "raw")


def build_plan(study: Study) -> Plan:
    """The whole plan of a study; reads the lists, writes nothing.

    Raises:
        UserError: a list is missing, empty or lacks a label, or cells cannot be built or paid.
    """
    lists = {split: read_list(study.lists[split]) for split in SPLITS}
    _check_lists(study, lists)
    data = {split: data_spec(video_list, split) for split, video_list in lists.items()}
    _check_sample_sizes(study, data)
    cells = [
        cell for solved in solve_grid(study, data["train"]) for cell in _cells_of(solved, study.file.seeds)
    ]
    cells += _references(study, data["train"])
    _check_same_twice(study, [cell for cell, _, _ in cells])
    suites = {probe.name: _probe_spec(study, probe, data) for probe in study.file.probes}
    runs, ledger = _runs(study, cells, {name: spec_id(spec) for name, spec in suites.items()})
    return Plan(
        name=study.name,
        study_sha256=study.sha256,
        convention="matmul",
        charge="full",
        execution=msgspec.structs.replace(
            study.file.execution, lists={data[split].fingerprint: str(study.lists[split]) for split in SPLITS}
        ),
        probes={spec_id(spec): spec for spec in suites.values()},
        runs=runs,
        cells=tuple(_with_sharing(cell, ledger) for cell, _, _ in cells),
    )


#: A cell with the spec of its run and of its teacher's.
Placed = tuple[Cell, RunSpec, RunSpec | None]


def _cells_of(solved: Solved, seeds: tuple[int, ...]) -> list[Placed]:
    placed: list[Placed] = []
    for seed in seeds:
        teacher, teacher_id = None, None
        student = msgspec.structs.replace(solved.student, seed=seed)
        if solved.teacher is not None and student.teacher is not None:
            teacher = msgspec.structs.replace(solved.teacher, seed=seed)
            teacher_id = spec_id(teacher)
            reference = msgspec.structs.replace(student.teacher, run_id=teacher_id)
            student = msgspec.structs.replace(student, teacher=reference)
        cell = Cell(
            cell_id=f"{solved.way.name}-seed{seed}",
            budget_flops=solved.way.budget_flops,
            arm=solved.way.arm,
            student=solved.way.student,
            teacher=solved.way.teacher,
            teacher_share=solved.way.teacher_share,
            seed=seed,
            run_id=spec_id(student),
            teacher_run_id=teacher_id,
            teacher_students=0,  # filled in when all cells are known
            teacher_cost=None
            if teacher is None or solved.teacher_step is None
            else solved.teacher_step * teacher.steps,
            cost=solved.student_step * student.steps,
            residual=solved.residual,
        )
        placed.append((cell, student, teacher))
    return placed


def _references(study: Study, data: DataSpec) -> list[Placed]:
    """Runs beside the budgets: random encoders, training on labels, raw pixels."""
    file, references = study.file, study.file.references
    seeds, placed = file.seeds, []
    salt = file.arms.salt
    sizes = dict.fromkeys([*_students(study), *(salt.teachers if salt is not None else ())])
    plain = Recipe(
        optim=OptimSpec(), objective=ObjectiveSpec()
    )  # an untrained run must not change with the recipe
    if references.random:
        for size in sizes:
            placed += [_reference(run_spec(study, "random", size, data, plain), size, seed) for seed in seeds]
    if references.supervised is not None:
        recipe = Recipe(optim=study.supervised_optim(), objective=ObjectiveSpec())
        for size in references.supervised.students:
            problems = build_problems(study, size)
            if problems:
                raise UserError(f"{study.path}: references.supervised.students: {'; '.join(problems)}")
            spec = run_spec(study, "supervised", size, data, recipe, steps=references.supervised.steps)
            spec = msgspec.structs.replace(spec, label=references.supervised.label)
            placed += [_reference(spec, size, seed) for seed in seeds]
    if references.raw:
        placed.append(_reference(run_spec(study, "raw", next(iter(sizes)), data, plain), "raw", seeds[0]))
    return placed


def _students(study: Study) -> list[str]:
    names: dict[str, None] = {}
    for arm in ("pixel", "vjepa", "salt"):
        config = getattr(study.file.arms, arm)
        if config is not None:
            names |= dict.fromkeys(config.students or study.file.students)
    return list(names)


def _reference(spec: RunSpec, size: str, seed: int) -> Placed:
    spec = msgspec.structs.replace(spec, seed=seed)
    cell = Cell(
        cell_id=f"{spec.arm}-{size}-seed{seed}",
        budget_flops=0,
        arm=spec.arm,
        student=size,
        teacher=None,
        teacher_share=None,
        seed=seed,
        run_id=spec_id(spec),
        teacher_run_id=None,
        teacher_students=0,
        teacher_cost=None,
        cost=run_cost(spec) if spec.steps else Cost(),
        residual=0.0,
    )
    return cell, spec, None


def _runs(
    study: Study, cells: list[Placed], probe_ids: dict[str, str]
) -> tuple[tuple[PlannedRun, ...], dict[str, set[str]]]:
    """Each run once: teachers by descending cost, then students, then references; and teacher -> its
    students.
    """
    specs: dict[str, RunSpec] = {}
    costs: dict[str, Cost] = {}
    budgets: dict[str, set[int]] = {}
    students: dict[str, set[str]] = {}
    for cell, spec, teacher in cells:
        specs[cell.run_id], costs[cell.run_id] = spec, cell.cost
        budgets.setdefault(cell.run_id, set()).add(cell.budget_flops)
        if teacher is not None and cell.teacher_run_id is not None and cell.teacher_cost is not None:
            specs[cell.teacher_run_id], costs[cell.teacher_run_id] = teacher, cell.teacher_cost
            budgets.setdefault(cell.teacher_run_id, set()).add(cell.budget_flops)
            students.setdefault(cell.teacher_run_id, set()).add(cell.run_id)

    def role_of(run_id: str) -> Role:
        if run_id in students:
            return "teacher"
        return "reference" if specs[run_id].arm in REFERENCE_ARMS else "student"

    largest = int(max(study.file.budgets_flops))
    runs = []
    for run_id, spec in specs.items():
        role = role_of(run_id)
        wanted = tuple(
            probe_ids[probe.name]
            for probe in study.file.probes
            if _is_probed(probe, spec, role, largest in budgets[run_id])
        )
        runs.append(PlannedRun(run_id=run_id, role=role, spec=spec, cost=costs[run_id], probe_ids=wanted))
    rank = {"teacher": 0, "student": 1, "reference": 2}
    runs.sort(key=lambda run: (rank[run.role], -run.cost.total_flops, run.run_id))
    return tuple(runs), students


def _is_probed(probe: ProbeConfig, spec: RunSpec, role: Role, at_largest: bool) -> bool:
    """Whether a suite is run on an encoder. References stand beside every budget, so `on` never leaves them
    out.

    Raw pixels are not tokens: suites with attentive probes pass them by.
    """
    if spec.arm == "raw" and "attentive" in probe.kinds:
        return False
    if role not in probe.roles or (probe.seeds is not None and spec.seed not in probe.seeds):
        return False
    return probe.on == "all" or role == "reference" or at_largest


def _with_sharing(cell: Cell, students: dict[str, set[str]]) -> Cell:
    if cell.teacher_run_id is None:
        return cell
    return msgspec.structs.replace(cell, teacher_students=len(students[cell.teacher_run_id]))


def _probe_spec(study: Study, probe: ProbeConfig, data: dict[str, DataSpec]) -> ProbeSpec:
    fields = {
        "labels": probe.labels,
        "kinds": probe.kinds,
        "frames": probe.frames,
        "train_clips": probe.train_clips,
        "selection_clips": probe.selection_clips,
        "report_clips": probe.report_clips,
        "seed": probe.seed,
        **{split: msgspec.to_builtins(data[split]) for split in SPLITS},
    }
    try:
        return msgspec.convert({**study.probe_settings(probe), **fields}, ProbeSpec)
    except msgspec.ValidationError as error:
        raise UserError(f"{study.path}: probes.{probe.name}.settings: {error}") from error


def _check_lists(study: Study, lists: dict[str, VideoList]) -> None:
    """Labels must exist, and no clip, nor any source of clips, may be on both sides of a split."""
    problems = []
    wanted = {label: f"probes.{probe.name}.labels" for probe in study.file.probes for label in probe.labels}
    for split, video_list in lists.items():
        for label, place in wanted.items():
            if label not in video_list.columns:
                have = ", ".join(video_list.columns) or "none"
                problems.append(f"{place}: {study.lists[split]} has no column {label!r} (it has: {have})")
    supervised = study.file.references.supervised
    if supervised is not None and supervised.label not in lists["train"].columns:
        problems.append(
            f"references.supervised.label: {study.lists['train']} has no column {supervised.label!r}"
        )
    for first, second in (("train", "selection"), ("train", "report"), ("selection", "report")):
        a, b = lists[first], lists[second]
        shared = {str(file) for file in set(a.files) & set(b.files)}
        what = "file"
        if not shared and "group" in a.columns and "group" in b.columns:
            shared, what = set(a.columns["group"]) & set(b.columns["group"]), "group"
        if shared:
            example = min(shared)
            problems.append(
                f"data: {len(shared)} {what}s are in both {first} and {second}, such as {example}; part them"
            )
    if problems:
        raise UserError("\n".join(f"{study.path}: {problem}" for problem in dict.fromkeys(problems)))


def _check_sample_sizes(study: Study, data: dict[str, DataSpec]) -> None:
    problems = []
    for probe in study.file.probes:
        for split in SPLITS:
            wanted = getattr(probe, f"{split}_clips")
            if wanted > data[split].clips:
                have = f"{study.lists[split]} has {data[split].clips} clips"
                problems.append(
                    f"{study.path}: probes.{probe.name}.{split}_clips: {wanted} wanted, but {have}"
                )
    if problems:
        raise UserError("\n".join(problems))


def _check_same_twice(study: Study, cells: list[Cell]) -> None:
    """Two cells of one name would be one cell counted twice."""
    seen: set[str] = set()
    for cell in cells:
        if cell.cell_id in seen:
            raise UserError(
                f"{study.path}: the cell {cell.cell_id} comes twice; remove the repeated entry from the grid"
            )
        seen.add(cell.cell_id)


# --- files ----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Written:
    """What writing a plan did to the plan of that name that stood there before."""

    folder: Path
    outcome: str  # "new", "unchanged" or "replaced"
    runs_added: int
    runs_removed: int

    def __str__(self) -> str:
        if self.outcome != "replaced":
            return f"{self.outcome}: {self.folder}"
        return (
            f"replaced: {self.folder} ({self.runs_added} runs added, {self.runs_removed} no longer wanted; "
            "finished runs stay in the store)"
        )


def write_plan(store: Path, plan: Plan, study_bytes: bytes) -> Written:
    """Write the three files of a plan, `plan.jsonl` last.

    A plan of the same name is replaced: runs are named by their content, so nothing that was computed is
    lost. The answer says how many runs came and went.
    """
    folder = plan_dir(store, plan.name)
    data, added, removed, outcome = encode_plan(plan), len(plan.runs), 0, "new"
    path = folder / "plan.jsonl"
    if path.exists():
        outcome = "unchanged" if path.read_bytes() == data else "replaced"
        now = {run.run_id for run in plan.runs}
        before = _run_ids_before(store, plan.name)
        added, removed = len(now - before), len(before - now)
    write_atomically(folder / "study.yaml", study_bytes)
    write_atomically(folder / "costs.csv", costs_csv(plan))
    write_atomically(path, data)
    return Written(folder=folder, outcome=outcome, runs_added=added, runs_removed=removed)


def _run_ids_before(store: Path, name: str) -> set[str]:
    try:
        return {run.run_id for run in read_plan(store, name).runs}
    except UserError:
        return set()  # written by another version or damaged: it is being replaced


def costs_csv(plan: Plan) -> bytes:
    """One row a cell: steps, and FLOPs by part, forward and backward together, of the teacher and of the run
    itself.
    """
    steps = {run.run_id: run.spec.steps for run in plan.runs}
    specs = {run.run_id: run.spec for run in plan.runs}
    parts = sorted({part for cell in plan.cells for part in cell.cost.parts})
    teacher_parts = sorted(
        {part for cell in plan.cells if cell.teacher_cost for part in cell.teacher_cost.parts}
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            "cell_id",
            "arm",
            "student",
            "teacher",
            "teacher_share",
            "seed",
            "budget_flops",
            "convention",
            "charge",
            "steps",
        ]
        + ["teacher_steps", "epochs", "teacher_students"]
        + [f"teacher_{part}_flops" for part in teacher_parts]
        + [f"{part}_flops" for part in parts]
        + ["total_flops", "residual", "run_id", "teacher_run_id"]
    )
    for cell in plan.cells:
        own, above = cell.cost, cell.teacher_cost
        total = own.total_flops + (above.total_flops if above is not None else 0)
        writer.writerow(
            [cell.cell_id, cell.arm, cell.student, cell.teacher or "", _text(cell.teacher_share), cell.seed]
            + [cell.budget_flops, plan.convention, plan.charge, steps[cell.run_id]]
            + [steps[cell.teacher_run_id] if cell.teacher_run_id else "", f"{epochs(specs[cell.run_id]):.6g}"]
            + [cell.teacher_students if cell.teacher_run_id else ""]
            + [_part(above, part) for part in teacher_parts]
            + [_part(own, part) for part in parts]
            + [total, repr(cell.residual), cell.run_id, cell.teacher_run_id or ""]
        )
    return text.getvalue().encode()


def _text(value: float | None) -> str:
    return "" if value is None else repr(value)


def _part(cost: Cost | None, name: str) -> str:
    """FLOPs of a part; empty where a run has no such part."""
    if cost is None or name not in cost.parts:
        return ""
    return str(cost.parts[name].forward + cost.parts[name].backward)
