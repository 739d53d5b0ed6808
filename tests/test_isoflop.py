"""Best sizes per budget: closed forms, published exponents, and the parabola's published bias."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.isoflop import (
    Exchange,
    exchange,
    miss,
    optimum,
    parabola_bias,
    parabola_law,
    power_law,
    profiles,
)
from analysis.law_fit import fit_law
from analysis.laws import SURFACE, Points, points

SIX_N_D = Exchange(6.0, 1.0)
#: Hoffmann et al. 2022, rounded as printed; the surfaces of arXiv 2603.22339.
CHINCHILLA = {
    "asymptote": 1.69,
    "amplitude_size": 406.4,
    "amplitude_data": 410.7,
    "exponent_size": 0.34,
    "exponent_data": 0.28,
}
ASYMMETRIC = CHINCHILLA | {"exponent_size": 0.465, "exponent_data": 0.155}
SYMMETRIC = CHINCHILLA | {
    "exponent_size": 0.31,
    "exponent_data": 0.31,
    "amplitude_size": 400.0,
    "amplitude_data": 400.0,
}


def sizes_around_the_optimum(law: dict[str, float], factor: float, off_centre: float = 1.0) -> Points:
    """15 sizes from 1/factor to factor times the best one, at five budgets of 1e17 to 1e21, without noise."""
    budgets = np.geomspace(1e17, 1e21, 5)
    best = optimum(law, budgets, SIX_N_D)[0] * off_centre
    size = np.outer(best, np.geomspace(1 / factor, factor, 15)).ravel()
    compute = np.repeat(budgets, 15)
    data = compute / 6 / size
    y = law["asymptote"] + law["amplitude_size"] * size ** -law["exponent_size"]
    y += law["amplitude_data"] * data ** -law["exponent_data"]
    return points(y, metric="loss", size=size, data=data, compute=compute)


@pytest.mark.parametrize(
    ("compute", "size", "data", "loss"),
    [(1e21, 1.8242e9, 9.1363e10, 2.328883), (3.8e25, 2.1348e11, 2.9667e13, 1.816533)],
)
def test_the_optimum_of_the_published_surface(compute: float, size: float, data: float, loss: float) -> None:
    found = optimum(CHINCHILLA, compute, SIX_N_D)
    assert [float(value) for value in found] == pytest.approx([size, data, loss], rel=3e-5)
    grid = np.geomspace(size / 30, size * 30, 200_001)  # and no size on a grid is better
    y = 1.69 + 406.4 * grid**-0.34 + 410.7 * (compute / 6 / grid) ** -0.28
    assert grid[np.argmin(y)] == pytest.approx(float(found[0]), rel=1e-4)


def test_ratio_of_tokens_to_parameters_of_the_replication() -> None:
    """Besiroglu et al. 2024: about 18 at Chinchilla's budget, where the rounded original says 73 to 93."""
    law = {
        "asymptote": 1.81722,
        "amplitude_size": 477.83,
        "amplitude_data": 2143.4,
        "exponent_size": 0.34731,
        "exponent_data": 0.36717,
    }
    size, data, _ = optimum(law, 5.76e23, SIX_N_D)
    assert float(data / size) == pytest.approx(17.9, abs=0.1)


@pytest.mark.parametrize(
    ("law", "factor", "error_percent"),
    [
        (CHINCHILLA, 2, -0.32694),
        (CHINCHILLA, 4, -1.30113),
        (CHINCHILLA, 8, -2.90290),
        (CHINCHILLA, 16, -5.10024),
        (ASYMMETRIC, 2, -1.67475),
        (ASYMMETRIC, 16, -23.1163),
        (SYMMETRIC, 16, 0.0),
    ],
)
def test_the_parabolas_bias_is_the_published_one(
    law: dict[str, float], factor: float, error_percent: float
) -> None:
    """Error of the best data at 1e24 FLOPs extrapolated from parabolas on exact data (arXiv 2603.22339)."""
    rows = profiles(sizes_around_the_optimum(law, factor), None, SIX_N_D)
    scale, exponent = power_law(rows["budget_flops"], rows["data_parabola"])
    true = float(optimum(law, 1e24, SIX_N_D)[1])
    assert 100 * (scale * 1e24**exponent / true - 1) == pytest.approx(error_percent, abs=1e-4)
    alpha, beta = law["exponent_size"], law["exponent_data"]
    assert exponent == pytest.approx(alpha / (alpha + beta), abs=1e-9)  # the exponent is right all the same


def test_intercepts_of_the_bias_table() -> None:
    rows = profiles(sizes_around_the_optimum(CHINCHILLA, 16), None, SIX_N_D)
    scale, exponent = power_law(rows["budget_flops"], rows["data_parabola"])
    assert (exponent, math.log10(scale)) == pytest.approx((0.5483871, -0.5780919), abs=1e-7)
    best = optimum(CHINCHILLA, rows["budget_flops"].to_numpy(), SIX_N_D)[1]
    assert math.log10(power_law(rows["budget_flops"], best)[0]) == pytest.approx(-0.5553569, abs=1e-7)


@pytest.mark.parametrize("law", [CHINCHILLA, ASYMMETRIC, SYMMETRIC])
@pytest.mark.parametrize("off_centre", [1.0, 3.0])
def test_surface_and_profile_have_no_such_bias(law: dict[str, float], off_centre: float) -> None:
    data = sizes_around_the_optimum(law, 8, off_centre)
    fit = fit_law(SURFACE, data, squares=True)
    rows = profiles(data, fit.parameters, exchange(data))
    best = optimum(law, rows["budget_flops"].to_numpy(), SIX_N_D)[0]
    np.testing.assert_allclose(rows["size_surface"], best, rtol=1e-6)
    np.testing.assert_allclose(rows["size_profile"], best, rtol=1e-4)
    assert (rows["status"] == "bracketed").all()


def test_porians_exponents_from_his_optima() -> None:
    """Porian et al. 2024 (arXiv 2406.19146), their published optima: weighted slopes equal their published
    fits.
    """
    rows = pd.read_csv(Path(__file__).parent / "data" / "porian2024_optima.csv").dropna()
    keys = ["dataset", "hparams", "warmup", "decay", "param_count", "loss_split"]
    found: dict[str, list[float]] = {"rw": [], "owt2": []}
    for key, group in rows.groupby(keys, sort=False):
        _, slope = power_law(group["flops"], group["n_star"], weights=1 / group["log_n_star_std"].to_numpy())
        if str(key[0]) in found:
            found[str(key[0])].append(slope)
    for name, values in {
        "rw": (0.8353, 0.7065, 0.6020, 0.5715, 0.4969),
        "owt2": (0.8635, 0.6985, 0.6032, 0.5743, 0.5185),
    }.items():
        for value in values:
            assert any(abs(slope - value) < 1e-4 for slope in found[name]), (name, value, found[name])


def test_cost_per_clip_need_not_be_proportional_to_size() -> None:
    """A predictor of fixed size and attention: C = 40 N^0.8 D. The closed form is the minimum along the
    budget.
    """
    cost = Exchange(40.0, 0.8)
    size, data, y = (float(value) for value in optimum(CHINCHILLA, 1e21, cost))
    assert 40 * size**0.8 * data == pytest.approx(1e21)
    grid = np.geomspace(size / 20, size * 20, 100_001)
    values = 1.69 + 406.4 * grid**-0.34 + 410.7 * cost.data(1e21, grid) ** -0.28
    assert grid[np.argmin(values)] == pytest.approx(size, rel=1e-3)
    assert values.min() == pytest.approx(y, rel=1e-9)
    sizes = np.array([1e7, 1e8, 1e9, 1e7, 1e8])
    clips = np.array([1e6, 2e6, 3e6, 4e6, 5e6])
    there = points(np.ones(5), metric="loss", size=sizes, data=clips, compute=40 * sizes**0.8 * clips)
    found = exchange(there)
    assert (found.factor, found.exponent) == pytest.approx((40, 0.8))


def test_what_a_wrong_size_costs_is_the_compute_that_would_have_done_as_well() -> None:
    best = float(optimum(CHINCHILLA, 1e21, SIX_N_D)[0])
    assert miss(CHINCHILLA, SIX_N_D, 1e21, best).wasted_flops == pytest.approx(0, abs=1e12)
    found = miss(CHINCHILLA, SIX_N_D, 1e21, best * 4)
    reached = 1.69 + 406.4 * (4 * best) ** -0.34 + 410.7 * (1e21 / 24 / best) ** -0.28
    assert float(optimum(CHINCHILLA, 1e21 - found.wasted_flops, SIX_N_D)[2]) == pytest.approx(
        reached, rel=1e-12
    )
    assert 0.05 < found.share < 0.5
    bias = parabola_bias(sizes_around_the_optimum(ASYMMETRIC, 16), ASYMMETRIC, SIX_N_D, 1e24)
    assert bias is not None
    rows = profiles(sizes_around_the_optimum(ASYMMETRIC, 16), None, SIX_N_D)
    line = parabola_law(rows, SIX_N_D)
    assert line is not None
    assert bias.size_parabola == pytest.approx(line[0] * 1e24 ** line[1])


def statuses(values: Any, sizes: Any) -> list[str]:
    size = np.asarray(sizes, dtype=float)
    data = points(values, metric="loss", size=size, data=1e18 / 6 / size, compute=np.full(len(size), 1e18))
    return list(profiles(data, None, SIX_N_D)["status"])


def test_a_budget_that_does_not_bracket_its_optimum_says_so() -> None:
    assert statuses([3.0, 2.5, 3.1], [1e7, 1e8, 1e9]) == ["bracketed"]
    assert statuses([3.0, 2.5, 2.4], [1e7, 1e8, 1e9]) == ["not bracketed: best at an end of the sizes tried"]
    assert statuses([3.0, 2.5], [1e7, 1e8]) == ["too few sizes"]
    assert statuses([3.0, 3.2, 3.15, 3.25, 2.9, 3.3], [1e7, 2e7, 3e7, 1e8, 2e8, 1e9])[0] in (
        "bracketed",
        "no minimum in the parabola",
        "optimum not interior",
    )
