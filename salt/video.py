"""From a video file to the uint8 frames of a clip.

decord decodes; PyAV reads the container first and decodes in decord's place where decord is known to go
wrong:

- output widths at which decord's row padding is taken for picture (measured: 16, 24, 48, 72 with decord
  0.6.0; 16, 24, 32, 48, 96 and 144 with decord2 3.4.0): the frames come back sheared, or as an array of a
  wrong shape;
- files with an edit list (cut without re-encoding), whose frame numbers decord takes from the uncut stream:
  wrong frames, or a read that never returns.

Readers are opened per clip, with one thread, and closed before the function returns.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.specs import ClipSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Widths in pixels that decord 0.6.0 or decord2 3.4.0 returns corrupt.
DECORD_BAD_WIDTHS = frozenset({16, 24, 32, 48, 72, 96, 144})

#: Luma weights of ITU-R BT.601, section 2.5.1, for the single-channel clips.
BT601_LUMA = (0.299, 0.587, 0.114)


class VideoError(Exception):
    """A file that gives no clip: which, and why. Bad files are skipped and counted by whoever reads many."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[Path, str]]:
        return (VideoError, (self.path, self.reason))  # survives the way out of a worker


@dataclass(frozen=True)
class VideoProbe:
    """What the container says, without decoding. `None` is "the file does not say".

    `frames` counts the packets to be shown; `hidden_frames` those that an edit list cuts away, which still
    are in the file; `header_frames` is the count that the header promises.
    """

    width_px: int
    height_px: int
    fps: float | None
    frames: int
    hidden_frames: int
    header_frames: int | None

    @property
    def needs_pyav(self) -> bool:
        return self.hidden_frames > 0 or self.width_px in DECORD_BAD_WIDTHS


@dataclass(frozen=True)
class DecodedClip:
    """A clip; `padded_frames` of its frames are repeats made up by the short-clip policy."""

    frames: NDArray[np.uint8]  # [frames, store_px, store_px, channels]
    padded_frames: int
    video_frames: int


def probe_video(path: Path) -> VideoProbe:
    """Read the container's index. Raises VideoError for a file that is no video, cut short or frameless."""
    import av

    try:
        if os.path.getsize(path) == 0:
            raise VideoError(path, "empty file")
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise VideoError(path, "no video stream")
            stream = container.streams.video[0]
            shown = hidden = 0
            for packet in container.demux(stream):
                if packet.size == 0:
                    continue  # the demuxer's end mark
                if packet.is_corrupt:
                    raise VideoError(path, _cut_short(shown + hidden, stream.frames))
                hidden += packet.is_discard
                shown += not packet.is_discard
            probe = VideoProbe(
                width_px=stream.codec_context.width,
                height_px=stream.codec_context.height,
                fps=float(stream.average_rate) if stream.average_rate else None,
                frames=shown,
                hidden_frames=hidden,
                header_frames=stream.frames or None,
            )
    except av.error.FFmpegError as error:
        raise VideoError(path, f"not a readable video: {error.strerror}") from error
    except OSError as error:
        raise VideoError(path, f"cannot be read: {error.strerror}") from error
    if probe.frames == 0:
        raise VideoError(path, "no frames")
    if probe.header_frames is not None and shown + hidden < probe.header_frames:
        raise VideoError(path, _cut_short(shown + hidden, probe.header_frames))
    return probe


def decodes_a_frame(path: Path) -> bool:
    """Whether the file's first frame decodes: a cheap look, in this process and without numpy."""
    import av

    try:
        with av.open(str(path)) as container:
            return any(not frame.is_corrupt for frame in container.decode(video=0))
    except (av.error.FFmpegError, OSError, IndexError):
        return False  # not a question of why: `probe_video` and the scan say that


def _cut_short(found: int, promised: int) -> str:
    return f"cut short: the header promises {promised} frames, the file holds {found}"


def pick_frames(video_frames: int, clip: ClipSpec, start: int | None) -> tuple[list[int], int]:
    """Frame numbers of a clip and how many of them are padding.

    `start` is the first frame, from 0 to `video_frames - span`, both reachable; None is the middle of the
    video. Gaps are exactly `frame_stride`. A video shorter than the span follows `short_clips`: `skip`
    raises ValueError; `repeat-last` stays on the last frame; `loop` goes on at the beginning;
    `shrink-stride` takes the largest stride that fits, and where not even stride 1 does, repeats the last
    frame.
    """
    span = (clip.frames - 1) * clip.frame_stride + 1
    if video_frames >= span:
        last_start = video_frames - span
        first = last_start // 2 if start is None else start
        if not 0 <= first <= last_start:
            raise ValueError(f"start frame {first} is outside 0..{last_start}")
        return [first + index * clip.frame_stride for index in range(clip.frames)], 0
    if clip.short_clips == "skip":
        raise ValueError(
            f"{video_frames} frames, but {clip.frames} frames at stride {clip.frame_stride} span {span}; "
            "short_clips: repeat-last, loop or shrink-stride would keep it"
        )
    stride = clip.frame_stride
    if clip.short_clips == "shrink-stride":
        stride = max(1, (video_frames - 1) // max(1, clip.frames - 1))
    wanted = [index * stride for index in range(clip.frames)]
    padded = sum(1 for number in wanted if number >= video_frames)
    if clip.short_clips == "loop":
        return [number % video_frames for number in wanted], padded
    return [min(number, video_frames - 1) for number in wanted], padded


def decode_clip(path: Path, clip: ClipSpec, start: int | None = None) -> NDArray[np.uint8]:
    """The frames of one clip, uint8 [frames, store_px, store_px, channels]; see `decode`."""
    return decode(path, clip, start).frames


def decode(path: Path, clip: ClipSpec, start: int | None = None) -> DecodedClip:
    """Decode one clip: pick frames, crop the middle square, resize to `store_px`.

    One channel is BT.601 luma. Raises VideoError for anything that keeps this file from giving these
    frames.
    """
    probe = probe_video(path)
    try:
        numbers, padded = pick_frames(probe.frames, clip, start)
    except ValueError as error:
        raise VideoError(path, str(error)) from error
    frames = read_frames(path, probe, numbers)
    return DecodedClip(resize_square(frames, clip.store_px, clip.channels), padded, probe.frames)


def read_frames(path: Path, probe: VideoProbe, numbers: Sequence[int]) -> NDArray[np.uint8]:
    """The frames with these numbers (any order, repeats too), RGB uint8 [len(numbers), height, width, 3]."""
    if probe.needs_pyav:
        return _read_with_pyav(path, numbers)
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


def _read_with_pyav(path: Path, numbers: Sequence[int]) -> NDArray[np.uint8]:
    import av
    import numpy as np

    wanted = set(numbers)
    found: dict[int, NDArray[Any]] = {}
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"
            for number, frame in enumerate(container.decode(stream)):
                if frame.is_corrupt:
                    raise VideoError(path, f"damaged: frame {number} does not decode cleanly")
                if number in wanted:
                    if frame.rotation:
                        raise VideoError(
                            path, "turned by its metadata, and cut without re-encoding; re-encode it"
                        )
                    found[number] = frame.to_ndarray(format="rgb24")
                if len(found) == len(wanted):
                    break
    except av.error.FFmpegError as error:
        raise VideoError(
            path, f"damaged: a frame up to {max(wanted)} does not decode: {error.strerror}"
        ) from error
    missing = sorted(wanted - found.keys())
    if missing:
        raise VideoError(path, f"frame {missing[0]} is past the end of what decodes")
    return np.stack([found[number] for number in numbers])


def resize_square(frames: NDArray[np.uint8], side_px: int, channels: int) -> NDArray[np.uint8]:
    """Middle square of uint8 [T, H, W, 3], resized to uint8 [T, side_px, side_px, channels].

    A whole-number reduction is the exact mean over each block; any other change of size is bilinear,
    antialiased where it shrinks. Values are rounded to nearest once, after the luma.
    """
    import numpy as np

    height, width = frames.shape[1:3]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    frames = frames[:, top : top + square, left : left + square]
    if square == side_px:
        resized: NDArray[Any] = frames
    elif square % side_px == 0:
        resized = _block_mean(frames, square // side_px)
    else:
        resized = _bilinear(frames, side_px)
    if channels == 1:
        red, green, blue = (resized[..., colour, None].astype(np.float32) for colour in range(3))
        resized = BT601_LUMA[0] * red + BT601_LUMA[1] * green + BT601_LUMA[2] * blue
    if resized.dtype == np.uint8:
        return np.ascontiguousarray(resized)
    return np.clip(np.floor(resized + 0.5), 0, 255).astype(np.uint8)


def _block_mean(frames: NDArray[np.uint8], block: int) -> NDArray[np.float32]:
    import numpy as np

    total = np.zeros((len(frames), frames.shape[1] // block, frames.shape[2] // block, 3), dtype=np.uint32)
    for row in range(block):
        for column in range(block):
            total += frames[:, row::block, column::block]
    return total.astype(np.float32) / np.float32(block * block)


def _bilinear(frames: NDArray[np.uint8], side_px: int) -> NDArray[np.float32]:
    import numpy as np
    import torch

    planes = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()  # [T, 3, H, W]
    resized = torch.nn.functional.interpolate(
        planes, size=(side_px, side_px), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.permute(0, 2, 3, 1).numpy()
