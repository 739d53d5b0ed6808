"""Work in processes of its own, item by item: a crash or a hang in one item costs that item and is named.

Video decoders end processes (native aborts) and hang. A pool that only knows that "a worker died" cannot
tell which file did it; here the parent knows which item each worker has in hand. Workers come from a fork
server, so they inherit no decoder, lock or thread of the parent.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Generic, TypeVar

from salt.signals import ASKING, shielded

T = TypeVar("T")
R = TypeVar("R")

#: Seconds a worker may take to start and import what it needs.
START_LIMIT_S = 120.0
#: Seconds in which a killed process is gone, unless the kernel holds it.
ENDING_LIMIT_S = 10.0
#: Items handed to a worker at once: fewer round trips, and messages far smaller than a pipe's buffer.
CHUNK = 16
#: Imported once, by the fork server, instead of by every worker. Imported only: no decoder is opened before
#: a fork.
#: Nothing of ours: the server looks in the current folder first, where another `salt` may lie.
PRELOADED = ["numpy", "av"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome(Generic[R]):
    """What became of item `index`: its value, or why its worker ended (`lost`)."""

    index: int
    value: R | None
    lost: str | None = None


class _Worker:
    """One process, the items it has in hand (oldest first) and when it last gave a sign of life."""

    def __init__(self, context: Any, work: Callable[[Any], Any], memory_bytes: int | None) -> None:
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(work, theirs, memory_bytes), daemon=True)
        with shielded():
            self.process.start()
        theirs.close()
        self.in_hand: deque[int] = deque()
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


def run_isolated(
    work: Callable[[T], R],
    items: Sequence[T],
    *,
    workers: int,
    limit_s: float,
    memory_bytes: int | None = None,
) -> Iterator[Outcome[R]]:
    """Yield one Outcome per item, in the order in which they finish.

    `work` is a function of a module, so that a process can import it; items are small (a path, numbers).
    `limit_s` is the time one item may take, `memory_bytes` what a worker may take beyond what it starts with
    (where the system has /proc). An item whose worker dies or runs past a limit comes back as lost and is not
    tried again. An exception in `work` is a fault of the program: it is raised here as
    RuntimeError with the worker's traceback.
    """
    if not items:
        return
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    todo = deque(range(len(items)))
    crew: list[_Worker] = []
    open_items = len(items)
    try:
        while open_items:
            busy = sum(1 for worker in crew if worker.in_hand)
            while todo and len(crew) < max(1, workers) and len(crew) - busy < len(todo):
                crew.append(_Worker(context, work, memory_bytes))
            for worker in crew:
                _hand_out(worker, todo, items, len(crew))
            for outcome in _listen(crew, todo, limit_s):
                open_items -= 1
                yield outcome
    finally:
        for worker in crew:
            worker.stop()


def _hand_out(worker: _Worker, todo: deque[int], items: Sequence[Any], crew_size: int) -> None:
    """Top a worker up when less than a chunk is in its hands; the end of the list is shared out evenly."""
    if len(worker.in_hand) >= CHUNK or not todo:
        return
    count = min(CHUNK, max(1, len(todo) // (2 * crew_size)))
    if not worker.in_hand and worker.ready:
        worker.heard = time.monotonic()
    chunk = [todo.popleft() for _ in range(min(count, len(todo)))]
    worker.in_hand.extend(chunk)
    # If the worker is gone, `_listen` finds out why and puts back what it had not begun.
    with contextlib.suppress(OSError):
        worker.connection.send([(index, items[index]) for index in chunk])


def _listen(crew: list[_Worker], todo: deque[int], limit_s: float) -> Iterator[Outcome[Any]]:
    """Wait for news; replaces nothing, but takes dead and hung workers out of the crew."""
    now = time.monotonic()
    busy = [worker for worker in crew if worker.in_hand]
    timeout_s = max(0.0, min(worker.deadline(limit_s) for worker in busy) - now)
    spoken = set(wait([worker.connection for worker in crew], timeout_s))
    for worker in list(crew):
        if worker.connection in spoken:
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                yield from _bury(crew, worker, todo, None)
                continue
            if message[0] == "memory":
                yield from _bury(crew, worker, todo, message[2])
                continue
            yield from _heed(worker, message)
        elif worker.in_hand and time.monotonic() > worker.deadline(limit_s):
            yield from _bury(crew, worker, todo, f"took longer than {limit_s:g} s")


def _heed(worker: _Worker, message: tuple[str, int, Any]) -> Iterator[Outcome[Any]]:
    kind, index, value = message
    worker.heard = time.monotonic()
    if kind == "ready":
        worker.ready = True
        return
    if kind == "error":
        raise RuntimeError(f"a worker process failed on item {index}:\n{value}")
    worker.in_hand.remove(index)
    yield Outcome(index, value)


def _bury(
    crew: list[_Worker], worker: _Worker, todo: deque[int], reason: str | None
) -> Iterator[Outcome[Any]]:
    """Take a worker out; the item it was at is lost, the ones behind it go back to the front of the queue."""
    crew.remove(worker)
    if reason is None:
        worker.process.join()
        code = worker.process.exitcode
        reason = f"its process died ({_exit_name(code)})"
        if not worker.ready:
            worker.stop()
            raise RuntimeError(f"a worker process ended while it started ({_exit_name(code)})")
    elif not worker.ready:
        worker.stop()
        raise RuntimeError(f"a worker process did not start within {START_LIMIT_S:g} s")
    worker.stop()
    if worker.in_hand:
        lost = worker.in_hand.popleft()
        todo.extendleft(reversed(worker.in_hand))
        yield Outcome(lost, None, reason)


def _exit_name(code: int | None) -> str:
    if code is not None and code < 0:
        return signal.Signals(-code).name
    return f"exit code {code}"


def _limit_memory(memory_bytes: int) -> None:
    """Let this process take that much more; then allocations fail, which ends most decoders in good order."""
    import resource

    try:
        with open("/proc/self/statm") as file:
            now_bytes = int(file.read().split()[5]) * resource.getpagesize()
    except OSError:
        return  # no way to tell what is in use already
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    limit = now_bytes + memory_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard < 0 else min(limit, hard), hard))


def _serve(work: Callable[[Any], Any], connection: Connection, memory_bytes: int | None) -> None:
    """A worker's life: take chunks, answer item by item, end when the parent closes the pipe."""
    for number in ASKING:  # they are the parent's to handle
        signal.signal(number, signal.SIG_IGN)
    os.environ["OMP_NUM_THREADS"] = "1"  # as many workers as cores: no threads beneath them
    if memory_bytes is not None:
        _limit_memory(memory_bytes)
    try:
        connection.send(("ready", -1, None))
        while True:
            for index, item in connection.recv():
                try:
                    value = work(item)
                except Exception as error:  # noqa: BLE001 - goes whole to the parent, which raises it
                    kind, said = "error", traceback.format_exc()
                    if memory_bytes is not None and isinstance(error, MemoryError):
                        kind, said = "memory", f"took more than {memory_bytes / 1e9:g} GB of memory"
                    connection.send((kind, index, said))
                    return
                connection.send(("done", index, value))
    except (EOFError, OSError):
        return  # the parent has gone or wants no more
