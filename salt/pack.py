"""`salt-data pack`: decode a list once, ahead of any study, and say what it took."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from salt.clip_build import store_bytes
from salt.clips import clips_path, load_clips, open_clips
from salt.lists import VideoList, data_spec, read_list
from salt.specs import ClipSpec


@dataclass(frozen=True)
class PackSize:
    """What a pack will take, before anything is decoded."""

    files: int
    clips: int
    pixel_bytes: int
    free_bytes: int
    exists: bool


@dataclass(frozen=True)
class Packed:
    """A finished pack; `wall_s` and `clips_per_s` are None if it was there already."""

    list: str
    folder: str
    fingerprint: str
    files: int
    clips: int
    pixel_bytes: int
    wall_s: float | None
    clips_per_s: float | None
    padded_share: float
    skipped: tuple[tuple[str, str], ...]


def pack_size(videos: VideoList, clip: ClipSpec, cache: Path) -> PackSize:
    """Size of a pack, and the free bytes of the disk it would be on."""
    fingerprint = data_spec(videos, "list").fingerprint
    disk = Path(cache).absolute()
    while not disk.exists():
        disk = disk.parent
    return PackSize(
        files=len(videos.files),
        clips=len(videos.files) * clip.clips_per_file,
        pixel_bytes=store_bytes(len(videos.files), clip),
        free_bytes=shutil.disk_usage(disk).free,
        exists=load_clips(cache, fingerprint, clip) is not None,
    )


def pack_list(
    path: Path,
    clip: ClipSpec,
    cache: Path,
    *,
    workers: int,
    limit_s: float,
    max_bad_share: float,
    show_progress: bool,
    foretell: Callable[[PackSize], None] | None = None,
) -> Packed:
    """Decode a list into `cache`, or find it there; the size goes to `foretell` first.

    Raises UserError for a bad list, and as `open_clips` does.
    """
    videos = read_list(path)
    size = pack_size(videos, clip, cache)
    if foretell is not None:
        foretell(size)
    begun = time.monotonic()
    clips = open_clips(
        path,
        clip,
        cache,
        workers,
        show_progress,
        max_bad_share=max_bad_share,
        limit_s=limit_s,
        videos=videos,
    )
    wall_s = None if size.exists else time.monotonic() - begun
    return Packed(
        list=str(path),
        folder=str(clips_path(cache, clips.fingerprint, clip)),
        fingerprint=clips.fingerprint,
        files=len(clips) // clips.clips_per_file,
        clips=len(clips),
        pixel_bytes=clips.frames.nbytes,
        wall_s=wall_s,
        clips_per_s=len(clips) / wall_s if wall_s else None,
        padded_share=clips.padded_share,
        skipped=tuple((str(file), reason) for file, reason in clips.skipped),
    )
