"""The lines of runs and cells of a plan as text, for a million of them.

The same lines as `salt.plans.RunLine` and `CellLine` in sorted JSON, to the byte, as every planner test
holds. Joining texts takes half as long as making an object for each line and encoding it.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from salt.plans import BaseNumbers, RunLine

if TYPE_CHECKING:
    from sweeps.draft import Draft

#: Lines that are joined into one piece.
CHUNK = 20_000


def pieces(lines: Iterator[str]) -> Iterator[bytes]:
    """Lines in pieces of some megabytes."""
    while chunk := list(islice(lines, CHUNK)):
        yield "".join(chunk).encode()


def _json(value: Any) -> str:
    return msgspec.json.encode(value, order="sorted").decode()


def _floats(values: Any) -> list[str]:
    """Each number as JSON writes it."""
    return _json(values.tolist())[1:-1].split(",") if len(values) else []


def student_lines(draft: Draft, bases: BaseNumbers, known: set[str]) -> Iterator[str]:
    """One line for each run that ends a cell and is not there yet; adds it to the known ones."""
    grid, schedule, all_bases = draft.grid, draft.schedule, draft.grid.bases.all
    used = [all_bases[number] for number in set(grid.base[draft.kept].tolist())]
    places = {base.number: bases.number(base.spec) for base in used}
    own = {base.number: bases.own_optim(places[base.number], base.spec.optim) for base in used}
    optims = {number: f',"optim":{_json(optim)}' if optim else "" for number, optim in own.items()}
    largest, taught = max(draft.study.budgets), schedule.made
    varying = schedule.wsd or any(base.recipe_on_steps for base in all_bases)
    order = draft.dearest_first()
    points = draft.kept[order]
    columns = [column[points].tolist() for column in (grid.base, grid.steps, grid.group, grid.budget)]
    rows = zip(order.tolist(), draft.seeds[order].tolist(), *columns, strict=True)
    heads: dict[tuple[int, int, bool], str] = {}  # what comes before a run's id
    for place, seeds, base_number, steps, group, budget in rows:
        base, number = all_bases[base_number], places[base_number]
        at_largest = draft.study.budgets[budget] == largest
        for seed, run_id in zip(draft.seed_sets[seeds], draft.run_ids[place], strict=True):
            if run_id in known:
                continue
            known.add(run_id)
            teacher = taught[group, seed].weights if group >= 0 else None
            if varying:
                trunk = schedule.trunk_of(base, steps, teacher, seed)
                line = RunLine(
                    run_id=run_id,
                    role="student",
                    base=number,
                    seed=seed,
                    steps=steps,
                    probes=draft.probing.places(base.spec.arm, "student", seed, at_largest),
                    teacher=teacher,
                    trunk=trunk,
                    optim=bases.own_optim(number, schedule.optim_of(base, steps, trunk)),
                )
                yield f"{_json(line)}\n"
                continue
            key = (base_number, seed, at_largest)
            if key not in heads:
                probes = _json(draft.probing.places(base.spec.arm, "student", seed, at_largest))
                heads[key] = (
                    f'{{"base":{number}{optims[base_number]},"probes":{probes},'
                    f'"record":"run","role":"student","run_id":"'
                )
            above = "" if teacher is None else f',"teacher":["{teacher[0]}",{teacher[1]}]'
            yield f'{heads[key]}{run_id}","seed":{seed},"steps":{steps}{above}}}\n'


def cell_lines(draft: Draft) -> Iterator[str]:
    """One line for each cell, in the order of the grid."""
    grid, made = draft.grid, draft.schedule.made
    students = grid.students_per_group.tolist()
    budgets = [_json(budget) for budget in draft.study.budgets]
    shares = [
        ["" if share is None else f',"teacher_share":{_json(share)}' for share in row] for row in draft.shares
    ]
    arms = [f'{{"arm":"{axes.arm}","budget":' for axes in grid.axes]
    sizes = [[f',"student":{_json(size)}' for size in axes.students] for axes in grid.axes]
    ways = [
        [f',"teacher":{_json(way.size)},"teacher_run_id":"' for way in axes.teachers] for axes in grid.axes
    ]
    plain = _plain_names(draft)
    columns = ("arm", "student", "teacher", "budget", "change", "group")
    rows = zip(*(getattr(grid, name)[draft.kept].tolist() for name in columns), strict=True)
    residuals = _floats(grid.residual[draft.kept])
    for place, run_ids, residual, row in zip(
        draft.seeds.tolist(), draft.run_ids, residuals, rows, strict=True
    ):
        arm, student, teacher, budget, change, group = row
        name = draft.names.name(arm, student, teacher, budget, change)
        if not plain:
            name = _json(name)[1:-1]
        head = f'{arms[arm]}{budgets[budget]},"cell_id":"{name}-seed'
        for seed, run_id in zip(draft.seed_sets[place], run_ids, strict=True):
            line = f'{head}{seed}","record":"cell","residual":{residual},"run_id":"{run_id}","seed":{seed}'
            if group < 0:
                yield f"{line}{sizes[arm][student]}}}\n"
                continue
            taught = made[group, seed]
            stages = f',"stages":{_json(taught.stages)}' if taught.stages else ""
            yield (
                f"{line}{stages}{sizes[arm][student]}{ways[arm][teacher]}{taught.weights[0]}"
                f'"{shares[budget][teacher]},"teacher_students":{students[group]}}}\n'
            )


def _plain_names(draft: Draft) -> bool:
    """Whether the names of cells need no escapes: they are made of the names along the axes."""
    return all(_json(part) == f'"{part}"' for parts in draft.names.axes() for part in parts)
