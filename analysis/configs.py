"""What is the same experiment: configurations of a plan, apart from their seed.

Two runs belong to one configuration when their whole specs agree in everything but the seed, their
teachers' included. A configuration that shares its arm, sizes, share and budget with another one (a swept
learning rate, say) is told apart by its `variant`: the fields that differ, written out.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from operator import attrgetter
from typing import Any

import msgspec

from salt.plan_specs import Cell, Plan
from salt.specs import RunSpec

#: Fields that follow from others or name them, so that they never describe a variant.
_DERIVED = ("seed", "steps", "teacher.run_id", "teacher.step", "trunk.run_id", "trunk.step", "keep_steps")
#: Fields that runs of one base have as one object, and those that are a run's own.
_OWN = ("seed", "teacher", "trunk", "steps", "keep_steps", "optim")
_shared = attrgetter(*(name for name in RunSpec.__struct_fields__ if name not in _OWN))


def configuration_ids(plan: Plan) -> dict[str, str]:
    """run_id -> 12 hex digits that are equal for runs that differ only in seeds."""
    specs = {run.run_id: run.spec for run in plan.runs}
    known: dict[str, str] = {}
    bodies = _Bodies()

    def identify(run_id: str) -> str:
        if run_id in known:
            return known[run_id]
        if run_id not in specs:
            return run_id  # a run of another plan: its own id is all that is known
        spec = specs[run_id]
        needs = [reference for reference in (spec.teacher, spec.trunk) if reference is not None]
        above = "".join(f"{identify(reference.run_id)}:{reference.step}" for reference in needs)
        known[run_id] = hashlib.sha256(bodies.body(spec) + above.encode()).hexdigest()[:12]
        return known[run_id]

    return {run_id: identify(run_id) for run_id in specs}


class _Bodies:
    """JSON with sorted keys of specs without seed and references, once for all runs that share it.

    Runs of one base share the parts of their specs as objects, so that these tell them apart by identity:
    comparing by value would take as long as encoding. The plan keeps them alive.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], bytes] = {}

    def body(self, spec: RunSpec) -> bytes:
        key = (*map(id, _shared(spec)), spec.steps, spec.keep_steps, spec.optim)
        found = self._known.get(key)
        if found is None:
            bare = msgspec.structs.replace(spec, seed=0, teacher=None, trunk=None)
            found = msgspec.json.encode(bare, order="sorted")  # planned, so every number is finite
            self._known[key] = found
        return found


def variants(plan: Plan, ids: dict[str, str] | None = None) -> dict[str, str]:
    """cell_id -> the fields in which a cell differs from others of the same arm, sizes, share and budget.

    The text is empty where the visible names already tell the configuration. `ids` are those of
    `configuration_ids`, if they are there: cells of one configuration differ in nothing, so one stands for
    all.
    """
    ids = configuration_ids(plan) if ids is None else ids
    specs = {run.run_id: run.spec for run in plan.runs}
    groups: dict[tuple[Any, ...], dict[str, list[Cell]]] = defaultdict(lambda: defaultdict(list))
    for cell in plan.cells:
        group = (cell.arm, cell.student, cell.teacher, cell.teacher_share, cell.budget_flops)
        groups[group][ids.get(cell.run_id, cell.run_id)].append(cell)
    texts: dict[str, str] = {}
    for configurations in groups.values():
        flat = {
            name: _flat_with_teacher(cells[0], specs) if len(configurations) > 1 else {}
            for name, cells in configurations.items()
        }
        names = sorted({name for fields in flat.values() for name in fields})
        differing = [name for name in names if len({repr(fields.get(name)) for fields in flat.values()}) > 1]
        for configuration, cells in configurations.items():
            fields = flat[configuration]
            text = ", ".join(f"{name}={fields.get(name)}" for name in differing)
            texts |= {cell.cell_id: text for cell in cells}
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
