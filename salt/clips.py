"""The decode-once store: every clip of a list as one memory-mapped uint8 array.

    <cache>/clips/<key>/{clips.npy, index.json}

`key` hashes the list's fingerprint and what decoding depends on; crop, mean and std are applied later, per
epoch. A folder is whole or absent, and a build that was killed goes on where it was (`salt.clip_build`). Two
builders at once are harmless: the second waits for the first where the file system has locks, and throws
its own work away where it has none.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, overload

import msgspec

from salt.clip_build import PackIndex, build_clips, decoded_files, lost_reason, too_many_bad
from salt.clip_index import DecodeSpec, clip_of, decode_spec
from salt.errors import UserError
from salt.folders import builders_lock, open_array, said_of
from salt.lists import VideoList, data_spec, read_list
from salt.specs import ClipSpec
from salt.video import DecodedClip, decodes_a_frame

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clips:
    """The clips of a list that decoded, in the list's order; tuples have one item per clip.

    The `clips_per_file` clips of a file are neighbours, in the order of their places in it, and repeat its
    path and labels. `skipped` has one item per file.
    """

    frames: NDArray[
        np.uint8
    ]  # [files * clips_per_file, frames, store_px, store_px, channels], a read-only memory map
    files: Sequence[Path]
    rows: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    skipped: tuple[tuple[Path, str], ...]
    fingerprint: str
    padded_share: float  # of all frames, repeats made up by the short-clip policy
    clips_per_file: int = 1
    decoded_files: Mapping[str, int] = field(default_factory=dict)  # by decoder

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


@dataclass(frozen=True)
class _Beneath(Sequence[Path]):
    """Paths below a folder, made when they are asked for: all of a long list take longer than its pixels."""

    folder: Path
    rows: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Path: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Path]: ...
    def __getitem__(self, place: int | slice) -> Path | Sequence[Path]:
        if isinstance(place, slice):
            return _Beneath(self.folder, self.rows[place])
        return self.folder / self.rows[place]


def clips_path(cache: Path, fingerprint: str, clip: ClipSpec) -> Path:
    """The folder of a list's clips."""
    identity = msgspec.json.encode([fingerprint, decode_spec(clip)], order="sorted")
    return Path(cache) / "clips" / hashlib.sha256(identity).hexdigest()[:16]


def load_clips(cache: Path, fingerprint: str, clip: ClipSpec) -> Clips | None:
    """Open clips that were decoded before, without the list or its files; None if absent or broken.

    Costs milliseconds, 30 of them for 10^5 files. Broken means: wrong shape, type, size or identity; it is
    logged, and `open_clips` decodes again.
    """
    folder = clips_path(cache, fingerprint, clip)
    if not folder.is_dir():
        return None
    wanted = decode_spec(clip)
    clips = wanted.clips_per_file
    try:
        index = msgspec.json.decode((folder / "index.json").read_bytes(), type=PackIndex)
        if (index.fingerprint, index.decode) != (fingerprint, wanted):
            raise ValueError("index.json is of another list or clip")
        shape = (len(index.rows) * clips, wanted.frames, wanted.store_px, wanted.store_px, wanted.channels)
        frames = open_array(folder / "clips.npy", shape, "r")
        if any(len(column) != len(index.rows) for column in index.columns.values()):
            raise ValueError("index.json has columns of unequal length")
    except (OSError, ValueError, EOFError) as error:  # msgspec's errors are ValueErrors
        log.warning("decoded clips in %s are broken (%s): decoding again", folder, error)
        return None
    place, rows = Path(index.folder), _repeated(index.rows, clips)
    return Clips(
        frames=frames,
        files=_Beneath(place, rows),
        rows=rows,
        columns={name: _repeated(column, clips) for name, column in index.columns.items()},
        skipped=tuple((place / item.path, item.reason) for item in index.skipped),
        fingerprint=fingerprint,
        padded_share=index.padded_frames / (len(frames) * wanted.frames),
        clips_per_file=clips,
        decoded_files=index.decoded_files,
    )


def find_packs(cache: Path, fingerprint: str) -> Iterator[tuple[DecodeSpec, Clips]]:
    """The stored clips of a list in a cache, once for each way in which it was decoded."""
    mark = f'"fingerprint": "{fingerprint}"'.encode()
    for place in sorted((Path(cache) / "clips").glob("*/index.json")):
        with open(place, "rb") as file:
            if mark not in file.read(200):  # the first field: an index may be long
                continue
        try:
            decode = msgspec.json.decode(place.read_bytes(), type=PackIndex).decode
        except msgspec.DecodeError:
            continue  # of a version with other fields: the same as not stored
        found = load_clips(cache, fingerprint, clip_of(decode))
        if found is not None:
            yield decode, found


def _repeated(items: Iterable[T], times: int) -> tuple[T, ...]:
    return tuple(item for item in items for _ in range(times))


def open_clips(
    list_path: Path,
    clip: ClipSpec,
    cache: Path,
    workers: int = 2,
    progress: bool = True,
    *,
    max_bad_share: float = 0.05,
    limit_s: float = 60.0,
    videos: VideoList | None = None,
) -> Clips:
    """Clips of a list, decoded in worker processes the first time and memory-mapped after.

    A file that cannot be decoded is skipped and logged once, with its reason; so is one whose decoder
    crashes or takes longer than `limit_s`. `videos` is the list where it has been read already. Raises
    UserError if more than `max_bad_share` of the files are bad, none is left, or `cache` cannot be written.
    """
    videos = read_list(Path(list_path)) if videos is None else videos
    fingerprint = data_spec(videos, "list").fingerprint
    found = load_clips(cache, fingerprint, clip)
    if found is None:
        folder = clips_path(cache, fingerprint, clip)
        with said_of(folder.parent), _builder(folder) as alone:
            found = load_clips(cache, fingerprint, clip)
            if found is None:
                build_clips(
                    videos,
                    fingerprint,
                    clip,
                    folder,
                    alone=alone,
                    workers=workers,
                    show=progress,
                    max_bad_share=max_bad_share,
                    limit_s=limit_s,
                )
                found = load_clips(cache, fingerprint, clip)
    if found is None:
        raise RuntimeError(f"{folder} was written and cannot be read back")
    if len(found.skipped) > max_bad_share * len(videos.rows):
        raise UserError(too_many_bad(videos, found.skipped, max_bad_share))
    if found.padded_share > 0.05:
        log.warning(
            "%s: %.0f %% of all frames are padding (short_clips: %s), which makes masked prediction trivial",
            list_path,
            100 * found.padded_share,
            clip.short_clips,
        )
    return found


@contextmanager
def _builder(folder: Path) -> Iterator[bool]:
    """Be the one who builds a folder, if locks allow; what killed builders left beside it is cleared."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with builders_lock(folder.with_name(f"{folder.name}.lock")) as alone:
        if alone:
            for pattern in ("building-*", "building.old"):
                for leftover in folder.parent.glob(f"{folder.name}.{pattern}"):
                    shutil.rmtree(leftover)
        yield alone


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
    rows = range(len(videos.files))
    for row, value, lost in decoded_files(videos, rows, clip, workers=workers, limit_s=limit_s):
        if isinstance(value, DecodedClip):
            return videos
        skipped.append((videos.files[row], lost_reason(value, lost)))
    raise UserError(too_many_bad(videos, tuple(skipped), None))
