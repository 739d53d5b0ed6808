"""From the masks of a study file to those of a run, and what is wrong with them as they are written."""

from __future__ import annotations

import functools

import msgspec

from salt.sizes import MOST_SIDE
from salt.specs import MaskSpec
from sweeps.config import MaskConfig

Grid = tuple[int, int, int]
#: What shapes a union of blocks; of tubes it means nothing.
_OF_BLOCKS = ("blocks", "scale", "aspect_min", "aspect_max")


@functools.cache
def mask_spec(config: MaskConfig, places: Grid) -> MaskSpec:
    """The mask on a grid of tokens; counts that are left out are the published sampler's means, or a tube's.

    A configuration with `mask_mistakes` gives counts of 1: it is refused elsewhere.
    """
    fields = {name: getattr(config, name) for name in MaskSpec.__struct_fields__}
    if config.visible_tokens is None or config.target_tokens is None:
        visible, target = _counts(config, places)
        fields["visible_tokens"] = config.visible_tokens or visible
        fields["target_tokens"] = config.target_tokens or target
    return MaskSpec(**fields)


def _counts(config: MaskConfig, places: Grid) -> tuple[int, int]:
    from salt.masks import CLIPS_PER_DEVICE, published_counts

    if config.kind == "tube":
        return tube_counts(config.ratio, places) if config.ratio is not None else (1, 1)
    context = config.context_frames
    # A grid without places or of too many, or a context without later time steps, is refused elsewhere.
    bad_context = (config.kind == "causal") != (context is not None and context < places[0])
    bad_grid = not all(places) or max(places[1:]) > MOST_SIDE
    if bad_grid or bad_context or config.aspect_min > config.aspect_max or _too_large(config):
        return 1, 1
    clips = config.keep_clips if config.keep == "batch_min" else CLIPS_PER_DEVICE
    shape = (config.blocks, config.scale, config.aspect_min, config.aspect_max)
    return published_counts(*shape, places, clips, context)


def _too_large(config: MaskConfig) -> list[str]:
    """Numbers that would take hours, or more memory than there is, to draw."""
    from salt.masks import CLIPS_PER_DEVICE, MOST_BLOCKS

    most = CLIPS_PER_DEVICE * MOST_BLOCKS
    if config.blocks > MOST_BLOCKS:
        return [f".blocks {config.blocks}: {MOST_BLOCKS} at most, each with a larger scale"]
    if config.keep == "batch_min" and config.keep_clips * config.blocks > most:
        return [
            f".keep_clips {config.keep_clips}: with {config.blocks} blocks, {most // config.blocks} at most"
        ]
    return []


def tube_counts(ratio: float, places: Grid) -> tuple[int, int]:
    """Visible and target tokens of random tubes that hide this share of the cells of each time step.

    int(cells x (1 - ratio)) cells are visible, all others predicted, as the random tubes of V-JEPA's released
    code (facebookresearch/jepa). No visible cell gives a visible count of 0, which `mask_mistakes` refuses.
    """
    time, height, width = places
    visible = int(height * width * (1 - ratio))
    return time * visible, time * (height * width - visible)


def mask_mistakes(config: MaskConfig, where: str, places: Grid) -> list[str]:
    """What is wrong with a mask as it is written; counts and grid are held against each other elsewhere."""
    problems = []
    counts = [name for name in ("visible_tokens", "target_tokens") if getattr(config, name) is not None]
    if config.kind != "tube":
        if config.ratio is not None:
            problems.append(
                f"{where}.ratio {config.ratio:g}: only of `kind: tube`; a {config.kind} mask takes `scale`, "
                "or visible_tokens and target_tokens"
            )
        return problems + [f"{where}{problem}" for problem in _too_large(config)]
    if config.ratio is not None and counts:
        problems.append(f"{where}.ratio {config.ratio:g}: {counts[0]} is given too; keep one of them")
    if config.ratio is None and len(counts) < 2:
        problems.append(
            f"{where}: a tube mask needs `ratio: 0.9`, the share of cells that is hidden, or both "
            "visible_tokens and target_tokens"
        )
    if config.ratio is not None and all(places) and not tube_counts(config.ratio, places)[0]:
        cells = places[1] * places[2]
        problems.append(f"{where}.ratio {config.ratio:g}: leaves none of {cells} cells visible; lower it")
    defaults = msgspec.structs.asdict(MaskConfig())
    problems += [
        f"{where}.{name} {getattr(config, name)}: means nothing for a tube; leave it out"
        for name in _OF_BLOCKS
        if getattr(config, name) != defaults[name]
    ]
    return problems
