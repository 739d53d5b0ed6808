"""Which points no other dominates, in any number of objectives."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def nondominated(costs: list[ArrayLike], gains: list[ArrayLike]) -> NDArray[np.bool_]:
    """Mask [n] of the points that no other point dominates: as good in all objectives and better in one.

    Args: costs: objectives to be low, [n] each. gains: objectives to be high, [n] each.
    Exact and independent of the order. Equal points are there together. Points that are not finite in every
    objective are never there and dominate nothing. Two objectives by one sort, more by moocore (O(n log n) up
    to 3 objectives, Kung, Luccio and Preparata 1975).
    """
    low = [np.asarray(values, dtype=float) for values in costs]
    high = [np.asarray(values, dtype=float) for values in gains]
    finite = np.isfinite(low[0] if low else high[0])
    for values in [*low, *high]:
        finite = finite & np.isfinite(values)
    mask = np.zeros(len(finite), dtype=bool)
    if not finite.any():
        return mask
    everything = bool(finite.all())
    columns = [values if everything else values[finite] for values in [*low, *(-values for values in high)]]
    if len(columns) == 2:
        found = _two(columns[0], columns[1])
    else:
        import moocore

        found = moocore.is_nondominated(np.column_stack(columns), keep_weakly=True)
    mask[finite] = found
    return mask


def _two(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.bool_]:
    """Both to be low. A point stands if it is the lowest of its x, and lower than all of smaller x."""
    order = np.argsort(x)
    xs, ys = x[order], y[order]
    lowest = np.minimum.accumulate(ys)
    starts = np.empty(len(xs), dtype=bool)
    starts[0] = True
    np.not_equal(xs[1:], xs[:-1], out=starts[1:])
    first = np.flatnonzero(starts)
    last = np.append(first[1:], len(xs)) - 1
    before = np.append(np.inf, lowest[last[:-1]])
    counts = last - first + 1
    stands = (ys == np.repeat(lowest[last], counts)) & (ys < np.repeat(before, counts))
    mask = np.empty(len(xs), dtype=bool)
    mask[order] = stands
    return mask
