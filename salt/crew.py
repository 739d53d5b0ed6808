"""Processes that decode the clips of coming steps into memory they share with the training loop.

Work is handed out clip by clip, so that one slow file keeps one worker busy and not a whole batch, and the
parent always knows which file a worker has in hand: a crash or a hang costs that process, is reported with
the file's name, and another process goes on. Workers come
from a fork server, so no decoder, lock or thread of the parent crosses a fork; they ignore the signals that
tell a job to stop, which are the training loop's to answer, and end when the parent does.
"""

from __future__ import annotations

import contextlib
import logging
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

from salt import decoders
from salt.errors import RunFailed
from salt.isolate import ENDING_LIMIT_S, PRELOADED, START_LIMIT_S
from salt.signals import ASKING, shielded
from salt.video import VideoError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from salt.batches import Reader, Task

#: Clips in a worker's hands: the one that it decodes, and the next.
IN_HAND = 2
#: Workers that may die with nothing to do before that is no accident.
MOST_IDLE_DEATHS = 10

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """A clip to be decoded into row `row` of the shared memory; what else it says is its giver's business."""

    row: int
    step: int
    index: int
    tried: int
    task: Task
    lost_reason: str | None = None  # how an earlier decoder was lost at this clip
    served_by: str | None = None  # who decoded it, once it is done


@dataclass(frozen=True)
class Report:
    """What became of a job; `reason` says why the file gave no clip.

    `lost`: it ended or hung its process. `decoder` is who gave the clip, None if the reader does not say.
    """

    job: Job
    reason: str | None
    lost: bool = False
    decoder: str | None = None


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
        self.process.join(ENDING_LIMIT_S)
        if (
            self.process.is_alive()
        ):  # in the kernel, at a file system that does not answer: it ends when that does
            log.warning("a decoding process does not end yet")
            return
        self.process.close()


class Crew:
    """`workers` processes and the memory that they decode into, uint8 [rows, T, side, side, C].

    `read` is a function of a module, so that a process can import it; `limit_s` is the time that one clip may
    take.
    """

    def __init__(self, read: Reader, *, workers: int, shape: tuple[int, ...], limit_s: float = 120.0) -> None:
        self.limit_s = limit_s
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([*PRELOADED, "torch"])
        self._memory = SharedClips(shape)
        self.clips = self._memory.array()
        self._start = lambda: _Worker(context, self._memory, read)
        self._workers: list[_Worker] = []
        self._idle_deaths = 0
        self._wake_up, self._wake = multiprocessing.Pipe(duplex=False)
        try:
            for _ in range(workers):
                self._workers.append(self._start())
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

    def listen(self, todo: deque[Job]) -> Iterator[Report]:
        """Wait for reports, or for `wake`.

        A worker that dies or takes too long is replaced: the job that it was at is reported as lost, the ones
        behind it go back to the front of `todo`.

        Raises:
            RunFailed: `data`: a worker died as it started, or again and again with nothing to do.
            RuntimeError: a fault of the program in a worker, with its traceback.
        """
        busy = [worker for worker in self._workers if worker.in_hand]
        deadline = min((worker.deadline(self.limit_s) for worker in busy), default=None)
        timeout_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        spoken = set(wait([self._wake_up, *(worker.connection for worker in self._workers)], timeout_s))
        for worker in list(self._workers):
            report = None
            if worker.connection in spoken:
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    report = self._replace(worker, todo, _how_it_died(worker))
                else:
                    report = _heed(worker, *message)
            elif worker.in_hand and time.monotonic() > worker.deadline(self.limit_s):
                limit_s = self.limit_s if worker.ready else START_LIMIT_S
                report = self._replace(worker, todo, f"took longer than {limit_s:g} s")
            if report is not None:
                yield report

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

    def _replace(self, worker: _Worker, todo: deque[Job], how: str) -> Report | None:
        """Put a new process in a worker's place; what became of the job that it was at, if it had one."""
        if not worker.ready:
            raise RunFailed("data", f"a decoding process did not start: it {how}")
        self._idle_deaths += not worker.in_hand
        if self._idle_deaths > MOST_IDLE_DEATHS:
            raise RunFailed("data", f"decoding processes end with nothing to do; the last one {how}")
        worker.stop()  # before its row of the memory is used again
        self._workers[self._workers.index(worker)] = self._start()
        lost = worker.in_hand.popleft() if worker.in_hand else None
        todo.extendleft(reversed(worker.in_hand))
        where = "with nothing to do" if lost is None else f"at step {lost.step} on {lost.task.path}"
        log.warning("a decoding process %s %s; another one goes on", how, where)
        return None if lost is None else Report(lost, f"the decoder: {how}", lost=True)


def _how_it_died(worker: _Worker) -> str:
    worker.process.join()
    code = worker.process.exitcode
    how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
    if how == "SIGKILL":
        how += ", which is how a machine short of memory ends processes"
    return f"died ({how})"


def _heed(
    worker: _Worker, kind: Literal["ready", "done", "error"], value: Any, decoder: str | None = None
) -> Report | None:
    worker.heard = time.monotonic()
    if kind == "ready":
        worker.ready = True
        return None
    job = worker.in_hand.popleft()
    if kind == "error":
        raise RuntimeError(f"step {job.step}: a decoding process failed on {job.task.path}:\n{value}")
    return Report(job, value, decoder=decoder)


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
            connection.send(("done", reason, decoders.take_served()))
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
