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
from functools import cached_property
from pathlib import Path

import msgspec

from salt.errors import UserError
from salt.plan_specs import Plan
from slurm.durations import spoken
from slurm.lane import LaneTask
from slurm.lanes import dependency
from slurm.names import run_names
from slurm.nodes import BadNode
from slurm.profile import SlurmProfile
from slurm.proposal import Proposal
from slurm.records import (
    Chunk,
    Lane,
    LaneRef,
    NewRef,
    SubmissionRecord,
    comment,
    jobs_folder,
    new_submission,
    note_sent,
    write_lanes,
    write_record,
)
from slurm.request import LaneRequest, lane_request, refuse_place, sbatch_parameters
from slurm.sending import NotSent, Sender
from slurm.states import Retry

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
    retry: Retry = Retry()
    gpu_hours: float | None = None

    def request(self, *, training: bool = True) -> LaneRequest:
        return self._requests[training]

    @cached_property
    def _requests(self) -> dict[bool, LaneRequest]:
        """With and without training: once for all arrays."""
        return {
            training: lane_request(
                self.plan,
                self.profile,
                self.processes_per_node,
                self.workers if training else 1,
                training=training,
            )
            for training in (True, False)
        }

    def parameters(self, submission: str, chunk: Chunk, tasks_of: dict[str, int]) -> dict[str, object]:
        return sbatch_parameters(
            self.request(training=not chunk.prepares),
            self.profile,
            name=self.plan.name,
            comment=comment(submission, chunk.number),
            number=chunk.number,
            code=self.code,
            store=self.store,
            tasks=len(chunk.lanes),
            dependency=dependency(chunk.after, tasks_of),
            exclude=sorted(self.bad_nodes),
        )


def scripts(job: ClusterJob) -> list[tuple[Chunk, str]]:
    """The very batch scripts that `submit_all` would send; jobs that are not there yet are called 1, 2."""
    logs = jobs_folder(job.store, job.plan.name) / "SUBMISSION" / "logs"
    tasks_of = dict(job.proposal.tasks_of)
    jobs: dict[int, str] = {}
    found = []
    sender = Sender(logs)
    for chunk in to_send(job.proposal):
        chunk = resolved(chunk, jobs)
        found.append((chunk, sender.script(job.parameters("SUBMISSION", chunk, tasks_of))))
        jobs[chunk.number] = str(chunk.number + 1)
        tasks_of[jobs[chunk.number]] = len(chunk.lanes)
    return found


def submit_all(job: ClusterJob, say: Callable[[str], None]) -> list[Chunk]:
    """Send every array of a proposal; the chunks, with their jobs.

    Raises:
        PartlySent, NotSent: sbatch refused. What was sent before is recorded, and submitting again sends the
            rest.
    """
    refuse_place(job.store, job.profile)
    chunks = to_send(job.proposal)
    record = _record(job)
    folder = jobs_folder(job.store, job.plan.name) / record.submission
    write_record(folder, record)
    write_lanes(folder, chunks)
    sender = Sender(folder / "logs")
    sender.prepare(LaneTask(str(job.store.absolute()), job.plan.name, record.submission))
    tasks_of = dict(job.proposal.tasks_of)
    jobs: dict[int, str] = {}
    sent: list[Chunk] = []
    for chunk in chunks:
        chunk = resolved(chunk, jobs)
        try:
            name = sender.send(job.parameters(record.submission, chunk, tasks_of))
        except NotSent as refused:
            raise _told(job, sent, refused) from refused
        note_sent(folder, chunk.number, name)
        jobs[chunk.number], tasks_of[name] = name, len(chunk.lanes)
        sent.append(msgspec.structs.replace(chunk, job=name))
        say(f"sent job {name}: {_content(chunk)}")
    return sent


def _content(chunk: Chunk) -> str:
    if chunk.prepares:
        return "decodes the clips"
    runs = sum(len(lane.runs) for lane in chunk.lanes)
    return f"{counted(len(chunk.lanes), 'lane')}, {counted(runs, 'run')}"


def counted(number: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _record(job: ClusterJob) -> SubmissionRecord:
    return SubmissionRecord(
        submission=new_submission(),
        plan=job.plan.name,
        on="slurm",
        unix_s=time.time(),
        host=socket.gethostname(),
        command=tuple(sys.argv),
        code=str(job.code.absolute()),
        retry=job.retry,
        profile=job.profile,
        workers=job.workers,
        gpu_hours=job.gpu_hours,
    )


def to_send(proposal: Proposal) -> list[Chunk]:
    """The arrays of a proposal in order, each after those that it waits for; nothing of it has a job yet."""
    chunks: list[Chunk] = []
    first: tuple[NewRef, ...] = ()
    if proposal.prepares:
        chunks.append(Chunk(number=0, lanes=(Lane(runs=()),), prepares=True))
        first = (NewRef(chunk=0, task=0),)
    live = () if proposal.prepared_by is None else (proposal.prepared_by,)
    places: dict[int, NewRef] = {}
    for array in proposal.arrays:
        number = len(chunks)
        new = (places[place] for place in array.after_new)
        chunks.append(
            Chunk(
                number=number,
                lanes=tuple(proposal.lanes[place].lane for place in array.lanes),
                after=tuple(dict.fromkeys([*array.after, *live])),
                after_new=(*first, *sorted(new, key=lambda each: (each.chunk, each.task))),
            )
        )
        places |= {place: NewRef(chunk=number, task=task) for task, place in enumerate(array.lanes)}
    return chunks


def resolved(chunk: Chunk, jobs: Mapping[int, str]) -> Chunk:
    """The chunk with all it waits for by job; `jobs` are those of the arrays before it."""
    new = (LaneRef(job=jobs[each.chunk], task=each.task) for each in chunk.after_new)
    return msgspec.structs.replace(chunk, after=(*chunk.after, *new), after_new=())


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
    gpus = f"{counted(request.gpus_per_node, 'GPU')}, " if request.gpus else ""
    kind = f" ({profile.gpu_type})" if profile.gpu_type and request.gpus else ""
    nodes = f"{request.nodes} nodes with each " if request.nodes > 1 else ""
    memory = f", {request.memory_mib_per_node / 1024:g} GiB" if request.memory_mib_per_node else ""
    at_once = f", {request.workers} runs at once" if request.workers > 1 else ""
    where = f"partition {profile.partition}" if profile.partition else "the default partition"
    return (
        f"a job takes {nodes}{gpus}{counted(request.cpus_per_node, 'CPU')}{kind}{memory}{at_once}, at most "
        f"{spoken(request.minutes)}, in {where}; warned {profile.signal_delay_s} s before it ends"
    )
