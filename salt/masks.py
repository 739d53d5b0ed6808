"""V-JEPA's multi-block masks with a fixed number of visible and of target tokens.

A mask is a union of rectangles that last the whole clip (tubes). The published sampler cuts the
token lists of a device batch to the shortest one, so that its token count, and with it its FLOPs, depends
on the batch and the cut eats the end of the clip. Here the counts belong to the `MaskSpec`: masks with too
few tokens are drawn again, surplus tokens are dropped at random. Shapes are static, planned tokens are
the processed tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from salt.errors import UserError
from salt.randomness import generator
from salt.sizes import check_mask
from salt.specs import MaskSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Candidates drawn at once for each clip, and how often that is repeated before giving up.
CANDIDATES = 4
ROUNDS = 64
#: A mask whose blocks meet its counts more rarely than this is refused when the plan is made.
LEAST_ACCEPTANCE = 0.05
#: V-JEPA 2 trains with 24 clips a device; that many device batches give the mean to about 1 % of the clip.
CLIPS_PER_DEVICE = 24
DEVICE_BATCHES = 1000

Grid = tuple[int, int, int]


def draw_masks(
    mask: MaskSpec, grid: Grid, clips: int, *, seed: int, step: int, index: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Visible and target token indices of one step: int64 [clips, visible] and [clips, target], ascending.

    Tokens are numbered time-major: `(t * height + y) * width + x`. The clip at place i of the global batch
    gets the same mask for any number of workers or ranks.

    Raises:
        UserError: the blocks cannot meet the counts.
    """
    import numpy as np

    time, height, width = grid
    rng = generator(seed, "mask", step, index)
    covered = np.zeros((clips, height, width), dtype=bool)
    waiting = np.arange(clips)
    for _ in range(ROUNDS):
        blocks = _draw_blocks(rng, mask, (height, width), len(waiting) * CANDIDATES)
        blocks = blocks.reshape(len(waiting), CANDIDATES, height, width)
        accepted = _accepted(blocks, mask, time)  # [waiting, CANDIDATES]
        found = accepted.any(axis=1)
        first = accepted.argmax(axis=1)
        covered[waiting[found]] = blocks[found, first[found]]
        waiting = waiting[~found]
        if not len(waiting):
            break
    else:
        raise UserError(_refusal(mask, grid, f"masks[{index}]"))
    tubes = np.broadcast_to(covered[:, None], (clips, time, height, width)).reshape(clips, -1)
    order = rng.random(tubes.shape)
    visible = _choose(order, ~tubes, mask.visible_tokens)
    target = _choose(order, tubes, mask.target_tokens)
    return visible, target


def _draw_blocks(
    rng: np.random.Generator, mask: MaskSpec, side: tuple[int, int], count: int
) -> NDArray[np.bool_]:
    """`count` unions of rectangles on the spatial grid, bool [count, height, width].

    The blocks of one mask share a size: area `scale` of the grid, aspect log-uniform. Every cell can be
    covered, those at the edges included.
    """
    import numpy as np

    height, width = side
    area = mask.scale * height * width
    aspect = np.exp(rng.uniform(np.log(mask.aspect_min), np.log(mask.aspect_max), (count, 1)))
    tall = np.clip(np.rint(np.sqrt(area * aspect)), 1, height)  # [count, 1]
    wide = np.clip(np.rint(np.sqrt(area / aspect)), 1, width)
    return _placed(rng, tall, wide, mask.blocks, side)


def _placed(
    rng: np.random.Generator, tall: NDArray[Any], wide: NDArray[Any], blocks: int, side: tuple[int, int]
) -> NDArray[np.bool_]:
    """Unions of `blocks` rectangles of the given sizes [count, 1] at random places, bool [count, *side]."""
    import numpy as np

    height, width = side
    top, left = _corners(rng, tall, wide, blocks, side)
    y, x = np.arange(height), np.arange(width)
    rows = (y >= top[..., None]) & (y < (top + tall)[..., None])  # [count, blocks, height]
    columns = (x >= left[..., None]) & (x < (left + wide)[..., None])  # [count, blocks, width]
    # A product of 0/1 matrices counts the blocks over each cell.
    counts = rows.transpose(0, 2, 1).astype(np.float32) @ columns.astype(np.float32)
    covered: NDArray[np.bool_] = counts > 0
    return covered


def _corners(
    rng: np.random.Generator, tall: NDArray[Any], wide: NDArray[Any], blocks: int, side: tuple[int, int]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Random first rows and columns of `blocks` rectangles of the given sizes [count, 1], each [count,
    blocks]."""
    import numpy as np

    (height, width), count = side, len(tall)
    top = np.floor(rng.random((count, blocks)) * (height - tall + 1))
    left = np.floor(rng.random((count, blocks)) * (width - wide + 1))
    return top, left


def _covered_cells(
    rng: np.random.Generator, tall: NDArray[Any], wide: NDArray[Any], blocks: int, side: tuple[int, int]
) -> NDArray[np.int64]:
    """Cells under each union of `_placed`, int64 [count], without the unions: four times as fast."""
    import numpy as np

    height, width = side
    if width > 62:
        counted: NDArray[np.int64] = _placed(rng, tall, wide, blocks, side).sum(axis=(1, 2))
        return counted
    top, left = _corners(rng, tall, wide, blocks, side)
    first, last = top.astype(np.int8), (top + tall).astype(np.int8)
    # A row of the grid as the bits of a number; each block sets its columns' bits in the rows that it covers.
    span = (np.left_shift(1, wide.astype(np.int64)) - 1) << left.astype(np.int64)
    cells = np.zeros(len(tall), dtype=np.int64)
    for row in range(height):
        bits = np.where((first <= row) & (row < last), span, 0)
        cells += np.bitwise_count(np.bitwise_or.reduce(bits, axis=1))
    return cells


def published_counts(
    blocks: int,
    scale: float,
    aspect_min: float,
    aspect_max: float,
    grid: Grid,
    clips: int = CLIPS_PER_DEVICE,
) -> tuple[int, int]:
    """Mean visible and target tokens of a clip under V-JEPA's published sampler; the same on every machine.

    That sampler (facebookresearch/vjepa2) draws one block size for a device batch (`round(sqrt(area *
    aspect))` cells high, the aspect uniform in its range), places the blocks for each clip, draws a clip
    without a visible token again, and cuts every clip's two lists to the shortest of the batch: its mean
    counts depend on the number of `clips` a device holds.
    """
    import numpy as np

    time, *side = grid
    height, width = side
    rng = generator(0, "published mask counts", blocks, *grid, clips)
    area = int(height * width * scale)
    aspect = np.repeat(rng.uniform(aspect_min, aspect_max, DEVICE_BATCHES), clips)[:, None]
    tall = np.clip(np.rint(np.sqrt(area * aspect)), 1, height)
    wide = np.clip(np.rint(np.sqrt(area / aspect)), 1, width)
    covered = np.full(len(tall), height * width)
    for _ in range(ROUNDS):
        empty = np.flatnonzero(covered == height * width)
        if not len(empty):
            break
        covered[empty] = _covered_cells(rng, tall[empty], wide[empty], blocks, (height, width))
    batches = covered.reshape(DEVICE_BATCHES, clips)
    visible = (height * width - batches.max(axis=1)).mean() * time
    target = batches.min(axis=1).mean() * time
    return max(1, round(float(visible))), max(1, round(float(target)))


def _accepted(blocks: NDArray[np.bool_], mask: MaskSpec, time: int) -> NDArray[np.bool_]:
    cells = blocks.sum(axis=(-2, -1))
    free = blocks.shape[-2] * blocks.shape[-1] - cells
    enough: NDArray[np.bool_] = (cells * time >= mask.target_tokens) & (free * time >= mask.visible_tokens)
    return enough


def _choose(order: NDArray[np.float64], allowed: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """`count` random allowed tokens of each row, ascending, int64 [rows, count]."""
    import numpy as np

    keys = np.where(allowed, order, 2.0)  # random keys are below 1
    chosen = np.argpartition(keys, count - 1, axis=1)[:, :count]
    return np.sort(chosen, axis=1)


def acceptance(mask: MaskSpec, grid: Grid, draws: int = 2000) -> float:
    """Share of random block layouts that have enough visible and target tokens on this grid."""
    rng = generator(0, "mask acceptance")
    blocks = _draw_blocks(rng, mask, grid[1:], draws)
    return float(_accepted(blocks, mask, grid[0]).mean())


def check_masks(masks: tuple[MaskSpec, ...], grid: Grid) -> list[str]:
    """Every reason why these masks cannot be drawn on this grid, found in well under a second."""
    problems = []
    for index, mask in enumerate(masks):
        where = f"masks[{index}]"
        counts = check_mask(mask, grid, where)
        problems += counts
        if not counts and acceptance(mask, grid) < LEAST_ACCEPTANCE:
            problems.append(_refusal(mask, grid, where))
    return problems


def _refusal(mask: MaskSpec, grid: Grid, where: str) -> str:
    time, height, width = grid
    return (
        f"{where}: {mask.blocks} blocks of scale {mask.scale} leave {mask.visible_tokens} visible and "
        f"{mask.target_tokens} target tokens in only {acceptance(mask, grid):.1%} of draws on the "
        f"{time}x{height}x{width} grid: ask for fewer tokens, or change blocks or scale"
    )
