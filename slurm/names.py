"""What to call a run in tables and logs: the sizes, budget and seed of the cell that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from salt.plan_specs import Plan
from salt.sizes import SIZES


@dataclass(frozen=True, kw_only=True)
class RunName:
    """`arm` is "teacher" or "trunk" for those; `budget_flops` is the smallest budget the run serves, 0 for
    references.
    """

    arm: str
    size: str
    teacher: str | None
    budget_flops: int
    seed: int
    total_steps: int

    def __str__(self) -> str:
        above = f" <- {self.teacher}" if self.teacher is not None else ""
        budget = f" {flops_text(self.budget_flops)}" if self.budget_flops else ""
        return f"{self.arm} {self.size}{above}{budget} seed {self.seed}"


def run_names(plan: Plan) -> dict[str, RunName]:
    """run_id -> name, for every run of the plan, in the plan's order."""
    budgets = _smallest_budgets(plan)
    sizes = {vit: name for name, vit in SIZES.items()}
    specs = {run.run_id: run.spec for run in plan.runs}
    taught: dict[str, str] = {}
    arms: dict[str, str] = {}
    for cell in plan.cells:
        if cell.arm != "raw" and specs[cell.run_id].arm != "external":
            sizes[specs[cell.run_id].model.encoder] = cell.student
        if cell.budget:
            arms.setdefault(cell.run_id, cell.arm)
        if cell.teacher is not None and cell.teacher_run_id is not None:
            taught[cell.teacher_run_id] = cell.teacher
            if specs[cell.teacher_run_id].arm != "external":  # its name is its own, not its size's
                sizes[specs[cell.teacher_run_id].model.encoder] = cell.teacher
    names = {}
    for run in plan.runs:
        spec, teacher = run.spec, run.spec.teacher
        vit = spec.model.encoder
        size = sizes.get(vit, f"{vit.width}x{vit.depth}")
        if spec.arm == "external":
            size = taught.get(run.run_id, size)
        names[run.run_id] = RunName(
            arm=run.role if run.role in ("teacher", "trunk") else arms.get(run.run_id, spec.arm),
            size="raw" if spec.arm == "raw" else size,
            teacher=None if teacher is None else taught.get(teacher.run_id, sizes.get(teacher.encoder)),
            budget_flops=budgets.get(run.run_id, 0),
            seed=spec.seed,
            total_steps=spec.steps,
        )
    return names


def _smallest_budgets(plan: Plan) -> dict[str, int]:
    """run_id -> the smallest budget of a cell that needs the run, directly or on its way."""
    needs: dict[str, list[str]] = {}
    for run in plan.runs:
        above = (run.spec.teacher, run.spec.trunk)
        needs[run.run_id] = [reference.run_id for reference in above if reference is not None]
    found: dict[str, int] = {}
    for cell in sorted(plan.cells, key=lambda cell: cell.budget_flops):
        waiting = [cell.run_id]
        while waiting:
            run_id = waiting.pop()
            if run_id not in found:
                found[run_id] = cell.budget_flops
                waiting += needs.get(run_id, [])
    return found


def flops_text(flops: float) -> str:
    """FLOPs with three digits, an SI prefix below 1e18: `400 GFLOP`, `1.2 TFLOP`, `3e21 FLOP`."""
    if not flops:
        return "0"
    flops = float(f"{flops:.3g}")  # first, so that 999.9 billion is 1 TFLOP
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size <= abs(flops) < 1e18:
            return f"{flops / size:.3g} {prefix}FLOP"
    return f"{flops:.3g} FLOP".replace("e+", "e")
