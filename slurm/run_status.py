"""What a status says: of each run, and of all together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from salt.specs import Spec
from slurm.states import State

#: Enough of the end of metrics.jsonl to hold its last whole lines.
_TAIL_BYTES = 4096


class RunStatus(Spec, kw_only=True):
    """One run for people: `step` is the last one logged, None before the first; FLOPs are training only.

    `attempts` and `host`, of the last of them, are told of runs that are under way or not well. `kind` is
    that of the error, `error_class` its class in Python where there was an exception. `job`, `queue_state`,
    `queue_reason` and `node` are those of its newest lane at Slurm. `rate_steps_per_s` is that of the last
    logged steps, `eta_s` what is left of training at that rate. `train_wall_s` is the time behind `step` over
    all attempts. `gpu_hours_done` are hours of devices (of CPUs where the plan trains on those), probes
    included; `gpu_hours_burnt` those of steps that were done again. None: not known.
    """

    run_id: str
    name: str
    arm: str
    student: str
    teacher: str | None
    seed: int
    budget_flops: int
    state: State
    step: int | None
    total_steps: int
    planned_flops: int
    done_flops: int
    burnt_flops: int | None
    heartbeat_age_s: float | None
    holder: str | None
    kind: str | None
    error_class: str | None
    reason: str | None
    attempts: int | None
    host: str | None
    train_wall_s: float | None
    rate_steps_per_s: float | None
    eta_s: float | None
    gpu_hours_done: float | None
    gpu_hours_burnt: float | None
    job: str | None
    queue_state: str | None
    queue_reason: str | None
    node: str | None


class Sums(Spec, kw_only=True):
    """Of a plan. Money is None without a price; hours and FLOPs are None where nobody knows."""

    flops: int | None
    gpu_hours: float | None
    money: float | None


class Totals(Spec, kw_only=True):
    """`done` and `burnt` count what is known; `unknown_runs` of those that began have no record of hours.

    `left` are runs that a worker could take, now or later: not those that failed or are blocked. Its hours
    are told by `left_by`: finished runs, or an estimate.
    """

    done: Sums
    burnt: Sums
    left: Sums
    left_by: str | None
    unknown_runs: int
    hours_of: str  # GPU; device where the plan trains on CPUs
    currency: str | None


class PlanStatus(Spec, kw_only=True):
    """All runs of a plan, each once, and their sums. `notes` say what could not be found out."""

    plan: str
    runs: tuple[RunStatus, ...]
    counts: dict[str, int]
    planned_flops: int
    done_flops: int
    notes: tuple[str, ...] = ()
    totals: Totals | None = None

    @property
    def complete(self) -> bool:
        return all(run.state is State.DONE for run in self.runs)


def last_rows(metrics: Path) -> list[dict[str, Any]]:
    """The last whole lines of a metrics file, oldest first; none where there are none yet."""
    try:
        with open(metrics, "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return []
    rows = []
    for line in lines[:-1]:  # what follows the last newline is still being written
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue  # cut by a kill, or by our own seek
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def last_step(metrics: Path) -> int | None:
    """The step of the last whole line of a metrics file; None where there is none yet."""
    rows = last_rows(metrics)
    return int(rows[-1]["step"]) if rows else None


def rate(rows: list[dict[str, Any]]) -> float | None:
    """Steps a second between the first and the last of these lines that are of the newest attempt."""
    own = [row for row in rows if row.get("attempt") == rows[-1].get("attempt")]
    walls = [row.get("wall_s") for row in own]
    if len(own) < 2 or not all(isinstance(wall, int | float) for wall in walls):
        return None
    seconds = float(walls[-1]) - float(walls[0])  # type: ignore[arg-type]
    steps = own[-1]["step"] - own[0]["step"]
    return steps / seconds if seconds > 0 and steps > 0 else None
