"""`costs.csv`: what every cell costs, part by part, for spreadsheets. Seeds of a cell share a row: they cost
the same.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from salt.specs import Cost
from sweeps.draft import Draft, teacher_cost
from sweeps.plan_lines import CHUNK

_HEAD = (
    "cell",
    "arm",
    "student",
    "teacher",
    "teacher_share",
    "seeds",
    "budget",
    "match",
    "convention",
    "charge",
    "targets",
    "steps",
    "teacher_steps",
    "epochs",
    "teacher_students",
)


def costs_csv(draft: Draft) -> Iterator[bytes]:
    """The bytes of the table, in pieces. FLOPs are forward and backward together, of one seed.

    `teacher_*_flops` are all of the teachers' training, whatever the charge; `charged` is what counts against
    the budget, in the plan's unit; `gpu_hours` are the student's own and its teachers'.
    """
    grid, study = draft.grid, draft.study
    parts = _part_names([base.step + base.cache for base in grid.bases.all])
    teachers = {group: teacher_cost(draft, group) for group in sorted(set(grid.group[draft.kept].tolist()))}
    teacher_parts = _part_names([cost for cost in teachers.values() if cost is not None])
    shared = (study.match, study.file.convention, study.file.charge, study.file.targets)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [*_HEAD, *(f"teacher_{name}_flops" for name in teacher_parts), *(f"{name}_flops" for name in parts)]
        + ["total_flops", "charged", "residual", "gpu_hours"]
    )
    own_parts = {base.number: _per_step(base.step, base.cache, parts) for base in grid.bases.all}
    above = {group: _totals(cost, teacher_parts) for group, cost in teachers.items()}
    lengths = {group: draft.teacher_steps(group) for group in teachers}
    hours = {group: draft.teacher_gpu_hours(group) for group in teachers}
    seeds = [" ".join(map(str, own)) for own in draft.seed_sets]
    columns = (
        "arm",
        "student",
        "teacher",
        "budget",
        "change",
        "base",
        "group",
        "steps",
        "charged",
        "residual",
    )
    rows = zip(*(getattr(grid, name)[draft.kept].tolist() for name in columns), strict=True)
    for number, (place, row) in enumerate(zip(draft.seeds.tolist(), rows, strict=True)):
        arm, student, teacher, budget, change, base_number, group, steps, charged, residual = row
        axes, base = grid.axes[arm], grid.bases.all[base_number]
        way = axes.teachers[teacher] if teacher >= 0 else None
        teacher_values, teacher_flops = above[group]
        share = None if way is None else draft.shares[budget][teacher]
        own = [None if pair is None else pair[0] * steps + pair[1] for pair in own_parts[base_number]]
        writer.writerow(
            [draft.names.name(arm, student, teacher, budget, change), axes.arm, axes.students[student]]
            + ["" if way is None else way.size, share, seeds[place]]  # None is an empty field
            + [study.budgets[budget], *shared, steps, lengths[group]]
            + [f"{steps * base.batch / grid.bases.clips:.6g}"]
            + ["" if group < 0 else int(grid.students_per_group[group]), *teacher_values, *own]
            + [teacher_flops + steps * base.step_flops + base.cache_flops, charged, residual]
            + [_hours(base.gpu_hours(steps), hours[group])]
        )
        if number % CHUNK == CHUNK - 1:
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()
    yield text.getvalue().encode()


def _part_names(costs: list[Cost]) -> list[str]:
    return sorted({name for cost in costs for name in cost.parts})


def _per_step(step: Cost, cache: Cost, names: list[str]) -> list[tuple[int, int] | None]:
    """(FLOPs a step, FLOPs once) of each part; None where a run has no such part, which stays empty."""
    return [
        (_flops(step, name), _flops(cache, name)) if name in step.parts or name in cache.parts else None
        for name in names
    ]


def _totals(cost: Cost | None, names: list[str]) -> tuple[list[int | None], int]:
    if cost is None:
        return [None] * len(names), 0
    return [_flops(cost, name) if name in cost.parts else None for name in names], cost.total_flops


def _flops(cost: Cost, name: str) -> int:
    part = cost.parts.get(name)
    return 0 if part is None else part.forward + part.backward


def _hours(own: float | None, above: float | None) -> str:
    return "" if own is None or above is None else f"{own + above:.6g}"
