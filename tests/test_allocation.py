"""The teacher's share: optimum, noise, status and trend, on tables made up for the purpose."""

import itertools
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from analysis.allocation import allocation, behind_best, quadratic_optimum
from analysis.allocation_text import allocation_sentences
from analysis.cli import main
from analysis.figure_allocation import Overlay, draw_allocation
from analysis.reference import reference_table
from analysis.seed_draws import block_spread, bounds, draw_means
from analysis.table_columns import typed
from tests.synthetic import make_study

SHARES = (0.05, 0.1, 0.2, 0.4)
BUDGETS = (1e18, 1e19, 1e20)
NOTHING = float("nan")


def share_table(
    accuracy: Callable[[float, float, int], float],
    shares: Iterable[float] = SHARES,
    budgets: Iterable[float] = BUDGETS,
    seeds: Iterable[int] = range(3),
    n_report: float = 2000,
) -> pd.DataFrame:
    """A gathered table of one teacher and student with `accuracy(budget, share, seed)`."""
    rows = [
        {
            "plan": "made up", "role": "cell", "arm": "salt", "student": "s", "teacher": "t", "variant": "",
            "config": f"salt t>s {share}", "config_id": f"c{share}", "run_id": f"r{budget}{share}{seed}",
            "teacher_run_id": "above", "charge": "full", "convention": "matmul", "kind": "linear",
            "label": "motion", "frames": "ordered", "state": "done", "teacher_share": share, "seed": seed,
            "budget_flops": budget, "total_flops": budget, "own_flops": budget * (1 - share),
            "accuracy": accuracy(budget, share, seed), "n_report": n_report,
        }
        for budget, share, seed in itertools.product(budgets, shares, seeds)
    ]  # fmt: skip
    for row in rows:
        row["cell_id"] = row["run_id"]
    return typed(pd.DataFrame(rows))


def bowl(budget: float, share: float, seed: int, sharp: float = 0.02) -> float:
    """A quadratic in logit(share) whose optimum's logit falls with log10 of the budget."""
    return 0.6 - sharp * float(special.logit(share) - best_logit(budget)) ** 2 + 0.01 * seed


def best_logit(budget: float) -> float:
    return -1.6 - 0.3 * (math.log10(budget) - 19)


def test_the_quadratic_finds_the_optimum_and_its_trend_exactly() -> None:
    result = allocation(share_table(bowl))
    expected = special.expit([best_logit(budget) for budget in BUDGETS])
    assert result.optima["optimum"].to_numpy() == pytest.approx(expected, rel=1e-9)
    trend = result.trends.iloc[0]
    slope = stats.linregress(np.log10(BUDGETS), np.log10(expected)).slope
    assert trend["slope"] == pytest.approx(slope, rel=1e-9)
    # Seeds that shift all shares alike tell nothing about where the best is: no spread between draws.
    assert (trend["slope_low"], trend["slope_high"]) == pytest.approx((slope, slope))
    assert trend["grid_slope"] == pytest.approx(0, abs=1e-12)


def test_an_optimum_outside_the_ends_is_the_better_end() -> None:
    x = special.logit(np.array(SHARES))
    means = np.stack([0.5 + 0.01 * x, 0.5 - 0.01 * x, 0.5 + 0.01 * x**2, 0.5 - 0.01 * (x - x[1]) ** 2])
    optimum, inside = quadratic_optimum(np.array(SHARES), means)
    assert list(inside) == [False, False, False, True]
    assert optimum == pytest.approx([SHARES[-1], SHARES[0], SHARES[0], SHARES[1]])


LEVELS = {
    "interior": (0.50, 0.60, 0.55, 0.40),
    "at the smallest share tried": (0.60, 0.55, 0.50, 0.40),
    "at the largest share tried": (0.40, 0.50, 0.55, 0.60),
    "flat": (0.500, 0.501, 0.502, 0.501),
}


@pytest.mark.parametrize(("status", "levels"), LEVELS.items())
def test_status(status: str, levels: tuple[float, ...]) -> None:
    noise = np.random.default_rng(1).normal(0, 0.005, (4, 5))

    def accuracy(budget: float, share: float, seed: int) -> float:
        place = SHARES.index(share)
        return levels[place] + 0.05 * seed + noise[place, seed]

    table = share_table(accuracy, budgets=[1e19], seeds=range(5))
    result = allocation(table)
    row = result.optima.iloc[0]
    assert row["status"] == status
    assert (row["basis"], row["seeds"]) == ("seeds", 5)
    (sentence,) = allocation_sentences(result)
    if status == "flat":
        assert "any share from 5 % to 40 % is within noise of the best" in sentence
    elif status == "interior":
        assert row["best_share"] == 0.1
        assert (row["low"], row["high"]) == (0.1, 0.1)
    else:
        assert status in sentence
    # Order of rows does not matter, nor do rows without a finite score.
    lost = table.iloc[:1].assign(accuracy=NOTHING, seed=9, state="done")
    shuffled = pd.concat([table, lost]).sample(frac=1, random_state=3).reset_index(drop=True)
    again = allocation(shuffled)
    pd.testing.assert_frame_equal(again.points, result.points)
    assert again.optima["n_lost"].tolist() == [1]


def test_two_shares_are_a_paired_t_test_and_too_few() -> None:
    values = np.random.default_rng(0).normal(0.5, 0.02, (2, 6))
    table = share_table(
        lambda _, share, seed: float(values[SHARES.index(share), seed]), SHARES[:2], [1e19], range(6)
    )
    result = allocation(table)
    best = int(np.argmax(values.mean(axis=1)))
    other = result.points[~result.points["best"]].iloc[0]
    test = stats.ttest_rel(values[best], values[1 - best])
    interval = test.confidence_interval(0.95)
    assert other["behind"] == pytest.approx((values[best] - values[1 - best]).mean())
    assert other["p"] == pytest.approx(test.pvalue)
    assert [other["behind_low"], other["behind_high"]] == pytest.approx([interval.low, interval.high])
    assert result.optima["status"].tolist() == ["too few shares"]
    assert result.trends.empty


def test_pooled_spread_is_that_of_randomised_blocks() -> None:
    values = np.random.default_rng(2).normal(0.5, 0.02, (4, 3)) + np.array([0.0, 0.1, -0.1])
    found = behind_best(values, np.full(4, 100.0), 0)
    # By the sums of squares of a two-way analysis of variance without interaction.
    grand = values.mean()
    total = ((values - grand) ** 2).sum()
    rows = 3 * ((values.mean(axis=1) - grand) ** 2).sum()
    columns = 4 * ((values.mean(axis=0) - grand) ** 2).sum()
    error = math.sqrt(2 / 3 * (total - rows - columns) / 6)
    reach = stats.t.ppf(0.975, 6) * error
    assert found.high[1] - found.difference[1] == pytest.approx(reach)
    assert found.basis == "seeds"
    assert (found.p[0], found.p_holm[0]) == (None, None)


def test_one_seed_has_only_the_clips_and_without_them_nothing() -> None:
    def accuracy(budget: float, share: float, seed: int) -> float:
        return 0.8 - 0.3 * abs(share - 0.1)

    points = allocation(share_table(accuracy, budgets=[1e19], seeds=[0], n_report=1000)).points
    last = points.iloc[-1]
    error = math.sqrt((0.8 * 0.2 + 0.71 * 0.29) / 1000)
    assert last["behind_high"] - last["behind"] == pytest.approx(stats.norm.ppf(0.975) * error)
    assert set(points["basis"]) == {"report clips"}
    unknown = allocation(share_table(accuracy, budgets=[1e19], seeds=[0], n_report=NOTHING))
    row = unknown.optima.iloc[0]
    assert row["basis"] == "none"
    assert math.isnan(row["low"])
    assert row["status"] == "interior"
    assert "no noise is known" in allocation_sentences(unknown)[0]


def test_differences_of_draws_are_students_t() -> None:
    values = np.random.default_rng(5).normal(0.5, 0.03, (3, 4)) + np.array([0.0, 0.2, -0.1, 0.1])
    drawn = draw_means(values, np.full(3, NOTHING), draws=20_000)
    assert (drawn.source, drawn.seeds) == ("seeds", 4)
    spread, degrees = block_spread(values)
    assert degrees == 6
    away = (drawn.drawn[:, 0] - drawn.drawn[:, 1] - (drawn.means[0] - drawn.means[1])) / (
        spread * math.sqrt(2 / 4)
    )
    assert stats.kstest(away, stats.t(6).cdf).pvalue > 0.01
    again = draw_means(values + np.array([0.3, 0.0, 0.0, 0.0]), np.full(3, NOTHING), draws=20_000)
    assert again.drawn - again.means == pytest.approx(drawn.drawn - drawn.means)  # a seed's level cancels
    clips = [draw_means(values[:, :1], np.full(3, 100.0), 50, stream=stream).drawn for stream in (0, 1)]
    assert (clips[0] != clips[1]).all()


def test_intervals_of_the_optimum_hold_it_as_often_as_they_say() -> None:
    """Nominal 90 %, three seeds, over 400 simulated curves: 87 to 93 %, which is two standard errors."""
    noise = np.random.default_rng(0)
    true = 0.15
    shares = np.array([0.05, 0.1, 0.2, 0.35, 0.6])
    levels = 0.6 - 0.02 * (special.logit(shares) - special.logit(true)) ** 2
    hits = 0
    for index in range(400):
        values = levels[:, None] + noise.normal(0, 0.01, (5, 3)) + noise.normal(0, 0.02, 3)
        drawn = draw_means(values, np.full(5, NOTHING), 1000, rng=index).drawn
        low, high = bounds(quadratic_optimum(shares, drawn)[0])
        hits += low <= true <= high
    assert 0.87 <= hits / 400 <= 0.93


def test_a_best_share_that_only_follows_the_grid_is_no_trend() -> None:
    """Noise on shares that halve with each tenfold budget: the best share falls, because all shares do."""
    parts = []
    for place, budget in enumerate(BUDGETS):
        shares = [share / 2**place for share in (0.1, 0.2, 0.4)]
        noise = np.random.default_rng(place).normal(0.5, 0.01, (3, 3))
        parts.append(
            share_table(
                lambda _, share, seed, shares=shares, noise=noise: float(noise[shares.index(share), seed]),
                shares,
                [budget],
            )
        )
    result = allocation(pd.concat(parts, ignore_index=True))
    trend = result.trends.iloc[0]
    assert trend["grid_slope"] == pytest.approx(-math.log10(2))
    assert trend["flat_budgets"] == 3
    assert "from which this cannot be told" in allocation_sentences(result)[-1]


def test_command_and_overlay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {
        "budgets": (400 * 10**9,),
        "students": ("micro",),
        "teachers": ("nano",),
        "labels": ("motion",),
    }
    study = make_study(tmp_path / "store", shares=(0.05, 0.2, 0.5), **options)
    argv = ["allocation", "--store", str(study.store), "--probe", "linear", "--out", str(tmp_path / "out")]
    assert main([*argv, "--reference", "salt2025", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    (row,) = data["optima"]
    assert (row["shares"], row["seeds"], row["n_lost"]) == (3, 3, 0)
    assert {"allocation-motion-linear.png", "allocation-points.csv", "allocation-salt2025-points.csv"} <= {
        Path(path).name for path in data["files"]
    }
    assert any("77.4 against 74.4" in line for line in data["statements"])
    assert main(argv) == 0
    assert "teacher training charged full" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main([*argv, "--reference", "salt2026"])


def test_the_overlay_is_a_panel_of_its_own_in_grey() -> None:
    published = reference_table()
    overlay = Overlay("salt2025", allocation(published[published["label"] == "avg4"], draws=50))
    about = {"plan": "made up", "charge": "full", "convention": "matmul"}
    result = allocation(share_table(bowl), draws=50)
    plain, both = (draw_allocation(result, about, "motion", "linear", o) for o in (None, overlay))
    panels = [axes for part in both.subfigs for axes in part.axes if axes.axison]
    assert len(panels) == 1 + sum(len(part.axes) for part in plain.subfigs)
    title = panels[-1].get_title(loc="left")
    assert "salt2025" in title
    colours = {line.get_color() for line in panels[-1].get_lines()}
    assert colours
    assert all(len({colour[1:3], colour[3:5], colour[5:7]}) == 1 for colour in colours)
    assert both.get_figwidth() == 3.5
