"""All that workers, lanes and Slurm said about one run, in order of time, with the attempts that it is of.

A lane's own log is about many runs: of it come the lines that name the run, and those that were written while
the run was under way or when the lane ended under it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from salt.attempts import Attempt, read_attempts
from salt.store import DamagedFile, RunDir
from slurm.log_sections import Section, dates, sections
from slurm.records import Chunk, LaneRef, Sent, jobs_folder, read_lanes, readable_chunks

#: submitit's own steps: they say nothing that the lane does not say.
_NOISE = re.compile(r"submitit INFO|submitit WARNING .* Bypassing signal SIGCONT")
_OTHER_DEATH = re.compile(r"worker process \d+ ")
#: An attempt begins soon after the worker's `start`: torch is loaded first.
_BEGINS_WITHIN = timedelta(minutes=15)
#: After a worker let a run go because it was asked to stop, the lane and Slurm have this long to say why.
_LAST_WORDS = timedelta(minutes=2)
_DAY = timedelta(days=1)


@dataclass(frozen=True, kw_only=True)
class Numbered:
    """An attempt of `env.json` with its number, from 1."""

    number: int
    about: Attempt

    @property
    def started(self) -> datetime | None:
        """By the clock of its machine, without a zone."""
        try:
            return datetime.fromisoformat(self.about.get("started") or "").replace(tzinfo=None)
        except ValueError:
            return None

    def __str__(self) -> str:
        about = self.about
        node, host = about.get("node"), about.get("host")
        where = node or host or "an unknown host"
        if node and host and host != node:
            where += f" (host {host})"
        job = f", job {about['slurm_job']}" if about.get("slurm_job") else ""
        started = self.started
        since = "" if started is None else f", began {started:%Y-%m-%d %H:%M:%S}"
        return f"attempt {self.number} on {where}{job}{since}, {about.get('ended') or 'no end noted'}"


@dataclass(frozen=True, kw_only=True)
class Part:
    """Lines of one file from `first` on (counted from 1) that are about a run. `kind`: worker, lane (what a
    job or Slurm said) or local (what a submission that was left behind said).
    """

    kind: str
    path: Path
    first: int
    lines: tuple[str, ...]
    began: datetime
    attempts: tuple[Numbered, ...] = ()
    open: bool = False  # of a worker's: it has not let the run go


@dataclass
class RunLogs:
    """What there is about a run of a plan. `problems`: what could not be read, and why."""

    store: Path
    plan: str
    run_id: str
    problems: list[str] = field(default_factory=list)
    #: Read again only when they have grown.
    _known: dict[Path, tuple[tuple[int, int], list[Section]]] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        return jobs_folder(self.store, self.plan)

    def parts(self) -> list[Part]:
        """All of them, the newest last."""
        self.problems = []
        sent, damages = readable_chunks(self.store, self.plan)
        self.problems += damages
        lanes = lanes_with(sent, self.run_id)
        found = self._sections(lanes, {each.folder for each in sent})
        attempts = self._attempts()
        of_section = _attempts_of(found, attempts)
        found = [_on_its_day(each, of_section[place]) for place, each in enumerate(found)]
        ordered = [
            ((each.began, 0), _worker_part(each, of_section[place])) for place, each in enumerate(found)
        ]
        unseen = {each.number for each in attempts} - {a.number for them in of_section for a in them}
        if unseen:
            numbers = ", ".join(map(str, sorted(unseen)))
            self.problems.append(f"no log is left of attempt {numbers}")
        finished = max(found, key=lambda each: each.began).done if found else False
        jobs = {(each.folder, str(lane)): None for each, lane in lanes}
        jobs |= {(each.path.parent.parent, each.lane): None for each in found if each.lane is not None}
        for folder, lane in jobs:
            mine = sorted((each for each in found if each.lane == lane), key=lambda each: each.began)
            for path in sorted((folder / "logs").glob(f"{lane}_*_log.*")):
                parts = _lane_parts(path, self.run_id, mine, unfinished=not finished)
                ordered += [((part.began, 1), part) for part in parts]
        for path in sorted(self.folder.glob("*/local.log")):
            parts = _lane_parts(path, self.run_id, [], unfinished=False, kind="local")
            ordered += [((part.began, 1), part) for part in parts]
        return [part for _, part in sorted(ordered, key=lambda item: item[0])]

    def _sections(self, lanes: Iterable[tuple[Sent, LaneRef]], readable: set[Path]) -> list[Section]:
        found = []
        for path in self._worker_logs({str(lane) for _, lane in lanes}, readable):
            try:
                stat = path.stat()
                stamp = (stat.st_mtime_ns, stat.st_size)
                if path not in self._known or self._known[path][0] != stamp:
                    self._known[path] = (stamp, sections(path, self.run_id))
            except OSError as error:
                self.problems.append(f"{path}: cannot be read ({error.strerror})")
                continue
            found += self._known[path][1]
        return found

    def _worker_logs(self, lanes: set[str], readable: set[Path]) -> Iterator[Path]:
        """Logs that may have the run: of its own lanes where a submission's are all known, else all."""
        yield from sorted(self.folder.glob("worker-*.log"))
        for workers in sorted(self.folder.glob("*/workers")):
            chunks = _chunks(workers.parent) if workers.parent in readable else []
            known = bool(chunks) and all(chunk.job is not None for chunk in chunks)
            for path in sorted(workers.glob("*.log")):
                if not known or path.name.rpartition("-")[0] in lanes:
                    yield path

    def _attempts(self) -> list[Numbered]:
        try:
            attempts = read_attempts(RunDir(self.store, self.run_id))
        except DamagedFile as damage:
            self.problems.append(str(damage))
            return []
        return [Numbered(number=number, about=about) for number, about in enumerate(attempts, start=1)]


def lanes_with(sent: Iterable[Sent], run_id: str) -> list[tuple[Sent, LaneRef]]:
    """Every lane that was sent with a run, oldest first."""
    return [
        (each, LaneRef(job=each.chunk.job, task=task))
        for each in sent
        if each.chunk.job is not None
        for task, lane in enumerate(each.chunk.lanes)
        if run_id in lane.runs
    ]


def _chunks(folder: Path) -> list[Chunk]:
    try:
        return read_lanes(folder)
    except DamagedFile:
        return []


def _attempts_of(found: list[Section], attempts: Iterable[Numbered]) -> list[tuple[Numbered, ...]]:
    """For each section the attempts that it is about, several where a smaller setting was tried.

    An attempt is of the section of its job that began last before it, by the time of day: workers' logs have
    no dates.
    """
    those: list[list[Numbered]] = [[] for _ in found]
    for attempt in attempts:
        started, about = attempt.started, attempt.about
        if started is None:
            continue
        near: list[tuple[timedelta, int]] = []
        for place, section in enumerate(found):
            if "slurm_job" in about and about["slurm_job"] != section.lane:
                continue
            after = (started - section.began) % _DAY
            whole = _DAY if section.ended is None else section.ended - section.began
            if after <= max(_BEGINS_WITHIN, whole):
                near.append((after, place))
        if near:
            those[min(near)[1]].append(attempt)
    return [tuple(each) for each in those]


def _on_its_day(section: Section, attempts: tuple[Numbered, ...]) -> Section:
    """The section with the date that its first attempt has: going back from the end misses quiet days."""
    started = attempts[0].started if attempts else None
    if started is None:
        return section
    return replace(section, began=started - (started - section.began) % _DAY)


def _worker_part(section: Section, attempts: tuple[Numbered, ...]) -> Part:
    return Part(
        kind="worker",
        path=section.path,
        first=section.first,
        lines=section.lines,
        began=section.began,
        attempts=attempts,
        open=section.end is None,
    )


def _lane_parts(
    path: Path, run_id: str, mine: list[Section], *, unfinished: bool, kind: str = "lane"
) -> list[Part]:
    """What a job's own log says about a run whose sections in that lane are `mine`: a part for each of them.

    Of a lane that never came to the run, all of it, if the run is `unfinished`: there is why.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        changed = datetime.fromtimestamp(path.stat().st_mtime)
    except OSError:
        return []  # removed meanwhile
    taken: dict[int, list[int]] = {}
    for place, (line, written) in enumerate(zip(lines, dates(lines), strict=True)):
        if _NOISE.search(line):
            continue
        section = _section_at(mine, written)
        if run_id in line:
            taken.setdefault(section, []).append(place)
        elif kind != "lane" or _OTHER_DEATH.search(line):
            continue
        elif unfinished if not mine else section >= 0 and _falls_into(mine, section, written):
            taken.setdefault(section, []).append(place)
    found = []
    for section, places in sorted(taken.items()):
        began = mine[section].began if section >= 0 else dates(lines)[places[0]] or changed
        some = tuple(lines[place] for place in places)
        found.append(Part(kind=kind, path=path, first=places[0] + 1, lines=some, began=began))
    return found


def _section_at(mine: list[Section], written: datetime | None) -> int:
    """The section that had begun last when a line was written, -1 if none had. A line without a time, such as
    Slurm's word of a lack of memory, is of the last one that nothing ended.
    """
    if written is None:
        places = [place for place, each in enumerate(mine) if each.end is None]
    else:
        places = [place for place, each in enumerate(mine) if each.began <= written]
    return places[-1] if places else -1


def _falls_into(mine: list[Section], place: int, written: datetime | None) -> bool:
    """Whether a line was written while the lane had the run, or as the run was stopped in it."""
    section = mine[place]
    if written is None or section.ended is None:
        return True
    asked = section.end is not None and ") stopped" in section.end
    return written <= section.ended + (_LAST_WORDS if asked else timedelta(0))
