"""Processes that decode the clips of coming steps into memory they share with the training loop.

Work is handed out clip by clip, so that one slow file keeps one worker busy and not a whole batch, and the
parent always knows which file a worker has in hand: a crash or a hang is reported with its name. Workers come
from a fork server, so no decoder, lock or thread of the parent crosses a fork; they ignore the signals that
tell a job to stop, which are the training loop's to answer, and end when the parent does.
"""

from __future__ import annotations

import contextlib
import mmap
import multiprocessing
import os
import signal
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import reduction
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from salt.errors import RunFailed
from salt.isolate import PRELOADED, START_LIMIT_S
from salt.signals import ASKING, shielded
from salt.video import VideoError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from salt.batches import Reader, Task

#: Clips in a worker's hands: the one that it decodes, and the next.
IN_HAND = 2


@dataclass(frozen=True)
class Job:
    """A clip to be decoded into row `row` of the shared memory; what else it says is its giver's business."""

    row: int
    step: int
    index: int
    tried: int
    task: Task


@dataclass(frozen=True)
class Report:
    """What became of a job; `reason` says why the file gave no clip."""

    job: Job
    reason: str | None


class SharedClips:
    """uint8 clips in memory that other processes map as well; pages are reserved when it is made.

    Where the system has `memfd_create` this memory belongs to no file system, so the size of /dev/shm, which
    containers keep small, does not matter. Raises RunFailed (`config`) if there is no room for it.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        if hasattr(os, "memfd_create"):
            self._file = os.memfd_create("salt-clips")
        else:
            with tempfile.TemporaryFile() as file:
                self._file = os.dup(file.fileno())
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self._file, 0, self.size_bytes)
            else:
                os.ftruncate(self._file, self.size_bytes)
        except OSError as error:
            os.close(self._file)
            raise RunFailed(
                "config",
                f"no room for {self.size_bytes / 1e9:.2f} GB of shared memory ({error.strerror}): lower "
                "micro_batch_clips, or ask for more memory",
            ) from error

    @property
    def size_bytes(self) -> int:
        size = 1
        for length in self.shape:
            size *= length
        return size

    def array(self) -> NDArray[np.uint8]:
        """The memory as an array; it keeps the mapping alive."""
        import numpy as np

        return np.frombuffer(mmap.mmap(self._file, self.size_bytes), dtype=np.uint8).reshape(self.shape)

    def close(self) -> None:
        os.close(self._file)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_attach, (self.shape, reduction.DupFd(self._file)))


def _attach(shape: tuple[int, ...], file: Any) -> SharedClips:
    clips = SharedClips.__new__(SharedClips)
    clips.shape, clips._file = shape, file.detach()
    return clips


class _Worker:
    """One process, the jobs it has in hand (oldest first) and when it last gave a sign of life."""

    def __init__(self, context: Any, memory: SharedClips, read: Reader) -> None:
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, memory, read), daemon=True)
        with shielded():
            self.process.start()
        theirs.close()
        self.in_hand: deque[Job] = deque()
        self.ready = False
        self.heard = time.monotonic()

    def deadline(self, limit_s: float) -> float:
        return self.heard + (limit_s if self.ready else START_LIMIT_S)

    def stop(self) -> None:
        self.connection.close()
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.process.close()


class Crew:
    """`workers` processes and the memory that they decode into, uint8 [rows, T, side, side, C].

    `read` is a function of a module, so that a process can import it; `limit_s` is the time that one clip may
    take.
    """

    def __init__(self, read: Reader, *, workers: int, shape: tuple[int, ...], limit_s: float = 120.0) -> None:
        self.limit_s = limit_s
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED, "torch", "salt.batches"])
        self._memory = SharedClips(shape)
        self.clips = self._memory.array()
        self._workers: list[_Worker] = []
        self._wake_up, self._wake = multiprocessing.Pipe(duplex=False)
        try:
            for _ in range(workers):
                self._workers.append(_Worker(context, self._memory, read))
        except BaseException:
            self.close()
            raise

    def hand_out(self, todo: deque[Job]) -> None:
        """Give the next jobs to whoever has least in hand."""
        while todo:
            worker = min(self._workers, key=lambda each: len(each.in_hand))
            if len(worker.in_hand) >= IN_HAND:
                return
            if not worker.in_hand and worker.ready:
                worker.heard = time.monotonic()
            worker.in_hand.append(todo.popleft())
            # If the worker is gone, `listen` finds out and says why.
            with contextlib.suppress(OSError):
                worker.connection.send((worker.in_hand[-1].row, worker.in_hand[-1].task))

    def listen(self) -> Iterator[Report]:
        """Wait for reports, or for `wake`.

        Raises:
            RunFailed: `data`: a worker died or took too long; the message names step and file.
            RuntimeError: a fault of the program in a worker, with its traceback.
        """
        busy = [worker for worker in self._workers if worker.in_hand]
        deadline = min((worker.deadline(self.limit_s) for worker in busy), default=None)
        timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        spoken = set(wait([self._wake_up, *(worker.connection for worker in self._workers)], timeout_s))
        for worker in self._workers:
            if worker.connection in spoken:
                try:
                    kind, value = worker.connection.recv()
                except (EOFError, OSError):
                    raise self._dead(worker) from None
                report = _heed(worker, kind, value)
                if report is not None:
                    yield report
            elif worker.in_hand and time.monotonic() > worker.deadline(self.limit_s):
                raise self._hung(worker)

    def wake(self) -> None:
        """End a `listen` in another thread."""
        self._wake.send(None)

    def close(self) -> None:
        """End the workers, whatever they do."""
        for worker in self._workers:
            worker.stop()
        self._workers.clear()
        self._memory.close()
        self._wake.close()
        self._wake_up.close()

    def _dead(self, worker: _Worker) -> RunFailed:
        worker.process.join()
        code = worker.process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        if how == "SIGKILL":
            how += ", which is how a machine short of memory ends processes"
        return RunFailed("data", f"{self._hands(worker)}: the process died ({how}){self._others(worker)}")

    def _hung(self, worker: _Worker) -> RunFailed:
        if not worker.ready:
            return RunFailed("data", f"a decoding process did not start within {START_LIMIT_S:g} s")
        what = f"took longer than {self.limit_s:g} s"
        return RunFailed("data", f"{self._hands(worker)} {what}{self._others(worker)}")

    def _hands(self, worker: _Worker) -> str:
        if not worker.in_hand:
            return "a decoding process with nothing to do"
        return f"step {worker.in_hand[0].step}: decoding {worker.in_hand[0].task.path}"

    def _others(self, worker: _Worker) -> str:
        others = [str(each.in_hand[0].task.path) for each in self._workers if each.in_hand and each != worker]
        return f"; other workers were at {', '.join(others)}" if others else ""


def _heed(worker: _Worker, kind: Literal["ready", "done", "error"], value: Any) -> Report | None:
    worker.heard = time.monotonic()
    if kind == "ready":
        worker.ready = True
        return None
    job = worker.in_hand.popleft()
    if kind == "error":
        raise RuntimeError(f"step {job.step}: a decoding process failed on {job.task.path}:\n{value}")
    return Report(job, value)


def _serve(connection: Connection, memory: SharedClips, read: Reader) -> None:
    """A worker's life: decode clip after clip, end when the parent closes the pipe or is gone."""
    for number in ASKING:
        signal.signal(number, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"  # as many workers as cores: no threads beneath them
    import torch

    torch.set_num_threads(1)
    clips = memory.array()
    try:
        connection.send(("ready", None))
        while True:
            row, task = connection.recv()
            reason = None
            try:
                clips[row] = task.run(read).numpy()
            except VideoError as error:
                reason = error.reason
            except Exception:  # noqa: BLE001 - goes whole to the parent, which raises it
                connection.send(("error", traceback.format_exc()))
                return
            connection.send(("done", reason))
    except (EOFError, OSError):
        return  # the parent has gone or wants no more


def available_bytes(root: Path = Path("/")) -> int | None:
    """Memory that this process may still take: the machine's and its control groups'. None if unknown."""
    found = []
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            mount = root / "sys/fs/cgroup"
            if not controllers:  # version 2
                found += _group_bytes(mount, name, "memory.max", "memory.current")
            elif "memory" in controllers.split(","):  # version 1 has a tree for each controller
                limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
                found += _group_bytes(mount / "memory", name, limit, used)
    return min(found, default=None)


def _group_bytes(mount: Path, name: str, limit: str, used: str) -> Iterator[int]:
    """What a control group and each one above it still give; a container may have its own at the mount."""
    group = mount / name.lstrip("/")
    for folder in [group, *group.parents]:
        with contextlib.suppress(OSError, ValueError, KeyError):  # "max" is no number: no limit
            most, taken = (int((folder / file).read_text()) for file in (limit, used))
            yield most - taken + _file_bytes(folder)
        if folder == mount:
            return


def _file_bytes(group: Path) -> int:
    """Pages of files that a control group has cached, which it gives up when memory is short."""
    counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    total = "total_" if "total_inactive_file" in counts else ""  # version 1: with the groups below
    return int(counts[f"{total}inactive_file"]) + int(counts[f"{total}active_file"])
