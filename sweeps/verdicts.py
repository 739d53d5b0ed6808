"""Why a point of the grid cannot be planned, in words that name the value and the way out."""

from __future__ import annotations

from salt.errors import UserError
from salt.plan_specs import Refused
from sweeps.cell_names import CellNames, point_text
from sweeps.grid import (
    CANNOT_BE_BUILT,
    DOES_NOT_FIT,
    MISSES,
    REPEATS,
    TEACHER_EXCEEDS,
    TOLERANCE,
    TOO_SMALL,
    VERDICTS,
    Grid,
)
from sweeps.study import Study

UNITS = {"flops": "FLOPs", "steps": "steps", "gpu-hours": "GPU-hours"}
#: So many refused points are told one by one; the rest is counted.
SHOWN = 200


def verdict_names(bits: int) -> tuple[str, ...]:
    return tuple(name for bit, name in VERDICTS.items() if bits & bit)


def reasons(grid: Grid, point: int) -> tuple[str, ...]:
    """Every reason against a point, in the order of the verdicts."""
    bits = int(grid.verdict[point])
    found: list[str] = []
    if bits & CANNOT_BE_BUILT:
        found += _bases_say(grid, point, "problems")
    if bits & TOO_SMALL:
        found += _too_small(grid, point)
    if bits & TEACHER_EXCEEDS:
        found.append(_teacher_exceeds(grid, point))
    if bits & MISSES:
        price = grid.base_of(point).unit_price
        found.append(
            f"misses its budget by {100 * grid.residual[point]:+.2f} %, more than {100 * TOLERANCE:g} %: "
            f"one step is {_amount(grid.study, price)}; raise the budget or lower optim.batch_clips"
        )
    if bits & REPEATS:
        found += _repeats(grid, point)
    if bits & DOES_NOT_FIT:
        found += _bases_say(grid, point, "fit")
    return tuple(dict.fromkeys(found))


def _bases_say(grid: Grid, point: int, what: str) -> list[str]:
    bases = [grid.base_of(point)]
    if grid.table is not None and grid.group[point] >= 0:
        bases += [base for _, base, _ in grid.table.stages_of(int(grid.group[point]))]
    if what == "problems":
        return [text for base in bases for text in base.problems]
    return [base.fit.problem for base in bases if base.fit is not None and base.fit.problem is not None]


def _too_small(grid: Grid, point: int) -> list[str]:
    found, least = [], grid.study.least_steps
    if grid.table is not None and grid.group[point] >= 0:
        for stage, base, steps in grid.table.stages_of(int(grid.group[point])):
            if steps < least:
                found.append(_few("teacher", f" {stage.size}", steps, base.unit_price, grid.study))
    base, steps = grid.base_of(point), int(grid.steps[point])
    if steps < least and not int(grid.verdict[point]) & TEACHER_EXCEEDS:
        found.append(_few("student", "", steps, base.unit_price, grid.study))
    return found


def _few(who: str, size: str, steps: int, price: float, study: Study) -> str:
    if not steps:
        return f"too small: what is left for the {who}{size} is below one step ({_amount(study, price)})"
    if steps < study.file.minimum_steps:
        least = f"below minimum_steps {study.file.minimum_steps}"
    else:
        least = f"below {study.least_steps}, the fewest of a trunk's warmup and a cooldown"
    return f"too small: {steps} steps for the {who}{size} is {least}"


def _teacher_exceeds(grid: Grid, point: int) -> str:
    budget = grid.study.budgets[int(grid.budget[point])]
    charged = float(grid.charged[point]) - int(grid.steps[point]) * grid.base_of(point).unit_price
    steps = ""
    if grid.table is not None:
        counts = [str(count) for _, _, count in grid.table.stages_of(int(grid.group[point]))]
        steps = f"its {' + '.join(counts)} steps cost "
    return (
        f"teacher exceeds budget: {steps}{_amount(grid.study, charged)} (charge {grid.study.file.charge}) of "
        f"{_amount(grid.study, budget)}, and leave the student less than a step"
    )


def _repeats(grid: Grid, point: int) -> list[str]:
    limit, clips = grid.study.file.maximum_epochs, grid.bases.epoch_clips
    # Of a mixture, the list that comes round first counts.
    on = ", its most repeated list once every" if grid.bases.data.parts else " on"
    runs = [("student", grid.base_of(point), int(grid.steps[point]))]
    if grid.table is not None and grid.group[point] >= 0:
        for stage, base, steps in grid.table.stages_of(int(grid.group[point])):
            runs.append((f"teacher {stage.size}", base, steps))
    return [
        f"{name} repeats data {steps * base.batch / clips:.4g} times ({steps} x {base.batch} clips{on} "
        f"{clips:.10g}), more than maximum_epochs {limit:g}"
        for name, base, steps in runs
        if limit is not None and steps * base.batch > limit * clips
    ]


def _amount(study: Study, value: float) -> str:
    return f"{value:.4g} {UNITS[study.match]}"


def refused_points(grid: Grid) -> list[int]:
    """Places of the points with any verdict."""
    import numpy as np

    return [int(place) for place in np.flatnonzero(grid.verdict)]


def refusals(grid: Grid) -> list[Refused]:
    """The points that were left out, as lines of a plan."""
    names = CellNames(grid)
    return [
        Refused(
            cell=names.name(
                int(grid.arm[p]),
                int(grid.student[p]),
                int(grid.teacher[p]),
                int(grid.budget[p]),
                int(grid.change[p]),
            ),
            budget=grid.study.budgets[int(grid.budget[p])],
            verdicts=verdict_names(int(grid.verdict[p])),
            reasons=reasons(grid, p),
        )
        for p in refused_points(grid)
    ]


def refuse(grid: Grid) -> None:
    """Raise with all bad points at once, unless there is none or the study leaves them out.

    Raises:
        UserError: lists every point that cannot be planned, with its reasons; one that all share is said
        once.
    """
    bad = refused_points(grid)
    study = grid.study
    if not bad or (study.file.bad_cells == "leave_out" and len(bad) < len(grid)):
        return
    why = [reasons(grid, point) for point in bad[:SHOWN]]
    shared = set(why[0]).intersection(*why)
    lines = [
        f"{study.path}: {len(bad)} of {len(grid)} cells (seeds apart) cannot be planned; nothing was written"
    ]
    if study.file.bad_cells == "refuse" and len(bad) < len(grid):
        lines[0] += " (`bad_cells: leave_out` plans the others)"
    lines += [f"  every cell below: {reason}" for reason in why[0] if reason in shared]
    for point, all_reasons in zip(bad, why, strict=False):
        own = [reason for reason in all_reasons if reason not in shared]
        lines.append(f"  {point_text(grid, point)}" + (f": {'; '.join(own)}" if own else ""))
    if len(bad) > SHOWN:
        lines.append(f"  and {len(bad) - SHOWN} more")
    raise UserError("\n".join(lines))
