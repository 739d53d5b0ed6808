"""Named encoder sizes, and every reason why a model cannot be built."""

from __future__ import annotations

from salt.specs import ClipSpec, MaskSpec, ModelSpec, VitSpec


def _vit(width: int, depth: int, heads: int, mlp_width: int | None = None) -> VitSpec:
    return VitSpec(width=width, depth=depth, heads=heads, mlp_width=mlp_width or 4 * width)


#: B to G as in the SALT paper (arXiv 2509.24317, table 4): g and G have MLP ratios 48/11 and 64/13.
#: Ti and S follow the usual ViT naming. nano, micro and tiny are for studies on a few CPU cores.
SIZES: dict[str, VitSpec] = {
    "nano": _vit(32, 2, 2),
    "micro": _vit(48, 3, 3),
    "tiny": _vit(64, 4, 4),
    "vit_ti": _vit(192, 12, 3),
    "vit_s": _vit(384, 12, 6),
    "vit_b": _vit(768, 12, 12),
    "vit_l": _vit(1024, 24, 16),
    "vit_h": _vit(1280, 32, 16),
    "vit_g": _vit(1408, 40, 16, 6144),
    "vit_gg": _vit(1664, 48, 16, 8192),
}

#: Tokens along height or width at most: 2048 px at patches of 16. Tables that masks are drawn from grow with
#: the fourth power: at this side they take a quarter of a gigabyte while they are made.
MOST_SIDE = 128


def patch_values(model: ModelSpec, clip: ClipSpec) -> int:
    """Numbers in one spatio-temporal patch: tubelet frames x patch height x patch width x channels."""
    return model.tubelet_frames * model.patch_px**2 * clip.channels


def grid(model: ModelSpec, clip: ClipSpec) -> tuple[int, int, int]:
    """Tokens along time, height and width."""
    side = clip.crop_px // model.patch_px
    return clip.frames // model.tubelet_frames, side, side


def tokens(model: ModelSpec, clip: ClipSpec) -> int:
    """Tokens of a whole clip."""
    time, height, width = grid(model, clip)
    return time * height * width


def embeds_whole_clips(visible: list[int], count: int) -> bool:
    """Whether embedding all `count` patches of a clip once is less work than those that its masks see."""
    return sum(visible) > count


def encoder_parameters(vit: VitSpec, patch: int) -> int:
    """Trained numbers of an encoder: patch embedding, blocks with all biases, final norm."""
    return patch * vit.width + vit.width + vit.depth * _block_parameters(vit) + 2 * vit.width


def predictor_parameters(vit: VitSpec, input_width: int, output_width: int, mask_tokens: int = 1) -> int:
    """Trained numbers of a predictor or pixel decoder: both projections, mask tokens, blocks, final norm."""
    projections = input_width * vit.width + vit.width + vit.width * output_width + output_width
    return projections + mask_tokens * vit.width + vit.depth * _block_parameters(vit) + 2 * vit.width


def _block_parameters(vit: VitSpec) -> int:
    d, m = vit.width, vit.mlp_width
    attention = d * 3 * d + 3 * d + d * d + d
    mlp = d * m + m + m * d + d
    return attention + mlp + 4 * d


def check_vit(vit: VitSpec, where: str, rope: bool) -> list[str]:
    """Every reason why this transformer cannot be built."""
    problems = []
    if vit.width % vit.heads:
        problems.append(f"{where}: {vit.heads} heads do not divide the width {vit.width}")
    elif rope and vit.width // vit.heads % 2:
        problems.append(
            f"{where}: head width {vit.width // vit.heads} is odd; rotary positions turn pairs of numbers"
        )
    elif rope and vit.width // vit.heads < 6:
        problems.append(
            f"{where}: head width {vit.width // vit.heads} is below 6, the least for 3-D rotary positions"
        )
    return problems


def check_model(model: ModelSpec, clip: ClipSpec, masks: tuple[MaskSpec, ...]) -> list[str]:
    """Every reason why this model cannot be built on this clip, empty when it can."""
    rope = model.position.rope
    problems = check_vit(model.encoder, "model.encoder", rope) + check_vit(
        model.predictor, "model.predictor", rope
    )
    if clip.crop_px % model.patch_px:
        problems.append(
            f"clip.crop_px {clip.crop_px} is not a multiple of model.patch_px {model.patch_px}: "
            f"use {clip.crop_px // model.patch_px * model.patch_px or model.patch_px}"
        )
    if clip.frames % model.tubelet_frames:
        problems.append(
            f"clip.frames {clip.frames} is not a multiple of model.tubelet_frames {model.tubelet_frames}"
        )
    if clip.crop_px > clip.store_px:
        problems.append(
            f"clip.crop_px {clip.crop_px} is larger than the stored clip, clip.store_px {clip.store_px}"
        )
    side = clip.crop_px // model.patch_px
    if side > MOST_SIDE:
        problems.append(
            f"clip.crop_px {clip.crop_px} is {side} patches of model.patch_px {model.patch_px}: {MOST_SIDE} "
            "at most, or masks could not be drawn in the memory of a computer"
        )
    if problems:
        return problems
    for index, mask in enumerate(masks):
        problems += check_mask(mask, grid(model, clip), f"masks[{index}]")
    return problems


def check_mask(mask: MaskSpec, token_grid: tuple[int, int, int], where: str) -> list[str]:
    """Reasons why a mask can never have its visible and target tokens on this grid.

    Counts alone decide here; whether the blocks reach them often enough is measured by
    `salt.masks.acceptance`.
    """
    time, height, width = token_grid
    total = time * height * width
    grid_text = f"{time}x{height}x{width} grid of {total}"
    if mask.kind == "causal" and time == 1:
        return [
            f"{where}.kind causal: the {grid_text} has a single time step, nothing comes after the visible"
        ]
    if mask.kind == "causal" and (mask.context_frames is None or mask.context_frames >= time):
        return [
            f"{where}.context_frames is {mask.context_frames}: a causal mask shows the first 1 to {time - 1} "
            f"of the {time} time steps of the token grid"
        ]
    if mask.kind != "causal" and mask.context_frames is not None:
        return [
            f"{where}.context_frames {mask.context_frames} has no meaning for kind {mask.kind}: leave it "
            "out, or set kind to causal"
        ]
    if mask.aspect_min > mask.aspect_max:
        return [f"{where}: aspect_min {mask.aspect_min} is above aspect_max {mask.aspect_max}"]
    if mask.visible_tokens + mask.target_tokens > total:
        return [
            f"{where}: {mask.visible_tokens} visible and {mask.target_tokens} target tokens do not fit the "
            f"{grid_text}"
        ]
    if mask.kind == "tube":
        return _check_tube(mask, time, height * width, where)
    shown = (mask.context_frames or time) * height * width
    if mask.visible_tokens > shown:
        return [
            f"{where}: {mask.visible_tokens} visible tokens do not fit the {shown} of the first "
            f"{mask.context_frames} time steps of the {grid_text}"
        ]
    return []


def _check_tube(mask: MaskSpec, time: int, cells: int, where: str) -> list[str]:
    problems = []
    if mask.keep != "fixed":
        problems.append(f"{where}.keep {mask.keep}: tubes have equal counts in all clips, leave it at fixed")
    for name, count in (("visible_tokens", mask.visible_tokens), ("target_tokens", mask.target_tokens)):
        if count % time:
            below = count // time * time
            near = f"{below} or {below + time}" if below else str(time)
            problems.append(
                f"{where}.{name} {count}: a tube lasts all {time} time steps, so that the count is a "
                f"multiple of {time}, as {near}, up to {time * cells} for both together"
            )
    return problems
