"""How many times less compute an arm needs for the same accuracy, and where one arm overtakes another.

Between its costs an arm's frontier is a straight line in accuracy against log cost, level or rising. Outside
nothing is extrapolated: a multiplier beyond what was run is a bound, and says so.
"""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.frontier_draws import LEVEL, Curves

Array = NDArray[Any]


def cost_at(cost: Array, accuracy: Array, level: Array) -> Array:
    """The least cost [S] at which frontiers [S, m] reach accuracies [S]; -inf where the first point already
    has it, inf where none does.
    """
    best = np.maximum.accumulate(accuracy, axis=1)
    reached = best >= level[:, None]
    place = np.argmax(reached, axis=1)
    rows = np.arange(len(best))
    found = np.full(len(best), np.inf)
    found[reached[:, 0]] = -np.inf
    inner = reached.any(axis=1) & ~reached[:, 0]
    after, before = place[inner], place[inner] - 1
    low, high = best[rows[inner], before], best[rows[inner], after]
    part = (level[inner] - low) / (high - low)
    logs = np.log(cost)
    found[inner] = np.exp(logs[before] + part * (logs[after] - logs[before]))
    return found


def multipliers(curves: Curves, level: float = LEVEL) -> pd.DataFrame:
    """One row per ordered pair of arms (a, b) and choice of b: the cost of b over the cost at which a is as
    good.

    Above 1, a needs less. `multiplier` is NaN with `bound` "at least" where a's smallest run is as good
    already (then `limit` is b's cost over a's smallest), or "at most" where a never is (`limit`: over a's
    largest); `low`, `high` are the interval over draws (0 and infinity where it leaves what was run),
    `probability` that a needs less.
    """
    rows = []
    tail = (1 - level) / 2
    for a, b in permutations(curves.arms, 2):
        for index, cost in enumerate(curves.cost[b]):
            point = _ratio(
                curves.cost[a], curves.accuracy[a][None], cost, curves.accuracy[b][index : index + 1]
            )
            drawn = _ratio(curves.cost[a], curves.drawn[a], cost, curves.drawn[b][:, index])
            low, high = np.quantile(drawn, [tail, 1 - tail], method="inverted_cdf")
            value = float(point[0])
            rows.append(
                {
                    "label": curves.label,
                    "kind": curves.kind,
                    "a": a,
                    "b": b,
                    "cost_b": float(cost),
                    "accuracy_b": float(curves.accuracy[b][index]),
                    "multiplier": value if 0 < value < math.inf else math.nan,
                    "bound": "" if 0 < value < math.inf else "at least" if value > 0 else "at most",
                    "limit": float(cost / curves.cost[a][0 if value > 0 else -1]),
                    "low": float(low),
                    "high": float(high),
                    "probability": _probability(drawn, cost, curves.cost[a]),
                }
            )
    return pd.DataFrame(rows)


def _ratio(cost: Array, accuracy: Array, of: float, level: Array) -> Array:
    """cost of b / cost of a: infinity where a's first point is as good, 0 where a never is."""
    needed = cost_at(cost, accuracy, level)
    with np.errstate(divide="ignore"):
        ratio = of / needed
    return np.where(np.isneginf(needed), np.inf, np.where(np.isposinf(needed), 0.0, ratio))


def _probability(drawn: Array, cost: float, costs: Array) -> float:
    """That a needs less than b. Where a's first point is as good, it does if it was cheaper; where it never
    is, it does not (if a went at least as far as b; else this draw says nothing and counts half).
    """
    wins = np.where(np.isinf(drawn), cost >= costs[0], drawn > 1.0).astype(float)
    if costs[-1] < cost:
        wins[drawn == 0.0] = 0.5
    return float(wins.mean())


def crossovers(curves: Curves, level: float = LEVEL) -> pd.DataFrame:
    """One row per pair of arms: where a overtakes b along the costs that both span.

    `status`: "a ahead throughout", "b ahead throughout", "a overtakes b", "b overtakes a", "several
    crossings", or "no common costs"; `crossover` the cost of the last crossing, with the interval over
    those draws that cross, and `probability` the share of draws with that very status.
    """
    rows = []
    tail = (1 - level) / 2
    for index, a in enumerate(curves.arms):
        for b in curves.arms[index + 1 :]:
            row: dict[str, Any] = {"label": curves.label, "kind": curves.kind, "a": a, "b": b}
            low = max(curves.cost[a][0], curves.cost[b][0])
            high = min(curves.cost[a][-1], curves.cost[b][-1])
            both = np.unique(np.concatenate([curves.cost[a], curves.cost[b]]))
            at = both[(both >= low) & (both <= high)]
            if not len(at):
                rows.append(row | {"status": "no common costs"} | dict.fromkeys(_CROSSING, math.nan))
                continue
            point = _crossing(at, _lines(curves, a, at, False) - _lines(curves, b, at, False))
            drawn = _crossing(at, _lines(curves, a, at, True) - _lines(curves, b, at, True))
            status = _STATUS[int(point[0][0])].format(a=a, b=b)
            where = drawn[1][np.isfinite(drawn[1])]
            ends = (math.nan, math.nan) if len(where) < 20 else tuple(np.quantile(where, [tail, 1 - tail]))
            rows.append(
                row
                | {
                    "status": status,
                    "probability": float((drawn[0] == point[0][0]).mean()),
                    "crossover": float(point[1][0]),
                    "low": float(ends[0]),
                    "high": float(ends[1]),
                    "crossing_share": float(np.isfinite(drawn[1]).mean()),
                    "a_ahead_at_top": float((drawn[2] > 0).mean() + 0.5 * (drawn[2] == 0).mean()),
                    "from": float(at[0]),
                    "to": float(at[-1]),
                }
            )
    return pd.DataFrame(rows)


_CROSSING = ("probability", "crossover", "low", "high", "crossing_share", "a_ahead_at_top", "from", "to")
_STATUS = {
    1: "{a} ahead throughout",
    -1: "{b} ahead throughout",
    2: "{a} overtakes {b}",
    -2: "{b} overtakes {a}",
    3: "several crossings",
    0: "equal throughout",
}


def _lines(curves: Curves, arm: str, at: Array, drawn: bool) -> Array:
    """Frontiers [S, k] between an arm's costs, straight in log cost."""
    values = np.maximum.accumulate(curves.drawn[arm] if drawn else curves.accuracy[arm][None], axis=1)
    logs, where = np.log(curves.cost[arm]), np.log(at)
    if len(logs) == 1:
        return np.repeat(values, len(at), axis=1)
    after = np.clip(np.searchsorted(logs, where), 1, len(logs) - 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        part = (where - logs[after - 1]) / (logs[after] - logs[after - 1])
    part = np.where(np.isfinite(part), part, 1.0)
    return np.asarray(values[:, after - 1] + part * (values[:, after] - values[:, after - 1]))


def _crossing(at: Array, lead: Array) -> tuple[Array, Array, Array]:
    """(status code [S], cost of the last crossing or NaN [S], lead at the largest cost [S]) of leads [S,
    k].
    """
    size, count = lead.shape
    where = np.full(size, np.nan)
    crossings = np.zeros(size, dtype=int)
    logs = np.log(at)
    for index in range(count - 1):
        before, after = lead[:, index], lead[:, index + 1]
        crossed = before * after < 0
        part = np.where(crossed, before / np.where(crossed, before - after, 1.0), 0.0)
        where = np.where(crossed, np.exp(logs[index] + part * (logs[index + 1] - logs[index])), where)
        crossings += crossed
    first = np.sign(lead[np.arange(size), np.argmax(lead != 0, axis=1)]).astype(int)
    code = np.where(crossings == 0, first, np.where(crossings == 1, -2 * first, 3))
    return code, where, lead[:, -1]
