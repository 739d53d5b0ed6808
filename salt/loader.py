"""Batches ahead of time: while the device works on one step, the next ones are made.

Stored clips are cropped by a thread of this process; streamed files are decoded by worker processes
(`salt.crew`). What comes, and in which order, is the same for any number of workers: `salt.batches` decides
it, this file only when.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch

from salt.batches import Batches
from salt.crew import Crew, Job, Report, available_bytes
from salt.errors import RunFailed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from salt.augment import Chances

#: Pieces that lie ready before the training loop asks, and pieces that workers are at.
READY, OPEN = 2, 2


@dataclass
class _Piece:
    """Neighbouring clips of a step that are handed over together."""

    step: int
    indices: NDArray[np.int64]
    chances: Chances
    slot: int = 0
    left: int = 0  # clips that are not decoded yet


@dataclass(frozen=True)
class _Made:
    step: int
    crops: torch.Tensor
    indices: NDArray[np.int64]


class Loader:
    """Iterates over (step, uint8 crops [n, T, side, side, C]) of `steps`, for these places of each batch.

    With `micro` a step comes in pieces of at most that many clips, in order; else whole. `indices` are the
    numbers of the clips last handed out, bad ones replaced. `workers` decode streamed clips; with none, and
    for stored clips, a thread does the work. `pin_memory` makes copies to a GPU asynchronous.

    It is a context manager; leaving it ends thread and workers, whatever the workers do.

    Raises, from the iteration:
        RunFailed: `data`: too many files are bad, or a worker died or took longer than `limit_s` for one
            clip; the message names the file and the step. `config`, on entering: too little memory.
    """

    def __init__(
        self,
        batches: Batches,
        steps: range,
        places: range | None = None,
        workers: int = 0,
        micro: int | None = None,
        *,
        limit_s: float = 120.0,
        pin_memory: bool = False,
    ) -> None:
        self.batches, self.steps = batches, steps
        self.places = batches.places(places)
        self.workers = workers if batches.streamed else 0
        self.piece_clips = min(len(self.places), micro or len(self.places))
        self.limit_s, self.pin_memory = limit_s, pin_memory
        self.indices: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._waited_s = 0.0
        self._made: SimpleQueue[_Made | Exception | None] = SimpleQueue()
        self._room = threading.Semaphore(READY)
        self._stop = threading.Event()
        self._crew: Crew | None = None
        self._thread = threading.Thread(target=self._run, name="salt-loader", daemon=True)
        self._ended: Exception | None = None

    def __enter__(self) -> Loader:
        self._require_memory()
        if self.workers:
            shape = (OPEN * self.piece_clips, *self.batches.crop_shape)
            self._crew = Crew(self.batches.read, workers=self.workers, shape=shape, limit_s=self.limit_s)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._room.release()
        if self._crew is not None:
            self._crew.wake()
        self._thread.join(self.limit_s)  # a decoder that hangs in this process cannot be ended
        if self._crew is not None:
            self._crew.close()

    def __iter__(self) -> Iterator[tuple[int, torch.Tensor]]:
        return self

    def __next__(self) -> tuple[int, torch.Tensor]:
        if self._ended is not None:
            raise self._ended
        began = time.perf_counter()
        made = self._made.get()
        self._waited_s += time.perf_counter() - began
        self._room.release()
        if not isinstance(made, _Made):
            self._ended = StopIteration() if made is None else made
            raise self._ended
        self.indices = made.indices
        return made.step, made.crops

    def wait_s(self) -> float:
        """Seconds that the training loop has waited for data since this was last asked."""
        waited, self._waited_s = self._waited_s, 0.0
        return waited

    @property
    def skipped(self) -> list[tuple[Path, str]]:
        """Files that gave no clip so far, each once, with the reason."""
        return list(self.batches.skips.reasons.items())

    def _require_memory(self) -> None:
        piece_bytes = self.piece_clips * math.prod(self.batches.crop_shape)
        pieces = READY + 1 + (OPEN if self.workers else 0)
        free = available_bytes()
        if free is not None and pieces * piece_bytes > free:
            raise RunFailed(
                "config",
                f"{pieces} x {self.piece_clips} clips under way are {pieces * piece_bytes / 1e9:.2f} GB, and "
                f"{free / 1e9:.2f} GB of memory are free: lower micro_batch_clips, or ask for more memory",
            )

    def _run(self) -> None:
        """The thread: make piece after piece, and hand over what ended it."""
        end: Exception | None = None
        try:
            for made in self._with_workers() if self._crew is not None else self._alone():
                self._room.acquire()
                if self._stop.is_set():
                    return
                self._made.put(made)
        except Exception as error:  # noqa: BLE001 - raised where the training loop asks for data
            end = error
        self._made.put(end)

    def _pieces(self) -> Iterator[_Piece]:
        for step in self.steps:
            indices = self.batches.indices(step, self.places)
            chances = self.batches.chances(step, self.places)
            for start in range(0, len(self.places), self.piece_clips):
                rows = slice(start, start + self.piece_clips)
                yield _Piece(step, indices[rows].copy(), chances[rows])

    def _alone(self) -> Iterator[_Made]:
        for piece in self._pieces():
            crops, taken = self.batches.take(piece.indices, piece.chances)
            yield _Made(piece.step, crops.pin_memory() if self.pin_memory else crops, taken)

    def _with_workers(self) -> Iterator[_Made]:
        assert self._crew is not None
        coming, free = self._pieces(), list(range(OPEN))
        under_way: deque[_Piece] = deque()
        todo: deque[Job] = deque()
        while not self._stop.is_set():
            while free and (piece := next(coming, None)) is not None:
                piece.slot, piece.left = free.pop(), len(piece.indices)
                under_way.append(piece)
                todo.extend(
                    self._job(piece, row, index, 0) for row, index in enumerate(piece.indices.tolist())
                )
            if not under_way:
                return
            if under_way[0].left == 0:
                piece = under_way.popleft()
                yield _Made(piece.step, self._copy(piece), piece.indices)
                free.append(piece.slot)
                continue
            self._crew.hand_out(todo)
            for report in self._crew.listen():
                again = self._heed(report, {each.slot: each for each in under_way})
                if again is not None:
                    todo.appendleft(again)

    def _heed(self, report: Report, pieces: dict[int, _Piece]) -> Job | None:
        """Note a clip that is done, or the next file in the place of a bad one."""
        job, skips = report.job, self.batches.skips
        piece, row = pieces[job.row // self.piece_clips], job.row % self.piece_clips
        skips.drawn += job.tried == 0
        if report.reason is None:
            piece.left -= 1
            return None
        skips.add(job.task.path, report.reason, job.tried)
        return self._job(piece, row, job.index, job.tried + 1)

    def _job(self, piece: _Piece, row: int, index: int, tried: int) -> Job:
        """Decode what stands for clip `index` after so many bad files."""
        piece.indices[row] = self.batches.replacement(index, tried)
        return Job(
            row=piece.slot * self.piece_clips + row,
            step=piece.step,
            index=index,
            tried=tried,
            task=self.batches.task(int(piece.indices[row]), piece.chances, row),
        )

    def _copy(self, piece: _Piece) -> torch.Tensor:
        """A piece out of the shared memory, which the workers fill again."""
        assert self._crew is not None
        first = piece.slot * self.piece_clips
        shared = torch.from_numpy(self._crew.clips[first : first + len(piece.indices)])
        return torch.empty(shared.shape, dtype=torch.uint8, pin_memory=self.pin_memory).copy_(shared)
