"""What a crash of the machine may leave, and a kill does not: torn, empty, half-written files."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from salt.store import RunDir
from tests.crash.attempts import Attempt, worker
from tests.crash.bench import Bench, Case, Outcome, finish, look
from tests.crash.hooks import Moments
from tests.crash.study import only, write_plan

Damage = Callable[[RunDir], None]


def damage_cases() -> Iterator[Case]:
    for name, damage in DAMAGES.items():
        yield Case(name=f"damage: {name}", work=partial(_damaged, damage))


def _damaged(damage: Damage, bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    """Killed past its third checkpoint, damaged, and gone on with."""
    outcome = Outcome()
    for name in ("trunk", "cached", "moving"):
        plan = only(bench.study.plan, bench.study.names[name])
        store = bench.store_up_to(folder / name, name)
        write_plan(store, plan)
        run = bench.study.run(name, store)
        killed = Attempt(worker(store, plan.name), hook=partial(_kill_past_checkpoints, store)).wait()
        if not killed.killed:
            outcome.problems.append(f"{name}: it was not killed, but ended with {killed.code}")
        damage(run)
        ended = Attempt(worker(store, plan.name)).wait()
        if ended.code != 0:
            outcome.problems.append(f"{name}: ended with {ended.code}: {ended.said[-1500:]}")
        begun = len(outcome.problems)
        finish(bench, store, plan, outcome)
        look(store, plan, outcome, "at the end")
        outcome.count("damages")
        outcome.problems[begun:] = [f"{name}: {each}" for each in outcome.problems[begun:]]
    outcome.most_lost_steps = 0  # a damaged checkpoint costs another interval
    return outcome


def _kill_past_checkpoints(store: Path) -> None:
    class AtThird(Moments):
        sealed = 0

        def pass_by(self, what: str, path: object) -> None:
            self.sealed += what == "replace" and ".step-" in str(path) and ".json." in str(path)
            if self.sealed >= 3 and what == "half-write" and str(path).endswith("metrics.jsonl"):
                self.kill_at = self.count
            super().pass_by(what, path)

    AtThird(store).install()


def _newest(run: RunDir, suffix: str) -> Path:
    return sorted(run.checkpoints.glob(f"step-*{suffix}"))[-1]


def _append(data: bytes) -> Damage:
    def damage(run: RunDir) -> None:
        with open(run.metrics, "ab") as file:
            file.write(data)

    return damage


def _cut(suffix: str, keep: Callable[[int], int]) -> Damage:
    def damage(run: RunDir) -> None:
        path = _newest(run, suffix)
        os.truncate(path, keep(path.stat().st_size))

    return damage


def _flip(run: RunDir) -> None:
    path = _newest(run, ".safetensors")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _claim(data: bytes) -> Damage:
    def damage(run: RunDir) -> None:
        run.claim.write_bytes(data)
        os.utime(run.claim, (1, 1))

    return damage


def _temporaries(run: RunDir) -> None:
    """Of every file that is written beside and renamed, by processes that are gone."""
    places = [run.spec, run.env, run.inputs, run.artefact, run.result, run.error, run.probe("0" * 16)]
    places += [run.checkpoints / "step-00000007.safetensors", run.kept / "step-00000014.json"]
    for place in places:
        place.parent.mkdir(exist_ok=True)
        place.with_name(f".{place.name}.4194303.tmp").write_bytes(b"half")
    (run.path / ".claim.0123456789abcdef.tmp").write_bytes(b"{")


DAMAGES: dict[str, Damage] = {
    "none": lambda run: None,
    "a torn line of metrics": _append(b'{"step": 25, "atte'),
    "a torn line that is not text": _append(b"\xff\xfe\x00{"),
    "zeros at the end of the metrics": _append(bytes(4096)),
    "half of the newest checkpoint": _cut(".safetensors", lambda size: size // 2),
    "a byte short of the newest checkpoint": _cut(".safetensors", lambda size: size - 1),
    "an empty newest checkpoint": _cut(".safetensors", lambda size: 0),
    "a bit of the newest checkpoint": _flip,
    "half of the newest seal": _cut(".json", lambda size: size // 2),
    "an empty newest seal": _cut(".json", lambda size: 0),
    "no newest checkpoint beside its seal": lambda run: _newest(run, ".safetensors").unlink(),
    "half of how far it came": lambda run: os.truncate(run.path / "reached.json", 256),
    "nothing of how far it came": lambda run: os.truncate(run.path / "reached.json", 0),
    "an empty claim": _claim(b""),
    "half of a claim": _claim(b'{"host":"node","mach'),
    "temporaries of dead processes": _temporaries,
}
