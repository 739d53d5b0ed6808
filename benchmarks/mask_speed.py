"""How long the masks of a device batch take to draw: `python benchmarks/mask_speed.py`.

V-JEPA's short-range and long-range mask, with their published token counts, for 24 clips of 16 frames of
224 px. The counterpart draws the same kind of mask with a random generator for each step and mask, all cells
of every candidate as booleans, and an argpartition and a sort for each list. Both sides run in one process
and one thread, one after the other in turn. Prints commit and environment first, then medians, quartiles and
the ratio; and the limit of 0.8 ms.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from salt.masks import draw_masks, published_counts  # noqa: E402
from salt.randomness import generator  # noqa: E402
from salt.specs import MaskSpec  # noqa: E402

GRID = (8, 14, 14)
CLIPS = 24
LIMIT_MS = 0.8
#: Blocks and scale of the short-range and long-range mask.
BLOCKS = ((8, 0.15), (2, 0.7))
#: Candidates for each clip, of the counterpart.
CANDIDATES = 4


def by_generator(mask: MaskSpec, step: int, index: int) -> tuple[Any, Any]:
    """The counterpart: visible and target tokens of all clips, int64 [CLIPS, tokens]."""
    time_steps, height, width = GRID
    rng = generator(0, "mask", step, index)
    covered = np.zeros((CLIPS, height, width), dtype=bool)
    waiting = np.arange(CLIPS)
    while len(waiting):
        blocks = generator_blocks(rng, mask, len(waiting) * CANDIDATES)
        blocks = blocks.reshape(len(waiting), CANDIDATES, height, width)
        cells = blocks.sum(axis=(-2, -1))
        accepted = cells * time_steps >= mask.target_tokens
        accepted &= (height * width - cells) * time_steps >= mask.visible_tokens
        found, first = accepted.any(axis=1), accepted.argmax(axis=1)
        covered[waiting[found]] = blocks[found, first[found]]
        waiting = waiting[~found]
    tubes = np.broadcast_to(covered[:, None], (CLIPS, *GRID)).reshape(CLIPS, -1)
    order = rng.random(tubes.shape)
    lists = []
    for allowed, count in ((~tubes, mask.visible_tokens), (tubes, mask.target_tokens)):
        keys = np.where(allowed, order, 2.0)
        lists.append(np.sort(np.argpartition(keys, count - 1, axis=1)[:, :count], axis=1))
    return lists[0], lists[1]


def generator_blocks(rng: np.random.Generator, mask: MaskSpec, count: int) -> Any:
    """`count` unions of rectangles, bool [count, height, width]."""
    _, height, width = GRID
    area = mask.scale * height * width
    aspect = np.exp(rng.uniform(np.log(mask.aspect_min), np.log(mask.aspect_max), (count, 1)))
    tall = np.clip(np.rint(np.sqrt(area * aspect)), 1, height)
    wide = np.clip(np.rint(np.sqrt(area / aspect)), 1, width)
    top = np.floor(rng.random((count, mask.blocks)) * (height - tall + 1))
    left = np.floor(rng.random((count, mask.blocks)) * (width - wide + 1))
    y, x = np.arange(height), np.arange(width)
    rows = (y >= top[..., None]) & (y < (top + tall)[..., None])
    columns = (x >= left[..., None]) & (x < (left + wide)[..., None])
    return rows.transpose(0, 2, 1).astype(np.float32) @ columns.astype(np.float32) > 0


def by_hash(mask: MaskSpec, step: int, index: int) -> tuple[Any, Any]:
    return draw_masks(mask, GRID, CLIPS, seed=0, step=step, index=index)


def source() -> str:
    """The commit of this folder, and whether files differ from it."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"
    return f"commit {found.stdout.strip()}"


def environment() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = models[0] if models else platform.processor() or "unknown"
    machine = f"{platform.system()} {platform.machine()}, {model}, {os.cpu_count()} cores"
    return f"Python {platform.python_version()}, numpy {np.__version__}, {machine}, one thread"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1000, help="steps to draw, each by both sides")
    steps = parser.parse_args().steps
    print(source())
    print(environment())
    masks = []
    for blocks, scale in BLOCKS:
        visible, target = published_counts(blocks, scale, 0.75, 1.5, GRID)
        masks.append(MaskSpec(blocks=blocks, scale=scale, visible_tokens=visible, target_tokens=target))
        print(f"mask {blocks} x {scale}: {visible} visible, {target} target tokens, {CLIPS} clips")
    sides = {"generator": by_generator, "hash": by_hash}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(-20, steps):  # the first 20 warm up
        for name, draw in sides.items():
            began = time.perf_counter()
            for index, mask in enumerate(masks):
                draw(mask, abs(step), index)
            if step >= 0:
                times[name].append((time.perf_counter() - began) * 1e3)
    quartiles = {name: np.percentile(found, (25, 50, 75)) for name, found in times.items()}
    for name, (low, median, high) in quartiles.items():
        print(f"{name}: {median:.3f} ms for both masks (quartiles {low:.3f} to {high:.3f})")
    median = quartiles["hash"][1]
    print(f"ratio of medians: {quartiles['generator'][1] / median:.1f}")
    print(f"hash against its limit: {median / LIMIT_MS:.2f} of {LIMIT_MS:g} ms")


if __name__ == "__main__":
    main()
