"""What a video's container says, without decoding: its size, its frames and when each of them is shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Frame tables kept in memory, one per file; a minute at 30 frames per second takes 14 kB.
KEPT_TABLES = 256


class VideoError(Exception):
    """A file that gives no clip: which, and why. Bad files are skipped and counted by whoever reads many."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[Path, str]]:
        return (VideoError, (self.path, self.reason))  # survives the way out of a worker


class NotDecoded(VideoError):
    """PyAV has no way to decode this file's frames, which is not to say that they are damaged."""

    def __reduce__(self) -> tuple[type[NotDecoded], tuple[Path, str]]:
        return (NotDecoded, (self.path, self.reason))


@dataclass(frozen=True)
class VideoProbe:
    """What the container says, without decoding. `None` is "the file does not say".

    `frames` counts the packets to be shown; `hidden_frames` those that an edit list cuts away, which still
    are in the file, or that nothing can decode (`_read_packets`); `header_frames` is the count that the
    header promises.
    """

    width_px: int
    height_px: int
    fps: float | None
    frames: int
    hidden_frames: int
    header_frames: int | None
    codec: str | None = None


@dataclass(frozen=True)
class FrameTable:
    """The frames of a file in the order in which they are shown.

    `shown_at` and `keys_at` are times in units of `time_base_s`, of all frames and of those from which
    decoding can begin; None for a file without usable timestamps. `keys_at` may be off by a few frames: it
    says where to seek, never which frame was found.
    """

    frames: int
    shown_at: NDArray[np.int64] | None  # [frames], strictly rising
    keys_at: NDArray[np.int64] | None
    time_base_s: float
    from_header: bool

    def times_s(self) -> NDArray[np.float64] | None:
        """When each frame is shown, in seconds after the first one, [frames]."""
        if self.shown_at is None:
            return None
        times: NDArray[np.float64] = (self.shown_at - self.shown_at[0]) * self.time_base_s
        return times


@dataclass(frozen=True)
class FileIndex:
    """A file read packet by packet, with or without a decoder for it; what only a decoder says is None then.

    `container` is FFmpeg's name of the format, such as `mov,mp4,m4a,3gp,3g2,mj2`.
    """

    table: FrameTable
    container: str
    hidden_frames: int
    width_px: int | None
    height_px: int | None


def file_index(path: Path) -> FileIndex:
    """The index of a file whose frames another decoder is to read. Raises VideoError as `probe_video`
    does."""
    with _opened(path, needs_decoder=False) as (container, stream):
        packets = _read_packets(path, container, stream)
        context = stream.codec_context
        return FileIndex(
            table=_from_packets(packets, container, stream),
            container=container.format.name,
            hidden_frames=packets.hidden,
            width_px=None if context is None else context.width,
            height_px=None if context is None else context.height,
        )


def probe_video(path: Path) -> VideoProbe:
    """Read the container's index. Raises VideoError for a file that is no video, cut short or frameless."""
    probe = _look(path, False)[1]
    assert probe is not None, "packets were read"
    return probe


@contextmanager
def _opened(path: Path, *, needs_decoder: bool = True) -> Iterator[tuple[Any, Any]]:
    """A file's container and its stream of pictures. Raises VideoError if there is none, or FFmpeg fails."""
    import av

    try:
        if os.path.getsize(path) == 0:
            raise VideoError(path, "empty file")
        with open_container(path) as container:
            stream = video_stream(container)
            if stream is None:
                raise VideoError(path, "no video stream")
            if needs_decoder and stream.codec_context is None:
                raise NotDecoded(path, "no decoder for its video stream")
            yield container, stream
    except av.error.FFmpegError as error:
        raise VideoError(path, f"not a readable video: {error.strerror}") from error
    except IndexError as error:  # from PyAV, where damage makes up new streams
        raise VideoError(path, f"not a readable video: {error}") from error
    except OSError as error:
        raise VideoError(path, f"cannot be read: {error.strerror}") from error


def open_container(path: Path) -> Any:
    """A file opened by FFmpeg, whatever text its tags hold: many old ones are not UTF-8."""
    import av

    return av.open(str(path), metadata_errors="replace")


def video_stream(container: Any) -> Any:
    """The first stream of moving pictures, decoded by one thread; None if there is none.

    The cover of a song or a film is a stream as well, of one picture.
    """
    import av

    cover = av.stream.Disposition.attached_pic
    for stream in container.streams.video:
        if not stream.disposition & cover:
            if stream.codec_context is not None:
                stream.thread_type = "NONE"
            return stream
    return None


def not_able(error: Exception) -> bool:
    """Whether FFmpeg says of itself that it cannot decode something, rather than that the data are
    damaged."""
    import av

    kinds = av.error
    return isinstance(
        error,
        (
            kinds.PatchWelcomeError,
            kinds.NotImplementedError,
            kinds.DecoderNotFoundError,
            kinds.ExperimentalError,
            kinds.BugError,
            kinds.ExternalError,
        ),
    )


def decodes_a_frame(path: Path) -> bool:
    """Whether the file's first frame decodes: a cheap look, in this process and without numpy."""
    import av

    try:
        with open_container(path) as container:
            stream = video_stream(container)
            if stream is None or stream.codec_context is None:
                return False
            return any(not frame.is_corrupt for frame in container.decode(stream))
    except (av.error.FFmpegError, OSError, IndexError):
        return False  # not a question of why: `probe_video` and the scan say that


def _promised_frames(container: Any, stream: Any) -> int:
    """How many frames a whole file must have; 0 if the header does not say.

    An edit list that begins behind a key frame leaves all before that out of the index, and the demuxer never
    gives them, though the header's count includes them.
    """
    promised: int = stream.frames or 0
    listed = len(getattr(stream, "index_entries", ()))  # older PyAV does not show it
    return min(promised, listed) if listed and "mp4" in container.format.name else promised


def cut_short(found: int, promised: int) -> str:
    if not promised:
        return f"damaged: a packet is corrupt, after {found} frames"
    return f"cut short: the header promises {promised} frames, the file holds {found}"


def frame_table(path: Path, *, trust_header: bool = True) -> FrameTable:
    """The frames of a file and their times; the last few tables are kept while their files stay as they are.

    The header's index is enough for an MP4 whose frames are evenly timed and all shown; any other file is
    read to its end, packet by packet, without decoding. Raises VideoError as `probe_video` does.
    """
    return _look(path, trust_header)[0]


def _look(path: Path, trust_header: bool) -> tuple[FrameTable, VideoProbe | None]:
    """The table of a file's frames, and what is known of the file if its packets were read."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise VideoError(path, f"cannot be read: {error.strerror}") from error
    return _look_at(str(path), found.st_size, found.st_mtime_ns, trust_header)


@lru_cache(maxsize=KEPT_TABLES)
def _look_at(
    path: str, file_bytes: int, modified_ns: int, trust_header: bool
) -> tuple[FrameTable, VideoProbe | None]:
    with _opened(Path(path)) as (container, stream):
        # Only these headers say when frames are shown; an AVI's B-frames, say, lie elsewhere than its index.
        if trust_header and "mp4" in container.format.name:
            table = _from_header(Path(path), stream, file_bytes)
            if table is not None:
                return table, None
        packets = _read_packets(Path(path), container, stream)
        return _from_packets(packets, container, stream), _probe(packets, container, stream)


def _from_header(path: Path, stream: Any, file_bytes: int) -> FrameTable | None:
    """The table of a file whose header lists all frames, a key frame first, at even distances in time; None
    for any other.

    The index gives times of decoding. Where these are even, the times of showing are the same grid from the
    stream's first shown frame on; a reader that does not find its frames there asks for the packets instead.
    """
    import numpy as np

    entries = getattr(stream, "index_entries", ())  # older PyAV does not show it
    if not stream.frames or len(entries) != stream.frames or stream.start_time is None:
        return None
    rows = np.array([(e.timestamp, e.pos + e.size, e.is_keyframe, e.is_discard) for e in entries], np.int64)
    held = int((rows[:, 1] <= file_bytes).sum())
    if held < len(rows):
        raise VideoError(path, cut_short(held, stream.frames))
    gaps = np.diff(rows[:, 0])
    if not rows[0, 2] or rows[:, 3].any() or (len(gaps) and (gaps[0] <= 0 or (gaps != gaps[0]).any())):
        return None
    shown_at = rows[:, 0] + (stream.start_time - rows[0, 0])
    return FrameTable(len(rows), shown_at, shown_at[rows[:, 2] > 0], float(stream.time_base), True)


def _from_packets(packets: _Packets, container: Any, stream: Any) -> FrameTable:
    import numpy as np

    known = sorted({time for time in packets.times if time is not None})
    # An AVI has no times of showing: what its packets say is the order in which they are decoded.
    context = stream.codec_context
    made_up = container.format.name == "avi" and (context is None or context.has_b_frames)
    if made_up or len(known) < len(packets.times):  # or some have no time, or two have the same
        return FrameTable(len(packets.times), None, None, 0.0, False)
    keys_at = np.array(sorted(key for key in packets.keys if key is not None), np.int64)
    return FrameTable(len(known), np.array(known, np.int64), keys_at, float(stream.time_base), False)


def _probe(packets: _Packets, container: Any, stream: Any) -> VideoProbe:
    name: str = container.format.name
    is_image = name == "image2" or name.endswith("_pipe")
    rate = None if is_image else stream.average_rate  # a made-up one
    return VideoProbe(
        width_px=stream.codec_context.width,
        height_px=stream.codec_context.height,
        fps=float(rate) if rate else None,
        frames=len(packets.times),
        hidden_frames=packets.hidden,
        header_frames=stream.frames or None,
        codec=stream.codec_context.name,
    )


@dataclass(frozen=True)
class _Packets:
    """When the frames to be shown are shown, when the key frames are, and how many others the file holds."""

    times: list[int | None]
    keys: list[int | None]
    hidden: int


def _read_packets(path: Path, container: Any, stream: Any) -> _Packets:
    """Read a file to its end, without decoding.

    Hidden are frames that an edit list cuts away, and, in a file that was cut in the middle of a group of
    pictures, those before the first key frame, and those that are shown before it: they need pictures that
    are no longer there. A file without a key frame hides none. Raises VideoError for a file that is cut short
    or has no frames.
    """
    times: list[int | None] = []
    keys: list[int | None] = []
    hidden = orphans = 0
    promised = _promised_frames(container, stream)
    for packet in container.demux(stream):
        if packet.size == 0:
            continue  # the demuxer's end mark
        if packet.is_corrupt:
            raise VideoError(path, cut_short(len(times) + hidden, promised))
        if packet.is_keyframe:
            if not keys:
                orphans = len(times)
            keys.append(packet.pts)
        early = len(keys) == 1 and None not in (packet.pts, keys[0]) and packet.pts < keys[0]
        if packet.is_discard or early:
            hidden += 1
        else:
            times.append(packet.pts)
    if orphans < len(times):
        hidden += orphans
        del times[:orphans]
    if not times:
        raise VideoError(path, "no frames")
    if len(times) + hidden < promised:
        raise VideoError(path, cut_short(len(times) + hidden, promised))
    return _Packets(times, keys, hidden)
