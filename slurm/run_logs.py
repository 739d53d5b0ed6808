"""The part of workers' and lanes' logs that is about one run.

A worker's log has lines `HH:MM:SS start NAME (RUN)`, then whatever the run says, then `HH:MM:SS done NAME
(RUN) ...`, `FAILED`, `GIVEN UP`, or that it was stopped. A worker takes one run at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slurm.records import LaneRef, Sent, jobs_folder, readable_chunks

_STAMPED = re.compile(r"(?:\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d ")
_START = re.compile(r"\d\d:\d\d:\d\d start .*\(([A-Za-z0-9_-]+)\)$")
_LANE_LOG = re.compile(r"(\d+)_(\d+)_\d+_log\.(?:out|err)")


@dataclass(frozen=True)
class Section:
    """Lines of a log file from `first` on (counted from 1) that are about a run; `open` while it goes on."""

    path: Path
    first: int
    lines: tuple[str, ...]
    open: bool


def worker_logs(store: Path, plan: str) -> list[Path]:
    """Logs of all workers of a plan, on this machine or on others, newest first."""
    folder = jobs_folder(store, plan)
    found = [*folder.glob("worker-*.log"), *folder.glob("*/workers/*.log")]
    return _newest_first(found)


def lane_logs(store: Path, plan: str, run_id: str) -> list[Path]:
    """What lanes with that run, and Slurm, said themselves; newest first, empty ones left out."""
    sent, _ = readable_chunks(store, plan)
    found = []
    for each, lane in lanes_with(sent, run_id):
        pattern = f"{lane.job}_{lane.task}_*_log.*"
        found += [path for path in (each.folder / "logs").glob(pattern) if path.stat().st_size]
    return _newest_first(found)


def lanes_with(sent: Iterable[Sent], run_id: str) -> list[tuple[Sent, LaneRef]]:
    """Every lane that was sent with a run, oldest first."""
    return [
        (each, LaneRef(job=each.chunk.job, task=task))
        for each in sent
        if each.chunk.job is not None
        for task, lane in enumerate(each.chunk.lanes)
        if run_id in lane.runs
    ]


def sections(path: Path, run_id: str) -> list[Section]:
    """Every stretch of a worker's log that is about a run, oldest first."""
    found: list[Section] = []
    first, taken = 0, list[str]()
    ended = False
    marked = re.compile(rf"\({re.escape(run_id)}\)")
    text = path.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.splitlines(), start=1):
        start = _START.match(line)
        stamped = _STAMPED.match(line) is not None
        if first and ((ended and stamped) or start is not None):
            found.append(Section(path, first, tuple(taken), open=False))
            first, taken, ended = 0, [], False
        if start is not None and start[1] == run_id:
            first = number
        about = marked.search(line) is not None
        if not first and stamped and about:  # such as GIVEN UP, without a start
            first, ended = number, True
        if first:
            taken.append(line)
            ended = ended or (stamped and about and start is None)
    if first:
        found.append(Section(path, first, tuple(taken), open=not ended))
    return found


def _newest_first(paths: Iterable[Path]) -> list[Path]:
    return sorted(paths, key=lambda path: path.stat().st_mtime_ns, reverse=True)
