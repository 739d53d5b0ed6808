"""A kill at every write in turn, before it and in the middle of it; of runs and of decoding."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from salt.clips import open_clips
from salt.plan_specs import Plan
from salt.store import RunDir
from tests.crash.attempts import Attempt, Ended, worker
from tests.crash.bench import Bench, Case, Outcome, finish, look
from tests.crash.hooks import Moments
from tests.crash.study import only, write_plan

#: Runs of one kind each, and whether an attempt before has failed on a full disk.
SWEPT = {
    "trunk": False,
    "cooldown": False,
    "cached": False,
    "moving": False,
    "cooldown, after a failure": True,
}
#: Moments of one case, so that cases are of a like length.
PIECE = 25
#: Room for the first files of a run, and not for a checkpoint.
FAILING_BYTES = 40_000


def write_cases(bench: Bench, folder: Path, every: int) -> Iterator[Case]:
    """Every `every`-th moment of each run, and of decoding a list. Counts the moments first."""
    for name in SWEPT:
        moments = _moments_of_run(bench, folder / "moments", name)
        for piece in _pieces(_swept(name, moments)[::every]):
            label = f"writes of {name}, {piece[0]} to {piece[-1]} of {len(moments)}"
            yield Case(name=label, work=partial(_swept_run, name, piece, moments))
    moments = _moments_of_decoding(bench, folder / "moments")
    for piece in _pieces(list(range(len(moments)))[::every]):
        label = f"writes of decoding, {piece[0]} to {piece[-1]} of {len(moments)}"
        yield Case(name=label, work=partial(_swept_decoding, piece, moments))


def _swept(name: str, moments: list[str]) -> list[int]:
    """Numbers of the moments to be tried: all, or, of a run that is swept a second time, not each step's."""
    each_step = ("metrics.jsonl", "reached.json") if SWEPT[name] else ()
    return [number for number, moment in enumerate(moments) if not moment.endswith(each_step)]


def _pieces(numbers: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(numbers), PIECE):
        yield numbers[start : start + PIECE]


def _moments_of_run(bench: Bench, folder: Path, name: str) -> list[str]:
    store, plan = _ready(bench, folder, name)
    _begin(store, plan, name)
    return _recorded(folder, store, worker(store, plan.name))


def _recorded(folder: Path, store: Path, work: Callable[[], int]) -> list[str]:
    record = folder / "moments.txt"
    ended = Attempt(work, hook=lambda: Moments(store, record=record).install()).wait()
    if ended.code != 0:
        raise RuntimeError(f"counting writes ended with {ended.code}: {ended.said[-1500:]}")
    moments = [line.replace(f"{store}/", "") for line in record.read_text().splitlines()]
    shutil.rmtree(folder)
    return moments


def _ready(bench: Bench, folder: Path, name: str) -> tuple[Path, Plan]:
    run = name.partition(",")[0]
    store, plan = bench.store_up_to(folder, run), only(bench.study.plan, bench.study.names[run])
    write_plan(store, plan)
    (store / "runs").mkdir(exist_ok=True)
    return store, plan


def _begin(store: Path, plan: Plan, name: str) -> None:
    """Take the run and its latents away, and fail it once if it is to have failed before."""
    run = RunDir(store, plan.runs[0].run_id)
    shutil.rmtree(run.path, ignore_errors=True)
    if run.path.parent.exists() and not any(run.path.parent.iterdir()):
        run.path.parent.rmdir()  # so that each attempt makes it, and has the same moments
    shutil.rmtree(store / "cache" / "targets", ignore_errors=True)
    if SWEPT[name]:
        _attempt(store, plan, room_bytes=FAILING_BYTES)


def _attempt(store: Path, plan: Plan, **how: int) -> Ended:
    return Attempt(worker(store, plan.name), hook=lambda: Moments(store, **how).install()).wait()


def _swept_run(
    name: str, piece: list[int], moments: list[str], bench: Bench, folder: Path, rng: random.Random
) -> Outcome:
    """Killed at each moment of `piece`, then, going on, at one drawn at random, then left alone."""
    outcome = Outcome()
    store, plan = _ready(bench, folder, name)
    for number in piece:
        _begin(store, plan, name)
        found = Outcome()
        first = _attempt(store, plan, kill_at=number)
        if not first.killed:
            found.problems.append(f"it was not killed, but ended with {first.code}: {first.said[-1500:]}")
        look(store, plan, found, "then")
        again = rng.randrange(len(moments))
        second = _attempt(store, plan, kill_at=again)
        if not second.killed and second.code != 0:
            found.problems.append(f"going on, it ended with {second.code}: {second.said[-1500:]}")
        look(store, plan, found, f"again at write {again}")
        finish(bench, store, plan, found)
        outcome.count("writes")
        outcome.count("kills", first.killed + second.killed)
        outcome.most_lost_steps = max(outcome.most_lost_steps, found.most_lost_steps)
        when = f"killed at write {number} ({moments[number]}), then at {again}"
        outcome.problems += [f"{when}: {problem}" for problem in found.problems]
    return outcome


# --- decoding -------------------------------------------------------------------------------------


def _decoder(bench: Bench, store: Path) -> Callable[[], int]:
    plan = bench.study.plan
    probe = next(iter(plan.probes.values()))
    path = Path(plan.execution.lists[probe.selection.fingerprint])
    clip = bench.study.planned("teacher").spec.clip

    def work() -> int:
        open_clips(path, clip, store / "cache", progress=False)
        return 0

    return work


def _bare(bench: Bench, folder: Path) -> Path:
    store = bench.store(folder)
    os.unlink(store / "cache" / "clips")
    return store


def _moments_of_decoding(bench: Bench, folder: Path) -> list[str]:
    store = _bare(bench, folder)
    return _recorded(folder, store, _decoder(bench, store))


def _clips_of(store: Path) -> dict[str, bytes]:
    folder = store / "cache" / "clips"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _swept_decoding(
    piece: list[int], moments: list[str], bench: Bench, folder: Path, rng: random.Random
) -> Outcome:
    outcome, store = Outcome(), _bare(bench, folder)
    wanted = _clips_of(bench.prepared)
    for number in piece:
        shutil.rmtree(store / "cache")
        hook = partial(_kill_at, store, number)
        killed = Attempt(_decoder(bench, store), hook=hook).wait()
        ended = Attempt(_decoder(bench, store)).wait()
        when = f"killed at write {number} ({moments[number]})"
        if not killed.killed or ended.code != 0:
            outcome.problems.append(f"{when}: ended with {killed.code}, then {ended.code}: {ended.said}")
        found = _clips_of(store)
        outcome.problems += [f"{when}: left over: {name}" for name in found if name not in wanted]
        outcome.problems += [
            f"{when}: {name} has other contents"
            for name, data in found.items()
            if wanted.get(name, data) != data
        ]
        if not any(name.endswith("clips.npy") for name in found):
            outcome.problems.append(f"{when}: no clips")
        outcome.count("writes")
        outcome.count("kills", int(killed.killed))
    return outcome


def _kill_at(store: Path, number: int) -> None:
    Moments(store, kill_at=number).install()
