"""What a plan is: its runs, the cells of its grid, and what was left out."""

from __future__ import annotations

from typing import Any

from salt.specs import (
    CellArm,
    Charge,
    Convention,
    Cost,
    ExecSpec,
    Match,
    NonNegativeFloat,
    NonNegativeInt,
    ProbeSpec,
    Role,
    RunSpec,
    Spec,
)


class Cell(Spec, kw_only=True):
    """One point of a study's grid: a budget spent in one way. `run_id` is the encoder it ends in."""

    cell_id: str
    budget: NonNegativeFloat  # in the plan's unit (`Plan.match`); 0 for references
    budget_flops: NonNegativeInt  # the budget where FLOPs are matched, else what the cell is charged
    arm: CellArm
    student: str  # name of the encoder size that is probed
    teacher: str | None  # size of the teacher that gives the targets
    teacher_share: float | None  # of the budget, as asked
    teacher_steps: int | None  # steps behind the teacher's weights, in its own run
    seed: int
    run_id: str
    teacher_run_id: str | None
    stages: tuple[str, ...] = ()  # runs of a chain before that teacher, first one first
    teacher_students: NonNegativeInt  # how many students of this plan share the teacher
    teacher_cost: Cost | None  # training of all teachers on the way, each up to the weights that are used
    cost: Cost  # the student's own way, its teacher's inference and its trunk included
    charged_flops: NonNegativeInt  # what counts against the budget, by the plan's charge
    residual: float  # (charged - budget) / budget in the plan's unit; 0 for references


class PlannedRun(Spec, kw_only=True):
    """A run of a plan, in an order in which each can be made from those before it."""

    run_id: str
    role: Role
    spec: RunSpec
    cost: Cost  # what this run itself spends
    probe_ids: tuple[str, ...]


class Refused(Spec, kw_only=True):
    """A point of the grid that was left out, and every reason."""

    cell: str
    budget: float
    verdicts: tuple[str, ...]
    reasons: tuple[str, ...]


class Plan(Spec, kw_only=True):
    """All of a study: probes, runs (teachers first), the cells of its grid, and those left out."""

    name: str
    study_sha256: str
    convention: Convention
    charge: Charge
    match: Match
    execution: ExecSpec
    overrides: dict[str, Any] = {}  # keys of the study file that the command line replaced
    probes: dict[str, ProbeSpec]
    runs: tuple[PlannedRun, ...]
    cells: tuple[Cell, ...]
    refused: tuple[Refused, ...] = ()
