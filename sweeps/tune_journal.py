"""The trials of a tuning, in a journal that many processes on many machines append to.

Optuna's own journal file, which optuna-dashboard reads as it is, with two repairs: a line that a killed
process left half written is cut off before the next one is written, and a process whose lock was taken away
because it stood still does not fail when it goes on, nor takes away another's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.storages.journal._file import get_lock_file

#: A lock is taken away from a holder that has not moved for so long.
GRACE_S = 30
_TAIL = 1 << 16


class OwnLock(JournalFileOpenLock):
    """A lock file that is released only by who holds it, or broken after the grace time."""

    def __init__(self, path: str, grace_s: int) -> None:
        super().__init__(path, grace_s)
        self._mine: tuple[int, int] | None = None

    def acquire(self) -> bool:
        super().acquire()
        try:
            self._mine = _identity(self._lock_file)
        except FileNotFoundError:  # broken by another between the two: as if it had never been ours
            self._mine = (-1, -1)
        return True

    def release(self) -> None:
        """Give it back. While one is only waiting, this breaks the lock of a holder that stands still."""
        mine, self._mine = self._mine, None
        if mine is None:
            super().release()
            return
        try:
            if _identity(self._lock_file) == mine:
                super().release()
        except (FileNotFoundError, RuntimeError):
            pass  # taken away while this process stood still; what it wrote is there all the same


def _identity(path: str) -> tuple[int, int]:
    """Tells a lock file from the next one: file systems give a number that is free again at once."""
    about = os.stat(path)
    return about.st_ino, about.st_mtime_ns


class Journal(JournalFileBackend):
    """Appends whole lines only, after a torn last one is cut off."""

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)
        with get_lock_file(self._lock):
            with open(self._file_path, "r+b") as file:
                file.truncate(_whole(file))
            with open(self._file_path, "ab") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())

    def mend(self) -> int:
        """Cut off a torn last line; the bytes that were."""
        with get_lock_file(self._lock), open(self._file_path, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            end = _whole(file)
            file.truncate(end)
            return size - end


def _whole(file: Any) -> int:
    """Where the last whole line of a journal ends: one that ends in a newline and is JSON."""
    size = os.fstat(file.fileno()).st_size
    start = max(0, size - _TAIL)
    file.seek(start)
    tail = file.read()
    end = tail.rfind(b"\n") + 1
    while end:
        begin = tail.rfind(b"\n", 0, end - 1) + 1
        try:
            json.loads(tail[begin:end])
            return int(start + end)
        except ValueError:
            end = begin
    return start if start else 0


def open_journal(path: Path, grace_s: int = GRACE_S) -> JournalStorage:
    """The storage of a journal file, mended; made if it is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    journal = Journal(str(path), OwnLock(str(path), grace_s))
    journal.mend()
    return JournalStorage(journal)
