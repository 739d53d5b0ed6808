"""Fits and frontiers against their limits and against others: `python benchmarks/laws_speed.py`.

Data are made up: 240 runs on the surface that Besiroglu et al. 2024 report, with 1 % noise. One fit: nine
starts, the polish and the status included. The published multi-start protocol (Hoffmann et al. 2022 as
reproduced by Besiroglu et al.: 4500 starts of L-BFGS on the log-sum-exp form with Huber's loss) is timed on
60 of its starts, drawn at random, and multiplied. Frontiers: ours and moocore's in turn. Prints the
environment, times and ratios; the exit code is 1 where a limit is missed.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import moocore  # noqa: E402 - found from any folder
import numpy as np  # noqa: E402
from scipy.optimize import minimize  # noqa: E402

from analysis.law_bootstrap import bootstrap  # noqa: E402
from analysis.law_fit import fit_law  # noqa: E402
from analysis.laws import SURFACE, Points, points  # noqa: E402
from analysis.nondominated import nondominated  # noqa: E402
from benchmarks.environment import environment  # noqa: E402

FIT_LIMIT_S, BOOTSTRAP_LIMIT_S, MOST_3D = 0.005, 15.0, 1.3
STARTS_TIMED = 60
POINTS = 1_000_000


def runs() -> Points:
    """240 runs of 24 sizes at ten budgets each."""
    rng = np.random.default_rng(0)
    size = np.repeat(np.geomspace(5e7, 1.5e10, 24), 10)
    compute = np.tile(np.geomspace(6e18, 6e21, 10), 24)
    data = compute / 6 / size
    loss = 1.817 + 482.01 * size**-0.348 + 2085.43 * data**-0.366
    return points(
        loss * np.exp(rng.normal(0, 0.01, 240)), metric="loss", size=size, data=data, compute=compute
    )


def best_of(work: Callable[[], object], times: int) -> float:
    """Least seconds of several calls."""
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def protocol(data: Points) -> tuple[float, float]:
    """(seconds of all 4500 starts, lowest sum of Huber losses among those timed)."""
    logs = np.log(data.columns["size"]), np.log(data.columns["data"]), np.log(data.response)

    def objective(p: np.ndarray) -> float:
        a, b, e, alpha, beta = p
        rest = np.abs(np.logaddexp(np.logaddexp(a - alpha * logs[0], b - beta * logs[1]), e) - logs[2])
        return float(np.where(rest < 1e-3, 0.5 * rest**2, 1e-3 * (rest - 5e-4)).sum())

    grid = list(
        itertools.product(
            *(range(0, 30, 5), range(0, 30, 5), np.arange(-1, 1.5, 0.5)),
            *(np.arange(0, 2.5, 0.5), np.arange(0, 2.5, 0.5)),
        )
    )
    chosen = np.random.default_rng(0).choice(len(grid), STARTS_TIMED, replace=False)
    began = time.perf_counter()
    values = [
        minimize(objective, np.array(grid[index], dtype=float), method="L-BFGS-B").fun for index in chosen
    ]
    return (time.perf_counter() - began) * len(grid) / STARTS_TIMED, float(min(values))


def frontiers() -> list[tuple[str, float]]:
    """(what, ours / moocore's), timed in turn on a million points."""
    rng = np.random.default_rng(0)
    found = []
    for name, columns in (
        ("2 objectives, uniform", rng.random((POINTS, 2))),
        ("2 objectives, all on the frontier", np.sort(rng.random((POINTS, 2)), axis=0) * [1, -1]),
        ("2 objectives, many ties", rng.integers(0, 60, (POINTS, 2)).astype(float)),
        ("3 objectives, uniform", rng.random((POINTS, 3))),
    ):
        parts = [columns[:, index].copy() for index in range(columns.shape[1])]
        ours, theirs = [], []
        for _ in range(4):
            ours.append(best_of(partial(nondominated, parts, []), 1))
            theirs.append(best_of(partial(_moocore, parts), 1))
        found.append((name, min(ours) / min(theirs)))
    return found


def _moocore(parts: list[np.ndarray]) -> np.ndarray:
    return np.asarray(moocore.is_nondominated(np.column_stack(parts), keep_weakly=True))


def main() -> int:
    print(environment())
    data, good = runs(), True
    fit = fit_law(SURFACE, data, huber=1e-3)
    one = best_of(lambda: fit_law(SURFACE, data, huber=1e-3), 30)
    print(f"one surface fit of 240 points: {1e3 * one:.2f} ms (limit {1e3 * FIT_LIMIT_S:g})")
    whole, lowest = protocol(data)
    print(
        f"published protocol, 4500 starts: {whole:.0f} s (from {STARTS_TIMED} of them), "
        f"{whole / one:,.0f} times as long; "
        f"its lowest objective is {lowest / fit.objective - 1:+.2e} of ours"
    )
    wide = fit_law(SURFACE, data)
    boot = best_of(lambda: bootstrap(wide, draws=4000), 2)
    each = 1e3 * boot / 4000
    print(f"4,000 bootstrap fits: {boot:.2f} s (limit {BOOTSTRAP_LIMIT_S:g}), {each:.2f} ms a fit")
    good &= one <= FIT_LIMIT_S and boot <= BOOTSTRAP_LIMIT_S
    for name, ratio in frontiers():
        limit = MOST_3D if name.startswith("3") else 1.0
        good &= ratio <= limit
        print(f"frontier of a million points, {name}: {ratio:.2f} of moocore's time (limit {limit:g})")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
