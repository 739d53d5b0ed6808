"""Taking a plan's jobs out of the queue, and stopping submissions that run on in the background here.

Nothing of files is touched: runs save when they are told to stop, and go on when they are submitted again.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path

from salt.errors import UserError
from salt.processes import lives, machine
from slurm.records import LaneRef, Sent, SubmissionRecord, live, readable, submission_of, with_jobs
from slurm.scheduler import MUST_S, QueuedTask, SchedulerSilent, ask, queue
from slurm.states import Standing, State


@dataclass(kw_only=True)
class Cancelled:
    """What is to be cancelled: lanes with what they are doing and their unfinished runs, and processes.

    `preparing` are lanes that decode the plan's clips and have no runs; `unknown` those of submissions whose
    files are damaged, known by their comment alone. `damages` says what is wrong with these. `tasks_of`
    counts the tasks of each job that are in the queue.
    """

    plan: str
    lanes: dict[LaneRef, tuple[QueuedTask, list[str]]] = field(default_factory=dict)
    preparing: set[LaneRef] = field(default_factory=set)
    unknown: set[LaneRef] = field(default_factory=set)
    tasks_of: Counter[str] = field(default_factory=Counter)
    local: list[SubmissionRecord] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.lanes or self.local)

    def ids(self) -> list[str]:
        """What scancel is given: a whole job where all of it goes, else its tasks."""
        by_job: dict[str, list[LaneRef]] = {}
        for lane in self.lanes:
            by_job.setdefault(lane.job, []).append(lane)
        found: list[str] = []
        for job, lanes in by_job.items():
            found += [job] if len(lanes) == self.tasks_of[job] else [str(lane) for lane in lanes]
        return found

    def others(self, chosen: Set[str]) -> dict[str, LaneRef]:
        """Runs that are not done and would be stopped with the chosen ones, by the lane that has them."""
        return {name: lane for lane, (_, runs) in self.lanes.items() for name in runs if name not in chosen}


def find_live(
    store: Path, plan: str, standings: Mapping[str, Standing], chosen: Set[str] = frozenset()
) -> Cancelled:
    """All of a plan that waits or runs, or the lanes that have one of the `chosen` runs to do.

    Raises:
        UserError: the queue does not answer, or a submission runs by itself on another machine.
    """
    submissions, damaged = readable(store, plan)
    sent = [each for _, arrays in submissions for each in arrays]
    found = Cancelled(plan=plan, damages=list(damaged.values()))
    if sent or damaged:
        _find_lanes(sent, list(damaged), standings, chosen, found)
    found.local = _local([record for record, _ in submissions], standings)
    return found


def _find_lanes(
    sent: list[Sent],
    damaged: list[Path],
    standings: Mapping[str, Standing],
    chosen: Set[str],
    found: Cancelled,
) -> None:
    folders = {*(each.folder for each in sent), *damaged}
    try:
        tasks = queue(MUST_S, users={folder.stat().st_uid for folder in folders})
    except SchedulerSilent as silent:
        raise UserError(f"plan {found.plan}: nothing was cancelled: {silent}") from silent
    there = live(tasks)
    found.tasks_of = Counter(lane.job for lane in there)
    for each in with_jobs(sent, tasks):
        for place, lane in enumerate(each.chunk.lanes if each.chunk.job is not None else ()):
            reference = LaneRef(job=str(each.chunk.job), task=place)
            runs = [
                name for name in lane.runs if name in standings and standings[name].state is not State.DONE
            ]
            if reference in there and (not chosen or chosen & set(runs)):
                found.lanes[reference] = (there[reference], runs)
                if each.chunk.prepares:
                    found.preparing.add(reference)
    names = {folder.name for folder in damaged}
    for reference, task in there.items():
        if not chosen and submission_of(task.comment) in names:
            found.lanes[reference] = (task, [])
            found.unknown.add(reference)


def _local(records: list[SubmissionRecord], standings: Mapping[str, Standing]) -> list[SubmissionRecord]:
    """Local submissions that run on by themselves here. Of one elsewhere, the claims of its runs tell."""
    held = {
        standing.claim.holder.machine
        for standing in standings.values()
        if standing.claim is not None and standing.claim.holder is not None and not standing.claim.stale
    }
    found = []
    for record in records:
        if record.on != "local" or record.process is None:
            continue
        if record.machine == machine():
            if lives(record.process, record.started):
                found.append(record)
        elif record.machine in held:
            raise UserError(
                f"submission {record.submission} of plan {record.plan} runs as process {record.process} on "
                f"{record.host}: run `salt-sweep cancel {record.plan}` there"
            )
    return found


def cancel(found: Cancelled) -> None:
    """Ask Slurm once for all lanes, and processes to stop. Raises `UserError` for what could not be."""
    problems = []
    if found.lanes:
        try:
            ask(["scancel", *found.ids()], MUST_S)
        except SchedulerSilent as silent:
            problems.append(str(silent))
    for record in found.local:
        if record.process is None or not lives(record.process, record.started):
            continue  # it ended while somebody was asked
        try:
            os.kill(record.process, signal.SIGTERM)
        except OSError as error:
            problems.append(f"process {record.process} cannot be stopped: {error.strerror}")
    if problems:
        raise UserError(
            f"plan {found.plan}: {'; '.join(problems)}; `salt-sweep status {found.plan}` tells what goes on"
        )
