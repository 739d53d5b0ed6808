"""From a video or image file to the uint8 frames of a clip.

Stored clips: decord decodes; PyAV reads the container first and decodes in decord's place where decord is
known to go wrong:

- output widths at which decord's row padding is taken for picture (measured: 16, 24, 48, 72 with decord
  0.6.0; 16, 24, 32, 48, 96 and 144 with decord2 3.4.0): the frames come back sheared, or as an array of a
  wrong shape;
- files with an edit list (cut without re-encoding), whose frame numbers decord takes from the uncut stream:
  wrong frames, or a read that never returns;
- files that are neither MP4 nor Matroska: of AVI, MPEG transport and program streams, ASF and motion JPEG
  decord 0.6.0 gives other frames than asked for, of GIF and bare H.264 none;
- odd widths or heights, where decord's colours are off.

Streamed clips, at random places of a file: PyAV seeks (`salt.seeking`), which opens the file once and was
measured to be no slower than decord (`benchmarks/decode_speed.py`).

Readers are opened per clip, with one thread, and closed before the function returns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from salt.container import (
    DECORD_BAD_WIDTHS,
    FrameTable,
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
    "DECORD_BAD_WIDTHS",
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

    An image has one frame, and its repeats are no padding: a still clip is what was asked for.
    """

    frames: NDArray[np.uint8]  # [frames, store_px, store_px, channels]; from `decode_clips` [clips, ...]
    padded_frames: int
    video_frames: int


def read_clip(path: Path, clip: ClipSpec, place: float) -> NDArray[np.uint8]:
    """A clip of whole upright frames for random crops, RGB uint8 [frames, height, width, 3].

    `place` in [0, 1) picks the start: with starts 0 to L possible it is floor(place * (L + 1)), so a uniform
    place makes all starts equally likely. Frames keep the file's size, unless their short side is above
    `store_px`: then they are scaled down to it, which keeps clips of large files small. Nothing is scaled up
    or cut away. A file too short for the clip follows `short_clips`; an image is its one frame, repeated.

    Raises VideoError for anything that keeps this file from giving these frames.
    """
    import numpy as np

    if is_image(path):
        picture = read_image(path, clip.store_px)
        return np.broadcast_to(picture, (clip.frames, *picture.shape))  # `crop` crops it once
    return read_chosen(
        path, lambda table: _choose(path, table, clip, lambda last: start_at(place, last))[0], clip.store_px
    )


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
    return _decode_at(path, clip, probe_video(path), start)


def decode_clips(path: Path, clip: ClipSpec) -> DecodedClip:
    """The `clips_per_file` stored clips of a file, frames uint8 [clips_per_file, frames, S, S, channels].

    They start at the centres of that many equal parts of the possible starts; in a file with fewer starts,
    or an image, some are the same. Raises VideoError if one of them cannot be had.
    """
    import numpy as np

    clips = clip.clips_per_file
    if is_image(path):
        still = _still(path, clip)
        return DecodedClip(np.repeat(still.frames[None], clips, axis=0), 0, 1)
    probe = probe_video(path)
    last = _last_start(path, frame_table(path, trust_header=False), clip)
    done: dict[int, DecodedClip] = {}
    starts = spread_starts(last, clips)
    for start in starts:
        if start not in done:
            done[start] = _decode_at(path, clip, probe, start)
    decoded = [done[start] for start in starts]
    frames = np.stack([one.frames for one in decoded])
    return DecodedClip(frames, sum(one.padded_frames for one in decoded), probe.frames)


def _still(path: Path, clip: ClipSpec) -> DecodedClip:
    import numpy as np

    square = resize_square(read_image(path)[None], clip.store_px, clip.channels)
    return DecodedClip(np.repeat(square, clip.frames, axis=0), 0, 1)


def _decode_at(path: Path, clip: ClipSpec, probe: VideoProbe, start: int | None) -> DecodedClip:
    table = frame_table(path, trust_header=False)
    numbers, padded = _choose(path, table, clip, lambda last: last // 2 if start is None else start)
    frames = read_frames(path, probe, numbers)
    return DecodedClip(resize_square(frames, clip.store_px, clip.channels), padded, probe.frames)


def _choose(
    path: Path, table: FrameTable, clip: ClipSpec, start_of: Callable[[int], int]
) -> tuple[list[int], int]:
    """Frame numbers of a clip and how many are padding; `start_of` the last possible start is its start."""
    try:
        start = start_of(_last_start(path, table, clip))
        if clip.frame_rate_hz is None:
            return pick_frames(table.frames, clip, start)
        return pick_by_time(_times_s(path, table), clip, start)
    except ValueError as error:
        raise VideoError(path, str(error)) from error


def _last_start(path: Path, table: FrameTable, clip: ClipSpec) -> int:
    if clip.frame_rate_hz is None:
        return last_start(table.frames, clip)
    return last_start_by_time(_times_s(path, table), clip)


def _times_s(path: Path, table: FrameTable) -> NDArray[np.float64]:
    times = table.times_s()
    if times is None:
        raise VideoError(path, "its frames have no usable timestamps, which frame_rate_hz needs")
    return times


def read_frames(path: Path, probe: VideoProbe, numbers: Sequence[int]) -> NDArray[np.uint8]:
    """The frames with these numbers (any order, repeats too), RGB uint8 [len(numbers), height, width, 3]."""
    import numpy as np

    if is_image(path):
        return np.repeat(read_image(path)[None], len(numbers), axis=0)
    if probe.needs_pyav:
        return read_at(path, frame_table(path, trust_header=False), numbers)
    frames = _read_with_decord(path, probe, numbers)
    upright = (len(numbers), probe.height_px, probe.width_px, 3)
    turned = (len(numbers), probe.width_px, probe.height_px, 3)  # decord obeys a rotation in the metadata
    if frames.shape not in (upright, turned):
        raise VideoError(path, f"decord returned frames of shape {frames.shape[1:]} for {upright[1:]}")
    return frames


def _read_with_decord(path: Path, probe: VideoProbe, numbers: Sequence[int]) -> NDArray[np.uint8]:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    unique = sorted(set(numbers))
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) != probe.frames:
            raise VideoError(path, f"decord counts {len(reader)} frames, the container {probe.frames}")
        batch: NDArray[np.uint8] = reader.get_batch(unique).asnumpy()
    except (RuntimeError, decord.DECORDError) as error:
        raise VideoError(path, f"damaged: decord cannot decode frames {unique[0]}..{unique[-1]}") from error
    if unique == list(numbers):
        return batch
    place = {number: index for index, number in enumerate(unique)}
    repeated: NDArray[np.uint8] = batch[[place[number] for number in numbers]]
    return repeated
