"""Small runs and clips for tests of sampling."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from salt.clips import Clips
from salt.specs import ClipSpec, DataPart, DataSpec, ModelSpec, OptimSpec, RunSpec, VitSpec

VIT = VitSpec(width=32, depth=1, heads=1, mlp_width=64)


def run(
    clip: ClipSpec, data: DataSpec, batch: int, seed: int = 5, cached_views: int | None = None
) -> RunSpec:
    return RunSpec(
        arm="pixel",
        seed=seed,
        steps=10,
        model=ModelSpec(encoder=VIT, predictor=VIT, patch_px=6),
        clip=clip,
        data=data,
        masks=(),
        optim=OptimSpec(batch_clips=batch),
        cached_views=cached_views,
    )


def one_list(clips: int) -> DataSpec:
    return DataSpec(name="one", fingerprint="one", clips=clips)


def mixed(sizes: list[int], weights: list[float]) -> DataSpec:
    parts = tuple(
        DataPart(name=f"list {number}", fingerprint=f"print {number}", clips=size, weight=weight)
        for number, (size, weight) in enumerate(zip(sizes, weights, strict=True))
    )
    return DataSpec(name="mixed", fingerprint="mixed", clips=sum(sizes), parts=parts)


def stored(clip: ClipSpec, count: int, seed: int = 0) -> Clips:
    """Clips of noise, read-only as a memory map of a store is."""
    shape = (count, clip.frames, clip.store_px, clip.store_px, clip.channels)
    frames = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    frames.flags.writeable = False
    rows = tuple(f"{number}.mp4" for number in range(count))
    return Clips(
        frames=frames,
        files=tuple(Path(row) for row in rows),
        rows=rows,
        columns={"kind": tuple(f"{seed}-{number % 3}" for number in range(count))},
        skipped=(),
        fingerprint="one",
        padded_share=0.0,
    )
