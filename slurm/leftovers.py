"""What submissions leave behind that nobody reads any more: files of jobs that are over, code without a job.

Nothing below `runs/`, `plans/` or `cache/` is ever among it, nor the records by which a run's jobs are known.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from salt.disk import LEFT_AFTER_S
from salt.errors import UserError
from salt.plan_specs import Plan
from salt.plans import read_plan
from salt.processes import lives, machine, may_be_in_use
from slurm.records import LaneRef, Sent, SubmissionRecord, live, readable_chunks, submissions, with_jobs
from slurm.scheduler import MUST_S, QueuedTask, SchedulerSilent, queue
from slurm.snapshot import old_snapshots, snapshots_folder
from slurm.states import ACTIVE, State, assess

#: A younger snapshot may be that of a submission which is just being made.
YOUNG_S = 3600.0
#: What submitit, the sender and the lanes write for themselves: results, links and the task, scripts, tries.
_FILES = ("logs/*.pkl", "logs/*.sh", "logs/.*.sh", "lanes/*.json")
_LOGS = ("logs/*_log.out", "logs/*_log.err", "workers/*.log", "local.log")


@dataclass
class Leftovers:
    """Files and folders that can go, by kind; `kept` says why some of that kind stay."""

    files: list[Path] = field(default_factory=list)
    temporaries: list[Path] = field(default_factory=list)
    logs: list[Path] = field(default_factory=list)
    code: list[Path] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    def kinds(self) -> dict[str, list[Path]]:
        return {"files": self.files, "temporaries": self.temporaries, "logs": self.logs, "code": self.code}

    def __bool__(self) -> bool:
        return any(self.kinds().values())


def size_bytes(paths: Iterable[Path]) -> int:
    """What files and whole folders take."""
    total = 0
    for path in paths:
        inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else (path,)
        for each in inside:
            with contextlib.suppress(FileNotFoundError):  # gone meanwhile
                total += 0 if each.is_dir() and not each.is_symlink() else each.lstat().st_size
    return total


def find_leftovers(store: Path, plans: Sequence[str], *, logs: bool = False, code: bool = False) -> Leftovers:
    """What can go of these plans; with `code` also snapshots that no submission of any plan needs.

    Raises:
        UserError: the queue cannot be asked, so that nobody knows which jobs are over.
    """
    found = Leftovers()
    names = submitted_plans(store)
    looked = [_Submissions(store, name) for name in names if code or name in plans]
    tasks = _queue(looked)
    for each in looked:
        each.look(tasks)
        found.kept += each.kept + (each.keeps_code if code else [])
        if each.name in plans:
            found.files += [path for folder in each.over for path in _matching(folder, _FILES)]
            said = [path for folder in each.over for path in _matching(folder, _LOGS)]
            if not each.busy:  # of workers that were in the foreground, which leave no record
                said += sorted(each.folder.glob("worker-*.log"))
            found.files += [path for path in said if not path.stat().st_size]
            found.logs += [path for path in said if logs and path.stat().st_size]
            found.temporaries += _dead(each.folder.rglob(".*.tmp"))
    found.temporaries += _dead(snapshots_folder(store).glob(".*.tmp"))
    if code:
        _find_code(store, looked, found)
    return found


def _find_code(store: Path, looked: Sequence[_Submissions], found: Leftovers) -> None:
    keeps_all = [note for each in looked for note in each.holds_code]
    if keeps_all:
        found.kept += [f"all code is kept: {note}" for note in keeps_all]
        return
    for path in old_snapshots(store, [path for each in looked for path in each.needed]):
        if not path.name.startswith(".") and time.time() - path.stat().st_mtime > YOUNG_S:
            found.code.append(path)


def remove(found: Leftovers) -> list[str]:
    """Remove what was found, and folders that are empty then; what could not be removed, and why.

    Code is renamed first, so that nobody takes half a snapshot for a whole one.
    """
    failed = []
    for path in (*found.files, *found.temporaries, *found.logs):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            failed.append(f"{path}: {error.strerror}")
    for path in found.code:
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            os.rename(path, aside)
            shutil.rmtree(aside)
        except OSError as error:
            failed.append(f"{path}: {error.strerror}")
    for folder in {path.parent for path in (*found.files, *found.logs)}:
        if folder.name in ("logs", "lanes", "workers"):
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()
    return failed


def submitted_plans(store: Path) -> list[str]:
    """Plans of which something was submitted."""
    return sorted(
        path.name
        for path in (store / "jobs").glob("*")
        if (path / "submitted").exists() or any(path.glob("*/submission.json"))
    )


def _queue(looked: Sequence[_Submissions]) -> list[QueuedTask]:
    sent = [sent for each in looked for sent in each.sent]
    if not sent:
        return []
    try:
        return queue(MUST_S, users={each.folder.stat().st_uid for each in sent})
    except SchedulerSilent as silent:
        plans = ", ".join(sorted({each.record.plan for each in sent}))
        raise UserError(
            f"nothing is removed: {silent}, so which jobs of plan {plans} are over is not known; try again "
            "where Slurm answers"
        ) from silent


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    return sorted(path for pattern in patterns for path in folder.glob(pattern))


def _dead(paths: Iterable[Path]) -> Iterator[Path]:
    """Temporaries of processes that are gone, or that are too old for one on another machine to go on."""
    for path in sorted(paths):
        in_use = may_be_in_use(path.name)
        with contextlib.suppress(FileNotFoundError):
            if in_use is False or (in_use and time.time() - path.lstat().st_mtime > LEFT_AFTER_S):
                yield path


class _Submissions:
    """All submissions of one plan, and which of them still live."""

    def __init__(self, store: Path, name: str) -> None:
        self.store, self.name = store, name
        self.folder = store / "jobs" / name
        self.sent, damages = readable_chunks(store, name)
        self.kept = [f"plan {name}: {damage}" for damage in damages]
        self.holds_code = list(self.kept)  # what a damaged record refers to is not known
        self.keeps_code: list[str] = []
        self.over: list[Path] = []
        self.needed: list[Path] = []
        self.active: set[str] = set()  # runs that a process has

    @property
    def busy(self) -> bool:
        return bool(self.active or self.holds_code)

    def look(self, tasks: list[QueuedTask]) -> None:
        """Fill `over` (folders of submissions whose jobs and processes are all gone) and `needed` (code)."""
        if self.holds_code:
            return
        unfinished = self._unfinished()
        there = live(tasks)
        by_folder: dict[Path, list[Sent]] = {}
        for each in with_jobs(self.sent, tasks):
            by_folder.setdefault(each.folder, []).append(each)
        in_jobs: set[str] = set()
        for folder, record in submissions(self.store, self.name):
            arrays = by_folder.get(folder, [])
            runs = {name for each in arrays for lane in each.chunk.lanes for name in lane.runs}
            # A queue that does not know the jobs may be that of another cluster: claims tell more.
            lives_on = _any_live(arrays, there) or bool(runs & self.active) or self._may_run(record)
            in_jobs |= runs if lives_on else set()
            if not lives_on:
                self.over.append(folder)
            if record.code is not None and (lives_on or unfinished):
                self.needed.append(self.store / record.code)
        alone = sorted(self.active - in_jobs)
        if alone:  # by workers of `submit --on local`, which leave no record of their code
            self.holds_code.append(f"a process outside of jobs works on {alone[0]} of plan {self.name}")

    def _may_run(self, record: SubmissionRecord) -> bool:
        """Whether a local submission runs; on another machine it may while any run of the plan is claimed."""
        if record.on != "local":
            return False
        if record.process is None or record.machine != machine():
            return bool(self.active or self.keeps_code)
        return lives(record.process, record.started)

    def _unfinished(self) -> bool:
        """Whether the plan has runs that are not done, as far as is known; notes those that are active."""
        try:
            plan: Plan = read_plan(self.store, self.name)
        except UserError as error:
            self.keeps_code.append(f"code of plan {self.name} is kept: {error}")
            return True
        standings = assess(self.store, plan)
        self.active = {name for name, each in standings.items() if each.state in ACTIVE}
        return any(each.state is not State.DONE for each in standings.values())


def _any_live(sent: Iterable[Sent], there: Mapping[LaneRef, QueuedTask]) -> bool:
    return any(
        LaneRef(job=each.chunk.job, task=task) in there
        for each in sent
        if each.chunk.job is not None
        for task in range(len(each.chunk.lanes))
    )
