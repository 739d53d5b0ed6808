"""SIGKILL at random moments, to a worker, to one of two, to a submitter; and two submitters at once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from salt.attempts import ATTEMPTS_VARIABLE, DEFAULT_ATTEMPTS
from salt.claim import read_claim
from salt.store import RunDir
from slurm.states import State, assess
from tests.crash.attempts import Attempt, left_of, submitter, worker, workers_of
from tests.crash.bench import Bench, Case, Outcome, finish, judge, look
from tests.crash.hooks import Moments
from tests.crash.study import PLAN, only, write_plan

#: Kills of one store before it is let come to its end.
KILLS_A_CASE = 12
STREAMING = "a worker with decoders"


def kill_cases(kills: int) -> Iterator[Case]:
    """Cases that kill that many times altogether, if every attempt lives until it is to be killed."""
    kinds = ("one worker", "two workers", STREAMING)
    for number in range(-(-kills // KILLS_A_CASE)):
        kind = kinds[number % 3]
        yield Case(name=f"kill {number} ({kind})", work=partial(_killed, kind))


def _killed(kind: str, bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    """Killed again and again until the study is done, and in another store, until there were enough kills."""
    outcome = Outcome()
    for number in range(KILLS_A_CASE):
        store = bench.store(folder / str(number))
        left = KILLS_A_CASE - outcome.figures.get("kills", 0)
        outcome.count("kills", _kill_until_done(kind, left, bench, store, rng, outcome))
        finish(bench, store, bench.streaming if kind == STREAMING else bench.study.plan, outcome)
        if outcome.figures["kills"] >= KILLS_A_CASE:
            break
    return outcome


def _kill_until_done(
    kind: str, most: int, bench: Bench, store: Path, rng: random.Random, outcome: Outcome
) -> int:
    """The number of kills of one study, at most `most` (with two workers one more)."""
    plan = bench.streaming if kind == STREAMING else bench.study.plan
    # So that the kills of a case spread over the whole study, which goes on from one to the next.
    mean_s = bench.pass_s * 1.5 / KILLS_A_CASE
    kills = 0
    while kills < most and not _all_done(store, bench):
        attempts = [
            Attempt(worker(store, plan.name), kill_after_s=rng.expovariate(1 / mean_s))
            for _ in range(2 if kind == "two workers" else 1)
        ]
        for attempt in attempts:
            ended = attempt.wait()
            if not ended.killed and ended.code != 0:
                outcome.problems.append(f"an attempt ended with {ended.code}: {ended.said[-1500:]}")
            kills += ended.killed
            orphans = left_of(ended.pid) if kind == STREAMING else []
            if orphans:
                outcome.problems.append(f"decoders {orphans} outlive their worker")
        look(store, plan, outcome, f"after {kills} kills")
    return kills


def _all_done(store: Path, bench: Bench) -> bool:
    return all(RunDir(store, run.run_id).is_complete(run.probe_ids) for run in bench.study.plan.runs)


def submitter_cases(count: int) -> Iterator[Case]:
    """Pairs of submitters, and submitters that are killed with or without their workers."""
    for number in range(count):
        # Every second pair begins with nothing decoded: both want to build the same clips.
        bare = bool(number % 2)
        name = f"submitters {number}: two at once{', nothing decoded' if bare else ''}"
        yield Case(name=name, work=partial(_two_submit, bare))
    yield Case(name="submitters: a run is given up, and taken up when asked", work=_given_up)
    for number in range(-(-count // 4)):
        yield Case(name=f"submitters {number}: two at once, two workers each", work=_two_fleets)
        yield Case(name=f"submitters {number}: killed, its workers left", work=_killed_submitter)
        yield Case(name=f"submitters {number}: its workers killed", work=_killed_workers)


def _two_submit(bare: bool, bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    outcome, store = Outcome(), bench.store(folder)
    if bare:
        os.unlink(store / "cache" / "clips")
        (store / "plans" / PLAN / "audit.json").unlink()
    return _both(bench, store, [Attempt(submitter(store, PLAN, "inline")) for _ in range(2)], outcome)


def _two_fleets(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    store = bench.store(folder)
    attempts = [Attempt(submitter(store, PLAN, "local", "--workers", "2")) for _ in range(2)]
    return _both(bench, store, attempts, Outcome())


def _both(bench: Bench, store: Path, attempts: list[Attempt], outcome: Outcome) -> Outcome:
    for attempt in attempts:
        ended = attempt.wait()
        if ended.code != 0:
            outcome.problems.append(f"a submitter ended with {ended.code}: {ended.said[-1500:]}")
    judge(bench, store, bench.study.plan, outcome)
    outcome.problems += begun_again(bench, store)
    outcome.count("pairs_of_submitters")
    return outcome


def begun_again(bench: Bench, store: Path) -> list[str]:
    """Runs that two workers began, though none was disturbed."""
    results = [RunDir(store, run.run_id).read_result() for run in bench.study.plan.runs]
    return [
        f"run {each.run_id} was begun {each.attempts} times" for each in results if each and each.attempts > 1
    ]


def _given_up(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    """Killed as often as is allowed before its first checkpoint, a run is left alone until asked for."""
    outcome, store = Outcome(), bench.store(folder)
    os.environ[ATTEMPTS_VARIABLE] = str(DEFAULT_ATTEMPTS)
    run = bench.study.run("teacher", store)
    plan = only(bench.study.plan, run.run_id)
    write_plan(store, plan)
    for _ in range(DEFAULT_ATTEMPTS):
        killed = Attempt(worker(store, plan.name), hook=partial(_kill_at_first_checkpoint, store, run)).wait()
        outcome.count("kills", int(killed.killed))
    for options, state in ((), State.GIVEN_UP), (("--retry-given-up",), State.DONE):
        ended = Attempt(submitter(store, plan.name, "inline", *options)).wait()
        found = assess(store, plan)[run.run_id].state
        if found is not state or ended.code != (state is not State.DONE):
            outcome.problems.append(f"submitted {options}, it is {found} and ended with {ended.code}")
    judge(bench, store, plan, outcome)
    return outcome


def _kill_at_first_checkpoint(store: Path, run: RunDir) -> None:
    class AtFirst(Moments):
        def pass_by(self, what: str, path: object) -> None:
            if what == "replace" and str(path).startswith(f"{run.checkpoints}/.step-"):
                self.kill_at = self.count
            super().pass_by(what, path)

    AtFirst(store).install()


def _killed_submitter(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    """Its workers notice and stop; submitted again at once, what they still hold is waited for."""
    outcome, store = Outcome(), bench.store(folder)
    attempt = Attempt(submitter(store, PLAN, "local", "--workers", "2"))
    if _holders(bench, store):
        attempt.kill_after(rng.uniform(0.0, 0.5))
    outcome.count("submitters_killed", int(attempt.wait().killed))
    again = Attempt(submitter(store, PLAN, "local", "--workers", "2")).wait()
    if again.code != 0:
        outcome.problems.append(f"submitted again, it ended with {again.code}: {again.said[-1500:]}")
    left = workers_of(store, within_s=20.0)
    if left:
        outcome.problems.append(f"workers {left} outlive their submitter")
    judge(bench, store, bench.study.plan, outcome)
    return outcome


def _killed_workers(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    """A submitter replaces workers that are killed, and ends well."""
    outcome, store = Outcome(), bench.store(folder)
    attempt = Attempt(submitter(store, PLAN, "local", "--workers", "2"))
    for _ in range(3):
        holders = _holders(bench, store)
        time.sleep(rng.uniform(0.0, 0.2))
        if holders:
            with contextlib.suppress(ProcessLookupError):
                os.kill(holders[0], signal.SIGKILL)
                outcome.count("workers_killed")
    ended = attempt.wait()
    if ended.code != 0:
        outcome.problems.append(f"the submitter ended with {ended.code}: {ended.said[-1500:]}")
    judge(bench, store, bench.study.plan, outcome)
    return outcome


def _holders(bench: Bench, store: Path, within_s: float = 30.0) -> list[int]:
    """Processes that hold runs, once there is one; none if all runs are done before."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and not _all_done(store, bench):
        states = [read_claim(RunDir(store, run.run_id)) for run in bench.study.plan.runs]
        found = [state.holder.pid for state in states if state and state.holder and not state.stale]
        if found:
            return found
        time.sleep(0.01)
    return []
