"""In which order clips are drawn: a permutation an epoch, and several lists mixed by weight.

The draws of a run are one endless stream; step s of batch B takes places s * B to (s + 1) * B - 1. What
stands at a place is a pure function of (seed, place): no worker, rank or restart has to replay what came
before.

One list: place p is clip p mod n of the permutation of epoch p div n.

A mixture: the stream is cut into blocks of `BLOCK` places. A block gives each list a whole number of its
places, by rounding the cumulated weights, so the draws that a list has had before block b are known at once:
round(b * BLOCK * (w_1 + ... + w_i)) - round(b * BLOCK * (w_1 + ... + w_i-1)). They never stray more than one
draw from the list's weight at a block's border, however long the run. Within a block the lists are shuffled.
The d-th draw of a list is clip d mod n of its own permutation d div n: no clip of a list comes again before
all the others of it came.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from salt.errors import UserError
from salt.randomness import generator
from salt.specs import DataSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Places of a block of a mixture; a list's weight must be worth at least one of them.
BLOCK = 1024

#: Weights are taken as whole numbers of 1 / 2**WEIGHT_BITS, so that counts are exact at any place.
WEIGHT_BITS = 40


@dataclass(frozen=True)
class Draws:
    """What is drawn at n places: which clip, and for which time. All int64 [n]."""

    indices: NDArray[np.int64]  # numbers in the lists, one list after the other
    epochs: NDArray[np.int64]  # of the clip's own list


def mixture_problems(data: DataSpec) -> list[str]:
    """Why a mixture cannot be drawn; empty if it can."""
    total = sum(part.weight for part in data.parts)
    return [
        f"data part {part.name!r} has the share {part.weight / total:.2g} of {data.name!r}; at least "
        f"1/{BLOCK} is needed: give it a larger weight, or leave it out"
        for part in data.parts
        if part.weight / total * BLOCK < 1
    ]


class Order:
    """The draws of one run. `sizes` counts the clips of each list, in the order of `data.parts`.

    Raises UserError for weights too small to draw by.
    """

    def __init__(self, data: DataSpec, sizes: Sequence[int], seed: int) -> None:
        problems = mixture_problems(data)
        if problems:
            raise UserError("; ".join(problems))
        if len(sizes) != max(1, len(data.parts)) or min(sizes) < 1:
            raise ValueError(f"{len(data.parts)} parts, but sizes {tuple(sizes)}")
        self.sizes = tuple(sizes)
        self.offsets = tuple(sum(sizes[:part]) for part in range(len(sizes)))
        self.seed = seed
        self._borders = _borders([part.weight for part in data.parts] or [1.0])
        self._permutations: dict[tuple[int, int], NDArray[np.int32]] = {}

    @property
    def clips(self) -> int:
        """Clips of all lists together."""
        return sum(self.sizes)

    def draw(self, places: range) -> Draws:
        """The clips at these places of the stream. O(places), and one permutation at a new epoch."""
        import numpy as np

        parts, draws = self._turns(places)
        indices, epochs = np.empty_like(draws), np.empty_like(draws)
        old = self._permutations  # one read and one write: a thread may ask for another step meanwhile
        used: dict[tuple[int, int], NDArray[np.int32]] = {}
        for part, size in enumerate(self.sizes):
            mine = parts == part
            epochs[mine] = draws[mine] // size
            for epoch in np.unique(epochs[mine]).tolist():
                key = (part, epoch)
                used[key] = old[key] if key in old else self._permutation(part, epoch)
                at = mine & (epochs == epoch)
                indices[at] = self.offsets[part] + used[key][draws[at] % size]
        near = {key: old[key] for key in old if any(abs(key[1] - e) <= 1 for p, e in used if p == key[0])}
        self._permutations = {**near, **used}
        return Draws(indices, epochs)

    def drawn_before(self, place: int) -> tuple[int, ...]:
        """How many draws each list has had before a place of the stream."""
        if len(self.sizes) == 1:
            return (place,)
        block, into = divmod(place, BLOCK)
        turns = self._block(block)[:into]
        return tuple(count + int((turns == part).sum()) for part, count in enumerate(self._counts(block)))

    def epoch(self, part: int, epoch: int) -> NDArray[np.int32]:
        """All clips of one list in the order of one of its epochs, numbered within the list."""
        key = (part, epoch)
        return self._permutations[key] if key in self._permutations else self._permutation(part, epoch)

    def _permutation(self, part: int, epoch: int) -> NDArray[np.int32]:
        import numpy as np

        # A single list has no number, so that its order is the same alone and as a mixture of one.
        number = () if len(self.sizes) == 1 else (part + 1,)
        return generator(self.seed, "order", epoch, *number).permutation(self.sizes[part]).astype(np.int32)

    def _turns(self, places: range) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Whose turn it is at each place, and which draw of that list it is, both int64 [n]."""
        import numpy as np

        numbers = np.arange(places.start, places.stop)
        if len(self.sizes) == 1 or not places:
            return np.zeros_like(numbers), numbers
        blocks = range(places.start // BLOCK, (places.stop - 1) // BLOCK + 1)
        parts = np.concatenate([self._block(block) for block in blocks])
        draws = np.empty_like(parts)
        for part, count in enumerate(self._counts(blocks.start)):
            mine = parts == part
            draws[mine] = count + np.arange(mine.sum())
        inside = slice(places.start - blocks.start * BLOCK, places.stop - blocks.start * BLOCK)
        return parts[inside], draws[inside]

    def _block(self, block: int) -> NDArray[np.int64]:
        """Whose turn it is at each place of a block, int64 [BLOCK]."""
        import numpy as np

        before, after = self._counts(block), self._counts(block + 1)
        turns = np.repeat(np.arange(len(self.sizes)), np.subtract(after, before))
        return generator(self.seed, "mixture", block).permutation(turns)

    def _counts(self, block: int) -> tuple[int, ...]:
        """Draws of each list before a block, exact in whole numbers."""
        half = 1 << (WEIGHT_BITS - 1)
        ends = [0, *((border * block * BLOCK + half) >> WEIGHT_BITS for border in self._borders)]
        return tuple(end - start for start, end in zip(ends, ends[1:], strict=False))


def _borders(weights: Sequence[float]) -> tuple[int, ...]:
    """Cumulated shares in units of 1 / 2**WEIGHT_BITS; the last is 1."""
    total = sum(weights)
    sums = [sum(weights[: count + 1]) for count in range(len(weights))]
    return (*(round(value / total * 2**WEIGHT_BITS) for value in sums[:-1]), 1 << WEIGHT_BITS)
