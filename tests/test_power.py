"""Power: published values, closed forms against simulation, and what a plan compares, counted by hand."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from analysis.gather import gather
from analysis.intervals import holm
from analysis.noise import measured_noise
from analysis.plan_contrasts import Family, arm_families, share_families, share_seeds, teacher_families
from analysis.power import (
    Noise,
    SimulatedFamily,
    best_share,
    chance_best,
    chance_of_order,
    family_power,
    holm_claims,
    paired_power,
    probe_sd,
    seeds_needed,
    smallest_difference,
)
from salt.errors import UserError
from salt.plan_specs import Cell, PlannedRun
from sweeps.simulate_cli import DIFFERENCES
from tests import plan_kit
from tests.synthetic import BUDGETS, Study, make_study

UNIT = Noise(seed_sd=math.sqrt(0.5))  # paired differences vary by 1


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    store = tmp_path_factory.mktemp("store")
    return make_study(store, shares=(0.1, 0.2, 0.4), teachers=("nano", "micro"), run=False)


# --- one comparison -------------------------------------------------------------------------------


def test_published_power_of_paired_t_tests() -> None:
    # G*Power 3.1 manual (Heinrich-Heine-Universitaet Duesseldorf), matched pairs, after Cohen: d 0.4 at
    # correlation 0.55 is dz 0.421637; 50 pairs, 5 % two-sided: power 0.832114.
    noise = Noise(seed_sd=1.0, correlation=0.55)
    assert 0.4 / noise.pair_sd == pytest.approx(0.421637, abs=5e-7)
    assert paired_power(0.4, noise.pair_sd, 50) == pytest.approx(0.832114, abs=5e-7)
    # K. Wuensch, "G*Power: t tests", one sample of 25 at d 1/3: 0.360.
    assert paired_power(1 / 3, 1.0, 25) == pytest.approx(0.360, abs=5e-4)


@pytest.mark.parametrize(("seeds", "difference"), [(2, 5.0), (3, 2.0), (6, 1.5)])
def test_closed_form_power_is_that_of_simulated_t_tests(seeds: int, difference: float) -> None:
    draws = np.random.default_rng(7).normal(difference, 1.0, (200_000, seeds))
    t = draws.mean(axis=1) / draws.std(axis=1, ddof=1) * math.sqrt(seeds)
    reach = {2: 12.7062, 3: 4.30265, 6: 2.57058}[seeds]  # two-sided 5 % points of Student's t
    seen = float((np.abs(t) > reach).mean())
    assert paired_power(difference, 1.0, seeds) == pytest.approx(seen, abs=4 * math.sqrt(0.25 / 200_000))


def test_smallest_difference_and_seeds_are_where_power_is_reached() -> None:
    for seeds in (2, 3, 10):
        smallest = smallest_difference(2.0, seeds)
        assert smallest is not None
        assert paired_power(smallest, 2.0, seeds) == pytest.approx(0.8, abs=1e-6)
    assert smallest_difference(2.0, 1) is None
    assert paired_power(1e6, 2.0, 1) == 0
    needed = seeds_needed(1.0, 2.0)
    assert needed is not None
    assert paired_power(1.0, 2.0, needed) >= 0.8 > paired_power(1.0, 2.0, needed - 1)
    assert seeds_needed(1e-4, 2.0) is None
    # Beyond all doubt, where series for the tails lose their digits.
    assert paired_power(1e5, 1.0, 3) == pytest.approx(1.0)


def test_noise_of_a_pair_by_hand() -> None:
    assert probe_sd(50, 2500) == pytest.approx(1.0)
    noise = Noise(seed_sd=2.0, correlation=0.5, probe_sd=1.0)
    # Half of the seeds' variance is shared; what the clips add is not: 2 (4 x 0.5 + 1).
    assert noise.pair_sd == pytest.approx(math.sqrt(6))


# --- families -------------------------------------------------------------------------------------


def test_holm_on_arrays_claims_what_the_analysis_claims() -> None:
    p = np.random.default_rng(1).uniform(0, 0.05, (200, 6)) ** 1.5
    p[::7, 2] = np.nan
    for row, claims in zip(p, holm_claims(p), strict=True):
        adjusted = holm([None if math.isnan(value) else float(value) for value in row])
        assert claims.tolist() == [value is not None and value < 0.05 for value in adjusted]


def one_pair(study: Study) -> Family:
    """The comparison of two teacher sizes over all budgets and shares: a family of one."""
    family = teacher_families(study.plan)[1]
    assert len(family.comparisons) == 1
    return family


def test_a_simulated_family_of_one_has_the_closed_form_power(study: Study) -> None:
    family = one_pair(study)
    simulated = SimulatedFamily(family, UNIT, rng=3, draws=40_000)
    sd = 1 / math.sqrt(len(family.strata))
    for difference in (0.4, 0.8, 1.2):
        error = 4 * math.sqrt(0.25 / 40_000)
        assert simulated.power(difference) == pytest.approx(paired_power(difference, sd, 3), abs=error)
    again = SimulatedFamily(family, UNIT, rng=3, draws=40_000)
    assert again.power(0.8) == simulated.power(0.8)


def test_power_after_holm_lies_between_one_test_and_bonferroni(study: Study) -> None:
    family = arm_families(study.plan)[0]
    simulated = SimulatedFamily(family, UNIT, rng=0, draws=20_000)
    for difference in (3.0, 6.0, 10.0):
        alone, bounded = paired_power(difference, 1.0, 3), paired_power(difference, 1.0, 3, 0.05 / 9)
        assert bounded - 0.015 < simulated.power(difference) < alone
    assert simulated.false_claims(6.0) <= 0.05 + 3 * math.sqrt(0.05 / 20_000)
    found = family_power(family, UNIT, (1.0,))
    assert found.alone is not None
    assert found.corrected is not None
    assert found.bounded is not None
    assert found.alone < found.corrected <= found.bounded


def test_families_of_a_plan_by_hand(study: Study) -> None:
    each, over = arm_families(study.plan)
    assert (each.levels, len(each.strata), len(each.comparisons)) == (("pixel", "salt", "vjepa"), 3, 9)
    assert len(over.comparisons) == 3
    assert {c.n for c in (*each.comparisons, *over.comparisons)} == {3}
    # 3 budgets x 2 teachers x 2 students, 3 pairs of shares each.
    shares, shares_over = share_families(study.plan)
    assert (shares.levels, len(shares.comparisons)) == (("10 %", "20 %", "40 %"), 36)
    # Two students of one teacher's run share its luck: 6 independent strata, not 12.
    assert len(shares_over.strata) == 6
    assert {len(c.strata) for c in shares_over.comparisons} == {6}
    sizes, _ = teacher_families(study.plan)
    assert (sizes.levels, len(sizes.comparisons)) == (("nano", "micro"), 3 * 3 * 2)
    placed = share_seeds(study.plan)
    assert placed.pop("all 6 budgets and teachers together") == ((0.1, 0.2, 0.4), (18, 18, 18))
    assert set(placed.values()) == {((0.1, 0.2, 0.4), (3, 3, 3))}


def test_extra_seeds_help_only_where_both_sides_have_them() -> None:
    where = {"arms": ["pixel", "vjepa"]}
    _, plan = plan_kit.drafted(extra_seeds=[{"seeds": [1, 2], "where": where}], students=["nano"])
    (family,) = arm_families(plan)
    counts = {(family.levels[c.a], family.levels[c.b]): c.n for c in family.comparisons}
    assert counts == {("pixel", "salt"): 1, ("pixel", "vjepa"): 3, ("salt", "vjepa"): 1}
    found = family_power(family, UNIT, (100.0,))
    assert found.blind == 2
    assert found.power_corrected[100.0] == pytest.approx(0.5)  # one of the better arm's two comparisons
    assert found.alone == pytest.approx(smallest_difference(1.0, 3))


# --- the best of several ---------------------------------------------------------------------------


def test_chances_of_being_best_against_simulation_and_by_hand() -> None:
    means, sds = [0.0, 0.5, 0.2, -3.0], [1.0, 0.3, 0.6, 2.0]
    draws = np.random.default_rng(5).normal(means, sds, (400_000, 4))
    seen = np.bincount(draws.argmax(axis=1), minlength=4) / len(draws)
    np.testing.assert_allclose(chance_best(means, sds), seen, atol=4 * math.sqrt(0.25 / 400_000))
    # Of two, a normal difference: Phi(1 / sqrt(2)).
    assert chance_best([1.0, 0.0], [1.0, 1.0])[0] == pytest.approx(NormalDist().cdf(1 / math.sqrt(2)))
    assert chance_best([0.0] * 5, [1.0] * 5) == pytest.approx([0.2] * 5)


def test_chances_of_the_right_order_against_simulation_and_by_hand() -> None:
    assert chance_of_order([0.0, 1.0], 1.0) == pytest.approx(NormalDist().cdf(1 / math.sqrt(2)), abs=1e-6)
    assert chance_of_order([0.0] * 4, 1.0) == pytest.approx(1 / 24, abs=1e-6)
    draws = np.random.default_rng(6).normal([0.0, 0.7, 1.4], 0.8, (400_000, 3))
    seen = float((np.diff(draws, axis=1) > 0).all(axis=1).mean())
    assert chance_of_order([0.0, 0.7, 1.4], 0.8) == pytest.approx(seen, abs=4 * math.sqrt(0.25 / 400_000))


def test_best_share_of_a_parabola_in_doublings() -> None:
    noise = Noise(seed_sd=1.0, correlation=0.75)  # a run's own part: 0.5
    found = best_share((0.1, 0.2, 0.4), (4, 4, 4), 0.5, noise)
    # The middle one is 0.5 points above both; each mean of 4 seeds varies by 0.25.
    assert found.found[1] == pytest.approx(chance_best([0.0, 0.5, 0.0], [0.25] * 3)[1])
    assert found.lost[1] == pytest.approx(0.5 * (1 - found.found[1]))
    # Two doublings away cost four times as much as one.
    far = best_share((0.1, 0.4), (4, 4), 0.5, noise)
    assert far.found[0] == pytest.approx(NormalDist().cdf(2.0 / (0.25 * math.sqrt(2))))


# --- measured noise --------------------------------------------------------------------------------


def test_noise_is_recovered_from_results(tmp_path: Path) -> None:
    """A seed's common effect of 0.8 points and own residuals of 0.6: SD 1, correlation 0.64."""

    def accuracy(cell: Cell | None, run: PlannedRun, kind: str, label: str, frames: str) -> float:
        common = random.Random(f"seed {run.spec.seed}").gauss(0, 0.8)
        return 0.5 + 0.01 * (common + random.Random(f"{run.run_id} {kind}").gauss(0, 0.6))

    make_study(
        tmp_path,
        seeds=range(40),
        budgets=BUDGETS[:2],
        labels=("motion",),
        students=("micro",),
        teachers=("nano",),
        accuracy=accuracy,
    )
    linear = next(each for each in measured_noise(gather(tmp_path, "miniature")) if each.kind == "linear")
    assert (linear.configurations, linear.runs, linear.degrees) == (6, 240, 234)
    assert linear.pairs == 2 * 3
    assert linear.low < linear.seed_sd < linear.high
    assert linear.seed_sd == pytest.approx(1.0, abs=0.2)  # 40 common effects: 9 % is one standard error
    assert linear.correlation == pytest.approx(0.64, abs=0.2)
    # Differences of arms are what matters, and they have many degrees of freedom.
    noise = Noise(seed_sd=linear.seed_sd, correlation=linear.correlation)
    assert noise.pair_sd == pytest.approx(0.6 * math.sqrt(2), rel=0.15)


# --- the command -----------------------------------------------------------------------------------


def test_simulate_plans_a_study_file_and_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    arms = plan_kit.BASE["arms"] | {"salt": {"teachers": ["nano"], "teacher_share": [0.1, 0.3]}}
    file.write_bytes(plan_kit.study_bytes(seeds=[0, 1, 2], arms=arms))
    options = ("--store", str(tmp_path / "store"), "--seed-sd", "0.5")
    out, _ = plan_kit.sweep("simulate", str(file), *options, "--report-clips", "2500", "--json")
    data = json.loads(out)
    assert data["plan"] == "kit"
    assert data["noise"]["pair_sd"] == pytest.approx(math.sqrt(2 * (0.25 + 1)))
    by_question = {(each["question"], each["basis"]): each for each in data["comparisons"]}
    arms_each = by_question[("arms", "each")]
    assert (arms_each["family"], arms_each["fewest_seeds"]) == (3, 3)
    alone = smallest_difference(data["noise"]["pair_sd"], 3)
    assert arms_each["smallest_alone"] == pytest.approx(alone)
    assert arms_each["smallest_alone"] < arms_each["smallest_after_holm"]
    assert [float(name) for name in arms_each["power_after_holm"]] == list(DIFFERENCES)
    assert [each["shares"] for each in data["best_share"]] == [[0.1, 0.3], [0.1, 0.3]]
    assert data["order_of_arms"]["arms"] == ["pixel", "salt", "vjepa"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["study.yaml"]
    text, _ = plan_kit.sweep("simulate", str(file), *options)
    assert "Finding the best teacher share" in text


def test_simulate_takes_noise_from_another_study(tmp_path: Path) -> None:
    make_study(tmp_path, name="small", budgets=BUDGETS[:1], students=("micro",), teachers=("nano",))
    make_study(tmp_path, name="large", run=False)
    wanted = ("--noise-from", "small", "--label", "motion", "--kind", "linear")
    out, _ = plan_kit.sweep("simulate", "large", "--store", str(tmp_path), *wanted, "--json")
    noise = json.loads(out)["noise"]
    rows = gather(tmp_path, "small")
    rows = rows[(rows["role"] == "cell") & rows["arm"].isin(["pixel", "salt", "vjepa"])]
    rows = rows[(rows["label"] == "motion") & (rows["kind"] == "linear") & (rows["frames"] == "ordered")]
    by_hand = 100 * math.sqrt(rows.groupby("config_id")["accuracy"].var().mean())
    assert noise["seed_sd"] == pytest.approx(by_hand)
    assert (noise["measured"]["degrees"], noise["measured"]["configurations"]) == (6, 3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed-sd", "-1"], "--seed-sd -1: "),
        (["--seed-sd", "nan"], "--seed-sd nan: "),
        (["--pair-correlation", "1"], "--pair-correlation 1: "),
        (["--pair-correlation", "-1.5"], "--pair-correlation -1.5: "),
        (["--report-clips", "0"], "--report-clips 0: "),
        (["--accuracy", "100", "--report-clips", "9"], "--accuracy 100: "),
        (["--accuracy", "60"], "--accuracy 60: it needs --report-clips"),
        (["--share-loss", "0"], "--share-loss 0: "),
        (["--seed-sd", "0"], "without any noise"),
        (["--noise-from", "miniature"], "no configuration of it has results of two seeds"),
        (["--noise-from", "miniature", "--seed-sd", "1"], "give one of them"),
        (["--quick"], "--quick: "),
    ],
)
def test_simulate_refuses_bad_numbers_by_name(study: Study, options: list[str], said: str) -> None:
    from sweeps.cli import main

    with pytest.raises(UserError) as error:
        main(["simulate", "miniature", "--store", str(study.store), *options])
    assert said in str(error.value)
