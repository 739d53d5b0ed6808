"""What all cases have in common: the study, what it comes to undisturbed, and how a case reports."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from salt.claim import EMPTY_AFTER_S, read_claim
from salt.plan_specs import Plan
from salt.store import RunDir
from tests.crash.attempts import Attempt, Ended, submitter, worker
from tests.crash.checks import Facts, differences, facts_of, leftovers, lost_steps, unreadable
from tests.crash.study import CHECKPOINT_EVERY, PLAN, STREAMING_PLAN, Study, copy_store, make_study, renamed


@dataclass
class Outcome:
    """What a case found: problems in words, and figures, which add up over cases."""

    problems: list[str] = field(default_factory=list)
    figures: dict[str, int] = field(default_factory=dict)
    most_lost_steps: int = 0

    def count(self, name: str, by: int = 1) -> None:
        self.figures[name] = self.figures.get(name, 0) + by


@dataclass(frozen=True)
class Bench:
    """Stores to copy: `prepared` has clips and no runs, `finished` ended undisturbed in `pass_s` seconds."""

    study: Study
    prepared: Path
    finished: Path
    wanted: dict[str, Facts]
    pass_s: float

    @property
    def streaming(self) -> Plan:
        return renamed(self.study.plan, STREAMING_PLAN, decode_workers=1)

    def store(self, folder: Path) -> Path:
        return copy_store(self.prepared, folder / "store")

    def store_up_to(self, folder: Path, name: str) -> Path:
        """A store in which all that a run begins from is there, and the run is not."""
        store = copy_store(self.prepared, folder / "store")
        for run_id in dict.fromkeys(self.study.needs(name)):
            shutil.copytree(RunDir(self.finished, run_id).path, RunDir(store, run_id).path)
        return store


@dataclass(frozen=True, kw_only=True)
class Case:
    """A disturbance. `work(bench, folder, rng)` is a function of its seed, but for time."""

    name: str
    work: Callable[[Bench, Path, random.Random], Outcome]  # last, after what `partial` has bound


def prepare(folder: Path) -> Bench:
    """Make the study, run it undisturbed with both plans, and hold the two against each other."""
    study = make_study(folder)
    said = Attempt(submitter(study.store, PLAN, "inline")).wait()
    _require(said)
    finished = copy_store(study.store, folder / "finished")
    shutil.rmtree(study.store / "runs")
    shutil.rmtree(study.store / "cache" / "targets")
    wanted = {run.run_id: facts_of(RunDir(finished, run.run_id)) for run in study.plan.runs}
    again = copy_store(study.store, folder / "again")
    began = time.monotonic()
    _require(Attempt(worker(again, STREAMING_PLAN)).wait())
    bench = Bench(study, study.store, finished, wanted, time.monotonic() - began)
    problems = differences(again, study.plan, wanted) + leftovers(again)
    if problems:
        raise RuntimeError("two undisturbed passes differ: " + "; ".join(problems[:5]))
    shutil.rmtree(again)
    return bench


def _require(ended: Ended) -> None:
    if ended.code != 0:
        raise RuntimeError(f"the undisturbed study ended with {ended.code}:\n{ended.said[-4000:]}")


def look(store: Path, plan: Plan, outcome: Outcome, when: str) -> None:
    """Between two attempts: all that is there can be read, and no dead process is taken for a living one."""
    outcome.problems += [f"{when}: {problem}" for problem in unreadable(store, plan)]
    for planned in plan.runs:
        run = RunDir(store, planned.run_id)
        state = read_claim(run)
        if state is None or state.stale:
            continue
        if state.holder is None:  # made, and not yet written: dead after a moment, which is let pass here
            aged = time.time() - 2 * EMPTY_AFTER_S
            os.utime(run.claim, (aged, aged))
            state = read_claim(run)
        if state is not None and not state.stale:
            outcome.problems.append(f"{when}: {run.claim} counts as held by {state.holder}, which is dead")


def finish(bench: Bench, store: Path, plan: Plan, outcome: Outcome) -> None:
    """The last attempt, left alone; afterwards nothing may tell that there were others."""
    ended = Attempt(worker(store, plan.name)).wait()
    if ended.code != 0:
        outcome.problems.append(f"the last attempt ended with {ended.code}: {ended.said[-1500:]}")
    judge(bench, store, plan, outcome)


def judge(bench: Bench, store: Path, plan: Plan, outcome: Outcome) -> None:
    """Compare with the undisturbed study, and see what kills cost."""
    outcome.problems += differences(store, plan, bench.wanted)
    outcome.problems += leftovers(store)
    for planned in plan.runs:
        lost = lost_steps(RunDir(store, planned.run_id))
        outcome.most_lost_steps = max([outcome.most_lost_steps, *lost])
        if any(steps > CHECKPOINT_EVERY for steps in lost):
            outcome.problems.append(f"run {planned.run_id}: attempts lost {lost} steps")
