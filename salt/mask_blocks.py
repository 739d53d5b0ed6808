"""Unions of random rectangles on the spatial grid, as bits.

A union is a row of 64-bit words with one bit a cell, row-major. A rectangle is the cells of its rows and of
its columns, both looked up. All places and sizes come from hashed whole numbers, so that every machine gets
the same ones.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from salt.randomness import hash64, stream_key

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from salt.specs import MaskSpec

#: Layouts drawn at once for each clip, and how often that is repeated before giving up. A mask that is
#: accepted in 5 % of draws, the least allowed, misses them all once in 10^22 clips.
CANDIDATES = 4
ROUNDS = 256
#: Aspect ratios of a mask, evenly spaced over its range.
ASPECT_BITS = 12
ASPECTS = 1 << ASPECT_BITS
#: How often the simulation of the published sampler draws clips without a visible token again.
REDRAWS = 64
#: Unions made at once where there are many, to bound memory.
SLAB = 4096

Side = tuple[int, int]


def layouts(
    mask: MaskSpec, side: Side, keys: NDArray[np.uint64], sizes: NDArray[np.int64], free: int, covered: int
) -> tuple[NDArray[np.uint64], NDArray[np.bool_]]:
    """The first layout of each clip with at least `free` and `covered` cells, and which clips found one.

    `keys` [n] address the clips; `sizes` is `size_table` (each layout then draws its own size) or one column
    of it. Returns uint64 [n, words] and bool [n].
    """
    import numpy as np

    cells = side[0] * side[1]
    found = np.zeros(len(keys), dtype=np.bool_)
    chosen = np.zeros((len(keys), -(-cells // 64)), dtype=np.uint64)
    waiting = np.arange(len(keys))
    for number in range(ROUNDS):
        attempts = range(number * CANDIDATES, (number + 1) * CANDIDATES)
        bits = draw_unions(mask, side, keys[waiting], sizes, attempts)
        count = count_cells(bits)  # [waiting, CANDIDATES]
        accepted = (count >= covered) & (count <= cells - free)
        first = accepted.argmax(axis=1)
        rows = np.arange(len(waiting))
        good = accepted[rows, first]
        chosen[waiting[good]] = bits[rows[good], first[good]]
        found[waiting[good]] = True
        waiting = waiting[~good]
        if not len(waiting):
            break
    return chosen, found


def draw_unions(
    mask: MaskSpec, side: Side, keys: NDArray[np.uint64], sizes: NDArray[np.int64], attempts: range
) -> NDArray[np.uint64]:
    """The unions of these attempts for each clip, uint64 [n, attempts, words].

    All blocks of a union share a size. Every cell can be covered, those at the edges included.
    """
    import numpy as np

    each = mask.blocks + 1  # numbers of an attempt: one for the size, one for each block's place
    counters = np.arange(attempts.start * each, attempts.stop * each, dtype=np.uint64)
    numbers = hash64(keys[:, None], counters + np.uint64(1))  # number 0 of a key orders the clip's tokens
    numbers = numbers.reshape(len(keys), len(attempts), each)
    if sizes.shape[1] == 1:
        tall, wide = sizes[:, :, None]  # [1, 1]
    else:
        tall, wide = sizes[:, numbers[..., :1] >> np.uint64(64 - ASPECT_BITS)]  # [n, attempts, 1]
    places = numbers[..., 1:]
    top = _corner(places >> np.uint64(32), side[0] - tall)
    left = _corner(places & np.uint64(0xFFFFFFFF), side[1] - wide)
    return unions(tall, wide, top, left, side)


def _corner(random32: NDArray[np.uint64], last: NDArray[np.int64]) -> NDArray[np.int64]:
    """Whole numbers from 0 to `last` out of ones below 2^32."""
    corner: NDArray[np.int64] = (random32.view("int64") * (last + 1)) >> 32
    return corner


def unions(
    tall: NDArray[np.int64],
    wide: NDArray[np.int64],
    top: NDArray[np.int64],
    left: NDArray[np.int64],
    side: Side,
) -> NDArray[np.uint64]:
    """Unions of rectangles: sizes [..., 1] or alike, first rows and columns [..., blocks], in cells.

    Returns uint64 [..., words].
    """
    import numpy as np

    rows, columns = _line_bits(*side)
    bits = rows[tall, top]
    bits &= columns[wide, left]
    union: NDArray[np.uint64] = np.bitwise_or.reduce(bits, axis=-2)
    return union


def count_cells(bits: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Cells of unions [..., words], int64 [...]."""
    import numpy as np

    counts: NDArray[np.int64] = np.bitwise_count(bits).sum(axis=-1, dtype=np.int64)
    return counts


def unpacked(bits: NDArray[np.uint64], side: Side) -> NDArray[np.bool_]:
    """Unions [n, words] as bool [n, cells]."""
    import numpy as np

    cells = np.unpackbits(bits.view(np.uint8), axis=1, count=side[0] * side[1], bitorder="little")
    return cells.view(np.bool_)


@functools.lru_cache(maxsize=16)
def _line_bits(height: int, width: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Bits of the cells of `n` neighbouring rows from row `first` on, and of columns.

    uint64 [height + 1, height, words] at [n, first], and [width + 1, width, words].
    """
    import numpy as np

    def table(lines: int, axis: int) -> NDArray[np.uint64]:
        count, first, line = np.ogrid[: lines + 1, :lines, :lines]
        inside = (line >= first) & (line < first + count)  # [lines + 1, lines, lines]
        shape = (lines + 1, lines, height, width)
        cells = np.broadcast_to(np.expand_dims(inside, 3 - axis), shape).reshape(*shape[:2], -1)
        packed = np.packbits(cells, axis=-1, bitorder="little")
        padding = -packed.shape[-1] % 8
        bits = np.pad(packed, ((0, 0), (0, 0), (0, padding))).view(np.uint64)
        bits.flags.writeable = False
        return bits

    return table(height, 0), table(width, 1)


@functools.lru_cache(maxsize=64)
def size_table(mask: MaskSpec, height: int, width: int) -> NDArray[np.int64]:
    """Heights and widths of blocks in cells, int64 [2, ASPECTS], equally likely.

    Their area is `scale` of the grid. The aspect ratio is log-uniform, under `batch_min` uniform and the
    area a whole number, as in the published code.
    """
    import numpy as np

    even = (np.arange(ASPECTS) + 0.5) / ASPECTS
    if mask.keep == "batch_min":
        aspect = mask.aspect_min + even * (mask.aspect_max - mask.aspect_min)
        sizes = block_sizes(int(height * width * mask.scale), aspect, (height, width))
    else:
        aspect = mask.aspect_min * (mask.aspect_max / mask.aspect_min) ** even
        sizes = block_sizes(height * width * mask.scale, aspect, (height, width))
    sizes.flags.writeable = False
    return sizes


def block_sizes(area: float, aspect: NDArray[np.float64], side: Side) -> NDArray[np.int64]:
    """Height and width of blocks of `area` cells at least one cell and no larger than the grid,
    int64 [2, *aspect.shape]."""
    import numpy as np

    tall, wide = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    return np.stack([np.clip(tall, 1, side[0]), np.clip(wide, 1, side[1])]).astype(np.int64)


def sampled_cells(mask: MaskSpec, side: Side, draws: int) -> list[NDArray[np.int64]]:
    """Cells under random layouts, int64 [draws] each, for one group of equally sized blocks after another.

    Under `batch_min` a whole group of clips has one size and is stuck with it, so that each size is its own
    group; else there is one group of all.
    """
    import numpy as np

    table = size_table(mask, *side)
    groups = [table]
    if mask.keep == "batch_min":
        groups = [size[:, None] for size in np.unique(table, axis=1).T]
    found = []
    for number, sizes in enumerate(groups):
        keys = hash64(np.uint64(stream_key(0, "mask layouts", number)), np.arange(draws, dtype=np.uint64))
        parts = [keys[start : start + SLAB] for start in range(0, draws, SLAB)]
        drawn = [count_cells(draw_unions(mask, side, part, sizes, range(1)))[:, 0] for part in parts]
        found.append(np.concatenate(drawn))
    return found


def published_cells(
    blocks: int, scale: float, aspect: NDArray[np.float64], clips: int, side: Side, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Covered cells of each clip of device batches with these aspect ratios, int64 [batches, clips].

    Clips without a free cell are drawn again.
    """
    import numpy as np

    cells = side[0] * side[1]
    sizes = np.repeat(block_sizes(int(cells * scale), aspect, side), clips, axis=1)[..., None]  # [2, all, 1]
    covered = np.full(sizes.shape[1], cells)
    for _ in range(REDRAWS):
        empty = np.flatnonzero(covered == cells)
        if not len(empty):
            break
        tall, wide = sizes[:, empty]
        top = np.floor(rng.random((len(empty), blocks)) * (side[0] - tall + 1)).astype(np.int64)
        left = np.floor(rng.random((len(empty), blocks)) * (side[1] - wide + 1)).astype(np.int64)
        for start in range(0, len(empty), SLAB):
            part = slice(start, start + SLAB)
            covered[empty[part]] = count_cells(unions(tall[part], wide[part], top[part], left[part], side))
    return covered.reshape(len(aspect), clips)
