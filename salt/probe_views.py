"""What a probe looks at: which stored clips it needs, which crops of them, and what cannot be asked of a
run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from salt.randomness import generator

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from salt.specs import ClipSpec, ProbeSpec, RunSpec

#: Crops of each clip that LiDAR takes as one class, where the suite has a single view.
LIDAR_CROPS = 10

#: Clips of the report split that LiDAR looks at, at most.
LIDAR_CLIPS = 1000


def probe_clip_spec(probe: ProbeSpec, run: RunSpec) -> ClipSpec:
    """The stored clips that a suite reads of its lists: the run's own kind, `segments` of each file.

    Probes crop evenly, without flips and scaling, whatever training does.
    """
    return msgspec.structs.replace(
        run.clip, source="stored", clips_per_file=probe.segments, crop="shift", flip=False
    )


def view_corners(clip: ClipSpec, views: int) -> list[tuple[int, int]]:
    """(top, left) of each view of a stored square, in pixels: one is the centre, more are spread from left to
    right at mid-height, the outermost at the edges.
    """
    room = clip.store_px - clip.crop_px
    if views == 1:
        return [(room // 2, room // 2)]
    return [(room // 2, (2 * view * room + views - 1) // (2 * (views - 1))) for view in range(views)]


def random_corners(clip: ClipSpec, count: int, seed: int) -> NDArray[np.int64]:
    """(top, left) of `LIDAR_CROPS` random crops of each of `count` clips, int64 [count, LIDAR_CROPS, 2]."""
    room = clip.store_px - clip.crop_px
    return generator(seed, "probe crops").integers(0, room + 1, (count, LIDAR_CROPS, 2))


def suite_problems(probe: ProbeSpec) -> list[str]:
    """Why a suite says nothing on any encoder: empty or repeated fields; empty if it does."""
    grids = {
        "ridge_penalties": "linear",
        "neighbours": "knn",
        "attentive_lrs": "attentive",
        "attentive_weight_decays": "attentive",
    }
    needed = ["labels", "frames"] if probe.kinds else []
    needed += [field for field, kind in grids.items() if kind in probe.kinds]
    problems = [f"{field}: is empty; name at least one" for field in needed if not getattr(probe, field)]
    if not probe.kinds and not probe.label_free:
        problems.append("kinds and label_free: are both empty, so there is nothing to find out")
    for field in ("labels", "kinds", "frames", "label_free"):
        names = list(getattr(probe, field))
        if len(set(names)) < len(names):
            problems.append(f"{field} {names}: one comes twice; name each once")
    if "knn" in probe.kinds and probe.neighbours and min(probe.neighbours) > probe.train_clips:
        problems.append(f"neighbours {list(probe.neighbours)}: more than train_clips {probe.train_clips}")
    return problems


def probe_problems(probe: ProbeSpec, run: RunSpec) -> list[str]:
    """Why a suite cannot be run on an encoder of this run's kind, from the specs alone; empty if it can."""
    clip, vit = run.clip, run.model.encoder
    room = clip.store_px - clip.crop_px
    problems = suite_problems(probe)
    if probe.views > 1 and room < probe.views - 1:
        problems.append(
            f"views {probe.views}: crops of {clip.crop_px} px have {room + 1} places side by side in "
            f"{clip.store_px} px; store larger clips or take fewer views"
        )
    if "lidar" in probe.label_free and room == 0:
        problems.append(
            f"label_free lidar: all crops of {clip.crop_px} px of clips stored at {clip.store_px} px are the "
            "same, and LiDAR compares different ones; store larger clips"
        )
    if run.arm == "raw":
        return problems
    beyond = [layer for layer in probe.layers if layer > vit.depth]
    if beyond:
        problems.append(
            f"layers {list(probe.layers)}: the encoder has {vit.depth} blocks, and so no layer {beyond[0]}"
        )
    if len(set(probe.layers)) < len(probe.layers):
        problems.append(f"layers {list(probe.layers)}: a layer comes twice; name each once")
    if "attentive" in probe.kinds and probe.attentive_heads is not None and vit.width % probe.attentive_heads:
        problems.append(
            f"attentive_heads {probe.attentive_heads}: does not divide the encoder's width {vit.width}; take "
            "a divisor, or leave it out for as many as the encoder has"
        )
    return problems
