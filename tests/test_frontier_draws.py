"""Frontiers and how sure they are: against brute force, moocore, and by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import moocore
import numpy as np
import pandas as pd
import pytest

from analysis.cli import main
from analysis.conventions import charged, under_every_rule, verdicts
from analysis.cost_axis import cost_axis
from analysis.frontier_draws import (
    Curves,
    attainment,
    attainment_surfaces,
    choices,
    frontier_curves,
    hypervolumes,
)
from analysis.gather import gather
from analysis.multiplier import cost_at, crossovers, multipliers
from analysis.noise import measured_noise
from analysis.nondominated import nondominated
from analysis.pareto import configurations
from salt.errors import UserError
from tests.synthetic import make_study


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("frontiers"), labels=("motion",)).store


@pytest.fixture(scope="module")
def table(store: Path) -> pd.DataFrame:
    return gather(store, "miniature")


def linear(table: pd.DataFrame, draws: int) -> Curves:
    found = frontier_curves(choices(configurations(table)), measured_noise(table), draws=draws)
    return next(curves for curves in found if curves.kind == "linear")


@pytest.mark.parametrize("objectives", [2, 3])
@pytest.mark.parametrize("seed", range(5))
def test_nondominated_points_are_those_of_brute_force_and_moocore(objectives: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 8, (120, objectives)).astype(float)  # many ties
    points[3, 0], points[5, -1], points[7, 0] = math.nan, math.inf, -math.inf
    finite = np.isfinite(points).all(axis=1)
    expected = np.zeros(120, dtype=bool)
    for i in np.flatnonzero(finite):
        as_good = (points[finite] <= points[i]).all(axis=1) & (points[finite] < points[i]).any(axis=1)
        expected[i] = not as_good.any()
    costs = [points[:, index] for index in range(objectives)]
    np.testing.assert_array_equal(nondominated(costs, []), expected)
    np.testing.assert_array_equal(nondominated(costs[:-1], [-costs[-1]]), expected)
    ours = nondominated([column[finite] for column in costs], [])
    np.testing.assert_array_equal(ours, moocore.is_nondominated(points[finite], keep_weakly=True))
    assert not nondominated([np.array([math.nan])], [np.array([1.0])]).any()


def made(**arms: tuple[list[float], list[float]]) -> Curves:
    """Curves whose draws are their values, but for a small spread."""
    rng = np.random.default_rng(0)
    values = {arm: np.array(accuracy) for arm, (_, accuracy) in arms.items()}
    return Curves(
        label="motion",
        kind="linear",
        arms=tuple(arms),
        cost={arm: np.array(cost) for arm, (cost, _) in arms.items()},
        accuracy=values,
        drawn={arm: value + 1e-4 * rng.standard_normal((500, len(value))) for arm, value in values.items()},
        noise=None,
        chance=0.1,
    )


def test_multipliers_and_crossover_by_hand() -> None:
    curves = made(salt=([1e18, 1e20], [0.40, 0.60]), vjepa=([1e18, 1e19, 1e20], [0.45, 0.50, 0.55]))
    rows = multipliers(curves).set_index(["a", "b", "cost_b"])
    # 55 % lies three quarters of two decades up SALT's line: at 1e19.5, so V-JEPA's 1e20 is sqrt(10) times
    # that.
    assert rows.loc[("salt", "vjepa", 1e20), "multiplier"] == pytest.approx(10**0.5)
    assert rows.loc[("salt", "vjepa", 1e20), "probability"] == 1.0
    assert rows.loc[("salt", "vjepa", 1e19), "multiplier"] == pytest.approx(1.0)
    never = rows.loc[("vjepa", "salt", 1e20)]
    assert (never["bound"], never["limit"], never["high"]) == ("at most", 1.0, 0.0)
    assert math.isnan(never["multiplier"])
    at_once = rows.loc[("vjepa", "salt", 1e18)]
    assert (at_once["bound"], at_once["limit"], at_once["probability"]) == ("at least", 1.0, 1.0)
    crossing = crossovers(curves).iloc[0]
    assert crossing["status"] == "salt overtakes vjepa"
    assert crossing["crossover"] == pytest.approx(1e19, rel=0.01)
    assert crossing["low"] < 1e19 < crossing["high"]
    assert crossing["a_ahead_at_top"] == 1.0
    apart = crossovers(made(salt=([1e18, 1e19], [0.4, 0.5]), vjepa=([1e20, 1e21], [0.6, 0.7]))).iloc[0]
    assert apart["status"] == "no common costs"


def test_cost_at_an_accuracy_is_the_first_time_a_frontier_has_it() -> None:
    cost, accuracy = np.array([1e18, 1e19, 1e20]), np.array([[0.4, 0.5, 0.5], [0.4, 0.3, 0.6]])
    found = cost_at(cost, accuracy, np.array([0.5, 0.5]))
    assert found[0] == pytest.approx(1e19)
    assert found[1] == pytest.approx(1e19 * 10**0.5)  # the dip to 0.3 is not on the frontier
    assert np.isneginf(cost_at(cost, accuracy[:1], np.array([0.4])))
    assert np.isposinf(cost_at(cost, accuracy[:1], np.array([0.7])))


def test_bands_are_attainment_surfaces_and_areas_are_hypervolumes(table: pd.DataFrame) -> None:
    curves = linear(table, 400)
    rows = attainment(curves, level=0.9)
    for arm in curves.arms:
        band = rows[rows["arm"] == arm].sort_values("cost")
        surfaces = attainment_surfaces(curves, arm, [5.0, 95.0])
        for percentile, column in ((5.0, "high"), (95.0, "low")):
            corners = surfaces[surfaces["percentile"] == percentile].sort_values("cost")
            steps = [corners.loc[corners["cost"] <= cost, "accuracy"].max() for cost in band["cost"]]
            # A quantile between two draws against the surface of one of them.
            np.testing.assert_allclose(band[column], steps, atol=2e-3)
    assert rows.groupby("cost")["probability_best"].sum().to_list() == pytest.approx([1.0, 1.0, 1.0])
    volumes = hypervolumes(curves).set_index("arm")
    for arm in curves.arms:
        x = np.log10(curves.cost[arm])
        ends = [math.log10(curves.costs()[-1]), -100 * curves.chance]
        each = [moocore.hypervolume(np.column_stack([x, -100 * y]), ref=ends) for y in curves.drawn[arm]]
        assert volumes.loc[arm, "low"] == pytest.approx(np.quantile(each, 0.05), rel=1e-9)
        assert volumes.loc[arm, "high"] == pytest.approx(np.quantile(each, 0.95), rel=1e-9)


def test_draws_spread_as_seeds_and_clips_do(table: pd.DataFrame) -> None:
    curves = linear(table, 20_000)
    noise = curves.noise
    assert noise is not None
    mean = curves.accuracy["salt"]
    n_report = float(table["n_report"].dropna().iloc[0])
    degrees = noise.degrees / (noise.degrees - 2)  # of Student's t
    expected = (noise.seed_sd / 100) ** 2 / 3 * degrees + mean * (1 - mean) / n_report
    np.testing.assert_allclose(curves.drawn["salt"].var(axis=0), expected, rtol=0.05)
    together = np.corrcoef(curves.drawn["salt"][:, 0], curves.drawn["vjepa"][:, 0])[0, 1]
    share = max(noise.correlation or 0.0, 0.0) * (noise.seed_sd / 100) ** 2 / 3 * degrees / expected[0]
    assert together == pytest.approx(share, abs=0.03)


def test_every_charge_is_made_of_the_plans_own_numbers(table: pd.DataFrame) -> None:
    full = charged(table, "matmul", "full")
    none = charged(table, "matmul", "none")
    assert full is not None
    assert none is not None
    cells = (table["role"] == "cell") & table["total_flops"].notna() & (table["arm"] != "raw")
    np.testing.assert_allclose(full[cells], table.loc[cells, "total_flops"], rtol=1e-9)
    np.testing.assert_allclose(none[cells], table.loc[cells, "own_flops"], rtol=1e-9)
    assert charged(table.drop(columns="own_flops_paper"), "paper", "full") is None


def test_the_verdict_says_whether_a_conclusion_survives_every_rule(table: pd.DataFrame) -> None:
    rules = under_every_rule(table, choices(configurations(table)), measured_noise(table))
    assert set(zip(rules["convention"], rules["charge"], strict=True)) == {
        (convention, charge) for convention in ("matmul", "paper") for charge in ("full", "shared", "none")
    }
    assert rules["as_planned"].any()
    rules = rules[rules["kind"] == "linear"]
    same = rules.assign(leads=rules["arm"] == "vjepa", probability_best=0.97)
    verdict = verdicts(same)[0]
    assert verdict.survives
    assert "vjepa leads at the largest common cost under all 6 conventions and charges" in verdict.text
    split = same.assign(leads=(rules["arm"] == "salt") == (rules["charge"] == "none"))
    split = split[split["arm"] != "pixel"]
    verdict = verdicts(split)[0]
    assert not verdict.survives
    assert "salt under matmul/none" in verdict.text


def test_costs_other_than_flops_and_their_refusals(table: pd.DataFrame) -> None:
    hours = table.assign(gpu_hours=table["own_flops"] / 1e12)
    axis = cost_axis(hours, "money", 2.0)
    cells = (table["role"] == "cell") & table["total_flops"].notna()
    expected = 2.0 * table["total_flops"] / 1e12  # every run at one speed: hours are FLOPs
    np.testing.assert_allclose(axis.table.loc[cells, "total_flops"], expected[cells], rtol=1e-9)
    assert axis.axis == "money, at 2 per GPU-hour"
    with pytest.raises(UserError, match="--cost money needs --price"):
        cost_axis(hours, "money", None)
    with pytest.raises(UserError, match="--price is for --cost money"):
        cost_axis(hours, "flops", 2.0)
    with pytest.raises(UserError, match="no run of this table has GPU-hours"):
        cost_axis(table.assign(gpu_hours=math.nan), "gpu-hours", None)


def test_the_command_says_all_of_it_without_drawing(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["pareto", "miniature", "--store", str(store), "--out", str(tmp_path), "--probe", "linear"]
    assert main([*arguments, "--no-figures", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"attainment", "multipliers", "crossovers", "hypervolumes", "conventions", "verdicts"} <= set(
        found
    )
    assert len(found["verdicts"]) == 1
    assert not list((tmp_path / "figures").glob("*.png"))
    assert (tmp_path / "figures" / "pareto-multipliers.csv").exists()
    assert main([*arguments, "--reference", "salt2025"]) == 0
    said = capsys.readouterr().out
    assert "conventions and charges" in said or "depends on the convention" in said
    assert "vit_l>vit_l" in said
    assert (tmp_path / "figures" / "pareto-attainment-motion-linear.pdf").exists()


def test_a_foreign_table_of_one_point_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.csv").write_text("C,acc\n1e18,0.5\n")
    assert main(["pareto", "--table", str(tmp_path / "one.csv"), "--out", str(tmp_path / "out")]) == 0
    assert "imported" in capsys.readouterr().out
    assert (tmp_path / "out" / "figures" / "pareto.png").exists()
