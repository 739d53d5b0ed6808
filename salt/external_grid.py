"""Whether the tokens of an external teacher lie on a student's grid."""

from __future__ import annotations

from salt.adapter_spec import AdapterSpec
from salt.external_describe import ANY_SIZE
from salt.sizes import grid
from salt.specs import ClipSpec, ModelSpec


def grid_problems(adapter: AdapterSpec, clip: ClipSpec, model: ModelSpec) -> list[str]:
    """Every reason why its latents cannot be a student's targets, with the numbers; empty if they can."""
    time, side, _ = grid(model, clip)
    problems = []
    if adapter.side != side and adapter.resize_grid == "none":
        ways = []
        if adapter.family in ANY_SIZE:
            ways.append(f"give it `input_px: {side * adapter.patch_px}`")
        if clip.crop_px % adapter.side == 0:
            ways.append(f"set `model.patch_px: {clip.crop_px // adapter.side}`")
        ways.append("ask for `resize_grid: bilinear`, which interpolates its latents")
        problems.append(
            f"it gives {adapter.side} x {adapter.side} tokens a frame ({adapter.input_px} px in patches of "
            f"{adapter.patch_px}), the student has {side} x {side} ({clip.crop_px} px in patches of "
            f"{model.patch_px}): {', or '.join(ways)}"
        )
    if adapter.frames is not None and adapter.frames != clip.frames:
        problems.append(
            f"it reads {adapter.frames} frames, the clip has {clip.frames}: set "
            f"`clip.frames: {adapter.frames}`"
        )
    own = adapter.tubelet_frames
    if own is not None and model.tubelet_frames % own:
        problems.append(
            f"its tubelets last {own} frames, the student's {model.tubelet_frames} ({time} time steps): set "
            f"`model.tubelet_frames` to a multiple of {own}"
        )
    return problems
