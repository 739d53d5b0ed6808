"""What the queue says of each run of a plan: its newest lane, and whether that waits, runs or has ended.

squeue is asked first and wins: right after a node failed, accounting calls a job ended that is about to be
queued again. sacct is asked once, and only about lanes that the queue no longer has and that have runs which
are not done. Where Slurm does not answer, what is known from files stays, with a note.
"""

from __future__ import annotations

import re
import time
from collections.abc import Container, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType

import msgspec

from salt.plan_specs import Plan
from salt.specs import Spec
from slurm.records import LaneRef, Sent, live, readable_chunks, with_jobs
from slurm.scheduler import ASK_S, PastTask, QueuedTask, SchedulerSilent, past, queue, stop_asking
from slurm.states import Retry

#: sacct's times are by the cluster's clock: ask from a day before the first submission.
_MARGIN_S = 86_400.0
#: For sacct where squeue was silent: it mostly is, too, and a status of many runs has other work to do.
_AFTER_SILENCE_S = 2.5
_HELD = re.compile(r"held|hold", re.IGNORECASE)
_NEVER = "DependencyNeverSatisfied"
#: Words of sacct for a job that has not ended.
_GOING_ON = ("PENDING", "RUNNING", "REQUEUED", "SUSPENDED", "COMPLETING", "RESIZING", "CONFIGURING")


class LanePhase(StrEnum):
    WAITING = "waiting"  # in the queue, not on a node
    RUNNING = "running"  # on a node, or leaving it
    ENDED = "ended"  # not in the queue, and accounting says how it ended
    GONE = "gone"  # not in the queue, and nothing more is known
    UNSENT = "unsent"  # written down, but no job is known
    UNKNOWN = "unknown"  # the queue could not be asked


class LaneState(Spec, kw_only=True):
    """The newest lane of a run. `word` is Slurm's for its state, `reason` why it waits.

    `workers` are the runs of the lane that share its devices at once; `retry` says which errors of its runs
    it lets be.
    """

    lane: LaneRef | None
    phase: LanePhase
    word: str | None = None
    reason: str | None = None
    node: str | None = None
    submission: str
    workers: int = 1
    retry: Retry = Retry()

    @property
    def live(self) -> bool:
        return self.phase in (LanePhase.WAITING, LanePhase.RUNNING)

    @property
    def over(self) -> bool:
        """Known to be neither waiting nor running."""
        return self.phase in (LanePhase.ENDED, LanePhase.GONE)

    @property
    def held(self) -> bool:
        """Waits until somebody releases it."""
        return self.phase is LanePhase.WAITING and _HELD.search(f"{self.word} {self.reason}") is not None

    @property
    def waits_for_ever(self) -> bool:
        return self.phase is LanePhase.WAITING and self.reason == _NEVER

    @property
    def again(self) -> bool:
        """Was started before and is queued again: only then does a lane wait for a time to begin."""
        return self.phase is LanePhase.WAITING and (
            self.reason == "BeginTime" or "requeue" in f"{self.word} {self.reason}".lower()
        )

    def words(self) -> str:
        """For people: where it stands, with the way out where it waits for somebody."""
        where = f" on {self.node}" if self.node else ""
        if self.phase is LanePhase.UNSENT:
            return "not submitted: its array was written down, but not sent"
        if self.phase is LanePhase.UNKNOWN:
            return f"sent as {self.lane}; the queue was not asked"
        if self.phase is LanePhase.GONE:
            return f"job {self.lane} is no longer in the queue"
        if self.phase is LanePhase.ENDED:
            return f"job {self.lane} ended ({self.word}{where})"
        if self.phase is LanePhase.RUNNING:
            return f"job {self.lane} runs{where}"
        head = f"queued again as {self.lane}" if self.again else f"queued as {self.lane}"
        why = self.reason or ("" if self.word == "PENDING" else self.word)
        return f"{head}{f' ({why})' if why else ''}{self._way_out()}"

    def _way_out(self) -> str:
        if self.held:
            who = "an administrator lets it go with" if self.reason == "JobHeldAdmin" else "let it go with"
            return f": held; {who} `scontrol release {self.lane}`"
        if self.waits_for_ever:
            return ": what it waits for will not come; `salt-sweep cancel`, then submit again"
        return ""


class QueueView(Spec, kw_only=True):
    """What the queue says. `lanes` has the runs that were sent to Slurm; `notes` say what could not be asked.

    `answered` says that squeue did.
    """

    lanes: dict[str, LaneState] = {}
    notes: tuple[str, ...] = ()
    answered: bool = False


def lane_states(store: Path, plan: Plan, *, done: Container[str] = (), ask: bool = True) -> QueueView:
    """The newest lane of every run of a plan that was sent to Slurm.

    Never raises for a scheduler that does not answer, and takes at most twice `ASK_S`. Slurm is not asked
    where the plan was never sent to it, or with `ask=False`. Of runs that are `done` accounting is not asked.
    """
    return QueueQuestion(store, plan, ask=ask).view(done)


@dataclass(frozen=True)
class _Answer:
    sent: list[Sent]
    tasks: list[QueuedTask] | None  # None: no answer
    notes: list[str]


class QueueQuestion:
    """squeue, asked in the background from the start on: files can be read meanwhile."""

    def __init__(self, store: Path, plan: Plan, *, ask: bool = True) -> None:
        self._plan = plan
        self._ask = ask
        pool = ThreadPoolExecutor(1, thread_name_prefix="squeue")
        self._answer: Future[_Answer] = pool.submit(_first, store, plan.name, ask)
        pool.shutdown(wait=False)

    def __enter__(self) -> QueueQuestion:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Whoever interrupts a status does not wait for squeue."""
        if error is not None:
            stop_asking()

    def view(self, done: Container[str] = ()) -> QueueView:
        """Wait for squeue, and ask sacct if there is something left to ask."""
        answer = self._answer.result()
        there = live(answer.tasks or ())
        lanes = _newest(answer, there)
        notes = list(answer.notes)
        ended = {
            run_id: state
            for run_id, state in lanes.items()
            if run_id not in done and state.phase in (LanePhase.GONE, LanePhase.UNKNOWN)
        }
        if ended and self._ask:
            try:
                limit_s = ASK_S if answer.tasks is not None else _AFTER_SILENCE_S
                known = _accounting(ended.values(), answer.sent, limit_s)
            except SchedulerSilent as silent:
                notes.append(f"{silent}: how jobs that left the queue ended is not known")
            else:
                lanes |= {run_id: _ended(state, known) for run_id, state in ended.items()}
        return QueueView(lanes=lanes, notes=tuple(notes), answered=answer.tasks is not None)


def _first(store: Path, plan: str, ask: bool) -> _Answer:
    sent, notes = readable_chunks(store, plan)
    if not sent or not ask:
        return _Answer(sent, None, notes)
    owners = {path.stat().st_uid for path in {each.folder for each in sent}}
    try:
        tasks = queue(users=owners)
    except SchedulerSilent as silent:
        return _Answer(sent, None, [*notes, f"{silent}: states are told from files"])
    return _Answer(with_jobs(sent, tasks), tasks, notes)


def _newest(answer: _Answer, there: Mapping[LaneRef, QueuedTask]) -> dict[str, LaneState]:
    """run_id -> its newest lane; one that is in the queue counts more than a newer one that is not."""
    found: dict[str, LaneState] = {}
    for each in answer.sent:
        for place, lane in enumerate(each.chunk.lanes):
            state = _state(each, place, there, answer.tasks is not None)
            for run_id in lane.runs:
                before = found.get(run_id)
                if before is None or state.live or not (before.live or state.phase is LanePhase.UNSENT):
                    found[run_id] = state
    return found


def _state(sent: Sent, place: int, there: Mapping[LaneRef, QueuedTask], answered: bool) -> LaneState:
    chunk = sent.chunk
    lane = None if chunk.job is None else LaneRef(job=chunk.job, task=place)
    task = None if lane is None else there.get(lane)
    if not answered:
        phase = LanePhase.UNSENT if lane is None else LanePhase.UNKNOWN
    elif lane is None:
        phase = LanePhase.UNSENT
    elif task is None:
        phase = LanePhase.GONE
    else:
        waits = task.state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT")
        phase = LanePhase.WAITING if waits else LanePhase.RUNNING
    reason = None if task is None or task.reason in ("", "None") else task.reason
    return LaneState(
        lane=lane,
        phase=phase,
        word=None if task is None else task.state,
        reason=reason,
        node=None if task is None or not task.nodes else task.nodes,
        submission=sent.record.submission,
        workers=sent.record.workers,
        retry=msgspec.structs.replace(sent.record.retry, machine=True),
    )


def _accounting(
    states: Iterable[LaneState], sent: Sequence[Sent], limit_s: float
) -> dict[tuple[str, int | None], PastTask]:
    jobs = sorted({state.lane.job for state in states if state.lane is not None}, key=int)
    first_s = min(each.record.unix_s for each in sent if each.chunk.job in jobs)
    since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(first_s - _MARGIN_S))
    return past(jobs, since, limit_s)


def _ended(state: LaneState, known: Mapping[tuple[str, int | None], PastTask]) -> LaneState:
    """The same lane with what accounting says of it."""
    lane = state.lane
    told = None if lane is None else known.get((lane.job, lane.task))
    if told is None:
        return state
    word = told.state.split()[0].rstrip("+") if told.state.split() else "UNKNOWN"
    node = told.nodes or None
    if word not in _GOING_ON:
        return msgspec.structs.replace(state, phase=LanePhase.ENDED, word=word, node=node)
    if state.phase is LanePhase.GONE:
        return state  # the queue was asked: accounting is behind
    phase = LanePhase.RUNNING if word in ("RUNNING", "COMPLETING") else LanePhase.WAITING
    return msgspec.structs.replace(state, phase=phase, word=word, node=node)
