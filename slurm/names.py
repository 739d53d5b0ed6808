"""What to call a run in tables and logs: the sizes, budget and seed of the cell that it belongs to."""

from __future__ import annotations

from dataclasses import dataclass

from salt.specs import Plan


@dataclass(frozen=True, kw_only=True)
class RunName:
    """`arm` is "teacher" for a teacher; `budget_flops` is the smallest budget the run serves, 0 for
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
    """run_id -> name, for every run of the plan."""
    steps = {run.run_id: run.spec.steps for run in plan.runs}
    names: dict[str, RunName] = {}
    for cell in sorted(plan.cells, key=lambda cell: cell.budget_flops):
        names.setdefault(
            cell.run_id,
            RunName(
                arm=cell.arm,
                size=cell.student,
                teacher=cell.teacher,
                budget_flops=cell.budget_flops,
                seed=cell.seed,
                total_steps=steps[cell.run_id],
            ),
        )
    for cell in sorted(plan.cells, key=lambda cell: cell.budget_flops):
        if cell.teacher_run_id is not None and cell.teacher is not None:
            names.setdefault(
                cell.teacher_run_id,
                RunName(
                    arm="teacher",
                    size=cell.teacher,
                    teacher=None,
                    budget_flops=cell.budget_flops,
                    seed=cell.seed,
                    total_steps=steps[cell.teacher_run_id],
                ),
            )
    return names


def flops_text(flops: float) -> str:
    """FLOPs with an SI prefix and three digits: `400 GFLOP`, `1.20 TFLOP`."""
    if not flops:
        return "0"
    for prefix, size in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(flops) >= size:
            return f"{flops / size:.3g} {prefix}FLOP" if flops < 1e21 else f"{flops:.3g} FLOP"
    return f"{flops:.3g} FLOP"
