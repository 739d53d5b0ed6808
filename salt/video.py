"""From a video or image file to the uint8 frames of a clip.

PyAV decodes, one way for stored clips and streamed ones (`salt.seeking`); where it cannot, another decoder
may (`salt.decoders`). decord is about as fast (`benchmarks/decode_speed.py`), but its 0.6.0 gave other frames
than asked for, without a word, where it had to seek: in MP4 files with open groups of pictures, periodic
intra refresh or edit lists, in AVI, ASF, MPEG transport and program streams; and sheared ones at widths of
16, 24, 48 and 72 pixels.

Readers are opened per clip, with one thread, and closed before the function returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from salt import decoders
from salt.container import (
    FrameTable,
    NotDecoded,
    VideoError,
    VideoProbe,
    decodes_a_frame,
    frame_table,
    probe_video,
)
from salt.frames import (
    last_start,
    last_start_by_time,
    pick_by_time,
    pick_frames,
    spread_starts,
    start_at,
)
from salt.images import is_image, read_image
from salt.resize import BT601_LUMA, resize_square
from salt.seeking import read_at, read_chosen
from salt.specs import ClipSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "BT601_LUMA",
    "DecodedClip",
    "VideoError",
    "VideoProbe",
    "decode",
    "decode_clip",
    "decode_clips",
    "decodes_a_frame",
    "pick_frames",
    "probe_video",
    "read_clip",
    "read_frames",
    "resize_square",
]


@dataclass(frozen=True)
class DecodedClip:
    """A clip, or several of one file; `padded_frames` of their frames are repeats made up by the short-clip
    policy.

    An image has one frame, and its repeats are no padding: a still clip is what was asked for. `decoder` is
    who gave the frames.
    """

    frames: NDArray[np.uint8]  # [frames, store_px, store_px, channels]; from `decode_clips` [clips, ...]
    padded_frames: int
    video_frames: int
    decoder: str = decoders.PYAV


def read_clip(
    path: Path, clip: ClipSpec, place: float, decodable_frames: int | None = None
) -> NDArray[np.uint8]:
    """A clip of whole upright frames for random crops, RGB uint8 [frames, height, width, 3].

    `place` in [0, 1) picks the start: with starts 0 to L possible it is floor(place * (L + 1)), so a uniform
    place makes all starts equally likely. Frames keep the file's size, unless their short side is above
    `store_px`: then they are scaled down to it, which keeps clips of large files small. Nothing is scaled up
    or cut away. A file too short for the clip follows `short_clips`; an image is its one frame, repeated. No
    frame past the first `decodable_frames` is asked for. `decoders.take_served` then says who decoded.

    Raises VideoError for anything that keeps this file from giving these frames.
    """
    import numpy as np

    if is_image(path):
        picture = read_image(path, clip.store_px)
        decoders.note_served(decoders.PILLOW)
        return np.broadcast_to(picture, (clip.frames, *picture.shape))  # `crop` crops it once
    start_of = partial(start_at, place)
    frames, _, name = _read(
        path, lambda table: _choose(path, table, clip, start_of, decodable_frames)[0], clip.store_px
    )
    decoders.note_served(name)
    return frames


def _read(
    path: Path, choose: decoders.Choose, short_px: int | None = None
) -> tuple[NDArray[np.uint8], FrameTable, str]:
    """The frames that `choose` picks, the file's table and who decoded: PyAV, or another in its place."""
    failure: VideoError | None = None
    if decoders.serving(path) == decoders.PYAV:
        try:
            return *read_chosen(path, choose, short_px), decoders.PYAV
        except NotDecoded as error:
            failure = error
    frames, table, name = decoders.read_otherwise(path, choose, failure)
    return decoders.scaled(frames, short_px), table, name


def decode_clip(path: Path, clip: ClipSpec, start: int | None = None) -> NDArray[np.uint8]:
    """The frames of one clip, uint8 [frames, store_px, store_px, channels]; see `decode`."""
    return decode(path, clip, start).frames


def decode(path: Path, clip: ClipSpec, start: int | None = None) -> DecodedClip:
    """Decode one clip: pick frames, crop the middle square, resize to `store_px`.

    `start` is its first frame; None is the middle of the possible starts. One channel is BT.601 luma. Raises
    VideoError for anything that keeps this file from giving these frames.
    """
    if is_image(path):
        return _still(path, clip)
    return _decode_at(path, clip, lambda last: last // 2 if start is None else start)


def decode_clips(path: Path, clip: ClipSpec, decodable_frames: int | None = None) -> DecodedClip:
    """The `clips_per_file` stored clips of a file, frames uint8 [clips_per_file, frames, S, S, channels].

    They start at the centres of that many equal parts of the possible starts; in a file with fewer starts,
    or an image, some are the same. Frames past the first `decodable_frames` are as if they were not there.
    Raises VideoError if one of them cannot be had.
    """
    import numpy as np

    clips = clip.clips_per_file
    if is_image(path):
        still = _still(path, clip)
        return DecodedClip(np.repeat(still.frames[None], clips, axis=0), 0, 1, still.decoder)
    decoded = [
        _decode_at(path, clip, partial(_nth_start, number, clips), decodable_frames)
        for number in range(clips)
    ]
    frames, last = np.stack([one.frames for one in decoded]), decoded[-1]
    return DecodedClip(frames, sum(one.padded_frames for one in decoded), last.video_frames, last.decoder)


def _nth_start(number: int, clips: int, last: int) -> int:
    return spread_starts(last, clips)[number]


def _still(path: Path, clip: ClipSpec) -> DecodedClip:
    import numpy as np

    square = resize_square(read_image(path)[None], clip.store_px, clip.channels)
    return DecodedClip(np.repeat(square, clip.frames, axis=0), 0, 1, decoders.PILLOW)


def _decode_at(
    path: Path, clip: ClipSpec, start_of: Callable[[int], int], decodable_frames: int | None = None
) -> DecodedClip:
    frames, table, name = _read(path, lambda table: _choose(path, table, clip, start_of, decodable_frames)[0])
    padded = _choose(path, table, clip, start_of, decodable_frames)[1]
    return DecodedClip(resize_square(frames, clip.store_px, clip.channels), padded, table.frames, name)


def _choose(
    path: Path,
    table: FrameTable,
    clip: ClipSpec,
    start_of: Callable[[int], int],
    decodable_frames: int | None,
) -> tuple[list[int], int]:
    """Frame numbers of a clip and how many are padding; `start_of` the last possible start is its start."""
    frames = table.frames if decodable_frames is None else min(decodable_frames, table.frames)
    try:
        if clip.frame_rate_hz is None:
            return pick_frames(frames, clip, start_of(last_start(frames, clip)))
        times_s = _times_s(path, table)[:frames]
        return pick_by_time(times_s, clip, start_of(last_start_by_time(times_s, clip)))
    except ValueError as error:
        raise VideoError(path, str(error)) from error


def _times_s(path: Path, table: FrameTable) -> NDArray[np.float64]:
    times = table.times_s()
    if times is None:
        raise VideoError(path, "its frames have no usable timestamps, which frame_rate_hz needs")
    return times


def read_frames(path: Path, probe: VideoProbe, numbers: Sequence[int]) -> NDArray[np.uint8]:
    """The frames with these numbers (any order, repeats too), RGB uint8 [len(numbers), height, width, 3].

    Raises VideoError for frames that are not there, do not decode, or are not of the probe's size.
    """
    import numpy as np

    if is_image(path):
        return np.repeat(read_image(path)[None], len(numbers), axis=0)
    frames = read_at(path, frame_table(path, trust_header=False), numbers)
    size = (probe.height_px, probe.width_px)
    if frames.shape[1:3] not in (size, size[::-1]):  # turned, where the metadata say so
        raise VideoError(path, f"its frames are {frames.shape[2]}x{frames.shape[1]}, not {size[1]}x{size[0]}")
    return frames
