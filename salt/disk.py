"""What a disk can do to a run: fill up, run into a quota, turn read-only, go away; said in words, once."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from salt.errors import RunFailed
from salt.processes import may_be_in_use, temporary

#: What an error number means to a user, and the way out.
WORDS: dict[int, tuple[str, str]] = {
    errno.ENOSPC: ("no space is left", "free some room there, or move the store to a larger disk"),
    errno.EDQUOT: ("the disk quota is used up", "free some room, or ask for a larger quota"),
    errno.EFBIG: ("the file would be larger than allowed", "raise `ulimit -f`"),
    errno.EROFS: ("the file system is read-only", "have it mounted for writing, or use another store"),
    errno.ENOENT: ("the folder is gone", "bring the store back, mounted where it was"),
    errno.ESTALE: ("the network disk has lost the file", "see that the store is mounted as it was"),
    errno.EIO: ("the disk reports a fault", "have the disk looked at, or use another store"),
    errno.EACCES: ("writing is not permitted", "ask for the right to write there, or use another store"),
    errno.EPERM: ("writing is not permitted", "ask for the right to write there, or use another store"),
}

#: One that is this old was left by a process that is dead, whoever has its number now.
LEFT_AFTER_S = 600.0


class DiskFailed(RunFailed, OSError):
    """A write that failed, a `RunFailed` of kind `disk`; `errno` and `filename` as in the system's error."""

    def __init__(self, message: str, number: int | None = None, path: Path | None = None) -> None:
        RunFailed.__init__(self, "disk", message)
        self.errno = number
        self.strerror = None if number is None else os.strerror(number)
        self.filename = None if path is None else str(path)

    def __str__(self) -> str:
        return str(self.args[0])


def disk_failed(error: OSError, path: Path) -> DiskFailed:
    """The error of a write to `path`, in words: what happened, where, its name, the way out."""
    number = error.errno
    name = errno.errorcode.get(number, str(number)) if number is not None else type(error).__name__
    said, way_out = WORDS.get(number or 0, (error.strerror or str(error), "see to the place, then go on"))
    return DiskFailed(f"cannot write {path}: {said} ({name}); {way_out}", number, path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Whatever the system says inside against a write to `path` becomes `DiskFailed`."""
    try:
        yield
    except DiskFailed:
        raise
    except OSError as error:
        raise disk_failed(error, path) from error


def require_folder(folder: Path) -> None:
    """Raises `DiskFailed` for a folder that is gone: it is not made anew at an empty mount point."""
    if not folder.is_dir():
        raise disk_failed(FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)), folder)


def free_bytes(folder: Path) -> int:
    """Bytes that this user may still write on the disk of a folder; a quota is in it where the disk says."""
    with writing(folder):
        found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def file_limit_bytes() -> int | None:
    """The largest file that this process may write (`ulimit -f`), None without a limit."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def require_room(folder: Path, needed_bytes: int, largest_bytes: int, what: str) -> None:
    """Raises `DiskFailed` where `needed_bytes` in files of at most `largest_bytes` each do not fit.

    Free space is asked for, then the bytes are taken for a moment without being written, which also meets a
    quota. Disks that cannot do that (no `fallocate`) are taken by their word.
    """
    limit, free = file_limit_bytes(), free_bytes(folder)
    if limit is not None and largest_bytes > limit:
        raise DiskFailed(
            f"{what}: a file of {largest_bytes:,} bytes in {folder}, and this process may write files of "
            f"{limit:,} bytes ({free:,} are free on the disk): raise `ulimit -f`",
            errno.EFBIG,
            folder,
        )
    number = errno.ENOSPC if needed_bytes > free else _take(folder, needed_bytes, limit)
    if number is not None:
        said, way_out = WORDS[number]
        raise DiskFailed(
            f"{what}: {needed_bytes:,} bytes in {folder}, where {free:,} are free, and {said} "
            f"({errno.errorcode[number]}): {way_out}",
            number,
            folder,
        )


def _take(folder: Path, size: int, largest: int | None) -> int | None:
    """Take and give back `size` bytes; the error number if they are refused for want of room."""
    handles, number = [], None
    beside = temporary(folder / "room")
    try:
        with writing(folder):
            while size > 0 and number is None:
                handle = os.open(beside, os.O_CREAT | os.O_RDWR, 0o600)
                handles.append(handle)
                beside.unlink()  # it goes with its handle, however this process ends
                piece = min(size, largest or size)
                number = _fallocate(handle, piece)
                size -= piece
    finally:
        for handle in handles:
            os.close(handle)
    return number if number in (errno.ENOSPC, errno.EDQUOT) else None


def _fallocate(handle: int, size: int) -> int | None:
    """Linux's own call: `os.posix_fallocate` writes every block where a disk cannot do it."""
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if call is None:
        return None
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return ctypes.get_errno() if call(handle, 0, 0, size) != 0 else None


def remove_leftovers(folder: Path) -> list[Path]:
    """Remove temporaries that dead processes left in a run's folder and below; which they were.

    The caller holds the run's claim and has nothing half written itself. One of a process that may be alive,
    here or on another machine, stays until it is `LEFT_AFTER_S` old: a probe of a state takes no claim.
    """
    removed = []
    for path in sorted(folder.rglob(".*.tmp")):
        in_use = may_be_in_use(path.name)
        if in_use is None or path.name.startswith(".claim."):
            continue
        with writing(path), suppress(FileNotFoundError):
            if in_use and time.time() - path.stat().st_mtime < LEFT_AFTER_S:
                continue
            path.unlink()
            removed.append(path)
    return removed
