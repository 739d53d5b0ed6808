"""The code of a submission, kept: workers run from it, so that edits reach nothing that was sent.

    <store>/jobs/.code/<16 digits of its hash>/{salt, slurm, sweeps, analysis, salt_cli.py,
                                               provenance.json, diff.patch}

Submissions of the same code share a folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from salt.code_identity import code_files, code_root, tree_sha256
from salt.disk import writing
from salt.processes import temporary
from salt.provenance import SNAPSHOT_FILE, Provenance, git_diff, provenance_of
from salt.store import pretty_json

#: A longer difference is not code that somebody edited.
MOST_DIFF_BYTES = 5_000_000
DIFF_FILE = "diff.patch"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A folder to import salt from, and what is known of its code."""

    folder: Path
    provenance: Provenance


def snapshots_folder(store: Path) -> Path:
    return store / "jobs" / ".code"  # no plan has such a name


def take_snapshot(store: Path, root: Path | None = None) -> Snapshot:
    """Keep the code in `root`, by default that of this process; the same code is kept once.

    Raises:
        DiskFailed: it cannot be written.
    """
    root = code_root() if root is None else root
    digest = tree_sha256(root)
    folder = snapshots_folder(store) / digest[:16]
    found = _read(folder, digest)
    if found is None:
        with writing(folder):
            _write(folder, root, digest)
        found = _read(folder, digest)
        if found is None:  # edited while it was copied: what was copied has another hash
            return take_snapshot(store, root)
    return Snapshot(folder=folder, provenance=found)


def _read(folder: Path, digest: str) -> Provenance | None:
    """What is known of a snapshot; None if it is not there, or not whole."""
    try:
        found = msgspec.json.decode((folder / SNAPSHOT_FILE).read_bytes(), type=Provenance)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.code_sha256 == digest == tree_sha256(folder) else None


def _write(folder: Path, root: Path, digest: str) -> None:
    """Copy beside, then rename: a reader sees nothing or all of it, whoever writes at the same time."""
    beside = temporary(folder)
    shutil.rmtree(beside, ignore_errors=True)
    for name, path in code_files(root):
        target = beside / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    known = root / SNAPSHOT_FILE
    if known.exists():  # sent from a job, whose code is a snapshot itself
        shutil.copyfile(known, beside / SNAPSHOT_FILE)
        if (root / DIFF_FILE).exists():
            shutil.copyfile(root / DIFF_FILE, beside / DIFF_FILE)
    else:
        diff = _diff(root, beside)
        (beside / SNAPSHOT_FILE).write_bytes(pretty_json(provenance_of(root, digest, diff)))
    try:
        os.rename(beside, folder)
    except OSError:
        if _read(folder, digest) is None:  # what is there is damaged, or was
            _replace(beside, folder)
        shutil.rmtree(beside, ignore_errors=True)


def _replace(beside: Path, folder: Path) -> None:
    """Put a good copy where a damaged one is."""
    aside = temporary(folder.with_name(f"{folder.name}.old"))
    os.rename(folder, aside)
    os.rename(beside, folder)
    shutil.rmtree(aside, ignore_errors=True)


def _diff(root: Path, beside: Path) -> str | None:
    """Write what differs from the commit; the name of the file, or why there is none."""
    text = git_diff(root)
    if text is None:
        return None
    if not text:
        return "none"
    data = text.encode("utf-8", errors="replace")
    if len(data) > MOST_DIFF_BYTES:
        return f"left out: {len(data)} bytes"
    (beside / DIFF_FILE).write_bytes(data)
    return DIFF_FILE


def old_snapshots(store: Path, in_use: Iterable[Path]) -> list[Path]:
    """Snapshots other than those in use, and what killed processes left of copying."""
    wanted = {path.absolute().name for path in in_use}
    folder = snapshots_folder(store)
    return sorted(path for path in folder.glob("*") if path.name not in wanted) if folder.exists() else []
