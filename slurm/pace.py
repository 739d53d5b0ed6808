"""How long a plan still takes, from what its finished runs took.

Training is reckoned by FLOPs, probes by suite: an attentive suite takes many times longer than a linear one.
"""

from __future__ import annotations

from pathlib import Path

from salt.plan_specs import Plan, PlannedRun
from salt.store import DamagedFile, RunDir
from slurm.run_status import PlanStatus
from slurm.states import STUCK, State

#: Results of a suite that are read: more would not tell its time better.
PROBES_READ = 100


class Pace:
    """Collects what probes of finished runs took, reading each run's files once."""

    def __init__(self, store: Path, plan: Plan, workers: int) -> None:
        self._store = store
        self._plan = plan
        self._workers = workers
        self._seen: set[str] = set()
        self._probe_walls_s: dict[str, list[float]] = {}

    def seconds_left(self, status: PlanStatus) -> float | None:
        """Wall seconds until all is done with all workers busy; None before enough has finished to tell."""
        left_s, train_left, train_wall_s, train_flops = 0.0, 0, 0.0, 0
        for run, row in zip(self._plan.runs, status.runs, strict=True):
            if row.state is State.DONE:
                self._learn(run)
                if row.train_wall_s is not None and row.planned_flops:
                    train_wall_s += row.train_wall_s
                    train_flops += row.planned_flops
            elif row.state not in STUCK:
                train_left += row.planned_flops - row.done_flops
        if train_left:
            if not train_flops:
                return None
            left_s += train_left * train_wall_s / train_flops
        for run, row in zip(self._plan.runs, status.runs, strict=True):
            if row.state in (State.DONE, *STUCK):
                continue
            for probe_id in run.probe_ids:
                walls_s = self._probe_walls_s.get(probe_id)
                if not walls_s:
                    return None
                if not RunDir(self._store, run.run_id).probe(probe_id).exists():
                    left_s += sum(walls_s) / len(walls_s)
        return left_s / self._workers

    def _learn(self, run: PlannedRun) -> None:
        if run.run_id in self._seen:
            return
        self._seen.add(run.run_id)
        folder = RunDir(self._store, run.run_id)
        for probe_id in run.probe_ids:
            walls_s = self._probe_walls_s.setdefault(probe_id, [])
            if len(walls_s) >= PROBES_READ:
                continue
            try:
                probe = folder.read_probe(probe_id)
            except DamagedFile:
                continue  # it took a time that nobody knows; others are enough
            if probe is not None:
                walls_s.append(probe.wall_s)
