"""The status of a plan as numbers: states from files, then from the queue; FLOPs, hours and money done,
burnt and left; every run that is not well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from salt.attempts import Attempt, read_attempts
from salt.plan_specs import Plan, PlannedRun
from salt.reached import Reached, read_reached
from salt.result_specs import RunError, RunResult
from salt.store import DamagedFile, RunDir
from slurm.names import run_names
from slurm.pace import Pace
from slurm.queue_state import LaneState, QueueQuestion, QueueView
from slurm.queue_words import judge, tried_again
from slurm.run_status import PlanStatus, RunStatus, Sums, Totals, last_rows, last_step, rate
from slurm.states import ACTIVE, STUCK, Standing, State, assess
from slurm.status_tables import NOT_WELL, problem_table, status_tables

__all__ = [
    "PlanStatus",
    "RunStatus",
    "StatusReader",
    "last_step",
    "plan_status",
    "problem_table",
    "status_tables",
]

#: States of runs of which the attempts are read.
_LOOKED_INTO = (*ACTIVE, *NOT_WELL)


def plan_status(store: Path, plan: Plan) -> PlanStatus:
    """Read the status of a plan from files alone. Changes nothing in the store."""
    return StatusReader(store, plan).read()


class StatusReader:
    """Reads the status of a plan again and again; what is done is read once.

    Args:
        seconds: gives what each run takes by estimate, by id, for the hours left before runs have finished.
        price_per_gpu_hour, currency: None where the site names no price.
    """

    def __init__(
        self,
        store: Path,
        plan: Plan,
        *,
        seconds: Callable[[], Mapping[str, float]] | None = None,
        price_per_gpu_hour: float | None = None,
        currency: str | None = None,
    ) -> None:
        self._store, self._plan = store, plan
        self._seconds, self._price, self._currency = seconds, price_per_gpu_hour, currency
        self._names = run_names(plan)
        self._pace = Pace(store, plan, 1)
        self._done: dict[str, RunStatus] = {}
        self._submitted = store / "jobs" / plan.name / "submitted"

    def ask(self, *, slurm: bool = True) -> PlanStatus:
        """The status with what the queue says; without `slurm`, with what was sent only."""
        with QueueQuestion(self._store, self._plan, ask=slurm) as question:
            standings = self._assess()
            facts = self._facts(standings)  # while squeue is waited for
            done = {name for name, standing in standings.items() if standing.state is State.DONE}
            return self._merge(standings, facts, question.view(done))

    def read(self) -> PlanStatus:
        """The status from files alone."""
        standings = self._assess()
        return self._merge(standings, self._facts(standings), QueueView())

    def _assess(self) -> dict[str, Standing]:
        return assess(self._store, self._plan, known_done=self._done)

    def _facts(self, standings: dict[str, Standing]) -> dict[str, _Facts]:
        return {
            run.run_id: _Facts(RunDir(self._store, run.run_id), run, standings[run.run_id])
            for run in self._plan.runs
            if run.run_id not in self._done
        }

    def _merge(
        self, standings: dict[str, Standing], facts: dict[str, _Facts], queue: QueueView
    ) -> PlanStatus:
        never_sent = not queue.lanes and not self._submitted.exists()
        standings = tried_again(self._store, standings, queue)
        rows = []
        for run in self._plan.runs:
            row = self._done.get(run.run_id)
            if row is None:
                row = self._row(run, standings, facts[run.run_id], queue, never_sent)
                if row.state is State.DONE:
                    self._done[run.run_id] = row
            rows.append(row)
        status = PlanStatus(
            plan=self._plan.name,
            runs=tuple(rows),
            counts=dict(Counter(str(row.state) for row in rows)),
            planned_flops=sum(row.planned_flops for row in rows),
            done_flops=sum(row.done_flops for row in rows),
            notes=queue.notes,
        )
        return _with(status, totals=self._totals(status))

    def _row(
        self,
        run: PlannedRun,
        standings: dict[str, Standing],
        facts: _Facts,
        queue: QueueView,
        never_sent: bool,
    ) -> RunStatus:
        name, standing, lane = self._names[run.run_id], standings[run.run_id], queue.lanes.get(run.run_id)
        step = run.spec.steps if facts.trained else facts.step
        verdict = judge(standing, lane, queue, step, self._reason(standing, standings), never_sent)
        planned, start = run.cost.total_flops, run.spec.trunk.step if run.spec.trunk is not None else 0
        part = max(0, min(step or 0, run.spec.steps) - start), max(run.spec.steps - start, 1)
        hours = self._plan.execution.processes / 3600
        if lane is not None and self._plan.execution.device.startswith("cuda"):
            hours /= lane.workers  # of runs that share a GPU, each has its part of it
        training = verdict.state is State.RUNNING
        claim, error = standing.claim, standing.error
        return RunStatus(
            run_id=run.run_id,
            name=str(name),
            arm=name.arm,
            student=name.size,
            teacher=name.teacher,
            seed=name.seed,
            budget_flops=name.budget_flops,
            state=verdict.state,
            step=step,
            total_steps=run.spec.steps,
            planned_flops=planned,
            done_flops=planned if facts.trained else planned * part[0] // part[1],
            burnt_flops=facts.burnt_flops(planned, part[1]),
            heartbeat_age_s=None if claim is None else round(claim.age_s, 1),
            holder=None if claim is None else str(claim.holder),
            kind=None if error is None else error.kind,
            error_class=None if error is None else _error_class(error),
            reason=facts.damage or verdict.reason,
            attempts=None if facts.attempts is None else len(facts.attempts),
            host=_host(error, facts.attempts),
            train_wall_s=facts.train_wall_s,
            rate_steps_per_s=facts.rate if training else None,
            eta_s=(run.spec.steps - (step or 0)) / facts.rate if training and facts.rate else None,
            gpu_hours_done=None if facts.wall_s is None else facts.wall_s * hours,
            gpu_hours_burnt=None if facts.burnt_wall_s is None else facts.burnt_wall_s * hours,
            **_lane_fields(lane),
        )

    def _reason(self, standing: Standing, standings: dict[str, Standing]) -> str | None:
        """What the files say."""
        if standing.blocked_by is not None:
            return self._blocked(standing.blocked_by, standings)
        if standing.error is None:
            return standing.damage
        said = _short(standing.error.message)
        if standing.fruitless is None:
            return said
        vain = str(standing.fruitless)  # which the message may say already
        head = "" if said.startswith(vain) else f"{vain}: "
        way_out = f"`salt-train run {standing.run_id} --plan {self._plan.name}` tries once more"
        return f"{head}{said}; not retried: {way_out}"

    def _blocked(self, run_id: str, standings: dict[str, Standing]) -> str:
        above = standings[run_id]
        what = {"trunk": "trunk"}.get(self._names[run_id].arm, "teacher")
        name = self._names[run_id]
        if above.state is State.DAMAGED:
            return f"a file of its {what} is damaged: {name} ({run_id}): {above.damage}"
        if above.state is State.BLOCKED:
            return f"{what} {run_id} is blocked: {self._reason(above, standings)} ({name})"
        why = "it was given up" if above.error is None else _short(above.error.message)
        return f"{what} {run_id} failed: {why} ({name})"

    def _totals(self, status: PlanStatus) -> Totals:
        device = "GPU" if self._plan.execution.device.startswith("cuda") else "device"
        open_rows = [row for row in status.runs if row.state not in (State.DONE, *STUCK)]
        seconds, by = self._pace.seconds_left(status), "what runs took that have finished"
        if seconds is None and self._seconds is not None:
            shares = ((row, 1 - row.done_flops / max(row.planned_flops, 1)) for row in open_rows)
            expected = self._seconds()
            seconds, by = sum(expected[row.run_id] * share for row, share in shares), "the site's speed"
        processes = self._plan.execution.processes
        left = None if seconds is None else seconds * processes / 3600
        begun = [row for row in status.runs if row.state is State.DONE or row.step is not None]
        return Totals(
            done=self._sums(status.done_flops, [row.gpu_hours_done for row in begun]),
            burnt=self._sums(
                sum(row.burnt_flops or 0 for row in begun), [row.gpu_hours_burnt for row in begun]
            ),
            left=Sums(
                flops=sum(row.planned_flops - row.done_flops for row in open_rows),
                gpu_hours=left,
                money=self._money(left),
            ),
            left_by=None if left is None else by,
            unknown_runs=sum(row.gpu_hours_done is None for row in begun),
            hours_of=device,
            currency=self._currency,
        )

    def _sums(self, flops: int, hours: list[float | None]) -> Sums:
        known = [each for each in hours if each is not None]
        total = sum(known) if known or not hours else None
        return Sums(flops=flops, gpu_hours=total, money=self._money(total))

    def _money(self, hours: float | None) -> float | None:
        return None if hours is None or self._price is None else hours * self._price


class _Facts:
    """What the files of one run say beside its state, each read once."""

    def __init__(self, folder: RunDir, run: PlannedRun, standing: Standing) -> None:
        self.attempts: list[Attempt] | None = None
        self.damage = standing.damage
        self.step: int | None = None
        self.rate: float | None = None
        self._reached: Reached | None = None
        self._result: RunResult | None = None
        self._rows: list[dict[str, Any]] = []
        self.trained = standing.trained or folder.artefact.exists()
        if standing.trained:
            try:
                self._result = folder.read_result()
            except DamagedFile as damage:
                self.damage = self.damage or str(damage)
        elif folder.path.exists():
            self._reached = read_reached(folder.reached)
            self._rows = last_rows(folder.metrics)
            self.step = int(self._rows[-1]["step"]) if self._rows else None
            self.rate = rate(self._rows) if self._rows else None
        if standing.damage is None and standing.state in _LOOKED_INTO:
            try:
                self.attempts = read_attempts(folder)
            except DamagedFile as damage:
                self.damage = str(damage)

    @property
    def train_wall_s(self) -> float | None:
        if self._result is not None:
            return self._result.train_wall_s
        if self._reached is not None:
            return self._reached.wall_s
        wall_s = self._rows[-1].get("wall_s") if self._rows else None
        return float(wall_s) if isinstance(wall_s, int | float) else None

    @property
    def wall_s(self) -> float | None:
        """Training and probes. Probes of a run that is not done yet are not known."""
        train_s = self.train_wall_s
        if train_s is None or self._result is None:
            return train_s
        return train_s + self._result.probe_wall_s

    @property
    def burnt_wall_s(self) -> float | None:
        if self._result is not None and not self._result.steps:
            return 0.0  # of an arm without training
        source = self._result or self._reached
        return None if source is None else source.burnt_wall_s

    def burnt_flops(self, planned: int, own_steps: int) -> int | None:
        if self._result is not None:
            return self._result.burnt_flops
        if self._reached is None or self._reached.burnt_steps is None:
            return None
        return planned * self._reached.burnt_steps // own_steps


def _lane_fields(lane: LaneState | None) -> dict[str, Any]:
    if lane is None:
        return {"job": None, "queue_state": None, "queue_reason": None, "node": None}
    return {
        "job": None if lane.lane is None else str(lane.lane),
        "queue_state": str(lane.phase),
        "queue_reason": lane.reason or lane.word,
        "node": lane.node,
    }


def _with(status: PlanStatus, **changes: Any) -> PlanStatus:
    import msgspec

    return msgspec.structs.replace(status, **changes)


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
