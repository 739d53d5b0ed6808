"""What is the same experiment: configurations of a plan, apart from their seed.

Two runs belong to one configuration when their whole specs agree in everything but the seed, their
teachers' included. A configuration that shares its arm, sizes, share and budget with another one (a swept
learning rate, say) is told apart by its `variant`: the fields that differ, written out.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import Any

import msgspec

from salt.plan_specs import Cell, Plan
from salt.specs import RunSpec, canonical_json

#: Fields that follow from others or name them, so that they never describe a variant.
_DERIVED = ("seed", "steps", "teacher.run_id", "teacher.step", "trunk.run_id", "trunk.step", "keep_steps")


def configuration_ids(plan: Plan) -> dict[str, str]:
    """run_id -> 12 hex digits that are equal for runs that differ only in seeds."""
    specs = {run.run_id: run.spec for run in plan.runs}
    known: dict[str, str] = {}

    def identify(run_id: str) -> str:
        if run_id in known:
            return known[run_id]
        if run_id not in specs:
            return run_id  # a run of another plan: its own id is all that is known
        spec = specs[run_id]
        body = canonical_json(msgspec.structs.replace(spec, seed=0, teacher=None, trunk=None))
        needs = [reference for reference in (spec.teacher, spec.trunk) if reference is not None]
        above = "".join(f"{identify(reference.run_id)}:{reference.step}" for reference in needs)
        known[run_id] = hashlib.sha256(body + above.encode()).hexdigest()[:12]
        return known[run_id]

    return {run_id: identify(run_id) for run_id in specs}


def variants(plan: Plan) -> dict[str, str]:
    """cell_id -> the fields in which a cell differs from others of the same arm, sizes, share and budget.

    The text is empty where the visible names already tell the configuration.
    """
    specs = {run.run_id: run.spec for run in plan.runs}
    groups: dict[tuple[Any, ...], list[Cell]] = defaultdict(list)
    for cell in plan.cells:
        groups[(cell.arm, cell.student, cell.teacher, cell.teacher_share, cell.budget_flops)].append(cell)
    texts: dict[str, str] = {}
    for cells in groups.values():
        flat = {cell.cell_id: _flat_with_teacher(cell, specs) for cell in cells}
        names = sorted({name for fields in flat.values() for name in fields})
        differing = [name for name in names if len({repr(fields.get(name)) for fields in flat.values()}) > 1]
        for cell_id, fields in flat.items():
            texts[cell_id] = ", ".join(f"{name}={fields.get(name)}" for name in differing)
    return texts


def configuration_label(cell: Cell, variant: str) -> str:
    """A short name for tables and legends, such as `salt nano>micro 30% optim.lr=0.002`."""
    sizes = cell.student if cell.teacher is None else f"{cell.teacher}>{cell.student}"
    share = "" if cell.teacher_share is None else f" {100 * cell.teacher_share:.3g}%"
    return f"{cell.arm} {sizes}{share}" + (f" {variant}" if variant else "")


def _flat_with_teacher(cell: Cell, specs: dict[str, RunSpec]) -> dict[str, Any]:
    fields = _flatten(specs.get(cell.run_id))
    if cell.teacher_run_id is not None:
        above = _flatten(specs.get(cell.teacher_run_id))
        fields |= {f"teacher {name}": value for name, value in above.items()}
    return fields


def _flatten(spec: RunSpec | None) -> dict[str, Any]:
    """Dotted field -> plain value, without the fields that follow from others."""
    flat: dict[str, Any] = {}

    def visit(value: Any, path: str) -> None:
        if path in _DERIVED:
            return
        if isinstance(value, dict):
            for key, item in value.items():
                visit(item, f"{path}.{key}" if path else key)
        else:
            flat[path] = value

    visit({} if spec is None else msgspec.to_builtins(spec), "")
    return flat
