"""Folders that are whole or absent: built under another name, flushed, renamed, one builder at a time."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from salt.errors import UserError

log = logging.getLogger(__name__)


@contextmanager
def builders_lock(path: Path) -> Iterator[bool]:
    """Hold a builder's lock, which the kernel frees if the process dies; yields whether it is held.

    It is not where the file system has no locks: then several builders may do the same work.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            held = True
        except OSError as error:
            held = False
            log.warning("no lock on %s (%s): another process may do the same work", path, error.strerror)
        yield held


def publish(building: Path, folder: Path) -> None:
    """Put a finished folder in place; if another builder was first, theirs stays unless it is broken.

    A folder is finished if it has `index.json`, which builders write last.
    """
    aside = building.with_name(f"{building.name}.old")
    if folder.exists():
        # It is broken, or, on a file system without locks, another builder's equal one.
        os.rename(folder, aside)
    try:
        os.rename(building, folder)
    except OSError:
        if not (folder / "index.json").exists():
            raise
        log.info("%s was built by another process meanwhile", folder)
    shutil.rmtree(aside, ignore_errors=True)
    parent = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)


def require_room(folder: Path, needed_bytes: int, what: str) -> None:
    """Raise UserError if the disk of `folder`, which exists, has less than `needed_bytes` free."""
    free_bytes = shutil.disk_usage(folder).free
    if needed_bytes > free_bytes:
        raise UserError(
            f"no room for {needed_bytes / 1e9:.2f} GB of {what} in {folder}: {free_bytes / 1e9:.2f} GB are "
            "free; free some, choose another store, or store fewer or smaller clips"
        )


def reserve(target: Path, what: str) -> None:
    """Claim a file's disk space now: a memory map that meets a full disk later kills the process, mute."""
    size = target.stat().st_size
    with open(target, "rb+") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(f"no room for {size / 1e9:.2f} GB of {what} in {target.parent.parent}") from error
