"""Where each run of a plan stands, told from its files alone. Nothing here writes."""

from __future__ import annotations

import time
from collections.abc import Container, Mapping
from enum import StrEnum
from pathlib import Path

from salt.attempts import Fruitless, attempts_allowed, fruitless, read_attempts, was_stopped
from salt.claim import ClaimState, read_claim
from salt.plan_specs import Plan, PlannedRun
from salt.result_specs import RunError
from salt.specs import RunSpec, Spec
from salt.store import DamagedFile, RunDir
from slurm.causes import Again, again, class_of


class State(StrEnum):
    DONE = "done"
    RUNNING = "running"
    PROBING = "probing"
    LOST = "lost"
    STOPPED = "stopped"
    FAILED = "failed"
    DIVERGED = "diverged"
    GIVEN_UP = "given-up"
    WAITING = "waiting"
    DAMAGED = "damaged"
    BLOCKED = "blocked"
    PENDING = "pending"


#: What each state means, for `--help` and the documentation.
MEANING: dict[State, str] = {
    State.DONE: "trained, and every probe written",
    State.RUNNING: "claimed by a living process, training",
    State.PROBING: "claimed by a living process, trained, being probed",
    State.LOST: "claimed by a process that died; the next worker resumes it",
    State.STOPPED: "asked to stop, and did; the next worker goes on from its newest checkpoint",
    State.FAILED: "the last attempt stopped with an error; submit again retries",
    State.DIVERGED: "the loss stopped being a number; not retried unless asked",
    State.GIVEN_UP: "several attempts in a row ended without a new step; not retried unless asked",
    State.WAITING: "the state that it begins from, its teacher's or its trunk's, is not there yet",
    State.DAMAGED: "a file of its folder cannot be read; not sent until it is mended or moved away",
    State.BLOCKED: "the run that makes that state failed",
    State.PENDING: "nothing in its way",
}

#: States that a worker can take a run from.
READY = (State.PENDING, State.LOST, State.STOPPED)
ACTIVE = (State.RUNNING, State.PROBING)
STUCK = (State.FAILED, State.DIVERGED, State.GIVEN_UP, State.DAMAGED, State.BLOCKED)


class Standing(Spec, kw_only=True):
    """One run's state with what it rests on."""

    run_id: str
    state: State
    trained: bool  # result.json is there; probes may be missing
    claim: ClaimState | None = None
    error: RunError | None = None
    blocked_by: str | None = None  # the run that makes what it begins from
    fruitless: Fruitless | None = None  # of a run that is given up
    damage: str | None = None  # which file cannot be read, why, and the way out


#: How far the clock of the store's file system may be ahead of this machine's.
CLOCK_SLACK_NS = 120 * 10**9


class Retry(Spec, kw_only=True):
    """Which errors a submission lets be: those before `since_ns` (file clock, nanoseconds), with exceptions.

    Runs that diverged, or were given up after several attempts without a new step, are retried only if that
    was asked for. With `kinds` only errors of these classes (`slurm.causes`) are retried, then also of runs
    that were given up. With `machine` an error about the machine is let be within the attempts allowed: a
    lane that is queued again may get another one.
    """

    since_ns: int = 0
    diverged: bool = False
    given_up: bool = False
    kinds: tuple[str, ...] = ()
    machine: bool = False

    def held_against(self, folder: RunDir) -> RunError | None:
        """The error of a run, unless it is to be retried."""
        try:
            written_ns = folder.error.stat().st_mtime_ns
            error = folder.read_error()
        except FileNotFoundError:
            return None  # none, or removed just now by the next attempt
        # One of the future was written before the clock was set back: no attempt of this submission is it.
        ahead = written_ns > time.time_ns() + CLOCK_SLACK_NS
        if error is not None and self.machine:
            cause = class_of(error, read_attempts(folder))
            if again(cause) is Again.COUNTED:
                return None if self.given_up_after(folder) is None else error
        if error is None or (written_ns >= self.since_ns and not ahead):
            return error
        if self.kinds and class_of(error, read_attempts(folder)) not in self.kinds:
            return error
        if error.kind == "diverged":
            return None if self.diverged or self.kinds else error
        return None if self.given_up_after(folder) is None else error

    def given_up_after(self, folder: RunDir) -> Fruitless | None:
        """The attempts after which a run is given up; None if it may have another."""
        vain = fruitless(folder, self.since_ns if self.given_up or self.kinds else 0)
        return vain if vain.count >= attempts_allowed() else None


def assess(
    store: Path, plan: Plan, retry: Retry | None = None, *, known_done: Container[str] = ()
) -> dict[str, Standing]:
    """State of every run of a plan, in the plan's order (what a run begins from comes before it).

    Args:
        retry: which errors are to be retried, so that their runs count as pending; by default none.
        known_done: runs that were seen complete already; they are not looked at again.
    """
    standings: dict[str, Standing] = {}
    retry = retry or Retry()
    specs = {run.run_id: run.spec for run in plan.runs}
    for run in plan.runs:
        if run.run_id in known_done:
            standings[run.run_id] = Standing(run_id=run.run_id, state=State.DONE, trained=True)
        else:
            try:
                standings[run.run_id] = _stand(store, run, specs, standings, retry)
            except DamagedFile as damage:  # costs this run alone: the others are told of and sent
                standings[run.run_id] = Standing(
                    run_id=run.run_id,
                    state=State.DAMAGED,
                    trained=RunDir(store, run.run_id).result.exists(),
                    damage=str(damage),
                )
    return standings


def _stand(
    store: Path,
    run: PlannedRun,
    specs: Mapping[str, RunSpec],
    before: dict[str, Standing],
    retry: Retry,
) -> Standing:
    folder = RunDir(store, run.run_id)
    trained = folder.result.exists()
    if folder.is_complete(run.probe_ids):
        return Standing(run_id=run.run_id, state=State.DONE, trained=True)
    claim = read_claim(folder)
    if claim is not None and not claim.stale:
        state = State.PROBING if folder.artefact.exists() else State.RUNNING
        return Standing(run_id=run.run_id, state=state, trained=trained, claim=claim)
    read_attempts(folder)  # what the next attempt reads first; one whose process lives has read it
    error = retry.held_against(folder)
    if error is not None:
        state = State.DIVERGED if error.kind == "diverged" else State.FAILED
        vain = None if state is State.DIVERGED else retry.given_up_after(folder)
        state = state if vain is None else State.GIVEN_UP
        return Standing(run_id=run.run_id, state=state, trained=trained, error=error, fruitless=vain)
    folder.require_whole()
    if claim is not None:
        return Standing(run_id=run.run_id, state=State.LOST, trained=trained, claim=claim)
    wanted = absent_states(store, run.spec, specs)
    for run_id in wanted:
        above = before.get(run_id)
        if above is not None and above.state in STUCK:
            return Standing(run_id=run.run_id, state=State.BLOCKED, trained=trained, blocked_by=run_id)
    ready = State.STOPPED if was_stopped(folder) else State.PENDING
    state = State.WAITING if wanted else ready
    return Standing(run_id=run.run_id, state=state, trained=trained)


def absent_states(store: Path, spec: RunSpec, specs: Mapping[str, RunSpec]) -> list[str]:
    """Runs that have not yet made what this one begins from: its teacher's weights, its trunk's state.

    A teacher's weights are its artefact if the student takes them at the teacher's last step, else the state
    that it keeps at that step; then it need not be trained to its end. `specs` are those of the plan; a run
    of another plan is known by its folder.
    """
    absent = []
    if spec.teacher is not None:
        folder = RunDir(store, spec.teacher.run_id)
        teacher = specs.get(folder.run_id)
        if teacher is None and folder.spec.exists():
            teacher = folder.read_spec()
        finished = teacher is None or spec.teacher.step == teacher.steps
        if not (folder.artefact.exists() if finished else folder.has_kept(spec.teacher.step)):
            absent.append(folder.run_id)
    if spec.trunk is not None and not RunDir(store, spec.trunk.run_id).has_kept(spec.trunk.step):
        absent.append(spec.trunk.run_id)
    return absent
