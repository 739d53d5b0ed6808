"""What submissions leave behind that nobody reads any more: files of jobs that are over, code without a job.

Nothing below `runs/` is ever among it, nor the records by which a run's jobs are known.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from salt.claim import read_claim
from salt.errors import UserError
from salt.plan_specs import Plan
from salt.plans import read_plan
from salt.processes import lives, machine, may_be_in_use
from salt.store import RunDir
from slurm.records import LaneRef, Sent, SubmissionRecord, live, readable_chunks, submissions, with_jobs
from slurm.scheduler import MUST_S, QueuedTask, SchedulerSilent, queue
from slurm.snapshot import old_snapshots, snapshots_folder
from slurm.states import ACTIVE, State, assess

#: A younger snapshot may be that of a submission which is just being made.
YOUNG_S = 3600.0
#: What submitit and the sender write, without what jobs said.
_SCRIPTS = ("*.pkl", "*.sh", ".*.sh")
_LOGS = ("*_log.out", "*_log.err")


@dataclass
class Leftovers:
    """Files and folders that can go; `kept` says why some of that kind stay."""

    scripts: list[Path] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    code: list[Path] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.scripts or self.logs or self.code)


def size_bytes(paths: Iterable[Path]) -> int:
    """What files and whole folders take."""
    total = 0
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            total += sum(each.lstat().st_size for each in path.rglob("*") if not each.is_dir())
        else:
            total += path.lstat().st_size
    return total


def find_leftovers(store: Path, plans: Iterable[str], *, logs: bool = False) -> Leftovers:
    """What can go of these plans, and snapshots of code that no submission of any plan needs.

    Raises:
        UserError: the queue cannot be asked, so that nobody knows which jobs are over.
    """
    found = Leftovers()
    everything = {name: _Submissions(store, name) for name in submitted_plans(store)}
    tasks = _queue(store, everything)
    needed: list[Path] = []
    for name, plan in everything.items():
        plan.look(tasks)
        needed += plan.needed
        found.kept += plan.kept
        if name in plans:
            _files(plan, found, logs)
    keeps_all = [note for plan in everything.values() for note in plan.holds_code]
    if keeps_all:
        found.kept += [f"all code is kept: {note}" for note in keeps_all]
        return found
    for path in old_snapshots(store, needed):
        if time.time() - path.stat().st_mtime > YOUNG_S and not may_be_in_use(path.name):
            found.code.append(path)
    return found


def remove(found: Leftovers) -> None:
    """Remove what was found; code is renamed first, so that nobody takes half a snapshot for a whole one."""
    for path in (*found.scripts, *found.logs):
        path.unlink(missing_ok=True)
    for path in found.code:
        aside = path.with_name(f".{path.name.lstrip('.')}.{os.getpid()}.tmp")
        os.rename(path, aside)
        shutil.rmtree(aside)


def submitted_plans(store: Path) -> list[str]:
    """Plans of which something was submitted."""
    folder = store / "jobs"
    code = snapshots_folder(store)
    return sorted(path.name for path in folder.glob("*") if path.is_dir() and path != code)


def _queue(store: Path, everything: Mapping[str, _Submissions]) -> list[QueuedTask]:
    sent = [each for plan in everything.values() for each in plan.sent]
    if not sent:
        return []
    try:
        return queue(MUST_S, users={each.folder.stat().st_uid for each in sent})
    except SchedulerSilent as silent:
        raise UserError(f"nothing is removed: {silent}, so which jobs are over is not known") from silent


class _Submissions:
    """All submissions of one plan, and which of them still live."""

    def __init__(self, store: Path, name: str) -> None:
        self.store, self.name = store, name
        self.folder = store / "jobs" / name
        self.sent, damages = readable_chunks(store, name)
        self.kept = [f"plan {name}: {damage}" for damage in damages]
        self.holds_code = list(self.kept)  # what a damaged record refers to is not known
        self.over: list[Path] = []
        self.needed: list[Path] = []
        self.busy = False

    def look(self, tasks: list[QueuedTask]) -> None:
        """Fill `over` (folders of submissions whose jobs are all gone) and `needed` (snapshots)."""
        if self.holds_code:
            return
        plan = self._plan()
        unfinished = self._unfinished(plan)
        there = live(tasks)
        by_folder: dict[Path, list[Sent]] = {}
        for each in with_jobs(self.sent, tasks):
            by_folder.setdefault(each.folder, []).append(each)
        for folder, record in submissions(self.store, self.name):
            arrays = by_folder.get(folder, [])
            lives_on = _any_live(arrays, there) or self._may_run(record)
            if not lives_on:
                self.over.append(folder)
            runs = {name for each in arrays for lane in each.chunk.lanes for name in lane.runs}
            wanted = unfinished is None or bool(unfinished & runs if record.on == "slurm" else unfinished)
            if record.code is not None and (lives_on or wanted):
                self.needed.append(self.store / record.code)

    def _may_run(self, record: SubmissionRecord) -> bool:
        """Whether a local submission runs; on another machine it may while any run of the plan is claimed."""
        if record.on != "local":
            return False
        if record.process is None or record.machine != machine():
            return self.busy
        return lives(record.process, record.started)

    def _plan(self) -> Plan | None:
        try:
            return read_plan(self.store, self.name)
        except UserError as error:
            self.kept.append(f"code of plan {self.name} is kept: {error}")
            return None

    def _unfinished(self, plan: Plan | None) -> set[str] | None:
        """Runs that are not done; None where nobody knows."""
        if plan is None:
            return None
        standings = assess(self.store, plan)
        active = [name for name, each in standings.items() if each.state in ACTIVE]
        here = [name for name in active if _held_here(self.store, name)]
        self.busy = bool(active)
        if here:  # by workers of `submit --on local` perhaps, which leave no record
            self.holds_code.append(f"a process on this machine works on {here[0]} of plan {self.name}")
        return {name for name, each in standings.items() if each.state is not State.DONE}


def _held_here(store: Path, run_id: str) -> bool:
    claim = read_claim(RunDir(store, run_id))
    return claim is not None and claim.holder is not None and claim.holder.machine == machine()


def _any_live(sent: Iterable[Sent], there: Mapping[LaneRef, QueuedTask]) -> bool:
    return any(
        LaneRef(job=each.chunk.job, task=task) in there
        for each in sent
        if each.chunk.job is not None
        for task in range(len(each.chunk.lanes))
    )


def _files(plan: _Submissions, found: Leftovers, logs: bool) -> None:
    for folder in plan.over:
        place = folder / "logs"
        found.scripts += sorted(path for pattern in _SCRIPTS for path in place.glob(pattern))
        said = sorted(path for pattern in _LOGS for path in place.glob(pattern))
        found.scripts += [path for path in said if not path.stat().st_size]
        if logs:
            found.logs += [path for path in said if path.stat().st_size]
            found.logs += sorted((folder / "workers").glob("*.log"))
            found.logs += [path for path in (folder / "local.log",) if path.exists()]
    if logs and not plan.busy:
        found.logs += sorted(plan.folder.glob("worker-*.log"))
