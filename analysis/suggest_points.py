"""What may be run next, and what each of it costs: points of a study, seeds there, and the runs they need.

A *point* is a configuration at a budget; a *run* is named by its identity without seed, and its seed. What
several cells need (a teacher, a trunk) is one run, and is paid once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Set
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis.configs import configuration_ids, configuration_label, variants
from analysis.pareto import usable
from salt.plan_specs import Cell, Plan, PlannedRun
from salt.specs import CELL_ARMS

#: (identity without seed, seed)
RunKey = tuple[str, int]
#: (configuration, budget in the plan's unit)
PointKey = tuple[str, float]
#: A share or budget is put between two only if they are this far apart.
LEAST_RATIO = 1.2


@dataclass(frozen=True, kw_only=True)
class Part:
    """A run that a point needs at any seed. `like` is the planned run whose speed it has."""

    identity: str
    flops: float
    like: str
    is_teacher: bool
    own_seed: int | None = None  # where it does not follow the cell's seed


@dataclass(frozen=True, kw_only=True)
class Point:
    """A configuration at a budget. `values` are accuracies in points by seed, `planned` seeds that the plan
    holds and that have no result yet, `closed` those that failed or whose probes are not asked for. A point
    with `new` set is in no plan.
    """

    key: PointKey
    arm: str
    student: str
    teacher: str | None
    share: float | None
    budget: float
    budget_flops: float
    config: str
    variant: str
    parts: tuple[Part, ...]
    values: dict[int, float] = field(default_factory=dict)
    planned: frozenset[int] = frozenset()
    closed: frozenset[int] = frozenset()
    new: str | None = None  # "share" or "budget"
    sharers: int = 1

    @cached_property
    def mean(self) -> float:
        """Of the results; a point without any has none."""
        return sum(self.values.values()) / len(self.values)

    @property
    def name(self) -> str:
        return f"{self.config} at {self.budget:.3g}"


def points_of(plan: Plan, table: pd.DataFrame, label: str, kind: str) -> list[Point]:
    """The points of the arms under study, with what a label and probe has of them."""
    rows = table[(table["role"] == "cell") & (table["frames"] == "ordered")]
    rows = rows[(rows["label"] == label) & (rows["kind"] == kind)]
    good = rows[usable(rows)]
    scores = dict(zip(good["cell_id"], 100 * good["accuracy"], strict=True))
    missing = set(rows.loc[rows["state"] == "missing", "cell_id"])
    asked = set(rows["cell_id"])
    ids, texts = configuration_ids(plan), variants(plan)
    runs = {run.run_id: run for run in plan.runs}
    cells: dict[PointKey, list[Cell]] = defaultdict(list)
    for cell in plan.cells:
        if cell.arm in CELL_ARMS and cell.budget > 0 and cell.cell_id in asked:
            cells[(ids[cell.run_id], cell.budget)].append(cell)
    found = []
    seeds_here: dict[PointKey, frozenset[int]] = defaultdict(frozenset)
    for cell in plan.cells:
        seeds_here[(ids[cell.run_id], cell.budget)] |= {cell.seed}
    for key, group in cells.items():
        first = group[0]
        values = {cell.seed: float(scores[cell.cell_id]) for cell in group if cell.cell_id in scores}
        planned = frozenset(cell.seed for cell in group if cell.cell_id in missing)
        found.append(
            Point(
                key=key,
                arm=first.arm,
                student=first.student,
                teacher=first.teacher,
                share=first.teacher_share,
                budget=first.budget,
                budget_flops=float(first.budget_flops),
                config=configuration_label(first, texts[first.cell_id]),
                variant=texts[first.cell_id],
                parts=tuple(_parts(first, runs, ids)),
                values=values,
                planned=planned,
                closed=seeds_here[key] - set(values) - planned,
                sharers=max(1, first.teacher_students),
            )
        )
    return found


def _parts(cell: Cell, runs: dict[str, PlannedRun], ids: dict[str, str]) -> Iterable[Part]:
    """The cell's run and all that it begins from, each once."""
    wanted, seen = [cell.run_id], set()
    above = {cell.teacher_run_id, *cell.stages}
    while wanted:
        run_id = wanted.pop()
        if run_id in seen or run_id not in runs:
            continue
        seen.add(run_id)
        run = runs[run_id]
        yield Part(
            identity=ids[run_id],
            flops=float(run.cost.total_flops),
            like=run_id,
            is_teacher=run_id in above,
            own_seed=None if run.spec.seed == cell.seed else run.spec.seed,
        )
        wanted += [each.run_id for each in (run.spec.teacher, run.spec.trunk) if each is not None]


@dataclass(frozen=True, kw_only=True)
class Prices:
    """FLOPs and device-hours of runs. `hours_per_flop` is by planned run; None where no run tells."""

    done: frozenset[RunKey]
    hours_per_flop: dict[str, float] | None
    measured_runs: int

    def needed(self, points: Iterable[tuple[Point, int]], paid: Set[RunKey]) -> dict[RunKey, Part]:
        """Runs that these points at these seeds need and that are neither trained nor paid already."""
        found: dict[RunKey, Part] = {}
        for point, seed in points:
            for part in point.parts:
                key = (part.identity, seed if part.own_seed is None else part.own_seed)
                if key not in self.done and key not in paid:
                    found[key] = part
        return found

    def hours(self, parts: Iterable[Part]) -> float | None:
        if self.hours_per_flop is None:
            return None
        return sum(part.flops * self.hours_per_flop[part.like] for part in parts)


def prices_of(plan: Plan, table: pd.DataFrame, done: Iterable[str]) -> Prices:
    """Prices from the runs of the table that are done; `done` names all finished runs of the plan.

    Device-hours per FLOP: the median over done runs of the same arm and encoder, else over all done runs.
    """
    ids = configuration_ids(plan)
    runs = {run.run_id: run for run in plan.runs}
    walls = table.dropna(subset=["train_wall_s"]).drop_duplicates("run_id")
    rates: dict[Any, list[float]] = defaultdict(list)
    for run_id, wall_s in zip(walls["run_id"], walls["train_wall_s"], strict=True):
        run = runs.get(run_id)
        if run is None or run.cost.total_flops <= 0 or wall_s <= 0:
            continue
        rate = wall_s * plan.execution.processes / 3600 / run.cost.total_flops
        rates[(run.spec.arm, run.spec.model.encoder)].append(rate)
    every = [rate for group in rates.values() for rate in group]
    per_flop = None
    if every:
        usual = float(np.median(every))
        known = {kind: float(np.median(group)) for kind, group in rates.items()}
        per_flop = {
            run_id: known.get((run.spec.arm, run.spec.model.encoder), usual) for run_id, run in runs.items()
        }
    return Prices(
        done=frozenset((ids[run_id], runs[run_id].spec.seed) for run_id in done if run_id in runs),
        hours_per_flop=per_flop,
        measured_runs=len(every),
    )


# --- points that no plan holds yet ------------------------------------------------------------------


def between_shares(low: Point, high: Point, share: float, charge: str) -> Point:
    """A point like these at another teacher share of the same budget; a share is the teacher's whole
    training.
    """
    teacher, student = _teacher_part(low), _student_part(low)
    charged = {"full": 1.0, "shared": 1 / low.sharers, "none": 0.0}[charge]
    budget = low.budget_flops
    parts = (
        Part(
            identity=f"teacher {low.teacher} {share:.3g} of {low.budget:.6g}",
            flops=share * budget,
            like=teacher.like,
            is_teacher=True,
        ),
        Part(
            identity=f"{low.key[0]} at share {share:.3g}",
            flops=(1 - charged * share) * budget,
            like=student.like,
            is_teacher=False,
        ),
    )
    config = f"{low.arm} {low.teacher}>{low.student} {100 * share:.3g}%"
    return _like(low, (f"{low.key[0]}+share{share:.3g}", low.budget), "share", parts, config, share=share)


def between_budgets(low: Point, high: Point, budget: float, charge: str) -> Point:
    """A point like `low` at a budget in the plan's unit between two; FLOPs in the same proportion."""
    factor = budget / low.budget
    charged = {"full": 1.0, "shared": 1 / low.sharers, "none": 0.0}[charge]
    parts = []
    if low.teacher is not None:
        teacher = _teacher_part(low)
        if low.share is None:  # of fixed length: the same run at every budget
            parts += [part for part in low.parts if part.is_teacher]
        else:
            name = f"teacher {low.teacher} {low.share:.3g} of {budget:.6g}"
            flops = factor * teacher.flops
            parts.append(Part(identity=name, flops=flops, like=teacher.like, is_teacher=True))
    above = charged * sum(part.flops for part in parts)
    student = _student_part(low)
    parts.append(
        Part(
            identity=f"{low.key[0]} at {budget:.6g}",
            flops=max(0.0, factor * low.budget_flops - above),
            like=student.like,
            is_teacher=False,
        )
    )
    changes = {"budget": budget, "budget_flops": factor * low.budget_flops}
    return _like(low, (f"{low.key[0]}+budget", budget), "budget", tuple(parts), low.config, **changes)


def _like(
    point: Point, key: PointKey, new: str, parts: tuple[Part, ...], config: str, **changes: Any
) -> Point:
    same = ("arm", "student", "teacher", "share", "budget", "budget_flops", "variant", "sharers")
    fields = {name: getattr(point, name) for name in same} | changes
    return Point(key=key, new=new, parts=parts, config=config, **fields)


def _teacher_part(point: Point) -> Part:
    return next(part for part in point.parts if part.is_teacher)


def _student_part(point: Point) -> Part:
    return next(part for part in point.parts if not part.is_teacher)
