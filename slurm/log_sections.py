"""Which lines of a worker's log are about one run, and when they were written.

A worker's log has lines `HH:MM:SS start NAME (RUN)`, then whatever the run says, then `HH:MM:SS done NAME
(RUN) ...`, `FAILED`, `GIVEN UP`, or that it was stopped. A worker takes one run at a time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d"
_STAMPED = re.compile(rf"({_CLOCK}) ")
_START = re.compile(rf"{_CLOCK} start .*\(([A-Za-z0-9_-]+)\)$")
_DATED = re.compile(rf"(\d{{4}}-[01]\d-[0-3]\d)[ T]({_CLOCK})")
_OF_LANE = re.compile(r"(\d+_\d+)-\d+\.log")
_DAY = timedelta(days=1)
#: The clocks of a node and of a file system may differ by this.
_SLACK = timedelta(minutes=2)


@dataclass(frozen=True, kw_only=True)
class Section:
    """Lines of a worker's log from `first` on (counted from 1) that are about a run.

    Times are by the clock of the machine that wrote them, without a zone. `end` is the line with which the
    worker let go of the run; None while it goes on, or after a kill.
    """

    path: Path
    first: int
    lines: tuple[str, ...]
    began: datetime
    ended: datetime | None = None
    end: str | None = None

    @property
    def lane(self) -> str | None:
        """`<job>_<task>` of the job whose worker it was; None on a machine without jobs."""
        match = _OF_LANE.fullmatch(self.path.name)
        return None if match is None else match[1]

    @property
    def done(self) -> bool:
        return self.end is not None and _STAMPED.sub("", self.end, count=1).startswith("done ")


def sections(path: Path, run_id: str) -> list[Section]:
    """Every stretch of a worker's log that is about a run, oldest first."""
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = text.splitlines()
    marked = re.compile(rf"\({re.escape(run_id)}\)")
    if marked.search(text) is None:
        return []
    found: list[Section] = []
    times = _times(lines, datetime.fromtimestamp(path.stat().st_mtime))
    first: int | None = None  # of the stretch at hand
    end: int | None = None

    def close(after: int) -> None:
        if first is not None:
            began, ended = times[first], None if end is None else times[end]
            assert began is not None  # it starts with a stamped line
            found.append(
                Section(
                    path=path,
                    first=first + 1,
                    lines=tuple(lines[first:after]),
                    began=began,
                    ended=ended,
                    end=None if end is None else lines[end],
                )
            )

    for place, line in enumerate(lines):
        if times[place] is None:
            continue  # what a run, a library or a traceback says
        start = _START.match(line)
        if start is not None or end is not None:
            close(place)
            first = end = None
        if start is not None:
            first = place if start[1] == run_id else None
        elif marked.search(line) is not None:  # without a start: NOT STARTED, GIVEN UP
            first, end = place if first is None else first, place
    close(len(lines))
    return found


def _times(lines: Sequence[str], latest: datetime) -> list[datetime | None]:
    """When lines that begin with a time of day were written, going back from the time of the last change."""
    found: list[datetime | None] = [None] * len(lines)
    for place in reversed(range(len(lines))):
        match = _STAMPED.match(lines[place])
        if match is None:
            continue
        moment = datetime.combine(latest.date(), datetime.strptime(match[1], "%H:%M:%S").time())
        if moment > latest + _SLACK:
            moment -= _DAY
        found[place] = latest = moment
    return found


def dates(lines: Sequence[str]) -> list[datetime | None]:
    """When lines of a job's own log were written: one without a date goes with the dated one before it, those
    before the first with that; None throughout where no line has one.
    """
    own = [_date(line) for line in lines]
    last = next((each for each in own if each is not None), None)
    found = []
    for each in own:
        last = last if each is None else each
        found.append(last)
    return found


def _date(line: str) -> datetime | None:
    match = _DATED.search(line)
    try:
        return None if match is None else datetime.fromisoformat(f"{match[1]} {match[2]}")
    except ValueError:
        return None  # such as the 31st of June
