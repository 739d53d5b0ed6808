"""One process per run: who gets a claim, when its holder counts as dead, what one does that lost it."""

import os
import socket
import time
from pathlib import Path

import msgspec
import pytest

from salt.claim import STALE_AFTER_S, Claim, ClaimHeld, read_claim
from salt.plan_specs import Plan, PlannedRun
from salt.signals import STOP
from salt.store import RunDir, write_atomically
from slurm.worker import Drain
from tests.drain_kit import (
    Claimant,
    StandIn,
    holder,
    plan,
    race,
)

__all__ = ["plan"]  # a fixture


def test_of_several_processes_one_gets_a_free_run(tmp_path: Path) -> None:
    outcomes = race(tmp_path, 4)
    assert sorted(outcome.split()[0] for outcome in outcomes) == ["held"] * 3 + ["won"]
    held = next(outcome for outcome in outcomes if outcome.startswith("held"))
    assert "run ab is held by process" in held
    assert socket.gethostname() in held
    assert read_claim(RunDir(tmp_path, "ab")) is None  # given back


def test_a_killed_holders_claim_is_broken_by_exactly_one(tmp_path: Path) -> None:
    victim = Claimant(tmp_path)
    victim.tell()
    assert victim.outcome() == "won"
    run = RunDir(tmp_path, "ab")
    state = read_claim(run)
    assert state is not None
    assert not state.stale
    with pytest.raises(ClaimHeld, match=f"process {victim.process.pid} on"):
        Claim.acquire(run)
    victim.kill()
    state = read_claim(run)
    assert state is not None
    assert state.stale
    outcomes = race(tmp_path, 4)
    assert sorted(outcome.split()[0] for outcome in outcomes) == ["held"] * 3 + ["won"]
    assert not list(run.path.glob(".claim*"))


@pytest.mark.parametrize(
    ("changes", "age_s", "stale"),
    [
        ({}, 10 * STALE_AFTER_S, False),  # alive here, however long it does not beat
        ({"started": "1"}, 0, True),  # another process has got the number since
        ({"machine": "elsewhere"}, STALE_AFTER_S - 20, False),
        ({"machine": "elsewhere"}, STALE_AFTER_S + 20, True),
    ],
)
def test_who_counts_as_dead(changes: dict[str, object], age_s: float, stale: bool, tmp_path: Path) -> None:
    run = RunDir(tmp_path, "ab")
    write_atomically(run.claim, msgspec.json.encode(holder(**changes)))
    then = time.time() - age_s
    os.utime(run.claim, (then, then))
    state = read_claim(run)
    assert state is not None
    assert state.stale == stale
    if stale:
        with Claim.acquire(run) as claim:
            assert read_claim(run) is not None
            assert not claim.lost.is_set()
        assert not run.claim.exists()
    else:
        with pytest.raises(ClaimHeld):
            Claim.acquire(run)


def test_a_claim_that_was_left_empty_is_broken_after_a_moment(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "ab")
    run.path.mkdir(parents=True)
    run.claim.touch()
    with pytest.raises(ClaimHeld, match="not yet written its name"):
        Claim.acquire(run)
    os.utime(run.claim, (1, 1))
    Claim.acquire(run).release()
    assert not run.claim.exists()


def test_heartbeats_move_and_a_stolen_claim_is_noticed(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "ab")
    claim = Claim.acquire(run, heartbeat_s=0.01)
    os.utime(run.claim, (1, 1))
    deadline = time.monotonic() + 20
    while run.claim.stat().st_mtime == 1:
        assert time.monotonic() < deadline, "no heartbeat"
    write_atomically(run.claim, msgspec.json.encode(holder()))
    assert claim.lost.wait(20)
    claim.release()
    assert run.claim.exists()  # it is the other's


def test_heartbeats_of_the_future_count_from_when_they_are_met(tmp_path: Path) -> None:
    """The clock was set back: a dead holder elsewhere stays alive for `STALE_AFTER_S`, not for an hour."""
    run = RunDir(tmp_path, "ab")
    write_atomically(run.claim, msgspec.json.encode(holder(machine="elsewhere")))
    ahead = time.time() + 3600
    os.utime(run.claim, (ahead, ahead))
    with pytest.raises(ClaimHeld):
        Claim.acquire(run)
    assert run.claim.stat().st_mtime < time.time() + 1
    state = read_claim(run, time.time() + STALE_AFTER_S + 2)
    assert state is not None
    assert state.stale


def test_a_run_that_another_process_took_over_is_left_to_it(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are the other's: no checkpoint, no error, no end of an attempt; the worker goes on."""
    first = plan.runs[0].run_id
    run, reported = RunDir(tmp_path, first), []

    def stand_still(store: Path, planned: PlannedRun, *rest: object) -> None:
        if planned.run_id == first and not reported[1:]:
            write_atomically(run.claim, msgspec.json.encode(holder()))
            deadline = time.monotonic() + 20
            while not STOP.requested:
                assert time.monotonic() < deadline, "the loss was not noticed"
            files = sorted(run.path.iterdir())
            try:
                STOP.check()
            finally:
                assert sorted(run.path.iterdir()) == files
        StandIn()(store, planned, *rest)

    def heed(text: str) -> None:
        reported.append(text)
        if "taken the run over" in text:
            run.claim.unlink()  # the other one is done with it

    monkeypatch.setattr(Claim.acquire.__func__, "__defaults__", (0.01,))  # a faster heart
    done = Drain(tmp_path, plan, execute=stand_still, poll_s=0.01, report=heed).run()
    assert "taken the run over" in reported[1]
    assert not STOP.requested
    assert sorted(done.finished) == sorted(planned.run_id for planned in plan.runs)
    assert not run.error.exists()
