"""The status of a plan as tables: counts, runs in progress, runs that are not well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from salt.errors import shown
from slurm.names import flops_text
from slurm.run_status import PlanStatus, RunStatus, Sums
from slurm.states import ACTIVE, STUCK, State

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: States of runs that are not well.
NOT_WELL = (*STUCK, State.LOST, State.STOPPED)
#: Rows of one table: nobody reads more, and a terminal takes long to draw them.
SHOWN_ROWS = 200


def status_tables(status: PlanStatus) -> list[RenderableType]:
    """Counts by arm and budget, then runs in progress, then the runs that are not well."""
    tables: list[RenderableType] = [_counts_table(status)]
    active = [run for run in status.runs if run.state in ACTIVE]
    if active:
        tables.append(_active_table(active))
    bad = [run for run in status.runs if run.state in NOT_WELL]
    if bad:
        tables.append(problem_table(bad))
    return tables


def total_lines(status: PlanStatus) -> list[str]:
    """What was paid, what was done in vain, what is left to pay."""
    totals = status.totals
    if totals is None:
        return []
    hours = f"{totals.hours_of}-hours"

    def text(sums: Sums) -> str:
        parts = ["FLOPs not known" if sums.flops is None else flops_text(sums.flops)]
        parts.append(f"{hours} not known" if sums.gpu_hours is None else f"{sums.gpu_hours:.4g} {hours}")
        parts += [] if sums.money is None else [f"{sums.money:,.2f} {totals.currency or ''}".strip()]
        return ", ".join(parts)

    unknown = (
        f" (without {totals.unknown_runs} runs of which no times are kept)" if totals.unknown_runs else ""
    )
    by = f" (by {totals.left_by})" if totals.left_by else ""
    return [
        f"done: {text(totals.done)}{unknown}",
        f"done again after kills and failures: {text(totals.burnt)}",
        f"left: {text(totals.left)}{by}",
    ]


def waiting_lines(status: PlanStatus) -> list[str]:
    """Why runs wait, those with the same reason together."""
    groups: dict[str, list[RunStatus]] = {}
    for run in status.runs:
        if run.state in (State.PENDING, State.WAITING) and run.reason is not None:
            job = run.job or ""
            text = run.reason.replace(job, "JOB") if job else run.reason
            groups.setdefault(text if run.step is None else run.reason, []).append(run)
    lines = []
    for text, runs in list(groups.items())[:SHOWN_ROWS]:
        first = runs[0]
        said = shown(first.reason or text)
        more = f" and {len(runs) - 1} more runs" if len(runs) > 1 else ""
        lines.append(f"{first.name} ({first.run_id}){more}: {said}")
    return lines


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


def _active_table(runs: Sequence[RunStatus]) -> Table:
    from rich.table import Table

    table = Table(title="in progress")
    for column in ("run", "state", "step", "steps/s", "left", "heartbeat", "held by", "job"):
        right = column in ("step", "steps/s", "left", "heartbeat")
        table.add_column(column, justify="right" if right else "left")
    for run in runs[:SHOWN_ROWS]:
        age = "-" if run.heartbeat_age_s is None else f"{run.heartbeat_age_s:.0f} s ago"
        table.add_row(
            run.name,
            str(run.state),
            step_text(run),
            rate_text(run),
            time_text(run.eta_s),
            age,
            shown(run.holder or "-"),
            job_text(run),
        )
    _say_rest(table, runs)
    return table


def problem_table(runs: Sequence[RunStatus]) -> Table:
    """Runs that failed, diverged, were given up, are damaged, blocked, lost or stopped, with the reason."""
    from rich.table import Table

    table = Table(title="not well")
    for column in ("run", "id", "state", "step", "attempts", "host", "reason"):
        table.add_column(column, overflow="fold")
    for run in runs[:SHOWN_ROWS]:
        table.add_row(
            run.name,
            run.run_id,
            state_text(run),
            step_text(run),
            "-" if run.attempts is None else str(run.attempts),
            shown(run.host or "-"),
            reason_text(run),
        )
    _say_rest(table, runs)
    return table


def run_table(runs: Sequence[RunStatus], hours_of: str, scores: Mapping[str, float] | None = None) -> Table:
    """One row for each run, with a column for its score if there are scores."""
    from rich.table import Table

    table = Table()
    table.add_column("run", overflow="fold")
    table.add_column("id")
    if scores is not None:
        table.add_column("accuracy", justify="right")
    table.add_column("state", overflow="fold")
    for column in ("step", "steps/s", "left", f"{hours_of}-h"):
        table.add_column(column, justify="right")
    table.add_column("job", overflow="fold")
    table.add_column("reason", overflow="fold")
    for run in runs[:SHOWN_ROWS]:
        score = [] if scores is None else [f"{scores[run.run_id]:.4f}" if run.run_id in scores else "-"]
        table.add_row(
            run.name,
            run.run_id,
            *score,
            state_text(run),
            step_text(run),
            rate_text(run),
            time_text(run.eta_s),
            "-" if run.gpu_hours_done is None else f"{run.gpu_hours_done:.3g}",
            job_text(run),
            reason_text(run),
        )
    _say_rest(table, runs)
    return table


def _say_rest(table: Table, runs: Sequence[RunStatus]) -> None:
    if len(runs) > SHOWN_ROWS:
        table.caption = f"and {len(runs) - SHOWN_ROWS} more: `--where` narrows it down, `--json` has all"


def state_text(run: RunStatus) -> str:
    return f"{run.state} ({run.kind})" if run.kind and run.kind != str(run.state) else str(run.state)


def reason_text(run: RunStatus) -> str:
    known = run.error_class is None or run.error_class.rpartition(".")[2] in (run.reason or "")
    return shown((run.reason if known else f"{run.error_class}: {run.reason}") or "-")


def step_text(run: RunStatus) -> str:
    return f"{'-' if run.step is None else run.step}/{run.total_steps}"


def rate_text(run: RunStatus) -> str:
    return "-" if run.rate_steps_per_s is None else f"{run.rate_steps_per_s:.3g}"


def job_text(run: RunStatus) -> str:
    if run.job is None:
        return "-"
    return shown(f"{run.job} on {run.node}" if run.node else run.job)


def time_text(seconds: float | None) -> str:
    """`45 s`, `12 min`, `3.4 h`, `2.1 days`; `-` where nobody knows."""
    if seconds is None:
        return "-"
    for unit, size in (("days", 86400.0), ("h", 3600.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
