"""The status of a plan as numbers and as tables: states from files, FLOPs done and left, every run that is
not well.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from salt.attempts import Attempt, read_attempts
from salt.errors import shown
from salt.plan_specs import Plan
from salt.result_specs import RunError
from salt.specs import Spec
from salt.store import DamagedFile, RunDir
from slurm.names import RunName, flops_text, run_names
from slurm.states import ACTIVE, STUCK, Standing, State, assess

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: Enough of the end of metrics.jsonl to hold its last whole line.
_TAIL_BYTES = 4096
#: States of runs that are not well, and of those of which the attempts are counted.
_NOT_WELL = (*STUCK, State.LOST, State.STOPPED)
_LOOKED_INTO = (*ACTIVE, *_NOT_WELL)


class RunStatus(Spec, kw_only=True):
    """One run for people: `step` is the last one logged, None before the first; FLOPs are training only.

    `attempts` and `host`, of the last of them, are told of runs that are under way or not well. `kind` is
    that of the error, `error_class` its class in Python where there was an exception.
    """

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
    error_class: str | None
    reason: str | None
    attempts: int | None
    host: str | None


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
        attempts, damage = _attempts(folder, standing)
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
                error_class=None if error is None else _error_class(error),
                reason=damage or _reason(standing, standings, names, plan.name),
                attempts=None if attempts is None else len(attempts),
                host=_host(error, attempts),
            )
        )
    return PlanStatus(
        plan=plan.name,
        runs=tuple(runs),
        counts=dict(Counter(str(run.state) for run in runs)),
        planned_flops=sum(run.planned_flops for run in runs),
        done_flops=sum(run.done_flops for run in runs),
    )


def _attempts(folder: RunDir, standing: Standing) -> tuple[list[Attempt] | None, str | None]:
    """The attempts of a run that is looked into, or None and why they cannot be read."""
    if standing.damage is not None or standing.state not in _LOOKED_INTO:
        return None, standing.damage
    try:
        return read_attempts(folder), None
    except DamagedFile as damage:
        return None, str(damage)


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
        except (ValueError, RecursionError):
            continue  # cut by a kill, or by our own seek
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            return int(row["step"])
    return None


def _reason(
    standing: Standing, standings: dict[str, Standing], names: dict[str, RunName], plan: str
) -> str | None:
    above = standing.blocked_by
    if above is not None and standings[above].state is State.DAMAGED:
        return f"a file of its teacher is damaged: {names[above]} ({above})"
    if above is not None:
        return f"its teacher failed: {names[above]} ({above})"
    if standing.state is State.LOST:
        return "the process that held it is gone; submit again to resume"
    if standing.state is State.STOPPED:
        return "asked to stop; submit again to go on"
    if standing.error is None:
        return None
    said = _short(standing.error.message)
    if standing.fruitless is None:
        return said
    vain = str(standing.fruitless)  # which the message may say already
    head = "" if said.startswith(vain) else f"{vain}: "
    return f"{head}{said}; not retried: `salt-train run {standing.run_id} --plan {plan}` tries once more"


def _short(message: str) -> str:
    """The first line of an error, and the last one where there are several."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ... ".join(dict.fromkeys([*lines[:1], *lines[-1:]]))


def _error_class(error: RunError) -> str | None:
    """The class of the exception that a traceback ends in: its name follows the last line of the stack."""
    found = re.findall(r"^[ \t].*\n([A-Za-z_][\w.<>]*)(?::|$)", error.traceback or "", re.MULTILINE)
    return found[-1] if found else None


def _host(error: RunError | None, attempts: list[Attempt] | None) -> str | None:
    if error is not None:
        return error.host
    return attempts[-1].get("host") if attempts else None


# --- tables ---------------------------------------------------------------------------------------


def status_tables(status: PlanStatus) -> list[RenderableType]:
    """Counts by arm and budget, then runs in progress, then the runs that are not well."""
    tables: list[RenderableType] = [_counts_table(status)]
    active = [run for run in status.runs if run.state in ACTIVE]
    if active:
        tables.append(_active_table(active))
    bad = [run for run in status.runs if run.state in _NOT_WELL]
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
            run.name, str(run.state), f"{_step_text(run)}/{run.total_steps}", age, shown(run.holder or "-")
        )
    return table


def problem_table(runs: list[RunStatus]) -> Table:
    """Runs that failed, diverged, were given up, are damaged, blocked, lost or stopped, with the reason."""
    from rich.table import Table

    table = Table(title="not well")
    for column in ("run", "id", "state", "step", "attempts", "host", "reason"):
        table.add_column(column, overflow="fold")
    for run in runs:
        state = f"{run.state} ({run.kind})" if run.kind and run.kind != str(run.state) else str(run.state)
        known = run.error_class is None or run.error_class.rpartition(".")[2] in (run.reason or "")
        reason = run.reason if known else f"{run.error_class}: {run.reason}"
        table.add_row(
            run.name,
            run.run_id,
            state,
            f"{_step_text(run)}/{run.total_steps}",
            "-" if run.attempts is None else str(run.attempts),
            shown(run.host or "-"),
            shown(reason or "-"),
        )
    return table


def _step_text(run: RunStatus) -> str:
    return "-" if run.step is None else str(run.step)
