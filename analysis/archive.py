"""A study as one file: plan, specs, results, probes, metrics and provenance, for someone without the cluster.

A gzipped tar archive whose first member, `salt-archive.json`, lists every other one with its size and sha256.
The same store gives the same bytes. Weights are left out unless asked for; caches and checkpoints always are.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec

import salt
from analysis.anonymous import Anonymous
from salt.errors import UserError
from salt.plans import plan_dir, read_plan
from salt.progress import progress
from salt.store import RunDir, file_sha256, write_atomically

MANIFEST = "salt-archive.json"
GATHERED = "gathered.csv"
ENDING = ".salt.tar.gz"
FORMAT = 1
#: Of a run: files that say what it is and what came of it. Results and probes are what a table is made of.
RUN_FILES = ("spec.json", "inputs.json", "env.json", "metrics.jsonl", "error.json", "result.json")
WEIGHTS = "artefact.safetensors"


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Size and hash of a file of an archive."""

    bytes: int
    sha256: str


class Contents(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """`salt-archive.json`. `unfinished` are runs that had no result when the archive was made."""

    format: int
    plan: str
    salt: str
    anonymous: bool
    weights: bool
    runs: int
    unfinished: tuple[str, ...]
    files: dict[str, Entry]


def export_study(
    store: Path,
    name: str,
    file: Path,
    *,
    weights: bool = False,
    anonymous: bool = False,
    show: bool = False,
) -> Contents:
    """Write a study to `file`, whole or not at all; what is in it.

    Small files are read once, so that what is hashed is what is written, also while runs go on. `anonymous`
    replaces hosts, users, process numbers and paths. `show` prints progress to standard error.

    Raises:
        UserError: there is no such plan, or `file` is a folder.
    """
    if file.is_dir():
        raise UserError(f"--to {file} is a folder: name a file, such as {file / name}{ENDING}")
    plan = read_plan(store, name)
    hide = Anonymous.of(store, plan) if anonymous else None
    small: dict[str, bytes] = {}
    large: dict[str, Path] = {}
    for path in sorted(plan_dir(store, name).iterdir()):
        if path.is_file() and not path.is_symlink():
            small[f"plans/{name}/{path.name}"] = path.read_bytes()
    ids = sorted({run.run_id for run in plan.runs})
    unfinished = []
    with progress("read runs", len(ids), show) as advance:
        for run_id in ids:
            folder = RunDir(store, run_id)
            found = _run_files(folder)
            small |= found
            if f"{_place(folder)}/result.json" not in found:
                unfinished.append(run_id)
            if weights and folder.artefact.is_file():
                large[f"{_place(folder)}/{WEIGHTS}"] = folder.artefact
            advance(1)
    small |= _tuning(store)
    small[GATHERED] = _gathered(store, name)
    if hide is not None:
        small = {path: hide(path, data) for path, data in small.items()}
    entries = {path: Entry(len(data), hashlib.sha256(data).hexdigest()) for path, data in small.items()}
    entries |= {path: _entry(source) for path, source in large.items()}
    contents = Contents(
        format=FORMAT,
        plan=name,
        salt=salt.__version__,
        anonymous=anonymous,
        weights=weights,
        runs=len(ids),
        unfinished=tuple(unfinished),
        files=dict(sorted(entries.items())),
    )
    write_atomically(file, _packed(contents, small, large))
    return contents


def _place(folder: RunDir) -> str:
    return folder.path.relative_to(folder.store).as_posix()


def _run_files(folder: RunDir) -> dict[str, bytes]:
    """The small files of a run. The result is looked for first: all that it rests on is then there."""
    place, found = _place(folder), {}
    for name in reversed(RUN_FILES):
        path = folder.path / name
        if path.is_file():
            found[f"{place}/{name}"] = path.read_bytes()
    if folder.probes.is_dir():
        for path in sorted(folder.probes.glob("*.json")):
            found[f"{place}/probes/{path.name}"] = path.read_bytes()
    return found


def _tuning(store: Path) -> dict[str, bytes]:
    """What is on record of tuning: `tuning/<name>/tuning.json` of every tuning in the store."""
    found = {}
    for path in sorted((store / "tuning").glob("*/tuning.json")):
        found[path.relative_to(store).as_posix()] = path.read_bytes()
    return found


def _gathered(store: Path, name: str) -> bytes:
    """The tidy table, for readers without salt."""
    from analysis.gather import gather
    from analysis.records import csv_text

    return csv_text(gather(store, name)).encode()


def _entry(path: Path) -> Entry:
    return Entry(path.stat().st_size, file_sha256(path))


def _packed(contents: Contents, small: dict[str, bytes], large: dict[str, Path]) -> Iterator[bytes]:
    """The archive's bytes, piece by piece: without times, users and names, which differ from call to call."""
    out = _Pieces()
    manifest = msgspec.json.format(msgspec.json.encode(contents), indent=1)
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=out, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
    ):
        _add(tar, MANIFEST, io.BytesIO(manifest), len(manifest))
        for path, entry in contents.files.items():
            if path in small:
                _add(tar, path, io.BytesIO(small[path]), entry.bytes)
            else:
                with open(large[path], "rb") as file:
                    _add(tar, path, file, entry.bytes)
            yield from out.taken()
    yield from out.taken()


def _add(tar: tarfile.TarFile, path: str, file: IO[bytes], size: int) -> None:
    about = tarfile.TarInfo(path)
    about.size, about.mode = size, 0o644
    tar.addfile(about, file)


class _Pieces(io.RawIOBase):
    """A file to write to, whose bytes are taken from it as they come."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(self._parts[-1])

    def taken(self) -> Iterator[bytes]:
        """What has been written since this was asked last."""
        parts, self._parts = self._parts, []
        yield from parts
