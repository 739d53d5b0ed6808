"""A plan as a table for people and as plain data for programs. Seeds of one cell share a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from salt.specs import Cell, Plan, PlannedRun
from slurm.names import flops_text
from sweeps.grid import epochs

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Row:
    """Cells that differ in their seed only; steps and FLOPs do not depend on the seed."""

    name: str
    cell: Cell
    seeds: tuple[int, ...]
    steps: int
    teacher_steps: int | None
    epochs: float


@dataclass(frozen=True, kw_only=True)
class Sums:
    """What a plan costs: every run once, however many cells it serves. Probes are apart."""

    runs: int
    teachers: int
    students: int
    references: int
    teacher_flops: int
    student_flops: int
    reference_flops: int
    probe_suites: int

    @property
    def total_flops(self) -> int:
        return self.teacher_flops + self.student_flops + self.reference_flops


def rows_of(plan: Plan) -> list[Row]:
    """The lines of the plan's table, in the order of the grid."""
    specs = {run.run_id: run.spec for run in plan.runs}
    groups: dict[str, list[Cell]] = {}
    for cell in plan.cells:
        groups.setdefault(cell.cell_id.removesuffix(f"-seed{cell.seed}"), []).append(cell)
    return [
        Row(
            name=name,
            cell=cells[0],
            seeds=tuple(cell.seed for cell in cells),
            steps=specs[cells[0].run_id].steps,
            teacher_steps=specs[cells[0].teacher_run_id].steps
            if cells[0].teacher_run_id is not None
            else None,
            epochs=epochs(specs[cells[0].run_id]),
        )
        for name, cells in groups.items()
    ]


def sums_of(plan: Plan) -> Sums:
    """FLOPs of a plan with shared teachers counted once."""
    by_role: dict[str, list[PlannedRun]] = {"teacher": [], "student": [], "reference": []}
    for run in plan.runs:
        by_role[run.role].append(run)
    flops = {role: sum(run.cost.total_flops for run in runs) for role, runs in by_role.items()}
    return Sums(
        runs=len(plan.runs),
        teachers=len(by_role["teacher"]),
        students=len(by_role["student"]),
        references=len(by_role["reference"]),
        teacher_flops=flops["teacher"],
        student_flops=flops["student"],
        reference_flops=flops["reference"],
        probe_suites=sum(len(run.probe_ids) for run in plan.runs),
    )


def plan_tables(plan: Plan) -> list[RenderableType]:
    """The cells, the probe suites and the sums, ready to print."""
    sums = sums_of(plan)
    return [
        _cell_table(plan),
        _probe_table(plan),
        f"{sums.runs} runs: {sums.teachers} teachers {flops_text(sums.teacher_flops)} (each trained once), "
        f"{sums.students} students {flops_text(sums.student_flops)}, "
        f"{sums.references} references {flops_text(sums.reference_flops)}; "
        f"in all {flops_text(sums.total_flops)} of training, and {sums.probe_suites} probe suites beside it.",
        f"FLOPs: convention {plan.convention} (a multiply-add is 2), charge {plan.charge} (each cell pays "
        "for its whole teacher, shared or not).",
    ]


def _cell_table(plan: Plan) -> Table:
    from rich.table import Table

    table = Table(title=f"plan {plan.name}", title_justify="left")
    table.add_column("arm", no_wrap=True)
    table.add_column("student", no_wrap=True)
    table.add_column("teacher", no_wrap=True)
    for name in (
        "share",
        "seeds",
        "steps",
        "teacher steps",
        "teacher FLOPs",
        "inference FLOPs",
        "own FLOPs",
        "total FLOPs",
    ):
        table.add_column(name, justify="right")
    for name in ("off by", "epochs"):
        table.add_column(name, justify="right")
    previous: int | None = None
    for row in rows_of(plan):
        cell = row.cell
        if previous is not None and cell.budget_flops != previous:
            table.add_section()
        if cell.budget_flops != previous:
            title = f"budget {flops_text(cell.budget_flops)}" if cell.budget_flops else "references"
            table.add_row(f"[bold]{title}[/bold]")
        previous = cell.budget_flops
        table.add_row(*_cell_texts(row))
    return table


def _cell_texts(row: Row) -> list[str]:
    cell = row.cell
    inference = cell.cost.parts.get("teacher_forward")
    inference_flops = None if inference is None else inference.forward + inference.backward
    teacher_flops = None if cell.teacher_cost is None else cell.teacher_cost.total_flops
    own_flops = cell.cost.total_flops - (inference_flops or 0)
    changes = [part for part in row.name.split("-") if part.startswith(("optim.", "objective."))]
    return [
        " ".join([cell.arm, *changes]),
        cell.student,
        cell.teacher or "-",
        "-" if cell.teacher_share is None else f"{100 * cell.teacher_share:.3g} %",
        seeds_text(row.seeds),
        str(row.steps),
        "-" if row.teacher_steps is None else str(row.teacher_steps),
        _flops(teacher_flops),
        _flops(inference_flops),
        _flops(own_flops),
        _flops(cell.cost.total_flops + (teacher_flops or 0)),
        f"{100 * cell.residual:+.2f} %" if cell.budget_flops else "-",
        f"{row.epochs:.2f}",
    ]


def _probe_table(plan: Plan) -> Table:
    from rich.table import Table

    table = Table(title="probe suites, on frozen encoders, outside the budgets", title_justify="left")
    for name in ("labels", "kinds", "frames", "labelled clips", "chosen on", "reported on"):
        table.add_column(name)
    table.add_column("encoders", justify="right")
    for probe_id, spec in plan.probes.items():
        table.add_row(
            ", ".join(spec.labels),
            ", ".join(spec.kinds),
            ", ".join(spec.frames),
            f"{spec.train_clips} of {spec.train.name}",
            f"{spec.selection_clips} of {spec.selection.name}",
            f"{spec.report_clips} of {spec.report.name}",
            str(sum(probe_id in run.probe_ids for run in plan.runs)),
        )
    return table


def seeds_text(seeds: tuple[int, ...]) -> str:
    """`0-2` for a run of seeds, else a list."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(str(seed) for seed in seeds)


def _flops(flops: int | None) -> str:
    return "-" if flops is None else flops_text(flops).removesuffix("LOP")


def plan_json(plan: Plan) -> dict[str, Any]:
    """The same numbers as plain data; every cell on its own, seeds not joined."""
    specs = {run.run_id: run.spec for run in plan.runs}
    sums = sums_of(plan)
    return {
        "plan": plan.name,
        "convention": plan.convention,
        "charge": plan.charge,
        "runs": sums.runs,
        "teachers": sums.teachers,
        "students": sums.students,
        "references": sums.references,
        "total_flops": sums.total_flops,
        "probe_suites": sums.probe_suites,
        "cells": [
            {
                "cell_id": cell.cell_id,
                "arm": cell.arm,
                "student": cell.student,
                "teacher": cell.teacher,
                "teacher_share": cell.teacher_share,
                "seed": cell.seed,
                "budget_flops": cell.budget_flops,
                "steps": specs[cell.run_id].steps,
                "teacher_steps": specs[cell.teacher_run_id].steps
                if cell.teacher_run_id is not None
                else None,
                "teacher_flops": cell.teacher_cost.total_flops if cell.teacher_cost is not None else None,
                "own_flops": cell.cost.total_flops,
                "residual": cell.residual,
                "epochs": epochs(specs[cell.run_id]),
                "run_id": cell.run_id,
                "teacher_run_id": cell.teacher_run_id,
            }
            for cell in plan.cells
        ],
    }
