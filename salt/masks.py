"""Masks: which tokens of a clip are visible and which are predicted.

A mask is a union of rectangles that last the whole clip (V-JEPA), of which a causal mask shows the first
time steps only, or a set of random tubes (VideoMAE). The published V-JEPA sampler cuts the token lists of a
device batch to the shortest one, so that its token count, and with it its FLOPs, depends on the batch, and
the cut eats the end of the clip (`batch_min`, by `draw_group`). By default the counts belong to the
`MaskSpec`: layouts with too few tokens are drawn again, surplus tokens are dropped at random. Shapes are
static, planned tokens are the processed tokens.

The mask of a clip is a function of seed, step, place of the mask in the run and place of the clip in the
global batch: any process can draw any part of a batch alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from salt.errors import UserError
from salt.mask_blocks import layouts, published_cells, sampled_cells, size_table, unpacked
from salt.randomness import distinct31, generator, hash64, stream_key
from salt.sizes import check_mask
from salt.specs import MaskSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    #: Visible and target tokens, each int64 [clips, tokens].
    TokenLists = tuple[NDArray[np.int64], NDArray[np.int64]]

#: A mask whose blocks meet its counts more rarely than this is refused when the plan is made.
LEAST_ACCEPTANCE = 0.05
#: Layouts drawn to estimate that.
LAYOUTS = 2000
#: Blocks of a union at most: every one costs time in every draw, and this many of one cell cover any grid.
MOST_BLOCKS = 1000
#: V-JEPA 2 trains with 24 clips a device; that many device batches give the mean to about 1 % of the clip.
CLIPS_PER_DEVICE = 24
DEVICE_BATCHES = 1000
#: Clips drawn at once: their keys stay in a core's cache.
CHUNK_CLIPS = 64

Grid = tuple[int, int, int]


def draw_masks(
    mask: MaskSpec, grid: Grid, places: range | int, *, seed: int, step: int, index: int
) -> TokenLists:
    """Visible and target token indices of one step: int64 [clips, visible] and [clips, target], ascending.

    Tokens are numbered time-major: `(t * height + y) * width + x`. `places` are those of the clips in the
    global batch, a number n means `range(n)`; `index` is the mask's place in the run.

    Raises:
        UserError: the blocks cannot meet the counts.
        ValueError: the mask's counts depend on its group (`draw_group`).
    """
    return draw_steps(mask, grid, places, seed=seed, steps=range(step, step + 1), index=index)


def draw_steps(
    mask: MaskSpec, grid: Grid, places: range | int, *, seed: int, steps: range, index: int
) -> TokenLists:
    """`draw_masks` of several steps at once, one after the other: int64 [steps * clips, visible] and target.

    Small batches take most of their time for calls, which so are shared.
    """
    import numpy as np

    if mask.keep != "fixed":
        raise ValueError(f"keep is {mask.keep}: the counts differ between groups, see draw_group")
    places = range(places) if isinstance(places, int) else places
    clips = np.arange(places.start, places.stop, places.step, dtype=np.uint64)
    streams = np.array([stream_key(seed, "mask", step, index) for step in steps], dtype=np.uint64)
    keys = hash64(streams[:, None], clips).ravel()
    draw = _draw_tubes if mask.kind == "tube" else _draw_blocks
    parts = [
        draw(mask, grid, keys[start : start + CHUNK_CLIPS], f"masks[{index}]")
        for start in range(0, max(1, len(keys)), CHUNK_CLIPS)
    ]
    if len(parts) == 1:
        return parts[0]
    return np.concatenate([visible for visible, _ in parts]), np.concatenate([target for _, target in parts])


def draw_group(mask: MaskSpec, grid: Grid, group: int, *, seed: int, step: int, index: int) -> TokenLists:
    """Tokens of the `keep_clips` clips from place `group * keep_clips` on, cut as the published sampler does.

    The group has one block size and every clip its own places for them, drawn again while nothing is visible.
    Lists are cut at their end, so at the clip's, to the shortest of the group. Returns int64 [keep_clips, v]
    and [keep_clips, m], ascending; v and m are the group's own.

    Raises:
        UserError: blocks of the group's size hardly ever leave a visible token.
        ValueError: the mask has fixed counts (`draw_masks`).
    """
    import numpy as np

    if mask.keep != "batch_min" or mask.kind == "tube":
        raise ValueError(f"a {mask.kind} mask with keep {mask.keep} has no groups, see draw_masks")
    time, *side = grid
    height, width = side
    table = size_table(mask, height, width)
    number = hash64(
        np.uint64(stream_key(seed, "mask group", step, index)), np.array([group], dtype=np.uint64)
    )
    size = table[:, number % np.uint64(table.shape[1])]  # [2, 1]
    first = group * mask.keep_clips
    keys = hash64(
        np.uint64(stream_key(seed, "mask", step, index)),
        np.arange(first, first + mask.keep_clips, dtype=np.uint64),
    )
    bits, found = layouts(mask, (height, width), keys, size, free=1, covered=0)
    if not found.all():
        raise UserError(_refusal(mask, grid, f"masks[{index}]"))
    predicted = np.repeat(unpacked(bits, (height, width))[:, None], time, axis=1)  # [clips, time, cells]
    visible = ~predicted
    context = mask.context_frames or time
    visible[:, context:] = False
    predicted[:, context:] = True
    return _cut(visible), _cut(predicted)


def _cut(chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Places of what is chosen in each row [rows, ...], as many as in the shortest row, its first ones."""
    import numpy as np

    rows = chosen.reshape(len(chosen), -1)
    counts = np.count_nonzero(rows, axis=1)
    first = np.cumsum(counts) - counts
    kept: NDArray[np.int64] = np.flatnonzero(rows)[first[:, None] + np.arange(counts.min())]
    kept -= np.arange(len(rows))[:, None] * rows.shape[1]
    return kept


def _draw_blocks(mask: MaskSpec, grid: Grid, keys: NDArray[np.uint64], where: str) -> TokenLists:
    """Fixed counts of tokens outside and under a union of blocks, for each of `keys`."""
    import numpy as np

    time, height, width = grid
    side, cells, context = (height, width), height * width, mask.context_frames or time
    free, covered = needed_cells(mask, grid)
    bits, found = layouts(mask, side, keys, size_table(mask, height, width), free, covered)
    if not found.all():
        raise UserError(_refusal(mask, grid, where))
    order = distinct31(hash64(keys, np.uint64(0)), time * cells)
    # The 32nd bit puts the tokens that are to be predicted behind all others.
    steps = order.reshape(len(keys), time, cells)
    steps |= (unpacked(bits, side).astype(np.uint32) << np.uint32(31))[:, None]
    steps[:, context:] |= np.uint32(1 << 31)
    return _first(order, mask.visible_tokens), _last(order, mask.target_tokens)


def _draw_tubes(mask: MaskSpec, grid: Grid, keys: NDArray[np.uint64], where: str) -> TokenLists:
    """Random cells visible at every time step, others predicted, for each of `keys`."""
    import numpy as np

    time, height, width = grid
    order = distinct31(hash64(keys, np.uint64(0)), height * width)
    steps = np.arange(time)[:, None] * (height * width)
    visible = _first(order, mask.visible_tokens // time)[:, None] + steps  # [clips, time, cells]
    target = _last(order, mask.target_tokens // time)[:, None] + steps
    rows = len(keys)
    return visible.reshape(rows, mask.visible_tokens), target.reshape(rows, mask.target_tokens)


def _first(order: NDArray[np.uint32], count: int) -> NDArray[np.int64]:
    """Places of the `count` smallest numbers of each row, ascending, int64 [rows, count]; none are alike."""
    import numpy as np

    limit = np.partition(order, count - 1, axis=1)[:, count - 1 : count]
    return _places(order <= limit, count)


def _last(order: NDArray[np.uint32], count: int) -> NDArray[np.int64]:
    """Places of the `count` largest numbers of each row, ascending, int64 [rows, count]; none are alike."""
    import numpy as np

    place = order.shape[1] - count
    limit = np.partition(order, place, axis=1)[:, place : place + 1]
    return _places(order >= limit, count)


def _places(chosen: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """Places of what is chosen in each row, `count` in all of them."""
    import numpy as np

    rows, length = chosen.shape
    places = np.flatnonzero(chosen).reshape(rows, count)
    places -= np.arange(rows)[:, None] * length
    return places


def needed_cells(mask: MaskSpec, grid: Grid) -> tuple[int, int]:
    """Free and covered cells that a layout of blocks must have for the mask's counts.

    A group that is cut to its shortest lists needs one visible cell.
    """
    time, height, width = grid
    if mask.keep == "batch_min":
        return 1, 0
    context = mask.context_frames or time
    later = (time - context) * height * width  # predicted whatever the blocks
    return -(-mask.visible_tokens // context), max(0, -((later - mask.target_tokens) // context))


def published_counts(
    blocks: int,
    scale: float,
    aspect_min: float,
    aspect_max: float,
    grid: Grid,
    clips: int = CLIPS_PER_DEVICE,
    context_frames: int | None = None,
) -> tuple[int, int]:
    """Mean visible and target tokens of a clip under V-JEPA's published sampler; the same on every machine.

    That sampler (facebookresearch/vjepa2) draws one block size for a device batch (`round(sqrt(area *
    aspect))` cells high, the aspect uniform in its range), places the blocks for each clip, draws a clip
    without a visible token again, and cuts every clip's two lists to the shortest of the batch: its mean
    counts depend on the number of `clips` a device holds. With `context_frames` the mask is causal: that many
    steps of the token grid are visible at most, all later ones predicted.
    """
    time, height, width = grid
    rng = generator(0, "published mask counts", blocks, *grid, clips)
    aspect = rng.uniform(aspect_min, aspect_max, DEVICE_BATCHES)
    covered = published_cells(blocks, scale, aspect, clips, (height, width), rng)
    context = context_frames or time
    later = (time - context) * height * width
    visible = (height * width - covered.max(axis=1)).mean() * context
    target = covered.min(axis=1).mean() * context + later
    return max(1, round(float(visible))), max(1, round(float(target)))


def acceptance(mask: MaskSpec, grid: Grid, draws: int = LAYOUTS) -> float:
    """Share of random block layouts that have enough visible and target tokens on this grid.

    Under `batch_min`, where a group is stuck with its block size, that of the worst size.
    """
    if mask.kind == "tube":
        return 1.0
    free, covered = needed_cells(mask, grid)
    most = grid[1] * grid[2] - free
    groups = sampled_cells(mask, (grid[1], grid[2]), draws)
    return min(float(((cells >= covered) & (cells <= most)).mean()) for cells in groups)


def check_masks(masks: tuple[MaskSpec, ...], grid: Grid, batch_clips: int | None = None) -> list[str]:
    """Every reason why these masks cannot be drawn on this grid, found in well under a second.

    With `batch_clips`, clips of a step, groups must fill the batch as well.
    """
    problems = []
    for index, mask in enumerate(masks):
        where = f"masks[{index}]"
        counts = check_mask(mask, grid, where)
        if mask.blocks > MOST_BLOCKS:
            counts.append(f"{where}.blocks is {mask.blocks}: {MOST_BLOCKS} at most, each with a larger scale")
        problems += counts
        if not counts and acceptance(mask, grid) < LEAST_ACCEPTANCE:
            problems.append(_refusal(mask, grid, where))
        if mask.keep == "batch_min" and batch_clips is not None and batch_clips % mask.keep_clips:
            problems.append(
                f"{where}: keep_clips {mask.keep_clips} does not divide optim.batch_clips {batch_clips}: "
                "every group of clips that are cut together must be whole"
            )
    return problems


def _refusal(mask: MaskSpec, grid: Grid, where: str) -> str:
    """Why blocks do not do, with the worst counts that they lead to."""
    import numpy as np

    time, height, width = grid
    context = mask.context_frames or time
    later = (time - context) * height * width
    groups = sampled_cells(mask, (height, width), LAYOUTS)
    covered = np.concatenate(groups)
    least, most = int(covered.min()), int(covered.max())
    aspect = f"{mask.aspect_min:g} to {mask.aspect_max:g}"
    causal = f" and {context} context frames" if mask.kind == "causal" else ""
    wanted = (
        f"{mask.visible_tokens} visible and {mask.target_tokens} target tokens are met in"
        if mask.keep == "fixed"
        else "a visible token is left, at the worst block size, in"
    )
    return (
        f"{where}: {mask.blocks} blocks of scale {mask.scale} and aspect {aspect}{causal} leave "
        f"{(height * width - most) * context} to {(height * width - least) * context} visible and "
        f"{least * context + later} to {most * context + later} target tokens on the {time}x{height}x{width} "
        f"grid ({len(covered)} layouts drawn); {wanted} only {acceptance(mask, grid):.1%} of draws: "
        "ask for fewer tokens, or change blocks or scale"
    )
