"""A submission to Slurm: its record, its arrays one after the other, each written down before the next."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from salt.errors import UserError
from salt.plan_specs import Plan
from slurm.durations import spoken
from slurm.lane import LaneTask
from slurm.lanes import Array, dependency
from slurm.names import run_names
from slurm.nodes import BadNode
from slurm.profile import SlurmProfile
from slurm.proposal import Proposal
from slurm.records import (
    Chunk,
    Lane,
    LaneRef,
    SubmissionRecord,
    comment,
    jobs_folder,
    new_submission,
    write_chunk,
    write_record,
)
from slurm.request import LaneRequest, lane_request, refuse_place, sbatch_parameters
from slurm.sending import NotSent, script, send

#: Cells that are named in a message about those that were not sent.
NAMED = 5


class PartlySent(UserError):
    """An array was refused after others were sent; the message says which runs are missing."""


@dataclass(frozen=True, kw_only=True)
class ClusterJob:
    """All that goes into the scripts of one submission."""

    store: Path
    plan: Plan
    profile: SlurmProfile
    processes_per_node: int
    proposal: Proposal
    code: Path
    bad_nodes: Mapping[str, BadNode] = field(default_factory=dict)
    workers: int = 1
    since_ns: int = 0
    retry_diverged: bool = False
    retry_given_up: bool = False
    retry_kinds: tuple[str, ...] = ()
    gpu_hours: float | None = None

    def request(self, *, training: bool = True) -> LaneRequest:
        return lane_request(
            self.plan,
            self.profile,
            self.processes_per_node,
            self.workers if training else 1,
            training=training,
        )

    def parameters(self, submission: str, chunk: Chunk, tasks_of: dict[str, int]) -> dict[str, object]:
        return sbatch_parameters(
            self.request(training=not chunk.prepares),
            self.profile,
            name=self.plan.name,
            comment=comment(submission, chunk.number),
            code=self.code,
            store=self.store,
            tasks=len(chunk.lanes),
            dependency=dependency(chunk.after, tasks_of),
            exclude=sorted(self.bad_nodes),
        )


def scripts(job: ClusterJob) -> list[tuple[Chunk, str]]:
    """The very batch scripts that `submit_all` would send; jobs that are not there yet are called 1, 2."""
    submission = "SUBMISSION"
    tasks_of = dict(job.proposal.tasks_of)
    found = []
    logs = jobs_folder(job.store, job.plan.name) / submission / "logs"

    def keep(chunk: Chunk) -> str:
        found.append((chunk, script(job.parameters(submission, chunk, tasks_of), logs)))
        tasks_of[name := str(chunk.number + 1)] = len(chunk.lanes)
        return name

    _each_chunk(job.proposal, keep)
    return found


def submit_all(job: ClusterJob, say: Callable[[str], None]) -> list[Chunk]:
    """Send every array of a proposal; the chunks, with their jobs.

    Raises:
        PartlySent, NotSent: sbatch refused. What was sent before is recorded, and submitting again sends the
            rest.
    """
    refuse_place(job.store, job.profile)
    job.request()
    submission = new_submission()
    folder = jobs_folder(job.store, job.plan.name) / submission
    tasks_of = dict(job.proposal.tasks_of)
    record = SubmissionRecord(
        submission=submission,
        plan=job.plan.name,
        on="slurm",
        unix_s=time.time(),
        host=socket.gethostname(),
        command=tuple(sys.argv),
        code=str(job.code.absolute()),
        since_ns=job.since_ns,
        retry_diverged=job.retry_diverged,
        retry_given_up=job.retry_given_up,
        retry_kinds=job.retry_kinds,
        profile=job.profile,
        workers=job.workers,
        gpu_hours=job.gpu_hours,
    )
    write_record(folder, record)
    sent: list[Chunk] = []

    def dispatch(chunk: Chunk) -> str:
        write_chunk(folder, chunk)
        task = LaneTask(str(job.store.absolute()), job.plan.name, submission, chunk.number)
        try:
            name = send(job.parameters(submission, chunk, tasks_of), folder / "logs", task)
        except NotSent as refused:
            raise _told(job, sent, refused) from refused
        done = msgspec.structs.replace(chunk, job=name, sent_unix_s=time.time())
        write_chunk(folder, done)
        sent.append(done)
        tasks_of[name] = len(chunk.lanes)
        runs = sum(len(lane.runs) for lane in chunk.lanes)
        what = "decodes the clips" if chunk.prepares else f"{len(chunk.lanes)} lanes, {runs} runs"
        say(f"sent job {name}: {what}")
        return name

    _each_chunk(job.proposal, dispatch)
    return sent


def _each_chunk(proposal: Proposal, dispatch: Callable[[Chunk], str]) -> None:
    """Hand over the arrays of a proposal in order; `dispatch` returns the id of an array's job."""
    after_all: list[LaneRef] = [] if proposal.prepared_by is None else [proposal.prepared_by]
    number = 0
    if proposal.prepares:
        name = dispatch(Chunk(number=0, lanes=(Lane(runs=()),), prepares=True))
        after_all, number = [LaneRef(job=name, task=0)], 1
    places: dict[int, LaneRef] = {}
    for array in proposal.arrays:
        chunk = Chunk(
            number=number,
            lanes=tuple(proposal.lanes[place].lane for place in array.lanes),
            after=_resolved(array, places, after_all),
        )
        name = dispatch(chunk)
        places |= {place: LaneRef(job=name, task=task) for task, place in enumerate(array.lanes)}
        number += 1


def _resolved(array: Array, places: dict[int, LaneRef], after_all: Sequence[LaneRef]) -> tuple[LaneRef, ...]:
    after = {*array.after, *(places[place] for place in array.after_new), *after_all}
    return tuple(sorted(after, key=lambda each: (int(each.job), each.task)))


def _told(job: ClusterJob, sent: Sequence[Chunk], refused: NotSent) -> UserError:
    """sbatch's answer with the runs that it concerns."""
    there = {name for chunk in sent for lane in chunk.lanes for name in lane.runs}
    names = run_names(job.plan)
    missing = [name for planned in job.proposal.lanes for name in planned.lane.runs if name not in there]
    cells = "; ".join(f"{names[name]} ({name})" for name in missing[:NAMED])
    more = f"; and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
    head = f"plan {job.plan.name}: {refused}"
    if sent:
        jobs = ", ".join(str(chunk.job) for chunk in sent)
        return PartlySent(
            f"{head}. Sent before: {len(there)} runs as job {jobs}. Not sent: {len(missing)} runs: "
            f"{cells}{more}. Submitting again sends only those"
        )
    return NotSent(f"{head}. Nothing was sent of {len(missing)} runs: {cells}{more}")


@contextlib.contextmanager
def submit_lock(store: Path, plan: str, say: Callable[[str], None]) -> Iterator[None]:
    """One submission of a plan at a time: the second sees what the first has sent."""
    path = jobs_folder(store, plan) / "submit.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            say(f"{file.read().strip() or 'another process'} is submitting this plan: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def meaning(request: LaneRequest, profile: SlurmProfile) -> str:
    """A lane's request in words: what a person would check before it is sent."""
    gpus = f"{request.gpus_per_node} GPU{'s' if request.gpus_per_node > 1 else ''}, " if request.gpus else ""
    kind = f" ({profile.gpu_type})" if profile.gpu_type and request.gpus else ""
    nodes = f"{request.nodes} nodes with each " if request.nodes > 1 else ""
    memory = f", {request.memory_mib_per_node / 1024:g} GiB" if request.memory_mib_per_node else ""
    at_once = f", {request.workers} runs at once" if request.workers > 1 else ""
    where = f"partition {profile.partition}" if profile.partition else "the default partition"
    return (
        f"a job takes {nodes}{gpus}{request.cpus_per_node} CPUs{kind}{memory}{at_once}, at most "
        f"{spoken(request.minutes)}, in {where}; warned {profile.signal_delay_s} s before it ends"
    )
