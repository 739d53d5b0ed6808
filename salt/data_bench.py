"""How fast a list gives clips on this machine, and how many decoding processes a model needs."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salt.clips import Clips, load_clips
from salt.errors import UserError
from salt.isolate import run_isolated
from salt.lists import VideoList, data_spec, read_list
from salt.progress import progress
from salt.specs import ClipSpec
from salt.video import VideoError, read_clip

#: Clips asked for at most in one measurement.
MOST_CLIPS = 20_000
#: Clips copied at once out of stored ones.
PACKED_BATCH = 64


@dataclass(frozen=True)
class StreamedSpeed:
    """Clips decoded at random places by that many processes; `failed` clips count in no rate."""

    workers: int
    clips: int
    failed: int
    wall_s: float
    clips_per_s: float
    file_bytes_per_s: float  # of whole files: an upper bound of what was read
    pixel_bytes_per_s: float


@dataclass(frozen=True)
class PackedSpeed:
    """Random stored clips copied out of the memory map by one process; from memory once they are there."""

    clips: int
    wall_s: float
    clips_per_s: float
    pixel_bytes_per_s: float


@dataclass(frozen=True)
class DataBench:
    """What was measured. `enough_workers` is the fewest that give `needs_clips_per_s`.

    It was `measured`, or else reckoned from the most processes tried, as if more of them added as much each;
    None if nothing was asked for.
    """

    list: str
    cores: int
    streamed: tuple[StreamedSpeed, ...]
    packed: PackedSpeed | None
    needs_clips_per_s: float | None
    enough_workers: int | None
    measured: bool | None


def bench_list(
    path: Path,
    clip: ClipSpec,
    cache: Path,
    *,
    workers: Sequence[int] = (1, 2),
    needs_clips_per_s: float | None = None,
    seconds: float = 5.0,
    limit_s: float = 60.0,
    show_progress: bool = False,
) -> DataBench:
    """Measure decoding with each number of workers for about `seconds`, and stored clips if `cache` has any.

    Decoding is all that is measured: no crops, no masks, no model. Raises UserError for a list that cannot be
    read or of which nothing decodes.
    """
    videos = read_list(path)
    streamed = []
    with progress(f"decode {path.name}", len(workers), show_progress) as advance:
        for count in workers:
            streamed.append(_streamed(videos, clip, count, seconds, limit_s))
            advance(1)
    stored = load_clips(cache, data_spec(videos, "list").fingerprint, clip)
    enough, measured = enough_workers(streamed, needs_clips_per_s)
    return DataBench(
        list=str(path),
        cores=os.cpu_count() or 1,
        streamed=tuple(streamed),
        packed=None if stored is None else _packed(stored, seconds),
        needs_clips_per_s=needs_clips_per_s,
        enough_workers=enough,
        measured=measured,
    )


def enough_workers(
    streamed: Sequence[StreamedSpeed], needs_clips_per_s: float | None
) -> tuple[int | None, bool | None]:
    """The fewest workers that give that many clips per second, and whether that was measured."""
    if needs_clips_per_s is None:
        return None, None
    for speed in sorted(streamed, key=lambda item: item.workers):
        if speed.clips_per_s >= needs_clips_per_s:
            return speed.workers, True
    most = max(streamed, key=lambda item: item.workers)
    return math.ceil(needs_clips_per_s * most.workers / most.clips_per_s), False


def read_task(task: tuple[Path, ClipSpec, float]) -> tuple[int, int, str | None]:
    """In a worker: its process, the clip's bytes, and why there is no clip."""
    path, clip, place = task
    try:
        return os.getpid(), read_clip(path, clip, place).nbytes, None
    except VideoError as error:
        return os.getpid(), 0, error.reason


def _streamed(
    videos: VideoList, clip: ClipSpec, workers: int, seconds: float, limit_s: float
) -> StreamedSpeed:
    import numpy as np

    draws = np.random.default_rng(0)
    rows = np.concatenate(
        [draws.permutation(len(videos.files)) for _ in range(math.ceil(MOST_CLIPS / len(videos.files)))]
    )[:MOST_CLIPS].tolist()
    places = draws.random(len(rows)).tolist()
    tasks = [(videos.files[row], clip, place) for row, place in zip(rows, places, strict=True)]
    started: set[int] = set()
    begun: float | None = None
    ended, clips, failed, pixel_bytes, file_bytes = 0.0, 0, 0, 0, 0
    reason = ""
    for outcome in run_isolated(read_task, tasks, workers=workers, limit_s=limit_s):
        ended = time.monotonic()
        process, nbytes, why = outcome.value or (0, 0, f"the decoder: {outcome.lost}")
        if begun is None:
            # The clock starts when every process has shown that it works.
            started.add(process)
            begun = ended if len(started - {0}) == workers else None
        elif why is None:
            clips += 1
            pixel_bytes += nbytes
            file_bytes += videos.sizes_bytes[rows[outcome.index]]
        if why is not None:
            failed += 1
            reason = f"{videos.files[rows[outcome.index]]}: {why}"
        if (begun is not None and ended - begun >= seconds) or (not clips and failed > 100):
            break
    if begun is None or not clips:
        raise UserError(
            f"{videos.path}: no clip could be timed; the last failure: {reason or 'none'}; see "
            f"`salt-data scan {videos.path}`"
        )
    wall_s = ended - begun
    return StreamedSpeed(
        workers, clips, failed, wall_s, clips / wall_s, file_bytes / wall_s, pixel_bytes / wall_s
    )


def _packed(clips: Clips, seconds: float) -> PackedSpeed:
    import numpy as np

    draws = np.random.default_rng(0)
    frames: Any = clips.frames
    batch = np.empty((PACKED_BATCH, *frames.shape[1:]), np.uint8)
    count = 0
    begun = time.perf_counter()
    while (wall_s := time.perf_counter() - begun) < seconds:
        for place, number in enumerate(draws.integers(0, len(frames), PACKED_BATCH).tolist()):
            batch[place] = frames[number]
        count += PACKED_BATCH
    return PackedSpeed(count, wall_s, count / wall_s, count * batch[0].nbytes / wall_s)
