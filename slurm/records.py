"""What was sent where: a folder for each submission.

    <store>/jobs/<plan>/<submission>/submission.json   how it was meant, and where it ran from
    <store>/jobs/<plan>/<submission>/lanes.json        the lanes of all its arrays, written before any is sent
    <store>/jobs/<plan>/<submission>/jobs.jsonl        a line for each array, written when it was sent
    <store>/jobs/<plan>/<submission>/logs/             what submitit writes
    <store>/jobs/<plan>/<submission>/workers/          what workers say

An array whose sender was killed before it wrote that line is found by the comment that its jobs carry.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from salt.disk import writing
from salt.specs import NonNegativeInt, Spec
from salt.store import DamagedFile, pretty_json, read_json, write_atomically
from slurm.profile import SlurmProfile
from slurm.scheduler import QueuedTask
from slurm.states import Retry

_WAY_OUT = (
    "`salt-sweep cancel` takes its jobs out of the queue; then move its folder away, and its runs are taken "
    "not to have been sent"
)


class Lane(Spec, kw_only=True):
    """Runs that one array task works through, in this order. `slot`: under a cap, no two lanes of a slot run
    at once.
    """

    runs: tuple[str, ...]
    slot: int | None = None
    seconds: float | None = None  # by estimate


class LaneRef(Spec, kw_only=True, frozen=True):
    """A lane of a job that was sent."""

    job: str
    task: NonNegativeInt

    def __str__(self) -> str:
        return f"{self.job}_{self.task}"


class NewRef(Spec, kw_only=True, frozen=True):
    """A lane of an array of the same submission, which has no job yet."""

    chunk: NonNegativeInt
    task: NonNegativeInt


class Chunk(Spec, kw_only=True):
    """One array: lanes with the same dependencies. `job` is None until it was sent."""

    number: NonNegativeInt
    lanes: tuple[Lane, ...]
    after: tuple[LaneRef, ...] = ()  # lanes that must have ended
    after_new: tuple[NewRef, ...] = ()
    prepares: bool = False  # decodes the plan's clips instead; has one lane without runs
    job: str | None = None
    sent_unix_s: float | None = None


class SentLine(Spec, kw_only=True):
    """A line of `jobs.jsonl`."""

    chunk: NonNegativeInt
    job: str
    unix_s: float


class SubmissionRecord(Spec, kw_only=True):
    """One `salt-sweep submit`: what its workers need to know, and what it was."""

    submission: str
    plan: str
    on: str  # slurm or local
    unix_s: float
    host: str
    command: tuple[str, ...]
    code: str | None  # folder of the code that its workers run, relative to the store
    retry: Retry
    profile: SlurmProfile | None = None
    workers: int = 1  # processes of a lane, or of a local submission
    devices: tuple[str, ...] = ()  # of a local one: GPUs of each worker
    gpu_hours: float | None = None  # expected of all that was sent
    process: int | None = None  # of a local submission that runs on by itself
    started: str | None = None  # its start, and the machine that the number means something on
    machine: str | None = None


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A chunk with the submission that it is of."""

    record: SubmissionRecord
    chunk: Chunk
    folder: Path

    @property
    def comment(self) -> str:
        return comment(self.record.submission, self.chunk.number)


def comment(submission: str, number: int) -> str:
    """What the jobs of a chunk carry, so that they are known without our files."""
    return f"salt {submission} {number}"


def submission_of(comment: str) -> str | None:
    """The submission that a job with this comment is of; None for a job of something else."""
    parts = comment.split()
    return parts[1] if len(parts) == 3 and parts[0] == "salt" else None


def jobs_folder(store: Path, plan: str) -> Path:
    return store / "jobs" / plan


def new_submission() -> str:
    """A name that sorts by time and that no other process takes."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"


def write_record(folder: Path, record: SubmissionRecord) -> None:
    write_atomically(folder / "submission.json", pretty_json(record))


def write_lanes(folder: Path, chunks: Sequence[Chunk]) -> None:
    """Write down what is about to be sent."""
    write_atomically(folder / "lanes.json", msgspec.json.encode(chunks) + b"\n")


def note_sent(folder: Path, number: int, job: str) -> None:
    """Write down, for good, that an array was sent."""
    path = folder / "jobs.jsonl"
    line = msgspec.json.encode(SentLine(chunk=number, job=job, unix_s=time.time()))
    with writing(path), open(path, "ab") as file:
        file.write(line + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_record(folder: Path) -> SubmissionRecord:
    """Raises `DamagedFile`."""
    return read_json(folder / "submission.json", SubmissionRecord, _WAY_OUT)


def read_lanes(folder: Path) -> list[Chunk]:
    """All arrays of a submission, those that were sent with their jobs. Raises `DamagedFile`."""
    path = folder / "lanes.json"
    if not path.exists():
        return []
    sent = {line.chunk: line for line in _sent_lines(folder / "jobs.jsonl")}
    found = []
    for chunk in read_json(path, list[Chunk], _WAY_OUT):
        line = sent.get(chunk.number)
        found.append(
            chunk if line is None else msgspec.structs.replace(chunk, job=line.job, sent_unix_s=line.unix_s)
        )
    return found


def _sent_lines(path: Path) -> Iterator[SentLine]:
    """Whole lines only: a sender that was killed may have left half of one; its job is in the queue."""
    if not path.exists():
        return
    for text in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(msgspec.DecodeError):
            yield msgspec.json.decode(text, type=SentLine)


def submissions(store: Path, plan: str) -> list[tuple[Path, SubmissionRecord]]:
    """All submissions of a plan that have a record, oldest first.

    Raises `DamagedFile`, and `PermissionError` where one may not be read: such as that of a colleague.
    """
    return [(folder, read_record(folder)) for folder in _folders(store, plan) if _has_record(folder)]


def _folders(store: Path, plan: str) -> list[Path]:
    """Folders in a plan's own, oldest first. Not by glob: it leaves out what may not be looked at."""
    root = jobs_folder(store, plan)
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.exists() else []


def _has_record(folder: Path) -> bool:
    return (folder / "submission.json").exists()


def chunks(store: Path, plan: str) -> list[Sent]:
    """Every array of every submission of a plan, oldest first, sent or not. Raises `DamagedFile`."""
    return [
        Sent(record=record, chunk=chunk, folder=folder)
        for folder, record in submissions(store, plan)
        for chunk in read_lanes(folder)
    ]


def readable(store: Path, plan: str) -> tuple[list[tuple[SubmissionRecord, list[Sent]]], dict[Path, str]]:
    """Every submission of a plan with its arrays, oldest first; folders of damaged ones, what is wrong."""
    found: list[tuple[SubmissionRecord, list[Sent]]] = []
    damages = {}
    for folder in _folders(store, plan):
        try:
            if not _has_record(folder):
                continue
            record = read_record(folder)
            lanes = read_lanes(folder)
        except DamagedFile as damage:
            damages[folder] = str(damage)
        except PermissionError as error:
            damages[folder] = f"{folder}: {error.strerror}: what was sent there is not known"
        else:
            found.append((record, [Sent(record=record, chunk=chunk, folder=folder) for chunk in lanes]))
    return found, damages


def readable_chunks(store: Path, plan: str) -> tuple[list[Sent], list[str]]:
    """As `chunks`, without those of submissions whose files are damaged; what is wrong with them."""
    found, damages = readable(store, plan)
    return [each for _, arrays in found for each in arrays], list(damages.values())


def with_jobs(sent: Iterable[Sent], tasks: Iterable[QueuedTask]) -> list[Sent]:
    """The same chunks; those without a job get the one in the queue that carries their comment."""
    by_comment = {task.comment: task.job for task in tasks if task.comment}
    found = []
    for each in sent:
        job = each.chunk.job or by_comment.get(each.comment)
        chunk = each.chunk if job == each.chunk.job else msgspec.structs.replace(each.chunk, job=job)
        found.append(Sent(record=each.record, chunk=chunk, folder=each.folder))
    return found


def lanes_of(sent: Iterable[Sent]) -> dict[str, LaneRef]:
    """run_id -> the newest lane that has it, of chunks that were sent."""
    found: dict[str, LaneRef] = {}
    for each in sent:
        if each.chunk.job is None:
            continue
        for task, lane in enumerate(each.chunk.lanes):
            reference = LaneRef(job=each.chunk.job, task=task)
            found |= dict.fromkeys(lane.runs, reference)
    return found


def live(tasks: Iterable[QueuedTask]) -> Mapping[LaneRef, QueuedTask]:
    """Lanes that are in the queue: waiting, running or about to end."""
    return {LaneRef(job=task.job, task=task.task): task for task in tasks if task.task is not None}


def own_process() -> dict[str, str | int]:
    """How a local submission is told from another process with its number."""
    from salt.processes import machine, start_of

    return {"process": os.getpid(), "started": start_of(os.getpid()) or "", "machine": machine()}
