"""Which decoder gives the frames of a file: PyAV first; another where PyAV cannot and its frames can be
trusted.

A decoder is asked for frames by their numbers and gives upright RGB. Others than PyAV are trusted with a file
if PyAV's index of it is whole, no frame is hidden, every frame has a time of its own, the decoder counts as
many frames, and two frames that both decode are alike. A file with damage has no other decoder: what it gave
in place of broken frames would be made up. Where PyAV killed or hung its process no frame is compared.

They run in a process of their own: a worker's, or one that is started for the call.
"""

from __future__ import annotations

import importlib
import multiprocessing
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.container import FileIndex, FrameTable, VideoError, file_index
from salt.isolate import run_isolated
from salt.seeking import read_at

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PYAV, DECORD, TORCHCODEC = "pyav", "decord", "torchcodec"
#: What reads image files; no other does.
PILLOW = "pillow"
#: Order in which decoders are asked.
ORDER = (PYAV, DECORD, TORCHCODEC)
#: Widths in pixels that decord 0.6.0 or decord2 3.4.0 returns sheared or in a wrong shape.
DECORD_BAD_WIDTHS = frozenset({16, 24, 32, 48, 72, 96, 144})
#: Seconds that another decoder may take for the frames of one clip, verification included.
LIMIT_S = 120.0
#: Frames compared with PyAV's, and the mean difference in grey levels that rounding may make.
SPOTS, SPOT_LEVELS = 2, 1.0

Choose = Callable[[FrameTable], Sequence[int]]


@dataclass(frozen=True)
class Decoder:
    """A decoder besides PyAV: its frames in the file, and those with given numbers in rising order.

    `count(path)` is an int, `read(path, numbers)` uint8 RGB [len(numbers), H, W, 3]; both raise whatever the
    library raises. `refuses(index)` says why its frames of such a file are not to be trusted, or None.
    """

    count: Callable[[Path], int]
    read: Callable[[Path, Sequence[int]], NDArray[np.uint8]]
    refuses: Callable[[FileIndex], str | None]


@dataclass(frozen=True)
class _Task:
    """Frames to be read by another decoder; `verify` and `compare` say how much of it is still to be
    shown."""

    name: str
    path: Path
    numbers: tuple[int, ...]
    frames: int
    verify: bool
    compare: bool


@dataclass(frozen=True)
class _Served:
    """A file that PyAV does not serve in this process: by whom it is, and what is known."""

    name: str
    verified: bool
    pyav_lost: bool


#: Files that PyAV does not serve: few, so that nothing is ever dropped.
_served: dict[str, _Served] = {}
_latest = threading.local()


def installed() -> tuple[str, ...]:
    """The decoders whose packages are there, in order; a package may still turn out not to load."""
    return (PYAV, *(name for name in ORDER[1:] if name in sys.modules or find_spec(name) is not None))


def following(name: str | None) -> str | None:
    """The installed decoder to ask after this one (None: PyAV); None if there is none."""
    names = installed()
    place = names.index(name or PYAV) + 1
    return names[place] if place < len(names) else None


def prefer(path: Path, name: str) -> None:
    """From now on this process reads `path` with this decoder: those before it killed or hung a process."""
    known = _served.get(str(path))
    if known is None or ORDER.index(known.name) < ORDER.index(name):
        _served[str(path)] = _Served(name, verified=False, pyav_lost=True)


def serving(path: Path) -> str:
    """The decoder that this process asks first for `path`."""
    known = _served.get(str(path))
    return PYAV if known is None else known.name


def note_served(name: str) -> None:
    """Say who served the clip that this thread has just read; `take_served` asks."""
    _latest.name = name


def take_served() -> str | None:
    """Who served the last clip of this thread since this was last asked; None for readers that do not say."""
    name: str | None = getattr(_latest, "name", None)
    _latest.name = None
    return name


def read_otherwise(
    path: Path, choose: Choose, failure: VideoError | None
) -> tuple[NDArray[np.uint8], FrameTable, str]:
    """The frames whose numbers `choose` picks, uint8 RGB [n, H, W, 3], the file's table, and who gave them.

    `failure` is what PyAV said; None if it has not been asked. Raises VideoError with all reasons if no
    decoder can be trusted with the file.
    """
    known = _served.get(str(path))
    said = [] if failure is None else [failure.reason]
    try:
        index = file_index(path)
    except VideoError as error:
        raise failure or error from error
    numbers = tuple(choose(index.table))
    for name in installed()[1:]:
        if known is not None and ORDER.index(name) < ORDER.index(known.name):
            continue
        verified = known is not None and known.name == name and known.verified
        lost = known is not None and known.pyav_lost
        comparable = not lost and index.width_px is not None  # PyAV has a decoder for it
        task = _Task(name, path, numbers, index.table.frames, not verified, comparable)
        found = refusal(name, index) or _isolated(task)
        if not isinstance(found, str):
            _served[str(path)] = _Served(name, verified=True, pyav_lost=lost)
            return found, index.table, name
        said.append(f"{name}: {found}")
    raise VideoError(path, "; ".join(said) or "no other decoder is installed")


def refusal(name: str, index: FileIndex) -> str | None:
    """Why the frames that a decoder gives of a file with this index are not to be trusted; None if they
    may."""
    if index.hidden_frames:
        return "not trusted with files that hide frames"
    if index.table.shown_at is None:
        return "not trusted with files whose frames have no times of their own"
    return DECODERS[name].refuses(index)


def _isolated(task: _Task) -> NDArray[np.uint8] | str:
    """The frames, or why there are none; a worker is isolated already and can start no process."""
    if multiprocessing.current_process().daemon:
        return read_verified(task)
    (outcome,) = run_isolated(read_verified, [task], workers=1, limit_s=LIMIT_S)
    return outcome.lost or "gave nothing" if outcome.value is None else outcome.value


def read_verified(task: _Task) -> NDArray[np.uint8] | str:
    """In a worker: the frames, in the order asked for, or why they are not to be had or trusted."""
    decoder = DECODERS[task.name]
    wanted = sorted(set(task.numbers))
    try:
        if task.verify:
            wrong = _mistrust(decoder, task)
            if wrong is not None:
                return wrong
        frames = decoder.read(task.path, wanted)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a foreign library: whatever it raises is the file's reason
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    if frames.ndim != 4 or len(frames) != len(wanted) or frames.shape[3] != 3:
        return f"gave an array of shape {frames.shape} for {len(wanted)} frames"
    place = {number: row for row, number in enumerate(wanted)}
    return frames[[place[number] for number in task.numbers]]


def _mistrust(decoder: Decoder, task: _Task) -> str | None:
    """Why a decoder is not to be trusted with a file, by its count and by frames that PyAV decodes too."""
    import numpy as np

    count = decoder.count(task.path)
    if count != task.frames:
        return f"counts {count} frames, the container {task.frames}"
    for number, ours in _pyav_frames(task).items():
        theirs = decoder.read(task.path, [number])[0]
        if theirs.shape != ours.shape:
            return f"its frames are of shape {theirs.shape}, PyAV's {ours.shape}"
        if float(np.abs(theirs.astype(np.int16) - ours).mean()) > SPOT_LEVELS:
            return f"its frame {number} is not PyAV's"
    return None


def _pyav_frames(task: _Task) -> dict[int, NDArray[np.uint8]]:
    """{number: picture} of the frames to compare: the first two of last, middle and first that PyAV
    decodes."""
    found: dict[int, NDArray[np.uint8]] = {}
    if not task.compare:
        return found
    table = file_index(task.path).table
    for number in dict.fromkeys((task.frames - 1, task.frames // 2, 0)):
        try:
            found[number] = read_at(task.path, table, [number])[0]
        except VideoError:
            continue  # nothing to hold the other decoder's against
        if len(found) == SPOTS:
            break
    return found


def scaled(frames: NDArray[np.uint8], short_px: int | None) -> NDArray[np.uint8]:
    """uint8 [n, H, W, 3] with a short side of `short_px` at most, by the filter that PyAV's frames get."""
    import av
    import numpy as np

    height, width = frames.shape[1:3]
    if short_px is None or min(height, width) <= short_px:
        return frames
    scale = short_px / min(height, width)
    size = {"width": max(1, round(width * scale)), "height": max(1, round(height * scale))}
    whole = (av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24") for frame in frames)
    return np.stack([frame.reformat(**size, format="rgb24").to_ndarray() for frame in whole])


def _decord_open(path: Path) -> Any:
    decord = importlib.import_module("decord")
    decord.logging.set_level(decord.logging.QUIET)
    return decord.VideoReader(str(path), num_threads=1)


def _decord_count(path: Path) -> int:
    return len(_decord_open(path))


def _decord_read(path: Path, numbers: Sequence[int]) -> NDArray[np.uint8]:
    """One frame after the other from the beginning: decord's seeking is what gave other frames."""
    import numpy as np

    reader, wanted = _decord_open(path), set(numbers)
    found = []
    for number in range(numbers[-1] + 1):
        frame = reader.next()
        if number in wanted:
            found.append(frame.asnumpy())
    return np.stack(found)


def _decord_refuses(index: FileIndex) -> str | None:
    if not any(name in index.container for name in ("mp4", "matroska")):
        return f"not trusted with the container {index.container}"
    if index.width_px is None or index.height_px is None:
        return "not trusted with frames of unknown size"
    if index.width_px % 2 or index.height_px % 2:
        return "not trusted with odd widths and heights"
    if {index.width_px, index.height_px} & DECORD_BAD_WIDTHS:  # either may be the width, once upright
        return f"not trusted with frames of {index.width_px}x{index.height_px}"
    return None


def _torchcodec_open(path: Path) -> Any:
    decoders = importlib.import_module("torchcodec.decoders")
    return decoders.VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")


def _torchcodec_count(path: Path) -> int:
    return len(_torchcodec_open(path))


def _torchcodec_read(path: Path, numbers: Sequence[int]) -> NDArray[np.uint8]:
    batch = _torchcodec_open(path).get_frames_at(indices=list(numbers))
    frames: NDArray[np.uint8] = batch.data.numpy()
    return frames


DECODERS = {
    DECORD: Decoder(_decord_count, _decord_read, _decord_refuses),
    TORCHCODEC: Decoder(_torchcodec_count, _torchcodec_read, lambda index: None),
}
