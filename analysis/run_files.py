"""What the files of a plan's runs say: results, errors, probes, and on how many GPUs they were trained.

Reads each file once, and notes its stamp (when it was changed, its size, its number on disk) before reading,
so that a table made from it can be kept until one of them changes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, NoReturn, TypeVar

import msgspec

from salt.errors import UserError
from salt.plan_specs import PlannedRun
from salt.result_specs import ProbeResult, RunError, RunResult
from salt.store import RunDir

T = TypeVar("T")
#: (mtime in ns, bytes, inode); a folder has its inode alone, and what is not there has `ABSENT`.
Stamp = tuple[int, int, int]
ABSENT: Stamp = (-1, -1, -1)


class RunRecord(NamedTuple):
    """What the files of one run say. `state` is done, missing, failed or diverged."""

    run: PlannedRun
    state: str
    reason: str | None
    result: RunResult | None
    gpus: int | None = None  # that trained it together; None: not known, or none


class _Attempt(msgspec.Struct):
    """Of an attempt in `env.json` only what tells its GPUs."""

    hardware: str | None = None
    processes: str | None = None


class _Environment(msgspec.Struct):
    attempts: list[_Attempt] = []


@dataclass
class RunFiles:
    """Reads the runs of a store. `stamps`: path inside the store -> stamp of all that was looked at."""

    store: Path
    stamps: dict[str, Stamp] = field(default_factory=dict)
    unreadable_environments: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._result = msgspec.json.Decoder(RunResult)
        self._error = msgspec.json.Decoder(RunError)
        self._probe = msgspec.json.Decoder(ProbeResult)
        self._environment = msgspec.json.Decoder(_Environment)
        self._root = str(self.store)

    def record(self, run: PlannedRun) -> RunRecord:
        """State of a run. An unreadable file is a failure with its reason, not an end of the analysis."""
        folder = f"runs/{run.run_id[:2]}/{run.run_id}"
        try:
            result = self._read(f"{folder}/result.json", self._result)
            if result is not None:
                return RunRecord(run, "done", None, result, self._gpus(f"{folder}/env.json"))
            error = self._read(f"{folder}/error.json", self._error)
        except (UserError, OSError) as problem:
            return RunRecord(run, "failed", str(problem), None)
        if error is not None:
            state = "diverged" if error.kind == "diverged" else "failed"
            at = "" if error.step is None else f" at step {error.step}"
            return RunRecord(run, state, f"{error.kind}{at}: {error.message}", None)
        self.stamps[folder + "/"] = stamp(f"{self._root}/{folder}/")
        started = self.stamps[folder + "/"] != ABSENT
        return RunRecord(run, "missing", "started, not finished" if started else "not started", None)

    def probe(self, record: RunRecord, probe_id: str) -> tuple[ProbeResult | None, str, str | None]:
        """(what a suite found, state, reason) of a run."""
        if record.result is None:
            return None, record.state, record.reason
        run_id = record.run.run_id
        folder = f"runs/{run_id[:2]}/{run_id}"
        path = f"{folder}/probes/{probe_id}.json"
        try:
            found = self._read(path, self._probe)
            error = self._read(f"{folder}/error.json", self._error) if found is None else None
        except (UserError, OSError) as problem:
            return None, "failed", str(problem)
        if error is not None:
            return None, "failed", f"{error.kind}: {error.message}"
        if found is None:
            return None, "missing", f"trained, but probe {probe_id} is not there"
        if found.run_id != run_id:
            return None, "failed", f"{self.store / path} belongs to run {found.run_id}"
        trained = record.result.artefact_sha256
        if trained is not None and found.encoder_sha256 != trained:
            why = f"{self.store / path} was made with other weights than the run's artefact"
            return None, "failed", why
        return found, "done", None

    def _gpus(self, path: str) -> int | None:
        """GPUs that trained the run, where all its attempts agree on them; None on a CPU.

        A damaged file only costs the GPU-hours: the result beside it stands. It is named in a note.
        """
        try:
            found = self._read(path, self._environment)
        except (UserError, OSError):
            self.unreadable_environments.append(str(self.store / path))
            return None
        attempts = [] if found is None else found.attempts
        kinds = {
            (attempt.hardware is None, attempt.hardware == "cpu", attempt.processes) for attempt in attempts
        }
        if len(kinds) != 1:
            return None
        unknown, on_cpu, processes = kinds.pop()
        if unknown or on_cpu or processes is None or not processes.isdecimal():
            return None
        return int(processes)

    def _read(self, path: str, decoder: msgspec.json.Decoder[T]) -> T | None:
        """Decode a file strictly; None if it is not there.

        The plain system calls are three times as fast as `Path.read_bytes`, which counts for 10,000 runs.
        """
        whole = f"{self._root}/{path}"
        try:
            opened = os.open(whole, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            self.stamps[path] = ABSENT
            return None
        try:
            about = os.fstat(opened)
            self.stamps[path] = (about.st_mtime_ns, about.st_size, about.st_ino)
            data = os.read(opened, about.st_size + 1)
            while len(data) != about.st_size:  # it grew, or the read came short
                more = os.read(opened, 1 << 20)
                data += more
                if not more:
                    break
        finally:
            os.close(opened)
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._damaged(path)

    def _damaged(self, path: str) -> NoReturn:
        """Raise what the store itself says of such a file."""
        _, _, run_id, *rest = path.split("/")
        folder = RunDir(self.store, run_id)
        if rest[0] == "probes":
            folder.read_probe(rest[1].removesuffix(".json"))
        elif rest[0] == "result.json":
            folder.read_result()
        elif rest[0] == "error.json":
            folder.read_error()
        raise UserError(f"{self.store / path}: not a valid file; move it away and submit again")


def stamp(path: str) -> Stamp:
    """The stamp of a file, or of a folder if the path ends in a slash."""
    try:
        about = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    if path.endswith("/"):
        return (0, 0, about.st_ino)
    return (about.st_mtime_ns, about.st_size, about.st_ino)


def stamps_of(store: Path, paths: Iterable[str]) -> list[Stamp]:
    """Stamps of these paths inside the store, as they are now."""
    root, found, stat = f"{store}/", [], os.stat
    for path in paths:  # as `stamp` does, without a call for each of some ten thousand
        try:
            about = stat(root + path)
        except (FileNotFoundError, NotADirectoryError):
            found.append(ABSENT)
            continue
        folder = path[-1] == "/"
        found.append((0, 0, about.st_ino) if folder else (about.st_mtime_ns, about.st_size, about.st_ino))
    return found
