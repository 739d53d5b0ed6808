"""`report.json`: what a report was made from and by, and the hash of every file of it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import msgspec

import salt
from analysis.tuning_record import Tuning
from salt.code_identity import code_files, code_root
from salt.errors import UserError
from salt.store import write_atomically

MANIFEST = "report.json"
#: Libraries whose versions can move a number or a picture.
LIBRARIES = ("numpy", "pandas", "scipy", "moocore", "matplotlib")


@dataclass(frozen=True)
class Source:
    """What a table is of: a plan of a store, or a file of another project; and what was asked of it."""

    name: str
    question: str
    plan_sha256: str | None = None
    table: str | None = None  # a foreign table by `--table`, as it was named
    columns: str | None = None
    labels: tuple[str, ...] = ()
    probes: tuple[str, ...] = ()
    tuning: list[Tuning] = field(default_factory=list)


class Manifest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`files` maps paths inside the report to sha256; paths of the store are not in it."""

    format: int = 1
    name: str
    question: str
    plan_sha256: str | None
    table: str | None
    columns: str | None
    labels: list[str]
    probes: list[str]
    tuning: list[Tuning]
    salt: str
    analysis_sha256: str
    libraries: dict[str, str]
    files: dict[str, str]


def write_manifest(out: Path, source: Source, paths: list[Path]) -> Path:
    """Write `report.json`, after files of the report that was there before and are no part of this one are
    removed.
    """
    files = {path.relative_to(out).as_posix(): sha256(path) for path in paths}
    path = out / MANIFEST
    if path.is_file():
        for name in read_manifest(out).files:
            old = out / name
            if name not in files and old.resolve().is_relative_to(out.resolve()):
                old.unlink(missing_ok=True)
    manifest = Manifest(
        name=source.name,
        question=source.question,
        plan_sha256=source.plan_sha256,
        table=source.table,
        columns=source.columns,
        labels=list(source.labels),
        probes=list(source.probes),
        tuning=source.tuning,
        salt=salt.__version__,
        analysis_sha256=analysis_sha256(),
        libraries={name: version(name) for name in LIBRARIES},
        files=dict(sorted(files.items())),
    )
    write_atomically(path, msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n")
    return path


def read_manifest(out: Path) -> Manifest:
    """The manifest of a report.

    Raises:
        UserError: the folder is no report, or one of another version of salt.
    """
    path = out / MANIFEST
    if not path.is_file():
        raise UserError(
            f"{out} is no report: it holds no {MANIFEST}; name the folder that `salt-analyze report` wrote"
        )
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Manifest)
    except (msgspec.DecodeError, OSError) as error:
        raise UserError(f"{path}: {error}; write the report again") from error
    if found.format != 1:
        raise UserError(
            f"{path}: format {found.format} is of another version of salt; write the report again"
        )
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def analysis_sha256() -> str:
    """One hash over the code that numbers come from."""
    total = hashlib.sha256()
    for name, path in code_files(code_root()):
        if name.startswith("analysis/"):
            total.update(f"{name}\0".encode() + path.read_bytes())
    return total.hexdigest()
