"""Inside a process that is to be disturbed: every write to the store is a moment, at which it may end.

`install` puts itself before `open`, `os.open`, `os.write`, `os.pwrite`, `os.fsync`, `os.replace`,
`os.unlink` and `os.mkdir`, for paths below one folder. A write is a moment twice: before it, and after half
of its bytes. Overwriting in place (`pwrite`) is one, and takes no room.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Hook = Callable[[], None]


class Moments:
    """Counts writes below `folder`; at number `kill_at` the process kills itself as `kill -9` does.

    With `room_bytes` the folder's disk has room for that many bytes more, and then is full. With `record`
    each moment is noted there, a line each.
    """

    def __init__(
        self,
        folder: Path,
        *,
        kill_at: int | None = None,
        room_bytes: int | None = None,
        record: Path | None = None,
    ) -> None:
        self.folder = str(folder)
        self.kill_at = kill_at
        self.room_bytes = room_bytes
        self.count = 0
        self.open_file = builtins.open
        self.descriptors: dict[int, str] = {}
        self._record = None if record is None else os.open(record, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._write_raw = os.write

    def covers(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)

    def pass_by(self, what: str, path: Any) -> None:
        """One moment: the process may not survive it."""
        if self._record is not None:
            self._write_raw(self._record, f"{what} {os.fspath(path)}\n".encode())
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.count += 1

    def write(self, data: Any, path: Any, write: Callable[[Any], int]) -> int:
        """A write through `write`: a moment before it, one after half of it; no more than there is room."""
        view = memoryview(data).cast("B")
        self.pass_by("write", path)
        if self.count == self.kill_at:
            write(view[: len(view) // 2])
        self.pass_by("half-write", path)
        if self.room_bytes is not None:
            if len(view) > self.room_bytes:
                written = write(view[: self.room_bytes]) if self.room_bytes else 0
                self.room_bytes -= written
                if written:
                    return written
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))
            self.room_bytes -= len(view)
        return write(view)

    def install(self) -> None:
        """Take the places of the functions that write, in this process, for the rest of its life."""
        builtins.open = self._open  # type: ignore[assignment]
        io.open = self._open  # type: ignore[assignment]
        real_open, real_write, real_close, real_pwrite = os.open, os.write, os.close, os.pwrite

        def counted_open(path: Any, flags: int, *args: Any, **more: Any) -> int:
            if not (self.covers(path) and flags & (os.O_WRONLY | os.O_RDWR)):
                return real_open(path, flags, *args, **more)
            self.pass_by("open", path)
            descriptor = real_open(path, flags, *args, **more)
            self.descriptors[descriptor] = os.fspath(path)
            return descriptor

        def counted_write(descriptor: int, data: Any) -> int:
            path = self.descriptors.get(descriptor)
            if path is None:
                return real_write(descriptor, data)
            return self.write(data, path, lambda view: real_write(descriptor, view))

        def counted_close(descriptor: int) -> None:
            self.descriptors.pop(descriptor, None)
            real_close(descriptor)

        def counted_pwrite(descriptor: int, data: Any, offset: int) -> int:
            path = self.descriptors.get(descriptor)
            if path is not None:
                self.pass_by("pwrite", path)
            return real_pwrite(descriptor, data, offset)

        os.open, os.write, os.close, os.pwrite = counted_open, counted_write, counted_close, counted_pwrite
        for name in ("replace", "rename", "unlink", "mkdir", "rmdir"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        real_sync = os.fsync

        def counted_sync(file: Any) -> None:
            descriptor = file if isinstance(file, int) else file.fileno()
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if self.covers(path):
                self.pass_by("fsync", path)
            real_sync(file)

        os.fsync = counted_sync

    def _counted(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def counted(path: Any, *args: Any, **more: Any) -> Any:
            if self.covers(path):
                self.pass_by(name, path)
            return real(path, *args, **more)

        return counted

    def _open(self, file: Any, mode: str = "r", buffering: int = -1, *args: Any, **more: Any) -> Any:
        if not (self.covers(file) and set(mode) & set("wax+")):
            return self.open_file(file, mode, buffering, *args, **more)
        self.pass_by("open", file)
        raw = _Counted(self, os.fspath(file), mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        text = dict(zip(("encoding", "errors", "newline"), args, strict=False)) | more
        return io.TextIOWrapper(buffered, **text)


class _Counted(io.FileIO):
    """A file whose writes are moments."""

    def __init__(self, moments: Moments, path: str, mode: str) -> None:
        super().__init__(path, mode)
        self._moments, self._path = moments, path

    def write(self, data: Any) -> int:
        return self._moments.write(data, self._path, super().write)


def shift_clock(seconds: float) -> None:
    """Let this process read a clock that is off by so much."""
    real = time.time
    time.time = lambda: real() + seconds


def limit_files(largest_bytes: int) -> None:
    """No file of this process may grow past that size (`ulimit -f`, to the byte)."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_bytes, resource.RLIM_INFINITY))
