"""All cases, several at a time, each in a process of its own; what came of them."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import msgspec

from salt.attempts import ATTEMPTS_VARIABLE
from tests.crash.bench import Bench, Case, Outcome, prepare
from tests.crash.clocks import clock_cases
from tests.crash.damage import damage_cases
from tests.crash.disks import disk_cases
from tests.crash.kills import kill_cases, submitter_cases
from tests.crash.study import CHECKPOINT_EVERY
from tests.crash.writes import write_cases

#: Cases of the short choice; their counts are set beside.
SHORT = (
    "submitters 0: two at once",
    "kill 1 ",
    "writes of trunk",
    "writes of cached",
    "disks: room, trunk",
    "disks: largest file, moving",
    "clocks: of a worker",
    "clocks: of one of two",
    "damage: a torn line of metrics",
    "damage: half of the newest checkpoint",
    "damage: an empty claim",
)


def run_all(args: argparse.Namespace) -> int:
    """Prepare, disturb, report; 1 if anything was found."""
    _import_all()
    if args.short:
        args.kills, args.every, args.pairs, args.disks = 24, 40, 0, 3
    began = time.monotonic()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="salt-crash-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        bench = prepare(folder)
        print(f"undisturbed: {bench.pass_s:.1f} s", flush=True)
        cases = [case for case in _cases(bench, folder, args) if _is_wanted(case, args)]
        total = _run(bench, cases, folder, args.seed, args.lanes or os.cpu_count() or 1)
    finally:
        if args.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    figures = {
        "seed": args.seed,
        "cases": len(cases),
        **dict(sorted(total.figures.items())),
        "most_lost_steps": total.most_lost_steps,
        "checkpoint_every_steps": CHECKPOINT_EVERY,
        "problems": len(total.problems),
        "wall_s": round(time.monotonic() - began, 1),
    }
    for name, value in figures.items():
        print(f"{name:26} {value}")
    if args.json is not None:
        args.json.write_text(json.dumps(figures | {"found": total.problems}, indent=2) + "\n")
    return 1 if total.problems else 0


def _cases(bench: Bench, folder: Path, args: argparse.Namespace) -> Iterator[Case]:
    yield from submitter_cases(args.pairs)
    yield from kill_cases(args.kills)
    yield from write_cases(bench, folder, args.every)
    yield from disk_cases(bench, args.disks)
    yield from clock_cases()
    yield from damage_cases()


def _is_wanted(case: Case, args: argparse.Namespace) -> bool:
    return case.name.startswith(SHORT if args.short else args.only)


def _run(bench: Bench, cases: list[Case], folder: Path, seed: int, lanes: int) -> Outcome:
    """The outcomes of all cases together; each is printed as it ends."""
    todo, total = deque(enumerate(cases)), Outcome()
    running: dict[int, tuple[Case, Path, float]] = {}
    while todo or running:
        while todo and len(running) < lanes:
            number, case = todo.popleft()
            place = folder / f"case-{number}"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            running[_start(bench, case, place, seed)] = (case, place, time.monotonic())
        pid, status = os.waitpid(-1, 0)
        if pid not in running:
            continue
        case, place, began = running.pop(pid)
        outcome = _outcome(place, status)
        total.problems += [f"{case.name}: {problem}" for problem in outcome.problems]
        for name, value in outcome.figures.items():
            total.count(name, value)
        total.most_lost_steps = max(total.most_lost_steps, outcome.most_lost_steps)
        state = "ok" if not outcome.problems else f"{len(outcome.problems)} PROBLEMS"
        print(f"{case.name}: {state} ({time.monotonic() - began:.1f} s)", flush=True)
        for problem in outcome.problems[:5]:
            print(f"    {problem}", flush=True)
        if not outcome.problems:
            shutil.rmtree(place)
    return total


def _start(bench: Bench, case: Case, place: Path, seed: int) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        outcome = case.work(bench, place, random.Random(f"{seed} {case.name}"))
    except BaseException:  # noqa: BLE001 - a fault of the case: told as what it is
        outcome = Outcome(problems=[f"the case itself failed: {traceback.format_exc()}"])
    (place / "outcome.json").write_bytes(msgspec.json.encode(asdict(outcome)))
    os._exit(0)


def _outcome(place: Path, status: int) -> Outcome:
    path = place / "outcome.json"
    if not path.exists():
        return Outcome(problems=[f"the case ended with status {status} and told nothing"])
    return msgspec.json.decode(path.read_bytes(), type=Outcome)


def _import_all() -> None:
    """Everything that attempts need, so that they find it when they are forked; nothing is computed."""
    import torch._dynamo
    import torch.profiler

    import sweeps.cli  # noqa: F401

    torch.set_num_threads(1)
    # Kills in a row are the point here; what three of them without a new step do has a case of its own.
    os.environ[ATTEMPTS_VARIABLE] = "1000000"
