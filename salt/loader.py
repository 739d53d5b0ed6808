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
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import torch

from salt import decoders
from salt.batches import Batches
from salt.crew import Crew, Job, Report, available_bytes
from salt.errors import RunFailed
from salt.quarantine import Lost, Quarantine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from salt.augment import Chances

#: Pieces that lie ready before the training loop asks, and pieces that workers are at.
READY, OPEN = 2, 2


@dataclass
class _Piece:
    """Neighbouring clips of a step that are handed over together, from place `place` of its batch on."""

    step: int
    place: int
    indices: NDArray[np.int64]
    chances: Chances
    slot: int = 0
    waiting: dict[int, Job] = field(default_factory=dict)  # by row, what is not decoded yet
    done: dict[int, Job] = field(default_factory=dict)


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

    A file whose worker dies, or takes longer than `limit_s` for one clip, is tried by the next decoder; where
    there is none it is bad from that draw on, as `quarantine` keeps.

    It is a context manager; leaving it ends thread and workers, whatever the workers do.

    Raises, from the iteration:
        RunFailed: `data`: too many files are bad; the message names the last. `config`, on entering: too
            little memory.
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
        quarantine: Quarantine | None = None,
    ) -> None:
        self.batches, self.steps = batches, steps
        self.places = batches.places(places)
        self.workers = workers if batches.streamed else 0
        self.piece_clips = min(len(self.places), micro or len(self.places))
        self.limit_s, self.pin_memory = limit_s, pin_memory
        self.quarantine = Quarantine() if quarantine is None else quarantine
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

    @property
    def decoders(self) -> dict[str, int]:
        """Streamed clips made so far, by who decoded them."""
        return dict(self.batches.skips.decoders)

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
                yield _Piece(step, self.places.start + start, indices[rows].copy(), chances[rows])

    def _alone(self) -> Iterator[_Made]:
        for piece in self._pieces():
            crops, taken = self.batches.take(piece.indices, piece.chances, partial(self._known, piece))
            yield _Made(piece.step, crops.pin_memory() if self.pin_memory else crops, taken)

    def _with_workers(self) -> Iterator[_Made]:
        assert self._crew is not None
        coming, free = self._pieces(), list(range(OPEN))
        under_way: deque[_Piece] = deque()
        todo: deque[Job] = deque()
        while not self._stop.is_set():
            while free and (piece := next(coming, None)) is not None:
                piece.slot = free.pop()
                under_way.append(piece)
                self.batches.skips.drawn += len(piece.indices)
                todo.extend(
                    self._job(piece, row, index, 0) for row, index in enumerate(piece.indices.tolist())
                )
            if not under_way:
                return
            if not under_way[0].waiting:
                piece = under_way.popleft()
                for job in piece.done.values():
                    self.batches.skips.note_served(job.served_by)
                yield _Made(piece.step, self._copy(piece), piece.indices)
                free.append(piece.slot)
                continue
            self._crew.hand_out(todo)
            for report in self._crew.listen(todo):
                self._heed(report, under_way, todo)

    def _heed(self, report: Report, under_way: deque[_Piece], todo: deque[Job]) -> None:
        """Note a clip that is done, or what is to be tried in the place of one that is not."""
        job, reason = report.job, report.reason
        piece = next(each for each in under_way if each.slot == job.row // self.piece_clips)
        row = job.row % self.piece_clips
        following = decoders.following(job.task.decoder) if report.lost else None
        if following is not None:
            task = replace(job.task, decoder=following)
            again = replace(job, task=task, lost_reason=job.lost_reason or reason)
            piece.waiting[row] = again
            todo.appendleft(again)
            return
        first_lost = job.lost_reason or (reason if report.lost else None)
        if first_lost is not None:
            self._lose(piece, row, first_lost, job.task.decoder if reason is None else None)
        known = self._known(piece, int(piece.indices[row]), row)
        if known is not None and known.decoder is None:
            reason = known.reason
        if reason is None:
            piece.done[row] = replace(job, served_by=report.decoder)
            del piece.waiting[row]
        else:
            self.batches.skips.add(job.task.path, reason, job.tried)
            todo.appendleft(self._job(piece, row, job.index, job.tried + 1))
        if first_lost is not None:
            self._review(under_way, todo)

    def _known(self, piece: _Piece, index: int, row: int) -> Lost | None:
        """What is known of the file of clip `index` at row `row` of a piece."""
        return self.quarantine.verdict(self.batches.first_clip(index), piece.step, piece.place + row)

    def _lose(self, piece: _Piece, row: int, reason: str, decoder: str | None) -> None:
        """Put a file into quarantine; `decoder` serves it instead."""
        index = int(piece.indices[row])
        known = self._known(piece, index, row)
        if known is not None and known.decoder == decoder:
            return  # another worker had it in hand as well
        self.quarantine.add(
            Lost(
                clip=self.batches.first_clip(index),
                path=str(self.batches.file(index)),
                reason=reason,
                decoder=decoder,
                step=piece.step,
                place=piece.place + row,
                first_place=self.places.start,
                places=len(self.places),
            )
        )

    def _review(self, under_way: deque[_Piece], todo: deque[Job]) -> None:
        """Bring clips that are not handed over yet in line with the quarantine, wherever they have got to.

        What workers have in hand is seen to when they report.
        """
        pieces = {each.slot: each for each in under_way}
        for _ in range(len(todo)):
            job = todo.popleft()
            piece, row = pieces[job.row // self.piece_clips], job.row % self.piece_clips
            known = self._known(piece, int(piece.indices[row]), row)
            todo.append(job if known is None else self._job(piece, row, job.index, job.tried))
        for piece in under_way:
            for row, job in list(piece.done.items()):
                known = self._known(piece, int(piece.indices[row]), row)
                if known is not None and known.decoder is None:
                    del piece.done[row]
                    todo.appendleft(self._job(piece, row, job.index, job.tried))

    def _job(self, piece: _Piece, row: int, index: int, tried: int) -> Job:
        """Decode what stands for clip `index` after so many bad files, and those known to be bad."""
        known = None
        while True:
            clip = self.batches.replacement(index, tried)
            known = self._known(piece, clip, row)
            if known is None or known.decoder is not None:
                break
            self.batches.skips.add(self.batches.file(clip), known.reason, tried)
            tried += 1
        piece.indices[row] = clip
        job = Job(
            row=piece.slot * self.piece_clips + row,
            step=piece.step,
            index=index,
            tried=tried,
            task=self.batches.task(clip, piece.chances, row, None if known is None else known.decoder),
        )
        piece.waiting[row] = job
        return job

    def _copy(self, piece: _Piece) -> torch.Tensor:
        """A piece out of the shared memory, which the workers fill again."""
        assert self._crew is not None
        first = piece.slot * self.piece_clips
        shared = torch.from_numpy(self._crew.clips[first : first + len(piece.indices)])
        return torch.empty(shared.shape, dtype=torch.uint8, pin_memory=self.pin_memory).copy_(shared)
