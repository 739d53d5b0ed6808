"""Disks that fill up: files that may not grow past a size, a disk that is full after so many bytes, and,
where this process may mount one, a small file system.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from salt.plan_specs import Plan
from salt.store import RunDir
from tests.crash.attempts import Attempt, Ended, worker
from tests.crash.bench import Bench, Case, Outcome, finish, look
from tests.crash.hooks import Moments, limit_files
from tests.crash.study import copy_store, only, write_plan

#: Runs that write of everything: a state that stays, latents of a teacher, and probes.
FILLED = ("trunk", "cached", "moving")
LARGE_BYTES = 64 << 20
_NEW_NAMESPACE = 0x00020000  # CLONE_NEWNS: what is mounted ends with the process

Limit = Callable[[Path, int], None]


def disk_cases(bench: Bench, count: int) -> Iterator[Case]:
    """For each run `count` sizes of a full disk of either kind, and a third as many file systems."""
    for name in FILLED:
        sizes = _sizes_of(bench, name)
        limits, rooms = _spread(max(sizes), count), _spread(sum(sizes), count)
        yield Case(
            name=f"disks: largest file, {name}", work=partial(_limited, name, "file_limits", limits, _limit)
        )
        yield Case(name=f"disks: room, {name}", work=partial(_limited, name, "disk_rooms", rooms, _room))
        rooms = _spread(sum(sizes) // 2, -(-count // 3))
        yield Case(name=f"disks: file system, {name}", work=partial(_mounted, name, rooms))


def _limit(store: Path, size_bytes: int) -> None:
    limit_files(size_bytes)


def _room(store: Path, size_bytes: int) -> None:
    Moments(store, room_bytes=size_bytes).install()


def _sizes_of(bench: Bench, name: str) -> list[int]:
    return [
        path.stat().st_size
        for path in bench.study.run(name, bench.finished).path.rglob("*")
        if path.is_file()
    ]


def _spread(high: int, count: int) -> list[int]:
    """Sizes from 0 to just below `high`, small ones closer together, as most files are small."""
    sizes = {round((high - 1) * (place / max(1, count - 1)) ** 3) for place in range(count)}
    return sorted(sizes)


def _limited(
    name: str, figure: str, sizes: list[int], limit: Limit, bench: Bench, folder: Path, rng: random.Random
) -> Outcome:
    outcome = Outcome()
    plan = only(bench.study.plan, bench.study.names[name])
    store = bench.store_up_to(folder, name)
    write_plan(store, plan)
    for size in sizes:
        shutil.rmtree(RunDir(store, plan.runs[0].run_id).path, ignore_errors=True)
        shutil.rmtree(store / "cache" / "targets", ignore_errors=True)
        ended = Attempt(worker(store, plan.name), hook=partial(limit, store, size)).wait()
        found = _full(bench, store, plan, ended)
        outcome.problems += [f"{size} bytes: {problem}" for problem in found.problems]
        outcome.count(figure)
    return outcome


def _full(bench: Bench, store: Path, plan: Plan, ended: Ended) -> Outcome:
    """A disk was full: that was said, all that is there is whole, and with room again the run ends well."""
    outcome, run = Outcome(), RunDir(store, plan.runs[0].run_id)
    if ended.hung:
        outcome.problems.append(f"it never ended: {ended.said[-600:]}")
    if ended.code == 0:
        outcome.problems.append("there was room for everything")
    said = ended.said + (run.error.read_text() if run.error.exists() else "")
    if not any(text in said for text in ("ENOSPC", "EFBIG", "No space left", "File too large", "no room")):
        outcome.problems.append(f"it ended with {ended.code}, and did not say why: {said[-1500:]}")
    look(store, plan, outcome, "with a full disk")
    finish(bench, store, plan, outcome)
    return outcome


# --- a file system of its own ---------------------------------------------------------------------


def _mounted(name: str, rooms: list[int], bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    outcome = Outcome()
    place = folder / "disk"
    place.mkdir()
    if not _mount(place):
        outcome.count("file_systems_refused")
        return outcome
    plan = only(bench.study.plan, bench.study.names[name])
    template = bench.store_up_to(folder / "template", name)
    write_plan(template, plan)
    for room in rooms:
        # What the run begins from lies in the small file system, and so much room is left beside it.
        store = copy_store(template, place / "store")
        _resize(place, shutil.disk_usage(place).used + room)
        ended = Attempt(worker(store, plan.name)).wait()
        _resize(place, LARGE_BYTES)
        found = _full(bench, store, plan, ended)
        outcome.problems += [f"{room} bytes free: {problem}" for problem in found.problems]
        outcome.count("small_file_systems")
        shutil.rmtree(store)
    subprocess.run(["umount", str(place)], check=True)
    return outcome


def _mount(place: Path) -> bool:
    """Mount a file system that only this process and its children see; False where that is refused."""
    try:
        if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NAMESPACE) != 0:
            return False
        for command in (
            ["mount", "--make-rprivate", "/"],
            ["mount", "-t", "tmpfs", "-o", f"size={LARGE_BYTES}", "none", str(place)],
        ):
            subprocess.run(command, check=True, capture_output=True)
    except (OSError, AttributeError, subprocess.CalledProcessError):
        return False
    return os.path.ismount(place)


def _resize(place: Path, size_bytes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size_bytes}", str(place)], check=True, capture_output=True)
