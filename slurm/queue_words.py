"""A run's state when what its files say and what the queue says are put together, and why in words."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from salt.claim import HEARTBEAT_S
from salt.processes import machine
from salt.store import DamagedFile, RunDir
from slurm.queue_state import LanePhase, LaneState, QueueView
from slurm.states import ACTIVE, READY, Standing, State

#: States of runs whose last attempt left an error.
_ERRED = (State.FAILED, State.DIVERGED, State.GIVEN_UP)
_TO_COME = (State.PENDING, State.WAITING)

#: A living process on another machine has not been silent for longer; a dead one counts as alive by its
#: claim alone for much longer than this.
MISSED_BEAT_S = 1.5 * HEARTBEAT_S


def tried_again(store: Path, standings: Mapping[str, Standing], queue: QueueView) -> dict[str, Standing]:
    """The same, but runs that failed and that a lane in the queue tries once more are pending.

    They keep their error. What they blocked waits for them. `standings` are in the plan's order.
    """
    found: dict[str, Standing] = {}
    for run_id, standing in standings.items():
        lane = queue.lanes.get(run_id)
        if standing.state in _ERRED and lane is not None and lane.live and _lets_be(store, run_id, lane):
            standing = msgspec.structs.replace(standing, state=State.PENDING, fruitless=None)
        elif standing.blocked_by is not None and found[standing.blocked_by].state in _TO_COME:
            standing = msgspec.structs.replace(standing, state=State.WAITING, blocked_by=None)
        found[run_id] = standing
    return found


def _lets_be(store: Path, run_id: str, lane: LaneState) -> bool:
    try:
        return lane.retry.held_against(RunDir(store, run_id)) is None
    except DamagedFile:
        return False  # it stops there


class Verdict(NamedTuple):
    state: State
    reason: str | None


def judge(
    standing: Standing,
    lane: LaneState | None,
    queue: QueueView,
    step: int | None,
    said: str | None,
    never_sent: bool,
) -> Verdict:
    """The state to show and the reason for it.

    Args:
        lane: the run's newest, None if it was never sent to Slurm. step: the last one logged. said: the
            reason that files give. never_sent: nothing of the plan was ever submitted, in no way.
    """
    state = standing.state
    if state in ACTIVE:
        return _active(standing, lane, queue, step)
    if state in (State.LOST, State.STOPPED):
        return _interrupted(state, lane, step)
    if state is State.BLOCKED and lane is not None and lane.live:
        way_out = "its job can be cancelled: `salt-sweep cancel`; submit again when it is mended"
        return Verdict(state, f"{said}; {lane.words()}; {way_out}" if lane.waits_for_ever else said)
    if state in (*READY, State.WAITING):
        words = _waiting(lane, queue, never_sent)
        if standing.error is not None:
            words = f"{words}; its last attempt failed: {said}"
        return Verdict(state, words)
    return Verdict(state, said)


def _active(standing: Standing, lane: LaneState | None, queue: QueueView, step: int | None) -> Verdict:
    """A claim that counts as alive, unless the queue knows better."""
    claim = standing.claim
    elsewhere = claim is not None and claim.holder is not None and claim.holder.machine != machine()
    silent = claim is not None and claim.age_s > MISSED_BEAT_S
    if lane is None or not queue.answered or not elsewhere or not silent or claim is None:
        return Verdict(standing.state, None)
    if lane.phase is LanePhase.WAITING:
        return Verdict(State.PENDING, f"{_queued(lane, begun=True)}, {_goes_on(step)}")
    if lane.over:
        beat = f"{lane.words()}; its last heartbeat was {claim.age_s:.0f} s ago"
        return Verdict(State.LOST, f"{beat}; submit again: it {_goes_on(step)}")
    return Verdict(standing.state, None)


def _interrupted(state: State, lane: LaneState | None, step: int | None) -> Verdict:
    if lane is not None and lane.phase is LanePhase.WAITING:
        return Verdict(State.PENDING, f"{_queued(lane, begun=True)}, {_goes_on(step)}")
    if lane is not None and lane.phase is LanePhase.RUNNING:
        return Verdict(State.PENDING, f"{lane.words()} and has it to do: it {_goes_on(step)}")
    what = "asked to stop" if state is State.STOPPED else "the process that held it is gone"
    ended = f" ({lane.words()})" if lane is not None and lane.over else ""
    return Verdict(state, f"{what}{ended}; submit again to {'go on' if state is State.STOPPED else 'resume'}")


def _waiting(lane: LaneState | None, queue: QueueView, never_sent: bool) -> str | None:
    if lane is None:
        # Of a plan that runs on this machine nobody knows which worker will take it.
        return "not submitted" if never_sent or queue.lanes else None
    if lane.over:
        return f"{lane.words()} before it was done: submit again"
    return lane.words()


def _queued(lane: LaneState, *, begun: bool) -> str:
    words = lane.words()
    return words.replace("queued as", "queued again as", 1) if begun else words


def _goes_on(step: int | None) -> str:
    return "begins anew" if step is None else f"goes on from step {step}"
