"""Frames out of the middle of a file: seek, decode, and know every frame by its time.

A frame is what its timestamp says. Counting from where a seek landed would go wrong in files with edit
lists, with open groups of pictures or with uneven times; where the times do not answer, the file is decoded
from its beginning and frames are counted. Nothing stays open: a decoder never crosses a fork.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.container import (
    FrameTable,
    NotDecoded,
    VideoError,
    frame_table,
    not_able,
    open_container,
    video_stream,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Frames between two wanted ones from which a seek is cheaper than decoding on, if a key frame lies between.
SEEK_OVER_FRAMES = 24


def read_chosen(
    path: Path, choose: Callable[[FrameTable], Sequence[int]], short_px: int | None = None
) -> tuple[NDArray[np.uint8], FrameTable]:
    """The frames whose numbers `choose` picks from a file's table, as `read_at` gives them, and the table.

    It is asked again if the header's table turns out not to hold. Raises VideoError.
    """
    table = frame_table(path)
    if table.from_header:
        frames = _read(path, table, choose(table), short_px)
        if frames is not None:
            return frames, table
        table = frame_table(path, trust_header=False)
    return read_at(path, table, choose(table), short_px), table


def read_at(
    path: Path, table: FrameTable, numbers: Sequence[int], short_px: int | None = None
) -> NDArray[np.uint8]:
    """The frames with these numbers (any order, repeats too), upright RGB uint8 [len(numbers), H, W, 3].

    A short side above `short_px` is scaled down to it (swscale's bilinear filter, which averages where it
    shrinks). `table` is not the header's (`read_chosen`). Raises VideoError for frames that are not there,
    do not decode, or differ in size.
    """
    frames = _read(path, table, numbers, short_px)
    assert frames is not None, "the table is the header's"
    return frames


def _read(
    path: Path, table: FrameTable, numbers: Sequence[int], short_px: int | None
) -> NDArray[np.uint8] | None:
    """The frames with these numbers; None if the header's table does not hold."""
    import av
    import numpy as np

    wanted = sorted(set(numbers))
    if not 0 <= wanted[0] <= wanted[-1] < table.frames:
        raise VideoError(path, f"frame {wanted[-1]} is past the end of what decodes: {table.frames} frames")
    try:
        found = _by_time(path, table, wanted, short_px)
        if found is None and table.from_header:
            return None
        if found is None:
            found = _by_count(path, wanted, short_px)
    except av.error.FFmpegError as error:
        if not_able(error):
            raise NotDecoded(path, f"PyAV cannot decode it: {error.strerror}") from error
        raise VideoError(
            path, f"damaged: a frame up to {wanted[-1]} does not decode: {error.strerror}"
        ) from error
    missing = [number for number in wanted if number not in found]
    if missing:
        raise VideoError(path, f"frame {missing[0]} is past the end of what decodes")
    sizes = sorted({picture.shape[1::-1] for picture in found.values()})
    if len(sizes) > 1:
        listed = " and ".join(f"{width}x{height}" for width, height in sizes)
        raise VideoError(path, f"its frames are of different sizes: {listed}")
    return np.stack([found[number] for number in numbers])


def _by_time(
    path: Path, table: FrameTable, wanted: list[int], short_px: int | None
) -> dict[int, NDArray[np.uint8]] | None:
    """{number: picture} of all wanted frames, or None if one cannot be found by its time."""
    if table.shown_at is None or table.keys_at is None:
        return None
    number_of = {int(table.shown_at[number]): number for number in wanted}
    found: dict[int, NDArray[np.uint8]] = {}
    with open_container(path) as container:
        stream = video_stream(container)
        for run in _runs(table, wanted):
            times = [int(table.shown_at[number]) for number in run]
            pictures = None
            for seek_to, is_start in _attempts(table, times[0]):
                pictures = _run_from(container, stream, seek_to, is_start, times, short_px)
                if pictures is not None:
                    break
            if pictures is None:
                return None
            found.update({number_of[time]: picture for time, picture in pictures.items()})
    return found


def _runs(table: FrameTable, wanted: list[int]) -> Iterator[list[int]]:
    """Split where a key frame lies between two wanted frames that are far apart."""
    import numpy as np

    assert table.shown_at is not None
    assert table.keys_at is not None
    keys = np.searchsorted(table.keys_at, table.shown_at[wanted], side="right")
    run = [wanted[0]]
    for place in range(1, len(wanted)):
        if wanted[place] - wanted[place - 1] > SEEK_OVER_FRAMES and keys[place] > keys[place - 1]:
            yield run
            run = []
        run.append(wanted[place])
    yield run


def _attempts(table: FrameTable, first_at: int) -> Iterator[tuple[int, bool]]:
    """Times to seek to, and whether that is the file's beginning: the frame, one key frame earlier, the
    start.
    """
    import numpy as np

    assert table.shown_at is not None
    assert table.keys_at is not None
    yield first_at, False
    before = int(np.searchsorted(table.keys_at, first_at, side="right")) - 2
    if before > 0:
        yield int(table.keys_at[before]), False
    yield min([int(table.shown_at[0]), *table.keys_at[:1].tolist()]), True


def _run_from(
    container: Any, stream: Any, seek_to: int, is_start: bool, times: list[int], short_px: int | None
) -> dict[int, NDArray[np.uint8]] | None:
    """{time: picture} of all `times`, or None if decoding from `seek_to` does not give them soundly.

    It is sound if the first frame that comes out is a key frame and not after the first wanted one: frames
    shown before a key frame may need pictures from before the seek.
    """
    import av

    wanted = set(times)
    found: dict[int, NDArray[np.uint8]] = {}
    try:
        container.seek(seek_to, stream=stream, backward=True)
    except av.error.FFmpegError:
        return None  # there is nothing to seek to, or no way to
    context = stream.codec_context
    first = True
    for packet in container.demux(stream):
        # Pictures that no other picture needs are decoded only where they are wanted.
        context.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
        for frame in packet.decode():
            if frame.pts is None or (
                first and not is_start and (not frame.key_frame or frame.pts > times[0])
            ):
                return None
            first = False
            if frame.pts in wanted:
                if frame.is_corrupt:
                    return None
                found[frame.pts] = _picture(frame, short_px)
                if len(found) == len(wanted):
                    return found
            elif frame.pts > times[-1]:
                return None
    return None


def _by_count(path: Path, wanted: list[int], short_px: int | None) -> dict[int, NDArray[np.uint8]]:
    """{number: picture} by decoding from the beginning; frames past the end are left out."""
    left = set(wanted)
    found: dict[int, NDArray[np.uint8]] = {}
    with open_container(path) as container:
        stream = video_stream(container)
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise VideoError(path, f"damaged: frame {number} does not decode cleanly")
            if number in left:
                found[number] = _picture(frame, short_px)
            if len(found) == len(left):
                break
    return found


def _picture(frame: Any, short_px: int | None) -> NDArray[np.uint8]:
    """A decoded frame as it is to be seen, uint8 [H, W, 3], turned as the file's metadata say."""
    import numpy as np

    short = min(frame.width, frame.height)
    if short_px is not None and short > short_px:
        width, height = (max(1, round(side * short_px / short)) for side in (frame.width, frame.height))
        pixels = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
    else:
        pixels = frame.to_ndarray(format="rgb24")
    quarter_turns = round(frame.rotation / 90) % 4  # anticlockwise, as numpy turns
    upright: NDArray[np.uint8] = np.rot90(pixels, quarter_turns) if quarter_turns else pixels
    return upright
