"""A run store made up in a second: the shape of the miniature study, with accuracies that are drawn, not
trained.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from salt.flops import run_cost, step_cost
from salt.plan_specs import Cell, Plan, PlannedRun
from salt.plans import encode_plan, plan_dir
from salt.result_specs import ProbeResult, ProbeScore, RunError, RunResult
from salt.sizes import SIZES
from salt.specs import (
    ClipSpec,
    Cost,
    DataSpec,
    ExecSpec,
    MaskSpec,
    ModelSpec,
    OptimSpec,
    ProbeSpec,
    RunSpec,
    TeacherRef,
    VitSpec,
    spec_id,
)
from salt.store import RunDir, pretty_json, write_atomically

BUDGETS = (200 * 10**9, 400 * 10**9, 800 * 10**9)
CLASSES = {"motion": 6, "appearance": 10}
CLIP = ClipSpec(frames=8, frame_stride=1, store_px=32, crop_px=24, channels=1, mean=0.38, std=0.24)
MASK = MaskSpec(visible_tokens=8, target_tokens=32)
Accuracy = Callable[[Cell | None, PlannedRun, str, str, str], float]


@dataclass
class Study:
    """A synthetic study: where it is, its plan, and helpers to damage it."""

    store: Path
    plan: Plan

    def cell(
        self, arm: str, student: str = "micro", seed: int = 0, budget: int = 0, teacher: str | None = None
    ) -> Cell:
        found = [
            cell
            for cell in self.plan.cells
            if (cell.arm, cell.student, cell.seed, cell.budget_flops, cell.teacher)
            == (arm, student, seed, budget, teacher)
        ]
        assert len(found) == 1, found
        return found[0]

    def folder(self, cell: Cell) -> RunDir:
        return RunDir(self.store, cell.run_id)

    def lose(self, run_id: str) -> None:
        """Take the results of a run away, as if it had never finished."""
        folder = RunDir(self.store, run_id)
        folder.result.unlink()
        for path in folder.probes.glob("*.json"):
            path.unlink()

    def fail(self, run_id: str, kind: str, message: str, step: int | None = None) -> None:
        self.lose(run_id)
        error = RunError(run_id=run_id, kind=kind, message=message, attempt=1, step=step, host="node")
        write_atomically(RunDir(self.store, run_id).error, pretty_json(error))

    def edit_scores(self, cell: Cell, **changes: object) -> None:
        """Overwrite fields of every score of a cell's run, without checking them."""
        for path in self.folder(cell).probes.glob("*.json"):
            data = json.loads(path.read_bytes())
            for score in data["scores"]:
                score |= changes
            path.write_text(json.dumps(data))


def make_study(
    store: Path,
    name: str = "miniature",
    *,
    seeds: Iterable[int] = (0, 1, 2),
    budgets: Iterable[int] = BUDGETS,
    labels: tuple[str, ...] = ("motion", "appearance"),
    students: tuple[str, ...] = ("micro", "tiny"),
    teachers: tuple[str, ...] = ("nano", "micro", "tiny"),
    charge: str = "full",
    lrs: tuple[float, ...] = (1e-3,),
    shares: tuple[float, ...] = (0.3,),
    accuracy: Accuracy | None = None,
    run: bool = True,
    question: str = "Does a frozen teacher pay at equal FLOPs?",
) -> Study:
    """Plan, and unless `run` is off pretend to have run, a study under `store`."""
    budgets = tuple(budgets)
    probes = _probes(labels)
    planner = _Planner(probes, max(budgets), lrs)
    for seed in seeds:
        for budget in budgets:
            for student in students:
                planner.whole_budget("pixel", student, budget, seed)
                planner.whole_budget("vjepa", student, budget, seed)
                for teacher in teachers:
                    for share in shares:
                        planner.salt(teacher, student, budget, seed, share)
        for size in dict.fromkeys([*students, *teachers]):
            planner.reference("random", size, seed)
        planner.reference("supervised", "micro", seed)
    planner.reference("raw", "raw", 0)
    plan = Plan(
        name=name,
        study_sha256="0" * 64,
        convention="matmul",
        charge=charge,
        match="flops",
        execution=ExecSpec(),
        probes=probes,
        runs=tuple(planner.runs.values()),
        cells=planner.finished_cells(),
    )
    write_atomically(plan_dir(store, name) / "plan.jsonl", encode_plan(plan))
    write_atomically(
        plan_dir(store, name) / "study.yaml", f"name: {json.dumps(name)}\nquestion: {question}\n".encode()
    )
    if run:
        _pretend(store, plan, accuracy or plausible_accuracy)
    return Study(store, plan)


def touch_plan(store: Path, name: str, mtime_s: float) -> None:
    """Date a plan, so that which one is the newest does not hang on the clock."""
    os.utime(plan_dir(store, name) / "plan.jsonl", (mtime_s, mtime_s))


def plausible_accuracy(cell: Cell | None, run: PlannedRun, kind: str, label: str, frames: str) -> float:
    """Roughly what the miniature measures: gains on motion with the budget, chance on appearance, no "
    "winner."""
    noise = random.Random(f"{run.run_id} {kind} {label} {frames}").gauss(0, 0.015)
    arm, size = run.spec.arm, {32: 0, 48: 1, 64: 2}[run.spec.model.encoder.width]
    if label != "motion":
        return 0.10 + noise / 3
    if frames != "ordered":
        return 1 / 6 + noise / 3
    if arm == "raw":
        return 0.33 + 0.07 * (kind == "knn")
    start = 0.27 + 0.07 * size
    if arm == "random":
        level = start
    elif arm == "supervised":
        level = 0.98
    else:
        compute = (cell.budget_flops if cell else 0.3 * run.cost.total_flops / 0.3) / 800e9
        level = start + 0.19 * min(1.0, compute) ** 0.5 + 0.01 * (arm == "vjepa")
    if kind == "attentive":
        level = 0.6 + 0.4 * level
    if kind == "knn":
        level = 0.16 + 0.2 * (level - 0.16)
    return min(0.999, level + noise * (arm != "supervised"))


class _Planner:
    """Collects runs and cells; a teacher that several students want is one run."""

    def __init__(self, probes: dict[str, ProbeSpec], largest: int, lrs: tuple[float, ...]) -> None:
        self.probes, self.largest, self.lrs = probes, largest, lrs
        self.runs: dict[str, PlannedRun] = {}
        self.cells: list[Cell] = []

    def spec(self, arm: str, size: str, seed: int, steps: int, **fields: object) -> RunSpec:
        vit = SIZES.get(size, SIZES["nano"])
        model = ModelSpec(
            encoder=vit, predictor=VitSpec(width=32, depth=2, heads=2, mlp_width=128), patch_px=6
        )
        optim = OptimSpec(batch_clips=16, lr=fields.pop("lr", self.lrs[0]))
        data = DataSpec(name="train", fingerprint="f" * 16, clips=16384)
        return RunSpec(
            arm=arm,
            seed=seed,
            steps=steps,
            model=model,
            clip=CLIP,
            data=data,
            masks=(MASK, MASK),
            optim=optim,
            **fields,
        )

    def add(self, spec: RunSpec, role: str, largest: bool) -> PlannedRun:
        run_id = spec_id(spec)
        wanted = ["main", "attentive"] if largest else ["main"]
        wanted += ["controls"] if (largest and spec.seed == 0) else []
        old = self.runs.get(run_id)
        probe_ids = tuple(wanted) if old is None else tuple(dict.fromkeys([*old.probe_ids, *wanted]))
        run = PlannedRun(run_id=run_id, role=role, spec=spec, cost=run_cost(spec), probe_ids=probe_ids)
        self.runs[run_id] = run
        return run

    def whole_budget(self, arm: str, student: str, budget: int, seed: int) -> None:
        for lr in self.lrs:
            step = step_cost(self.spec(arm, student, seed, 1, lr=lr)).total_flops
            run = self.add(
                self.spec(arm, student, seed, round(budget / step), lr=lr), "student", budget == self.largest
            )
            self.cell(arm, student, None, None, budget, seed, run, None)

    def salt(self, teacher: str, student: str, budget: int, seed: int, share: float = 0.3) -> None:
        step = step_cost(self.spec("pixel", teacher, seed, 1)).total_flops
        steps = round(share * budget / step)
        above = self.add(self.spec("pixel", teacher, seed, steps), "teacher", budget == self.largest)
        ref = TeacherRef(run_id=above.run_id, step=steps, encoder=above.spec.model.encoder)
        step = step_cost(self.spec("salt", student, seed, 1, teacher=ref)).total_flops
        left = round((budget - above.cost.total_flops) / step)
        run = self.add(self.spec("salt", student, seed, left, teacher=ref), "student", budget == self.largest)
        self.cell("salt", student, teacher, share, budget, seed, run, above)

    def reference(self, arm: str, size: str, seed: int) -> None:
        fields = {"label": "motion"} if arm == "supervised" else {}
        spec = self.spec(arm, size, seed, 600 if arm == "supervised" else 0, **fields)
        self.cell(arm, size, None, None, 0, seed, self.add(spec, "reference", True), None)

    def cell(
        self,
        arm: str,
        student: str,
        teacher: str | None,
        share: float | None,
        budget: int,
        seed: int,
        run: PlannedRun,
        above: PlannedRun | None,
    ) -> None:
        total = run.cost.total_flops + (above.cost.total_flops if above else 0)
        self.cells.append(
            Cell(
                cell_id=f"{arm}-{teacher or 'none'}-{student}-{budget}-{seed}-{run.run_id[:4]}",
                budget=float(budget),
                budget_flops=budget,
                arm=arm,
                student=student,
                teacher=teacher,
                teacher_share=share,
                teacher_steps=above.spec.steps if above else None,
                seed=seed,
                run_id=run.run_id,
                teacher_run_id=above.run_id if above else None,
                teacher_students=0,
                teacher_cost=above.cost if above else None,
                cost=run.cost,
                charged_flops=total,
                residual=(total - budget) / budget if budget else 0.0,
            )
        )

    def finished_cells(self) -> tuple[Cell, ...]:
        """The cells, now that it is known how many students share each teacher."""
        users: dict[str | None, int] = {}
        for cell in self.cells:
            users[cell.teacher_run_id] = users.get(cell.teacher_run_id, 0) + 1
        return tuple(
            msgspec.structs.replace(
                cell, teacher_students=users[cell.teacher_run_id] if cell.teacher_run_id else 0
            )
            for cell in self.cells
        )


def _probes(labels: tuple[str, ...]) -> dict[str, ProbeSpec]:
    def suite(kinds: tuple[str, ...], frames: tuple[str, ...], names: tuple[str, ...]) -> ProbeSpec:
        data = DataSpec(name="probe", fingerprint="e" * 16, clips=4096)
        return ProbeSpec(
            labels=names,
            kinds=kinds,
            frames=frames,
            train=data,
            selection=data,
            report=data,
            train_clips=1024,
            selection_clips=1024,
            report_clips=2048,
        )

    return {
        "main": suite(("linear", "knn"), ("ordered",), labels),
        "attentive": suite(("attentive",), ("ordered",), labels),
        "controls": suite(("linear", "knn"), ("shuffled", "first"), labels[:1]),
    }


def _pretend(store: Path, plan: Plan, accuracy: Accuracy) -> None:
    cells = {cell.run_id: cell for cell in plan.cells}
    for run in plan.runs:
        folder = RunDir(store, run.run_id)
        folder.probes.mkdir(parents=True, exist_ok=True)
        for probe_id in run.probe_ids:
            result = _probe_result(plan.probes[probe_id], probe_id, run, cells.get(run.run_id), accuracy)
            folder.probe(probe_id).write_bytes(pretty_json(result))
        seen = run.spec.steps * run.spec.optim.batch_clips
        teacher = run.spec.teacher
        result = RunResult(
            run_id=run.run_id,
            arm=run.spec.arm,
            steps=run.spec.steps,
            cost=Cost(parts=run.cost.parts),
            final_loss=0.3 if run.spec.steps else None,
            artefact_sha256=run.run_id * 4,
            teacher_sha256=teacher.run_id * 4 if teacher else None,
            attempts=1,
            train_wall_s=10.0,
            probe_wall_s=3.0,
            clips_seen=seen,
            unique_clips=min(seen, 16384),
            epochs=seen / 16384,
        )
        folder.result.write_bytes(pretty_json(result))


def _probe_result(
    spec: ProbeSpec, probe_id: str, run: PlannedRun, cell: Cell | None, accuracy: Accuracy
) -> ProbeResult:
    scores = []
    for kind in spec.kinds:
        for label in spec.labels:
            for frames in spec.frames:
                value = accuracy(cell, run, kind, label, frames)
                classes = CLASSES.get(label, 6)
                scores.append(
                    ProbeScore(
                        kind=kind,
                        label=label,
                        frames=frames,
                        accuracy=value,
                        n_report=2048,
                        n_train=1024,
                        n_selection=1024,
                        classes=classes,
                        chance=1.02 / classes,
                        selection_accuracy=value,
                        selected={"penalty": 1.0},
                        flops=10**8,
                    )
                )
    branch = {"vjepa": "ema", "raw": "raw"}.get(run.spec.arm, "student")
    return ProbeResult(
        probe_id=probe_id,
        run_id=run.run_id,
        encoder_sha256=run.run_id * 4,
        branch=branch,
        scores=tuple(scores),
        feature_flops=10**9,
        wall_s=3.0,
    )
