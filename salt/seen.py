"""How much data a run has seen: clips drawn, different ones, and how often the same one came back.

Counted from the order of `salt.mixture` without drawing: a list's draws are whole epochs, in which every clip
comes once, and a rest at either end. Only whether the two rests have clips in common needs their orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from salt.mixture import Order
from salt.randomness import run_seed
from salt.specs import RunSpec


@dataclass(frozen=True)
class ListSeen:
    """What was drawn of one list; `epochs` are clips drawn by clips of the list."""

    name: str
    clips_seen: int
    unique_clips: int
    epochs: float
    max_repeats: int  # draws of the clip that was drawn most often


@dataclass(frozen=True)
class Seen:
    """What was drawn of all lists together, and of each."""

    clips_seen: int
    unique_clips: int
    epochs: float
    max_repeats: int
    lists: tuple[ListSeen, ...]


def seen(spec: RunSpec, first: int, clips_drawn: int, *, sizes: Sequence[int] | None = None) -> Seen:
    """What a run sees in `clips_drawn` draws from the `first`-th on.

    `sizes` are the clips that each list really has, where files of it gave none; by default every file gives
    `clips_per_file`. Two streamed clips of one file count as different, and a streamed clip as the same
    whenever its number comes again, although each draw starts at a fresh place of the file.
    """
    files = [part.clips for part in spec.data.parts] or [spec.data.clips]
    names = [part.name for part in spec.data.parts] or [spec.data.name]
    counted = [count * spec.clip.clips_per_file for count in files] if sizes is None else list(sizes)
    order = Order(spec.data, counted, run_seed(spec))
    starts, ends = order.drawn_before(first), order.drawn_before(first + clips_drawn)
    lists = tuple(
        _list_seen(order, part, name, start, end)
        for part, (name, start, end) in enumerate(zip(names, starts, ends, strict=True))
    )
    return Seen(
        clips_seen=clips_drawn,
        unique_clips=sum(item.unique_clips for item in lists),
        epochs=clips_drawn / order.clips,
        max_repeats=max(item.max_repeats for item in lists),
        lists=lists,
    )


def _list_seen(order: Order, part: int, name: str, start: int, end: int) -> ListSeen:
    size = order.sizes[part]
    drawn = end - start
    whole = max(0, end // size - -(-start // size))  # epochs that lie in the draws from end to end
    unique = min(drawn, size)
    repeats = whole + (drawn > whole * size)
    into = start % size
    head, tail = (size - into if into else 0), end % size
    if start // size != end // size and head and tail:  # a rest at either end, of different epochs
        shared = _shared(order, part, start, end)
        repeats = whole + (2 if shared else 1)
        unique = size if whole else head + tail - shared
    return ListSeen(name, drawn, unique, drawn / size, repeats)


def _shared(order: Order, part: int, start: int, end: int) -> int:
    """Clips in both the rest of the first epoch and the beginning of the last."""
    import numpy as np

    size = order.sizes[part]
    head = order.epoch(part, start // size)[start % size :]
    tail = order.epoch(part, end // size)[: end % size]
    return int(np.isin(head, tail, assume_unique=True).sum())
