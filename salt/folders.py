"""Folders that are whole or absent: built under another name, flushed, renamed, one builder at a time."""

from __future__ import annotations

import errno
import fcntl
import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Literal

from salt.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: The disk, the quota or the largest file that is allowed is full; and a place that cannot be written to.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_NO_PLACE = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.EISDIR}
)

log = logging.getLogger(__name__)


@contextmanager
def builders_lock(path: Path) -> Iterator[bool]:
    """Hold a builder's lock, which the kernel frees if the process dies; yields whether it is held.

    Waiting for another builder is said. The lock is not held where the file system has none: then several
    builders may do the same work.
    """
    with open(path, "w") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.warning("another process is building %s: waiting for it", path.with_suffix(""))
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
    shutil.rmtree(aside, ignore_errors=True)  # of a builder that was killed just here
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


def open_array(target: Path, shape: tuple[int, ...], mode: Literal["r", "r+"]) -> NDArray[np.uint8]:
    """The uint8 array of that shape in a file, memory-mapped; ValueError or OSError if it is not whole."""
    import numpy as np

    try:
        array = np.lib.format.open_memmap(target, mode=mode)
    except TokenError as error:  # numpy lets this one out
        raise ValueError(f"{target.name} has a damaged header") from error
    if array.shape != shape or array.dtype != np.uint8:
        raise ValueError(f"{target.name} is {array.dtype} {array.shape}, not uint8 {shape}")
    file_bytes = target.stat().st_size
    if file_bytes != array.offset + array.nbytes:
        raise ValueError(f"{target.name} has {file_bytes} bytes, not {array.offset + array.nbytes}")
    return array


def new_array(target: Path, shape: tuple[int, ...], what: str) -> NDArray[np.uint8]:
    """A new file with a uint8 array, memory-mapped, its disk space claimed.

    A memory map that meets a full disk later kills the process, mute. Raises UserError if there is no room.
    """
    import numpy as np

    size = math.prod(shape)
    require_room(target.parent, size, what)
    try:
        array = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
        with open(target, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, target.stat().st_size)
    except OSError as error:
        target.unlink(missing_ok=True)
        if error.errno not in _NO_ROOM:
            raise
        raise UserError(
            f"no room for {size / 1e9:.2f} GB of {what} in {target.parent.parent} ({error.strerror}): free "
            "some, choose another store, or store fewer or smaller clips"
        ) from error
    return array


@contextmanager
def said_of(folder: Path) -> Iterator[None]:
    """What keeps us from writing in a folder as a UserError; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM | _NO_PLACE:
            raise
        raise UserError(
            f"cannot write in {folder}: {error.strerror} ({error.filename or folder}); free some room there, "
            "ask for the right to write, or choose another store"
        ) from error
