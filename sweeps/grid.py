"""The grid of a study: every way of spending a budget, priced, with whole steps.

The equal-FLOPs rule: training of the teacher + the student's own training, its teacher's inference included,
equals the budget within `TOLERANCE`. Arms without a trained teacher spend the whole budget on the student.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from salt.errors import UserError
from salt.flops import step_cost
from salt.masks import check_masks
from salt.sizes import check_model, grid
from salt.specs import ARMS, Arm, Cost, DataSpec, RunSpec, TeacherRef
from sweeps.config import Recipe, SaltConfig, Study

#: Largest |spent - budget| / budget of a cell.
TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of spending a budget: a cell without its seed."""

    arm: Arm
    student: str
    budget_flops: int
    teacher: str | None = None
    teacher_share: float | None = None
    teacher_flops: int | None = None
    changes: dict[str, Any] = field(default_factory=dict)  # swept fields

    @property
    def name(self) -> str:
        """Unique within a study; plain ASCII."""
        parts: list[str] = [self.arm, self.student]
        if self.teacher is not None:
            paid = (
                f"share{self.teacher_share!r}"
                if self.teacher_flops is None
                else short_flops(self.teacher_flops)
            )
            parts += ["from", self.teacher, paid]
        parts.append(short_flops(self.budget_flops))
        parts += [f"{key}={value}" for key, value in self.changes.items()]
        return "-".join(parts)

    def __str__(self) -> str:
        text = f"arm {self.arm}, student {self.student}"
        if self.teacher is not None:
            paid = (
                f"share {self.teacher_share:g}"
                if self.teacher_flops is None
                else f"{self.teacher_flops:.4g} FLOPs"
            )
            text += f", teacher {self.teacher} ({paid})"
        changes = "".join(f", {key}={value}" for key, value in self.changes.items())
        return f"{text}, budget {self.budget_flops:.4g}{changes}"


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A way that can be paid: specs with whole steps (seed 0) and the price of one step of each."""

    way: Way
    student: RunSpec
    student_step: Cost
    teacher: RunSpec | None
    teacher_step: Cost | None
    residual: float


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A way that cannot be taken, with every reason."""

    way: Way
    reasons: tuple[str, ...]


def short_flops(flops: int) -> str:
    """Exact and short: 800G, 1200G, 60M, or all digits."""
    for unit, size in (("E", 10**18), ("P", 10**15), ("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if flops % size == 0:
            return f"{flops // size}{unit}"
    return str(flops)


def ways(study: Study) -> Iterator[Way]:
    """All of the grid, in the order of the study file: budgets, arms, students, teachers, payments, swept
    fields.
    """
    file = study.file
    for budget, arm in itertools.product(file.budgets_flops, ARMS):
        config = study.arm(arm)
        if config is None:
            continue
        for student in config.students or file.students:
            for teacher, share, flops in _teachers(config, budget):
                for values in itertools.product(*config.sweep.values()):
                    yield Way(
                        arm=arm,
                        student=student,
                        budget_flops=int(budget),
                        teacher=teacher,
                        teacher_share=share,
                        teacher_flops=flops,
                        changes=dict(zip(config.sweep, values, strict=True)),
                    )


def _teachers(config: object, budget: float) -> Iterator[tuple[str | None, float | None, int | None]]:
    if not isinstance(config, SaltConfig):
        yield None, None, None
        return
    for teacher in config.teachers:
        for share in config.teacher_share:
            yield teacher, share, None
        for flops in config.teacher_flops:
            yield teacher, flops / budget, int(flops)


def solve_grid(study: Study, data: DataSpec) -> list[Solved]:
    """Whole steps for every way of the grid.

    Raises:
        UserError: lists every way that cannot be built or paid, with its reasons.
    """
    outcomes = [solve(study, way, data) for way in ways(study)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, Refusal)]
    if refused:
        raise UserError(_refusal_text(study, refused, len(outcomes)))
    return [outcome for outcome in outcomes if isinstance(outcome, Solved)]


def solve(study: Study, way: Way, data: DataSpec) -> Solved | Refusal:
    """Whole steps for one way: the teacher's are rounded first, the student gets what is left."""
    problems = build_problems(study, *[size for size in (way.student, way.teacher) if size is not None])
    if problems:
        return Refusal(way=way, reasons=problems)
    budget, spent = way.budget_flops, 0
    teacher: RunSpec | None = None
    teacher_step: Cost | None = None
    reference: TeacherRef | None = None
    if way.teacher is not None:
        teacher = run_spec(study, "pixel", way.teacher, data, study.recipe("pixel"))
        teacher_step = step_cost(teacher)
        asked = way.teacher_flops if way.teacher_flops is not None else (way.teacher_share or 0.0) * budget
        steps = round(asked / teacher_step.total_flops)
        spent = steps * teacher_step.total_flops
        if steps < study.file.minimum_steps:
            return Refusal(way=way, reasons=(_few_steps("teacher", steps, asked, teacher_step, study),))
        if spent >= budget:
            reason = f"teacher exceeds budget: its {steps} steps cost {spent:.4g} of {budget:.4g} FLOPs"
            return Refusal(way=way, reasons=(reason,))
        teacher = _with_steps(teacher, steps)
        reference = TeacherRef(run_id="unnamed", step=steps, encoder=teacher.model.encoder)
    student = run_spec(
        study, way.arm, way.student, data, study.recipe(way.arm, way.changes), teacher=reference
    )
    price = step_cost(student)
    steps = round((budget - spent) / price.total_flops)
    if steps < study.file.minimum_steps:
        return Refusal(way=way, reasons=(_few_steps("student", steps, budget - spent, price, study),))
    residual = (spent + steps * price.total_flops - budget) / budget
    student = _with_steps(student, steps)
    reasons = _limits(study, residual, price, student, teacher)
    if reasons:
        return Refusal(way=way, reasons=reasons)
    return Solved(
        way=way,
        student=student,
        student_step=price,
        teacher=teacher,
        teacher_step=teacher_step,
        residual=residual,
    )


def run_spec(
    study: Study,
    arm: Arm,
    size: str,
    data: DataSpec,
    recipe: Recipe,
    *,
    steps: int = 0,
    teacher: TeacherRef | None = None,
) -> RunSpec:
    """A run of this study, for seed 0."""
    return RunSpec(
        arm=arm,
        seed=0,
        steps=steps,
        model=study.model(size),
        clip=study.file.clip,
        data=data,
        masks=study.file.masks,
        objective=recipe.objective,
        optim=recipe.optim,
        teacher=teacher,
    )


def build_problems(study: Study, *sizes: str) -> tuple[str, ...]:
    """Every reason why models of these sizes cannot be built, each once, in the study file's words."""
    problems: dict[str, None] = {}
    for size in sizes:
        for text in check_model(study.model(size), study.file.clip, study.file.masks):
            problems[text.replace("model.encoder", f"size {size}")] = None
    if sizes and not problems:
        model = study.model(sizes[0])
        problems |= dict.fromkeys(check_masks(study.file.masks, grid(model, study.file.clip)))
    return tuple(problems)


def epochs(spec: RunSpec) -> float:
    """How often a run sees each clip of its list on average."""
    return spec.steps * spec.optim.batch_clips / spec.data.clips


def _limits(
    study: Study, residual: float, price: Cost, student: RunSpec, teacher: RunSpec | None
) -> tuple[str, ...]:
    reasons = []
    if abs(residual) > TOLERANCE:
        reasons.append(
            f"misses its budget by {100 * residual:+.2f} %, more than {100 * TOLERANCE:g} %: "
            f"one step is {price.total_flops:.4g} FLOPs; raise the budget or lower optim.batch_clips"
        )
    limit = study.file.maximum_epochs
    for name, spec in (("student", student), ("teacher", teacher)):
        if spec is None:
            continue
        batch, clips = spec.optim.batch_clips, spec.data.clips
        if limit is not None and epochs(spec) > limit:
            reasons.append(
                f"{name} repeats data {epochs(spec):.4g} times ({spec.steps} x {batch} clips on {clips}), "
                f"more than maximum_epochs {limit:g}"
            )
        if batch > clips:
            reasons.append(f"{name}: a batch of {batch} clips is larger than the training list of {clips}")
    return tuple(reasons)


def _few_steps(who: str, steps: int, flops: float, price: Cost, study: Study) -> str:
    if flops < price.total_flops:
        return f"too small: {flops:.4g} FLOPs for the {who} is below one step ({price.total_flops:.4g} FLOPs)"
    return f"too small: {steps} steps for the {who} is below minimum_steps {study.file.minimum_steps}"


def _with_steps(spec: RunSpec, steps: int) -> RunSpec:
    return msgspec.structs.replace(spec, steps=steps)


def _refusal_text(study: Study, refused: list[Refusal], total: int) -> str:
    """All bad ways; a reason that every one of them shares is said once."""
    head = (
        f"{study.path}: {len(refused)} of {total} cells (seeds apart) cannot be planned; nothing was written"
    )
    shared = set(refused[0].reasons).intersection(*(refusal.reasons for refusal in refused))
    lines = [head, *(f"  every cell below: {reason}" for reason in refused[0].reasons if reason in shared)]
    for refusal in refused:
        own = [reason for reason in refusal.reasons if reason not in shared]
        lines.append(f"  {refusal.way}" + (f": {'; '.join(own)}" if own else ""))
    return "\n".join(lines)
