"""The decode-once store: every clip of a list as one memory-mapped uint8 array.

    <cache>/clips/<key>/{clips.npy, index.json}

`key` hashes the list's fingerprint and what decoding depends on; crop, mean and std are applied later, per
epoch. A folder is built under another name, flushed to disk and renamed, so it is whole or absent. Two
builders at once are harmless: the second waits for the first where the file system has locks, and throws
its own work away where it has none.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from salt.errors import UserError
from salt.isolate import run_isolated
from salt.lists import VideoList, data_spec, read_list
from salt.progress import progress as shown_progress
from salt.specs import ClipSpec, Spec
from salt.store import pretty_json, write_atomically
from salt.video import DecodedClip, VideoError, decode, decodes_a_frame

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Raised by hand when decoding or resizing changes the stored pixels.
DECODING = 1

log = logging.getLogger(__name__)


class DecodeSpec(Spec, kw_only=True):
    """The part of a ClipSpec that the stored pixels depend on."""

    frames: int
    frame_stride: int
    store_px: int
    channels: int
    short_clips: str
    decoding: int = DECODING


class Skipped(Spec, kw_only=True):
    """A row that gave no clip."""

    line: int
    path: str
    reason: str


class ClipIndex(Spec, kw_only=True):
    """`index.json`: what the rows of clips.npy are."""

    fingerprint: str
    decode: DecodeSpec
    folder: str  # of the list when the store was built
    rows: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    skipped: tuple[Skipped, ...]
    padded_frames: int


@dataclass(frozen=True)
class Clips:
    """The clips of a list that decoded, in the list's order. All tuples have one item per clip."""

    frames: NDArray[np.uint8]  # [N, frames, store_px, store_px, channels], a read-only memory map
    files: tuple[Path, ...]
    rows: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    skipped: tuple[tuple[Path, str], ...]
    fingerprint: str
    padded_share: float  # of all frames, repeats made up by the short-clip policy

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def groups(self) -> tuple[str, ...]:
        """The source each clip comes from: the column `group`, else its path."""
        return self.columns.get("group", self.rows)

    def labels(self, column: str) -> tuple[str, ...]:
        """A label column. Raises UserError if the list has none of that name."""
        if column not in self.columns:
            have = ", ".join(self.columns) or "none, so it serves for pretraining only"
            raise UserError(f"no label column {column!r} in the list; it has {have}")
        return self.columns[column]


def clips_path(cache: Path, fingerprint: str, clip: ClipSpec) -> Path:
    """The folder of a list's clips."""
    identity = msgspec.json.encode([fingerprint, _decode_spec(clip)], order="sorted")
    return Path(cache) / "clips" / hashlib.sha256(identity).hexdigest()[:16]


def load_clips(cache: Path, fingerprint: str, clip: ClipSpec) -> Clips | None:
    """Open clips that were decoded before, without the list or its files; None if absent or broken.

    Costs milliseconds. Broken means: wrong shape, type, size or identity; it is logged, and `open_clips`
    decodes again.
    """
    import numpy as np

    folder = clips_path(cache, fingerprint, clip)
    if not folder.is_dir():
        return None
    wanted = _decode_spec(clip)
    try:
        index = msgspec.json.decode((folder / "index.json").read_bytes(), type=ClipIndex)
        if (index.fingerprint, index.decode) != (fingerprint, wanted):
            raise ValueError("index.json is of another list or clip")
        frames = np.load(folder / "clips.npy", mmap_mode="r", allow_pickle=False)
        shape = (len(index.rows), wanted.frames, wanted.store_px, wanted.store_px, wanted.channels)
        if frames.shape != shape or frames.dtype != np.uint8:
            raise ValueError(f"clips.npy is {frames.dtype} {frames.shape}, not uint8 {shape}")
        file_bytes = (folder / "clips.npy").stat().st_size
        if file_bytes != frames.offset + frames.nbytes:
            raise ValueError(f"clips.npy has {file_bytes} bytes, not {frames.offset + frames.nbytes}")
        if any(len(column) != len(index.rows) for column in index.columns.values()):
            raise ValueError("index.json has columns of unequal length")
    except (OSError, ValueError, EOFError) as error:  # msgspec's errors are ValueErrors
        log.warning("decoded clips in %s are broken (%s): decoding again", folder, error)
        return None
    place = Path(index.folder)
    return Clips(
        frames=frames,
        files=tuple(place / row for row in index.rows),
        rows=index.rows,
        columns=index.columns,
        skipped=tuple((place / item.path, item.reason) for item in index.skipped),
        fingerprint=fingerprint,
        padded_share=index.padded_frames / (len(index.rows) * wanted.frames),
    )


def open_clips(
    list_path: Path,
    clip: ClipSpec,
    cache: Path,
    workers: int = 2,
    progress: bool = True,
    *,
    max_bad_share: float = 0.05,
    limit_s: float = 60.0,
) -> Clips:
    """Clips of a list, decoded in worker processes the first time and memory-mapped after.

    A file that cannot be decoded is skipped and logged once, with its reason; so is one whose decoder
    crashes or takes longer than `limit_s`. Raises UserError if more than `max_bad_share` of the files are
    bad, or none is left.
    """
    videos = read_list(Path(list_path))
    fingerprint = data_spec(videos, "list").fingerprint
    found = load_clips(cache, fingerprint, clip)
    if found is None:
        folder = clips_path(cache, fingerprint, clip)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f"{folder.name}.lock")) as alone:
            found = load_clips(cache, fingerprint, clip)
            if alone:
                for leftover in folder.parent.glob(f"{folder.name}.building-*"):
                    shutil.rmtree(leftover)  # of a builder that was killed
            if found is None:
                _build(videos, fingerprint, clip, folder, workers, progress, max_bad_share, limit_s)
                found = load_clips(cache, fingerprint, clip)
    if found is None:
        raise RuntimeError(f"{folder} was written and cannot be read back")
    if len(found.skipped) > max_bad_share * len(videos.rows):
        raise UserError(_too_many_bad(videos, found.skipped, max_bad_share))
    if found.padded_share > 0.05:
        log.warning(
            "%s: %.0f %% of all frames are padding (short_clips: %s), which makes masked prediction trivial",
            list_path,
            100 * found.padded_share,
            clip.short_clips,
        )
    return found


def planned_clips(
    list_path: Path, fingerprint: str, clip: ClipSpec, cache: Path, workers: int = 2, progress: bool = True
) -> Clips:
    """Clips of a list as it was when a plan was made; decoded before, they need neither list nor videos.

    Raises:
        UserError: the list has changed since, or as for `open_clips`.
    """
    found = load_clips(cache, fingerprint, clip)
    if found is None:
        found = open_clips(list_path, clip, cache, workers=workers, progress=progress)
        if found.fingerprint != fingerprint:
            raise UserError(
                f"{list_path}: the list has changed since the plan was made (content {found.fingerprint}, "
                f"planned {fingerprint}): plan again, or bring the planned list back"
            )
    return found


def require_decodable(
    list_path: Path,
    clip: ClipSpec,
    workers: int = 2,
    limit_s: float = 60.0,
    videos: VideoList | None = None,
) -> VideoList:
    """The list, if one of its files at least gives a clip; decodes until the first that does, writes nothing.

    `videos` is the list where it has been read already.

    A first file that shows a frame ends the search in milliseconds; else every file is tried in isolation.

    Raises UserError otherwise: a plan over a list of broken files is refused before it starts.
    """
    videos = read_list(Path(list_path)) if videos is None else videos
    if decodes_a_frame(videos.files[0]):
        return videos
    skipped: list[tuple[Path, str]] = []
    tasks = [(file, clip) for file in videos.files]
    for outcome in run_isolated(_decode_task, tasks, workers=workers, limit_s=limit_s):
        if isinstance(outcome.value, DecodedClip):
            return videos
        skipped.append((videos.files[outcome.index], _reason(outcome.value, outcome.lost)))
    raise UserError(_too_many_bad(videos, tuple(skipped), None))


def _decode_spec(clip: ClipSpec) -> DecodeSpec:
    return DecodeSpec(
        frames=clip.frames,
        frame_stride=clip.frame_stride,
        store_px=clip.store_px,
        channels=clip.channels,
        short_clips=clip.short_clips,
    )


def _decode_task(task: tuple[Path, ClipSpec]) -> DecodedClip | str:
    """In a worker: the middle clip of a file, or why there is none."""
    path, clip = task
    try:
        return decode(path, clip)
    except VideoError as error:
        return error.reason


def _reason(value: DecodedClip | str | None, lost: str | None) -> str:
    return value if isinstance(value, str) else f"the decoder: {lost}"


def _too_many_bad(videos: VideoList, skipped: tuple[tuple[Path, str], ...], allowed: float | None) -> str:
    limit = "" if allowed is None else f" ({100 * allowed:g} % are allowed)"
    shown = [f"  {path}: {reason}" for path, reason in skipped[:10]]
    if len(skipped) > 10:
        shown.append(f"  and {len(skipped) - 10} more")
    head = f"{videos.path}: {len(skipped)} of {len(videos.files)} files give no clip{limit}"
    way_out = f"see them all and write a clean list: `salt-data scan {videos.path} --clean OUT.csv`"
    return "\n".join([f"{head}; {way_out}", *shown])


@contextmanager
def _lock(path: Path) -> Iterator[bool]:
    """Hold the builder's lock, which the kernel frees if the process dies; yields whether it is held."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            held = True
        except OSError as error:
            held = False
            log.warning("no lock on %s (%s): another process may decode the same clips", path, error.strerror)
        yield held


def _build(
    videos: VideoList,
    fingerprint: str,
    clip: ClipSpec,
    folder: Path,
    workers: int,
    show: bool,
    max_bad_share: float,
    limit_s: float,
) -> None:
    building = folder.with_name(f"{folder.name}.building-{os.uname().nodename}-{os.getpid()}")
    building.mkdir()
    try:
        bad, padded = _decode_all(videos, clip, building / "clips.npy", workers, show, max_bad_share, limit_s)
        good = [index for index in range(len(videos.rows)) if index not in bad]
        index = ClipIndex(
            fingerprint=fingerprint,
            decode=_decode_spec(clip),
            folder=str(videos.path.parent.absolute()),
            rows=tuple(videos.rows[i] for i in good),
            columns={name: tuple(column[i] for i in good) for name, column in videos.columns.items()},
            skipped=tuple(
                Skipped(line=videos.line_numbers[i], path=videos.rows[i], reason=reason)
                for i, reason in sorted(bad.items())
            ),
            padded_frames=padded,
        )
        write_atomically(building / "index.json", pretty_json(index))
        _publish(building, folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)  # nothing is left there after a success


def _decode_all(
    videos: VideoList,
    clip: ClipSpec,
    target: Path,
    workers: int,
    show: bool,
    max_bad_share: float,
    limit_s: float,
) -> tuple[dict[int, str], int]:
    """Decode into `target`; {row: reason} of the bad rows, and the number of padded frames.

    Rows are written where they belong as they come; bad ones leave gaps, which are closed at the end.
    """
    import numpy as np

    total = len(videos.files)
    shape = (total, clip.frames, clip.store_px, clip.store_px, clip.channels)
    frames = np.lib.format.open_memmap(target, mode="w+", dtype=np.uint8, shape=shape)
    _reserve(target)
    bad: dict[int, str] = {}
    padded = 0
    tasks = [(file, clip) for file in videos.files]
    with shown_progress(f"decode {videos.path.name}", total, show) as advance:
        for outcome in run_isolated(_decode_task, tasks, workers=workers, limit_s=limit_s):
            advance(1)
            if isinstance(outcome.value, DecodedClip):
                frames[outcome.index] = outcome.value.frames
                padded += outcome.value.padded_frames
                continue
            bad[outcome.index] = _reason(outcome.value, outcome.lost)
            log.warning("skipped %s: %s", videos.files[outcome.index], bad[outcome.index])
            # A hopeless list is given up early, but not before there is enough to show.
            if len(bad) > max(10, max_bad_share * total):
                break
    if len(bad) == total or len(bad) > max_bad_share * total:
        skipped = tuple((videos.files[index], reason) for index, reason in sorted(bad.items()))
        raise UserError(_too_many_bad(videos, skipped, max_bad_share))
    frames.flush()
    del frames
    if bad:
        _drop_rows(target, bad)
    with open(target, "rb+") as file:
        os.fsync(file.fileno())
    return bad, padded


def _reserve(target: Path) -> None:
    """Claim a file's disk space now: a memory map that meets a full disk later kills the process, mute."""
    size = target.stat().st_size
    with open(target, "rb+") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise UserError(
                f"no room for {size / 1e9:.2f} GB of decoded clips in {target.parent.parent}"
            ) from error


def _drop_rows(target: Path, bad: dict[int, str]) -> None:
    """Rewrite an array without some of its rows, a block at a time."""
    import numpy as np

    source = np.load(target, mmap_mode="r")
    good = np.array([index for index in range(len(source)) if index not in bad])
    beside = target.with_name("dense.npy")
    dense = np.lib.format.open_memmap(beside, mode="w+", dtype=np.uint8, shape=(len(good), *source.shape[1:]))
    for start in range(0, len(good), 256):
        dense[start : start + 256] = source[good[start : start + 256]]
    dense.flush()
    del dense, source
    os.replace(beside, target)


def _publish(building: Path, folder: Path) -> None:
    """Put a finished folder in place; if another builder was first, theirs stays unless it is broken."""
    aside = building.with_name(f"{building.name}.old")
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
