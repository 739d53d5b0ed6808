"""Clocks that are set back or wrong: of a worker, of the machine between attempts, of another machine."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import msgspec

from salt.claim import Claim, read_claim
from salt.store import RunDir
from slurm.worker import RUNS_FAILED
from tests.crash.attempts import Attempt, worker
from tests.crash.bench import Bench, Case, Outcome, finish, look
from tests.crash.hooks import limit_files, shift_clock
from tests.crash.kills import begun_again

HOUR_S = 3600.0


def clock_cases() -> Iterator[Case]:
    yield Case(name="clocks: of a worker, an hour back", work=_worker_back)
    yield Case(name="clocks: of the machine, an hour back after a kill", work=_machine_back)
    yield Case(name="clocks: of the machine, an hour back after a failure", work=_machine_back_after_failure)
    yield Case(name="clocks: of one of two workers, an hour ahead", work=_two_clocks)
    yield Case(name="clocks: of a holder elsewhere, an hour back", work=_holder_back)


def _worker_back(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    """Killed, gone on with by a worker whose clock is an hour behind, killed, and gone on with again."""
    outcome, store = Outcome(), bench.store(folder)
    for hook in (None, lambda: shift_clock(-HOUR_S)):
        Attempt(worker(store, bench.study.plan.name), hook=hook, kill_after_s=bench.pass_s / 3).wait()
        look(store, bench.study.plan, outcome, "after a kill")
        outcome.count("clocks")
    finish(bench, store, bench.study.plan, outcome)
    return outcome


def _machine_back(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    outcome, store = Outcome(), bench.store(folder)
    Attempt(worker(store, bench.study.plan.name), kill_after_s=bench.pass_s / 2).wait()
    _age_files(store, HOUR_S)
    look(store, bench.study.plan, outcome, "after a kill, files from the future")
    outcome.count("clocks")
    finish(bench, store, bench.study.plan, outcome)
    return outcome


def _machine_back_after_failure(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    """A full disk, then the clock is set back: the failure is of the future, and is tried again."""
    outcome, store = Outcome(), bench.store(folder)
    ended = Attempt(worker(store, bench.study.plan.name), hook=partial(limit_files, 100_000)).wait()
    if ended.code != RUNS_FAILED:
        outcome.problems.append(f"with a full disk it ended with {ended.code}: {ended.said[-1500:]}")
    _age_files(store, HOUR_S)
    outcome.count("clocks")
    finish(bench, store, bench.study.plan, outcome)
    return outcome


def _age_files(store: Path, seconds: float) -> None:
    """Move the times of all files: what they show once the clock has been set back by so much."""
    for path in [*(store / "runs").rglob("*"), *(store / "jobs").rglob("*")]:
        moved = path.stat().st_mtime + seconds
        os.utime(path, (moved, moved))


def _two_clocks(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    """Two workers whose clocks differ by an hour: neither takes what the other has."""
    outcome, store = Outcome(), bench.store(folder)
    attempts = [
        Attempt(worker(store, bench.study.plan.name), hook=hook)
        for hook in (None, lambda: shift_clock(HOUR_S))
    ]
    for attempt in attempts:
        ended = attempt.wait()
        if ended.code != 0:
            outcome.problems.append(f"a worker ended with {ended.code}: {ended.said[-1500:]}")
    outcome.problems += begun_again(bench, store)
    outcome.count("clocks")
    finish(bench, store, bench.study.plan, outcome)
    return outcome


def _holder_back(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    """A living holder on another machine, whose clock is an hour behind, keeps its claim while it beats."""
    outcome = Outcome()
    run = RunDir(folder / "store", "ab")

    def hold() -> int:
        shift_clock(-HOUR_S)
        claim = Claim.acquire(run, heartbeat_s=0.05)
        deadline = time.monotonic() + 60
        while not claim.lost.is_set() and not (folder / "enough").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        kept = not claim.lost.is_set()
        claim.release()
        return 0 if kept else 1

    attempt = Attempt(hold)
    state = None
    while state is None or state.holder is None:
        state = read_claim(run)
    # As if it were elsewhere: only its heartbeat tells that it lives.
    elsewhere = msgspec.structs.replace(state.holder, machine="elsewhere")
    beside = run.path / "beside"
    beside.write_bytes(msgspec.json.encode(elsewhere))
    os.replace(beside, run.claim)
    os.utime(run.claim, (1, 1))
    deadline = time.monotonic() + 20
    while (state := read_claim(run)) is not None and state.stale:
        if time.monotonic() > deadline:
            outcome.problems.append("no heartbeat of a holder whose clock is behind")
            break
    (folder / "enough").touch()
    if attempt.wait().code != 0 or run.claim.exists():
        outcome.problems.append("a holder whose clock is behind lost its claim, or did not give it back")
    outcome.count("clocks")
    return outcome
