"""The latents of a frozen teacher for a fixed number of views of each clip: encoded once, read in training.

`salt.target_files` has the files. A cache is built shard by shard in `<key>.building`, which is renamed when
all are there: it is whole or absent, and a build that was killed goes on after its last whole shard.
Processes that want the same cache build it together: each shard has a lock, and who finds one held takes the
next.
"""

from __future__ import annotations

import logging
import mmap
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from salt.errors import RunFailed
from salt.progress import progress as shown_progress
from salt.signals import STOP
from salt.specs import RunSpec
from salt.store import pretty_json, write_atomically
from salt.target_files import (
    SHARD_BYTES,
    Storage,
    TargetIndex,
    file_lock,
    flush_folder,
    is_whole,
    no_room,
    read_index,
    remove_leftovers,
    shard_path,
    target_identity,
    target_index,
    targets_path,
    write_shard,
)

if TYPE_CHECKING:
    from salt.batches import Batches
    from salt.learner import Masks

#: Caches up to this size are held against their checksums whenever they are opened.
CHECKED_BYTES = 256 * 2**20
#: Linux fetches no more at a call than its read-ahead, which is this unless it has been set.
AHEAD_BYTES = 128 * 2**10
#: Largest error, relative in the root mean square, of rows that are encoded again when a cache is opened.
FLOAT32_TOLERANCE = 1e-3
HALF_TOLERANCE = 5e-2

#: (clip numbers int64 [n], view) -> uint8 [n, T, side, side, C]: a pure function, `Batches.view_crops`.
ViewCrops = Callable[[NDArray[np.int64], int], Any]
#: uint8 [n, T, side, side, C] -> the teacher's latents [n, N, D], on any device, before the layer norm.
Encode = Callable[[torch.Tensor], torch.Tensor]

_TENSOR_TYPES: dict[Storage, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

log = logging.getLogger(__name__)


class CachedTargets:
    """An open cache. Reading is thread-safe; a copy sent to another process opens the files itself.

    `encoded_rows` counts the clip-views that this process encoded to build it, `encoded_flops` their FLOPs.
    """

    def __init__(self, folder: Path, index: TargetIndex, encoded_rows: int = 0) -> None:
        self.folder = folder
        self.index = index
        self.encoded_rows = encoded_rows
        self.encoded_flops = index.teacher_flops // index.rows * encoded_rows
        self._shards: list[tuple[mmap.mmap, NDArray[Any]] | None] = [None] * index.shards

    def __reduce__(self) -> tuple[Any, ...]:
        return CachedTargets, (self.folder, self.index, self.encoded_rows)

    def read(
        self, clips: NDArray[np.int64], views: NDArray[np.int64], target_index: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Latents of clips [B] in views [B], in the stored type, [B, N, D]; or those of target tokens only.

        `target_index`, int64 [k * B, M] on the CPU, holds k masks stacked as for `take_tokens`; then
        [k * B, M, D], and only those tokens are read. Raises ValueError for what is not in the cache.
        """
        storage, count, rows = self.index.identity.storage, len(clips), self._rows(clips, views)
        if target_index is None:
            out = np.empty((count, self.index.tokens, self.index.width), dtype=self.index.file_type)
            for place, row in enumerate(rows):
                out[place] = self._row(row)
            return _as_tensor(out, storage)
        wanted = target_index.numpy()
        if count == 0 or len(wanted) % count:
            raise ValueError(f"{len(wanted)} lists of target tokens are not a multiple of {count} clips")
        _check_range("target token", wanted, self.index.tokens)
        out = np.empty((*wanted.shape, self.index.width), dtype=self.index.file_type)
        for place, chosen in enumerate(wanted):
            # The range is checked above: `clip` only keeps numpy from filling a buffer first.
            np.take(self._row(rows[place % count]), chosen, axis=0, out=out[place], mode="clip")
        return _as_tensor(out, storage)

    def verify(self) -> None:
        """Read all of it and hold it against its checksums. Raises `RunFailed` that names what is damaged."""
        for shard in range(self.index.shards):
            if not is_whole(self.folder, self.index, shard, deep=True):
                path = shard_path(self.folder, shard)
                raise RunFailed("teacher", f"cached targets in {path} are damaged: remove that file")

    def ahead(self, clips: NDArray[np.int64], views: NDArray[np.int64]) -> None:
        """Have the system fetch these clips [B] in views [B] from disk meanwhile; returns at once."""
        for row in self._rows(clips, views):
            shard, place = divmod(row, self.index.shard_rows)
            mapped, _ = self._open(shard)
            start = len(self.index.header(shard)) + place * self.index.row_bytes
            end = start + self.index.row_bytes
            for piece in range(start - start % mmap.PAGESIZE, end, AHEAD_BYTES):
                mapped.madvise(mmap.MADV_WILLNEED, piece, min(AHEAD_BYTES, end - piece))

    def _rows(self, clips: NDArray[np.int64], views: NDArray[np.int64]) -> list[int]:
        identity = self.index.identity
        _check_range("clip", clips, identity.clips)
        _check_range("view", views, identity.views)
        rows: list[int] = (np.asarray(views, dtype=np.int64) * identity.clips + clips).tolist()
        return rows

    def _row(self, row: int) -> NDArray[Any]:
        shard, place = divmod(row, self.index.shard_rows)
        values: NDArray[Any] = self._open(shard)[1][place]
        return values

    def _open(self, shard: int) -> tuple[mmap.mmap, NDArray[Any]]:
        """A shard's memory map and its values [rows, N, D]; opened when first wanted."""
        opened = self._shards[shard]
        if opened is None:
            with open(shard_path(self.folder, shard), "rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            shape = (len(self.index.shard_range(shard)), self.index.tokens, self.index.width)
            start, kind = len(self.index.header(shard)), self.index.file_type
            opened = self._shards[shard] = (mapped, np.ndarray(shape, kind, mapped, start))
        return opened


class StepTargets:
    """A run's cached targets as its training loop asks for them: by step and places in the batch."""

    def __init__(self, cached: CachedTargets, batches: Batches, device: torch.device) -> None:
        self.cached, self.batches, self.device = cached, batches, device

    def read(self, step: int, places: range, masks: Masks) -> torch.Tensor | list[torch.Tensor]:
        """Latents for `Learner.outcome`, on the device; `masks` are those of the step on the CPU.

        Of each group of masks its target tokens, [k * B, M, D]. Where these are more than the tokens of the
        clips, and would all have to travel to a device, whole clips instead, [B, N, D]. The next step's clips
        are fetched from disk while this one computes.
        """
        clips, views = self.batches.indices(step, places), self.batches.views(step, places)
        whole = len(places) * self.cached.index.tokens
        latents: torch.Tensor | list[torch.Tensor]
        if self.device.type != "cpu" and sum(target.numel() for target in masks.target) > whole:
            latents = self.cached.read(clips, views).to(self.device)
        else:
            latents = [self.cached.read(clips, views, target).to(self.device) for target in masks.target]
        self.cached.ahead(self.batches.indices(step + 1, places), self.batches.views(step + 1, places))
        return latents


def open_targets(
    cache: Path,
    spec: RunSpec,
    teacher_sha256: str,
    rows: Sequence[str],
    view_crops: ViewCrops,
    encode: Encode,
    *,
    storage: Storage | None = None,
    chunk_clips: int = 16,
    shard_bytes: int = SHARD_BYTES,
    checked_rows: int = 3,
    show: bool = True,
) -> CachedTargets:
    """The cached targets of a run, encoded first where they are missing, `chunk_clips` at a time.

    `rows` names each clip of the run's list in order. `checked_rows` clip-views drawn at random are encoded
    again, whoever built the cache, and must be as stored.

    Raises:
        RunFailed: `disk`, there is no room; `teacher`, what is stored is not what this teacher says of these
            views, or is not finite.
    """
    wanted = target_index(spec, target_identity(spec, teacher_sha256, rows, storage), shard_bytes)
    folder = targets_path(cache, wanted.identity)
    encoded_rows = 0
    found = _load(folder, wanted)
    if found is None:
        encoded_rows = _build(folder, wanted, view_crops, encode, chunk_clips, show)
        found = _load(folder, wanted)
    if found is None:
        raise RuntimeError(f"{folder} was written and cannot be read back")
    targets = CachedTargets(folder, found, encoded_rows)
    _check_rows(targets, view_crops, encode, checked_rows)
    return targets


def _load(folder: Path, wanted: TargetIndex) -> TargetIndex | None:
    """The index of a finished cache; None if it is absent or broken, which is logged."""
    index = read_index(folder, wanted) if folder.is_dir() else None
    if index is None:
        return None
    broken = sum(not is_whole(folder, index, shard, deep=_is_small(index)) for shard in range(index.shards))
    if broken:
        log.warning("cached targets in %s: %d shards are broken: encoding them again", folder, broken)
    return None if broken else index


def _is_small(index: TargetIndex) -> bool:
    return index.rows * index.row_bytes <= CHECKED_BYTES


def _build(
    folder: Path, wanted: TargetIndex, view_crops: ViewCrops, encode: Encode, chunk_clips: int, show: bool
) -> int:
    """Encode what is missing, beside whoever else does; the rows that this process encoded."""
    building, lock = folder.with_name(f"{folder.name}.building"), folder.with_name(f"{folder.name}.lock")
    # Beside what is built, so that a lock taken at the last moment is not published with it.
    locks = folder.with_name(f"{folder.name}.locks")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(lock):
        if _load(folder, wanted) is not None:
            return 0
        index = _prepare(folder, building, wanted)
        locks.mkdir(exist_ok=True)
    missing = [shard for shard in range(index.shards) if not is_whole(building, index, shard)]
    total, encoded_rows = sum(len(index.shard_range(shard)) for shard in missing), 0
    try:
        _require_room(building, index, total)
    except FileNotFoundError:
        if not folder.is_dir():  # else another process has just published it
            raise
    with shown_progress("encode cached targets", total, show) as advance:

        def fill(shard: int, wait: bool) -> bool | None:
            """Encode a shard. False if it was done by another process, None if one is at it."""
            try:
                with file_lock(locks / f"{shard:05d}.lock", wait=wait) as held:
                    if held is False:
                        return None
                    if is_whole(building, index, shard):
                        return False
                    if held:
                        remove_leftovers(building, shard)
                    pieces = _encoded(index, shard, view_crops, encode, chunk_clips, advance)
                    write_shard(building, index, shard, pieces)
            except FileNotFoundError:
                if folder.is_dir():  # another process found all of them done, and renamed the folder
                    return False
                raise
            return True

        # First what nobody else is at, then what others were at, and may have left undone.
        for wait in (False, True):
            for shard in tuple(missing):
                encoded = fill(shard, wait)
                if encoded is None:
                    continue
                missing.remove(shard)
                count = len(index.shard_range(shard))
                if encoded:
                    encoded_rows += count
                else:
                    advance(count)
    with file_lock(lock):
        _publish(building, folder)
        shutil.rmtree(locks, ignore_errors=True)  # another process may just be opening one
    return encoded_rows


def _prepare(folder: Path, building: Path, wanted: TargetIndex) -> TargetIndex:
    """Make the folder to build in, or take over one that was left, with its whole shards; its index."""
    if folder.is_dir():  # broken, else it would have been loaded
        shutil.rmtree(building, ignore_errors=True)
        os.rename(folder, building)
    index = read_index(building, wanted) if building.is_dir() else None
    if index is None:
        if building.exists():
            shutil.rmtree(building)
        building.mkdir()
        write_atomically(building / "index.json", pretty_json(wanted))
        return wanted
    if _is_small(index):
        for shard in range(index.shards):
            if not is_whole(building, index, shard, deep=True):
                shard_path(building, shard).unlink(missing_ok=True)
    return index


def _publish(building: Path, folder: Path) -> None:
    """Give a finished folder its name, unless another process has."""
    if folder.is_dir():
        return
    try:
        os.rename(building, folder)
    except FileNotFoundError:  # a file system without locks
        if not folder.is_dir():
            raise
    flush_folder(folder.parent)


def _require_room(building: Path, index: TargetIndex, rows: int) -> None:
    """Refuse to begin what the disk cannot hold. Raises `RunFailed`."""
    wanted_bytes, free_bytes = rows * index.row_bytes, shutil.disk_usage(building).free
    if wanted_bytes > free_bytes:
        why = f"{wanted_bytes / 1e9:,.2f} GB are still to be written and {free_bytes / 1e9:,.2f} GB are free"
        raise no_room(building, index, why)


def _encoded(
    index: TargetIndex,
    shard: int,
    view_crops: ViewCrops,
    encode: Encode,
    chunk_clips: int,
    advance: Callable[[int], None],
) -> Iterator[NDArray[Any]]:
    """The rows of a shard, [n, N, D] in the file's type, in chunks of clips of one view."""
    clips, rows = index.identity.clips, index.shard_range(shard)
    row = rows.start
    while row < rows.stop:
        STOP.check()
        view, first = divmod(row, clips)
        count = min(chunk_clips, rows.stop - row, clips - first)
        latents = _encode(index, view_crops, encode, np.arange(first, first + count), view)
        values = latents.to(_TENSOR_TYPES[index.identity.storage])
        if not bool(torch.isfinite(values).all()):
            raise RunFailed(
                "teacher",
                f"latents of clips {first} to {first + count - 1} in view {view} are not finite as "
                f"{index.identity.storage}: the teacher has diverged, or float32 is needed",
            )
        yield (
            (values.view(torch.int16) if values.dtype == torch.bfloat16 else values)
            .numpy()
            .view(index.file_type)
        )
        advance(count)
        row += count


def _encode(
    index: TargetIndex, view_crops: ViewCrops, encode: Encode, clips: NDArray[np.int64], view: int
) -> torch.Tensor:
    """The teacher's latents of some clips in one view, float32 [n, N, D] on the CPU."""
    with torch.no_grad():
        latents = encode(torch.as_tensor(view_crops(clips, view))).float().cpu()
    if latents.shape != (len(clips), index.tokens, index.width):
        raise ValueError(f"the teacher gave {tuple(latents.shape)}, not [n, {index.tokens}, {index.width}]")
    return latents


def _check_rows(targets: CachedTargets, view_crops: ViewCrops, encode: Encode, count: int) -> None:
    """Encode clip-views drawn at random again; raises `RunFailed` if the cache says otherwise."""
    index, identity = targets.index, targets.index.identity
    exact = identity.precision == identity.storage == "float32"
    limit = FLOAT32_TOLERANCE if exact else HALF_TOLERANCE
    # Drawn afresh at every start, on purpose: many starts see many rows. No number of the run depends on it.
    for row in np.random.default_rng().integers(0, index.rows, count).tolist():
        view, clip = divmod(row, identity.clips)
        wanted = _encode(index, view_crops, encode, np.array([clip]), view)
        stored = targets.read(np.array([clip]), np.array([view])).float()
        error = float((stored - wanted).norm() / wanted.norm().clamp_min(1e-30))
        if not error <= limit:
            raise RunFailed(
                "teacher",
                f"cached targets in {targets.folder} are not the teacher's for clip {clip}, view {view}"
                f" (relative error {error:.2g}, allowed {limit:g}): videos, crops or code have changed under "
                "the same name; remove that folder to encode them again",
            )


def _check_range(name: str, numbers: NDArray[np.int64], end: int) -> None:
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < end:
        raise ValueError(f"{name} numbers {numbers.min()} to {numbers.max()} are not all from 0 to {end - 1}")


def _as_tensor(values: NDArray[Any], storage: Storage) -> torch.Tensor:
    if storage == "bfloat16":
        return torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(values)
