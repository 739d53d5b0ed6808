"""Where each run of a plan stands, told from its files alone. Nothing here writes."""

from __future__ import annotations

from collections.abc import Container
from enum import StrEnum
from pathlib import Path

from salt.claim import ClaimState, read_claim
from salt.specs import Plan, PlannedRun, RunError, Spec
from salt.store import RunDir


class State(StrEnum):
    DONE = "done"
    RUNNING = "running"
    PROBING = "probing"
    LOST = "lost"
    FAILED = "failed"
    DIVERGED = "diverged"
    WAITING = "waiting"
    BLOCKED = "blocked"
    PENDING = "pending"


#: What each state means, for `--help` and the documentation.
MEANING: dict[State, str] = {
    State.DONE: "trained, and every probe written",
    State.RUNNING: "claimed by a living process, training",
    State.PROBING: "claimed by a living process, trained, being probed",
    State.LOST: "claimed by a process that died; the next worker resumes it",
    State.FAILED: "the last attempt stopped with an error; submit again retries",
    State.DIVERGED: "the loss stopped being a number; not retried unless asked",
    State.WAITING: "its teacher is not trained yet",
    State.BLOCKED: "its teacher failed",
    State.PENDING: "nothing in its way",
}

#: States that a worker can take a run from.
READY = (State.PENDING, State.LOST)
ACTIVE = (State.RUNNING, State.PROBING)
STUCK = (State.FAILED, State.DIVERGED, State.BLOCKED)


class Standing(Spec, kw_only=True):
    """One run's state with what it rests on."""

    run_id: str
    state: State
    trained: bool  # result.json is there; probes may be missing
    claim: ClaimState | None = None
    error: RunError | None = None
    blocked_by: str | None = None  # the teacher's run


def assess(
    store: Path,
    plan: Plan,
    *,
    since_ns: int = 0,
    retry_diverged: bool = False,
    known_done: Container[str] = (),
) -> dict[str, Standing]:
    """State of every run of a plan, in the plan's order (teachers come before their students).

    Args:
        since_ns: an error written before this time (file clock, nanoseconds) is to be retried, so the run
            counts as pending. retry_diverged: the same for runs that diverged, which else count as diverged
            whenever it was. known_done: runs that were seen complete already; they are not looked at again.
    """
    standings: dict[str, Standing] = {}
    for run in plan.runs:
        if run.run_id in known_done:
            standings[run.run_id] = Standing(run_id=run.run_id, state=State.DONE, trained=True)
        else:
            standings[run.run_id] = _stand(store, run, standings, since_ns, retry_diverged)
    return standings


def _stand(
    store: Path, run: PlannedRun, before: dict[str, Standing], since_ns: int, retry_diverged: bool
) -> Standing:
    folder = RunDir(store, run.run_id)
    trained = folder.result.exists()
    if folder.is_complete(run.probe_ids):
        return Standing(run_id=run.run_id, state=State.DONE, trained=True)
    claim = read_claim(folder)
    if claim is not None and not claim.stale:
        state = State.PROBING if folder.artefact.exists() else State.RUNNING
        return Standing(run_id=run.run_id, state=state, trained=trained, claim=claim)
    error = read_error_since(folder, since_ns, retry_diverged)
    if error is not None:
        state = State.DIVERGED if error.kind == "diverged" else State.FAILED
        return Standing(run_id=run.run_id, state=state, trained=trained, error=error)
    if claim is not None:
        return Standing(run_id=run.run_id, state=State.LOST, trained=trained, claim=claim)
    teacher = run.spec.teacher
    if teacher is not None and not RunDir(store, teacher.run_id).artefact.exists():
        above = before.get(teacher.run_id)
        if above is not None and above.state in STUCK:
            return Standing(
                run_id=run.run_id, state=State.BLOCKED, trained=trained, blocked_by=teacher.run_id
            )
        return Standing(run_id=run.run_id, state=State.WAITING, trained=trained)
    return Standing(run_id=run.run_id, state=State.PENDING, trained=trained)


def read_error_since(folder: RunDir, since_ns: int, retry_diverged: bool) -> RunError | None:
    """The run's error unless it is old enough to be retried."""
    try:
        written_ns = folder.error.stat().st_mtime_ns
        error = folder.read_error()
    except FileNotFoundError:
        return None  # none, or removed just now by the next attempt
    if error is None or written_ns >= since_ns:
        return error
    return error if error.kind == "diverged" and not retry_diverged else None
