"""The status of a plan as numbers and as tables: states from files, FLOPs done and left, every run that is
not well.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from salt.plan_specs import Plan
from salt.specs import Spec
from salt.store import RunDir
from slurm.names import RunName, flops_text, run_names
from slurm.states import ACTIVE, State, assess

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: Enough of the end of metrics.jsonl to hold its last whole line.
_TAIL_BYTES = 4096


class RunStatus(Spec, kw_only=True):
    """One run for people: `step` is the last one logged, None before the first; FLOPs are training only."""

    run_id: str
    name: str
    arm: str
    budget_flops: int
    state: State
    step: int | None
    total_steps: int
    planned_flops: int
    done_flops: int
    heartbeat_age_s: float | None
    holder: str | None
    kind: str | None
    reason: str | None


class PlanStatus(Spec, kw_only=True):
    """All runs of a plan, each once, and their sums."""

    plan: str
    runs: tuple[RunStatus, ...]
    counts: dict[str, int]
    planned_flops: int
    done_flops: int

    @property
    def complete(self) -> bool:
        return all(run.state is State.DONE for run in self.runs)


def plan_status(store: Path, plan: Plan) -> PlanStatus:
    """Read the status of a plan. Changes nothing in the store."""
    names = run_names(plan)
    standings = assess(store, plan)
    runs = []
    for run in plan.runs:
        name, standing = names[run.run_id], standings[run.run_id]
        folder = RunDir(store, run.run_id)
        trained = standing.trained or folder.artefact.exists()
        step = run.spec.steps if trained else last_step(folder.metrics)
        planned, start = run.cost.total_flops, run.spec.trunk.step if run.spec.trunk is not None else 0
        claim, error = standing.claim, standing.error
        runs.append(
            RunStatus(
                run_id=run.run_id,
                name=str(name),
                arm=name.arm,
                budget_flops=name.budget_flops,
                state=standing.state,
                step=step,
                total_steps=run.spec.steps,
                planned_flops=planned,
                done_flops=planned
                if trained
                else planned
                * max(0, min(step or 0, run.spec.steps) - start)
                // max(run.spec.steps - start, 1),
                heartbeat_age_s=None if claim is None else round(claim.age_s, 1),
                holder=None if claim is None else str(claim.holder),
                kind=None if error is None else error.kind,
                reason=_reason(standing.state, error.message if error else None, names, standing.blocked_by),
            )
        )
    return PlanStatus(
        plan=plan.name,
        runs=tuple(runs),
        counts=dict(Counter(str(run.state) for run in runs)),
        planned_flops=sum(run.planned_flops for run in runs),
        done_flops=sum(run.done_flops for run in runs),
    )


def last_step(metrics: Path) -> int | None:
    """The step of the last whole line of a metrics file; None where there is none yet."""
    try:
        with open(metrics, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    for line in reversed(lines[:-1]):  # what follows the last newline is still being written
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut by a kill, or by our own seek
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            return int(row["step"])
    return None


def _reason(
    state: State, message: str | None, names: dict[str, RunName], blocked_by: str | None
) -> str | None:
    if blocked_by is not None:
        return f"its teacher failed: {names[blocked_by]} ({blocked_by})"
    if state is State.LOST:
        return "the process that held it is gone; submit again to resume"
    return message


# --- tables ---------------------------------------------------------------------------------------


def status_tables(status: PlanStatus) -> list[RenderableType]:
    """Counts by arm and budget, then runs in progress, then the runs that are not well."""
    tables: list[RenderableType] = [_counts_table(status)]
    active = [run for run in status.runs if run.state in ACTIVE]
    if active:
        tables.append(_active_table(active))
    bad = [
        run for run in status.runs if run.state in (State.FAILED, State.DIVERGED, State.BLOCKED, State.LOST)
    ]
    if bad:
        tables.append(problem_table(bad))
    return tables


def _counts_table(status: PlanStatus) -> Table:
    from rich.table import Table

    states = [state for state in State if status.counts.get(str(state))]
    table = Table(title=f"plan {status.plan}")
    table.add_column("arm")
    table.add_column("budget", justify="right")
    table.add_column("runs", justify="right")
    for state in states:
        table.add_column(str(state), justify="right")
    table.add_column("FLOPs done", justify="right")
    table.add_column("of", justify="right")
    groups: dict[tuple[str, int], list[RunStatus]] = {}
    for run in status.runs:
        groups.setdefault((run.arm, run.budget_flops), []).append(run)
    for arm, budget in sorted(groups, key=lambda key: (key[1] == 0, key[0] != "teacher", key[0], key[1])):
        runs = groups[arm, budget]
        counts = Counter(run.state for run in runs)
        table.add_row(
            arm,
            flops_text(budget) if budget else "-",
            str(len(runs)),
            *[str(counts[state] or "") for state in states],
            flops_text(sum(run.done_flops for run in runs)),
            flops_text(sum(run.planned_flops for run in runs)),
        )
    table.add_section()
    table.add_row(
        "all",
        "",
        str(len(status.runs)),
        *[str(status.counts[str(state)]) for state in states],
        flops_text(status.done_flops),
        flops_text(status.planned_flops),
    )
    return table


def _active_table(runs: list[RunStatus]) -> Table:
    from rich.table import Table

    table = Table(title="in progress")
    for column in ("run", "state", "step", "heartbeat", "held by"):
        table.add_column(column, justify="right" if column in ("step", "heartbeat") else "left")
    for run in runs:
        age = "-" if run.heartbeat_age_s is None else f"{run.heartbeat_age_s:.0f} s ago"
        table.add_row(
            run.name, str(run.state), f"{_step_text(run)}/{run.total_steps}", age, run.holder or "-"
        )
    return table


def problem_table(runs: list[RunStatus]) -> Table:
    """Runs that failed, diverged, are blocked or lost, with the reason."""
    from rich.table import Table

    table = Table(title="not well")
    for column in ("run", "id", "state", "step", "reason"):
        table.add_column(column, overflow="fold")
    for run in runs:
        state = f"{run.state} ({run.kind})" if run.kind and run.kind != str(run.state) else str(run.state)
        reason = (run.reason or "").strip().splitlines()
        table.add_row(
            run.name, run.run_id, state, f"{_step_text(run)}/{run.total_steps}", reason[0] if reason else "-"
        )
    return table


def _step_text(run: RunStatus) -> str:
    return "-" if run.step is None else str(run.step)
