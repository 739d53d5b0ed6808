"""Clips from video files against decord alone, and against stored clips: `python benchmarks/decode_speed.py`.

Each file gives 16 frames at stride 4 from random starts, the same for both sides, which take turns in one
process. Prints the environment first, then medians and their ratio. Files are made in a temporary folder.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.environment import environment  # noqa: E402
from salt.clips import open_clips  # noqa: E402
from salt.specs import ClipSpec  # noqa: E402
from salt.video import read_clip  # noqa: E402

SPAN = 15 * 4 + 1
#: (what, width, height, frames, codec options, limit of the ratio to decord)
FILES = (
    ("h264 320x240, 10 s", 320, 240, 300, {"preset": "fast"}, 1.1),
    ("h264 640x360, 30 s", 640, 360, 900, {"preset": "fast"}, 1.1),
    ("h264 320x240, 10 s, one key frame", 320, 240, 300, {"preset": "fast", "g": "1000"}, 1.1),
)
BATCH = 32


def picture(number: int, width: int, height: int) -> Any:
    """Moving waves with grain, which keeps the coder from leaving blocks out."""
    y, x = np.mgrid[0:height, 0:width]
    waves = [
        128 + 80 * np.sin((x + 3 * number) / 23) + 30 * np.sin(y / 7 + number / 5),
        128 + 70 * np.cos((y - 2 * number) / 31),
        128 + 60 * np.sin((x + y + number) / 41),
    ]
    grain = np.random.default_rng(number).normal(0, 6, (height, width, 1))
    return np.clip(np.stack(waves, -1) + grain, 0, 255).astype(np.uint8)


def write_video(path: Path, width: int, height: int, frames: int, options: dict[str, str]) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def bare_decord(path: Path, start: int) -> Any:
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    return reader.get_batch(list(range(start, start + SPAN, 4))).asnumpy()


def taking_turns(rounds: int, *sides: Callable[[int], object]) -> list[list[tuple[float, float]]]:
    """(seconds, processor seconds) of every round of each side; the side that begins changes."""
    found: list[list[tuple[float, float]]] = [[] for _ in sides]
    for number in range(rounds):
        order = list(enumerate(sides))
        for side, work in order if number % 2 else reversed(order):
            began, cpu = time.perf_counter(), time.process_time()
            work(number)
            found[side].append((time.perf_counter() - began, time.process_time() - cpu))
    return found


def against_decord(path: Path, what: str, frames: int, height: int, limit: float, rounds: int) -> None:
    starts = np.random.default_rng(0).integers(0, frames - SPAN + 1, rounds).tolist()
    starts_in_all = frames - SPAN + 1
    for store_px in sorted({height, min(height, 256)}, reverse=True):
        clip = ClipSpec(source="streamed", frames=16, frame_stride=4, store_px=store_px, crop_px=224)

        def ours(number: int, clip: ClipSpec = clip) -> Any:
            return read_clip(path, clip, (starts[number] + 0.5) / starts_in_all)

        if store_px == height:
            for number in range(3):
                assert (ours(number) == bare_decord(path, starts[number])).all(), "other frames than decord's"
        decord_s, ours_s = taking_turns(rounds, lambda number: bare_decord(path, starts[number]), ours)
        ratios = [
            statistics.median(b[at] / a[at] for a, b in zip(decord_s, ours_s, strict=True)) for at in (0, 1)
        ]
        size = "same pixels" if store_px == height else f"short side scaled to {store_px}"
        print(
            f"{what}, {size}: decord {1e3 * statistics.median(s for s, _ in decord_s):.1f} ms, "
            f"salt {1e3 * statistics.median(s for s, _ in ours_s):.1f} ms a clip; ratio {ratios[0]:.2f} "
            f"(processor time {ratios[1]:.2f}), limit {limit}",
            flush=True,
        )


def against_stored(folder: Path, rounds: int) -> None:
    """A random batch of stored clips, out of the page cache, against decoding the same clips."""
    path = folder / "list.csv"
    path.write_text("path\n" + "".join(f"{number}.mp4\n" for number in range(BATCH)))
    data = (folder / "0.mp4").read_bytes()
    for number in range(1, BATCH):
        (folder / f"{number}.mp4").write_bytes(data)
    clip = ClipSpec(frames=16, frame_stride=4, store_px=224, crop_px=224)
    clips = open_clips(path, clip, folder / "cache", 2, False)
    draws = np.random.default_rng(0)
    out = np.empty((BATCH, *clips.frames.shape[1:]), np.uint8)

    def stored(number: int) -> None:
        for place, row in enumerate(draws.permutation(BATCH).tolist()):
            out[place] = clips.frames[row]

    def decoded(number: int) -> None:
        for row in draws.permutation(BATCH).tolist():
            read_clip(clips.files[row], clip, 0.5)

    stored(0)
    times = taking_turns(rounds, decoded, stored)
    slow, fast = (statistics.median(s for s, _ in side) for side in times)
    print(
        f"batch of {BATCH} clips of 16 x 224 x 224 x 3: decoded {slow:.2f} s, stored {1e3 * fast:.1f} ms "
        f"with a warm page cache ({out.nbytes / fast / 1e9:.1f} GB/s); {slow / fast:.0f} times as fast, "
        "wanted 50"
    )


def main() -> None:
    import decord

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=31, help="clips of each file (default 31)")
    args = parser.parse_args()
    decord.logging.set_level(decord.logging.QUIET)
    print(f"{environment()}, decord {version('decord')}, PyAV {version('av')}, one thread each", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number, (what, width, height, frames, options, limit) in enumerate(FILES):
            path = folder / f"{number}.mp4"
            write_video(path, width, height, frames, options)
            against_decord(path, what, frames, height, limit, args.rounds)
        against_stored(folder, 5)


if __name__ == "__main__":
    main()
