"""`salt-sweep diff`: which cells two plans do not share, and what the difference costs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.errors import UserError
from salt.plan_specs import Cell, Plan
from salt.plans import decode_plan, plan_dir, read_plan
from salt.specs import Spec
from salt.store import RunDir, store_path
from slurm.names import flops_text
from sweeps.command import add_command, print_json, print_tables

if TYPE_CHECKING:
    from rich.table import Table

#: Rows of each kind that are printed; `--json` has all.
SHOWN = 40
_SETTINGS = ("convention", "charge", "match", "study_sha256", "overrides")
_FIELDS = ("budget", "teacher_steps", "charged_flops", "residual", "run_id", "teacher_run_id", "stages")
#: Digits of a study file's hash that are printed.
_DIGITS = 12


class Change(Spec, kw_only=True):
    """A cell of both plans that is not the same in them: field -> (in a, in b)."""

    cell_id: str
    fields: dict[str, tuple[Any, Any]]


class Difference(Spec, kw_only=True):
    """What b has and a has not, and the other way round. FLOPs count every run once.

    Probes are counted as (run, suite) pairs: each is a result that the analysis reads.
    """

    a: str
    b: str
    settings: dict[str, tuple[Any, Any]]
    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: tuple[Change, ...]
    new_runs: int  # of b, not of a
    dropped_runs: int
    new_flops: int
    new_flops_done: int  # of those, in runs that are finished in the store already
    dropped_flops: int
    new_probes: int
    dropped_probes: int
    total_flops: tuple[int, int]

    @property
    def same(self) -> bool:
        """Whether the plans ask for the same results under the same settings."""
        cells = self.added or self.removed or self.changed
        runs = self.new_runs or self.dropped_runs or self.new_probes or self.dropped_probes
        return not (self.settings or cells or runs)


def add_diff(commands: Any) -> None:
    parser = add_command(
        commands,
        "diff",
        _diff,
        "which cells two plans do not share, and what that costs",
        "Compare two plans cell by cell: added, removed, changed; and run by run: what the second one\n"
        "trains that the first does not. The exit code is 1 if they differ.",
        [
            "salt-sweep diff paper paper-shared",
            "salt-sweep diff old/plan.jsonl paper      # a name, a plan's folder, or a plan.jsonl",
        ],
    )
    parser.add_argument("a", help="the plan before")
    parser.add_argument("b", help="the plan after")


def compare(a: Plan, b: Plan, store: Path | None = None) -> Difference:
    """The difference between two plans; `store` tells which new runs are finished."""
    before, after = ({cell.cell_id: cell for cell in plan.cells} for plan in (a, b))
    runs_a, runs_b = ({run.run_id: run.cost.total_flops for run in plan.runs} for plan in (a, b))
    fresh = [run_id for run_id in runs_b if run_id not in runs_a]
    done = [run_id for run_id in fresh if store is not None and RunDir(store, run_id).result.exists()]
    probes_a, probes_b = ({(run.run_id, suite) for run in p.runs for suite in run.probe_ids} for p in (a, b))
    steps_a, steps_b = ({run.run_id: run.spec.steps for run in plan.runs} for plan in (a, b))
    changed = [
        _change(old, after[name], (steps_a[old.run_id], steps_b[after[name].run_id]))
        for name, old in before.items()
        if name in after
    ]
    return Difference(
        a=a.name,
        b=b.name,
        settings={
            name: (getattr(a, name), getattr(b, name))
            for name in _SETTINGS
            if getattr(a, name) != getattr(b, name)
        },
        added=tuple(name for name in after if name not in before),
        removed=tuple(name for name in before if name not in after),
        changed=tuple(change for change in changed if change is not None),
        new_runs=len(fresh),
        dropped_runs=sum(run_id not in runs_b for run_id in runs_a),
        new_flops=sum(runs_b[run_id] for run_id in fresh),
        new_flops_done=sum(runs_b[run_id] for run_id in done),
        dropped_flops=sum(flops for run_id, flops in runs_a.items() if run_id not in runs_b),
        new_probes=len(probes_b - probes_a),
        dropped_probes=len(probes_a - probes_b),
        total_flops=(sum(runs_a.values()), sum(runs_b.values())),
    )


def _change(old: Cell, new: Cell, steps: tuple[int, int]) -> Change | None:
    fields: dict[str, tuple[Any, Any]] = {"steps": steps} if steps[0] != steps[1] else {}
    fields |= {
        name: (getattr(old, name), getattr(new, name))
        for name in _FIELDS
        if getattr(old, name) != getattr(new, name)
    }
    return Change(cell_id=old.cell_id, fields=fields) if fields else None


def _diff(args: argparse.Namespace) -> int:
    import msgspec

    store = store_path(args.store)
    found = compare(_plan(store, args.a), _plan(store, args.b), store)
    if args.json:
        print_json(msgspec.to_builtins(found))
    else:
        if found.added or found.removed or found.changed:
            print_tables([_table(found)])
        for line in _sentences(found):
            print(line)
    return 0 if found.same else 1


def _plan(store: Path, name: str) -> Plan:
    if os.sep not in name and (plan_dir(store, name) / "plan.jsonl").exists():
        return read_plan(store, name)  # whatever lies in the working folder under that name
    path = Path(name)
    if path.is_dir() and (path / "plan.jsonl").exists():
        path = path / "plan.jsonl"
    if path.is_file():
        if path.suffix in (".yaml", ".yml"):
            raise UserError(f"{path}: this is a study file; plan it, and compare the plans")
        return decode_plan(path.read_bytes(), str(path))
    return read_plan(store, name)


def _table(found: Difference) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title=f"from {found.a} to {found.b}", box=box.SIMPLE)
    table.title_justify = "left"
    table.add_column("")
    table.add_column("cell", overflow="fold")
    table.add_column("what changed", overflow="fold")
    for sign, names in (("-", found.removed), ("+", found.added)):
        for name in names[:SHOWN]:
            table.add_row(sign, name, "")
        if len(names) > SHOWN:
            table.add_row(sign, f"and {len(names) - SHOWN} more", "")
    for change in found.changed[:SHOWN]:
        texts = {
            name: (_text(name, old), _text(name, new)) for name, (old, new) in change.fields.items()
        }  # what rounding hides is left to --json
        told = [f"{name} {old} -> {new}" for name, (old, new) in texts.items() if old != new]
        table.add_row("~", change.cell_id, "; ".join(told))
    if len(found.changed) > SHOWN:
        table.add_row("~", f"and {len(found.changed) - SHOWN} more", "")
    return table


def _text(name: str, value: Any) -> str:
    if name == "charged_flops":
        return flops_text(value)
    if name == "study_sha256":
        return str(value)[:_DIGITS]
    if name == "residual":
        return f"{100 * value:+.2f} %"
    if name == "stages":
        return ", ".join(value) or "none"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sentences(found: Difference) -> list[str]:
    lines = [
        f"{name}: {_text(name, old)} -> {_text(name, new)}" for name, (old, new) in found.settings.items()
    ]
    before, after = found.total_flops
    lines += [
        f"{len(found.added)} cells added, {len(found.removed)} removed, {len(found.changed)} changed",
        f"{found.new_runs} runs are new ({flops_text(found.new_flops)}, of which "
        f"{flops_text(found.new_flops_done)} are done in the store)",
        f"{found.dropped_runs} runs are no longer wanted ({flops_text(found.dropped_flops)})",
        f"all runs: {flops_text(before)} -> {flops_text(after)}",
    ]
    if found.new_probes or found.dropped_probes:
        lines.insert(
            -1,
            f"{found.new_probes} results of probe suites are new, {found.dropped_probes} no longer wanted",
        )
    return lines
