"""Students against teachers: regime, turning point, weakest teacher, surface."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis.cli import main
from analysis.figure_regime import RegimeData, draw_regime
from analysis.gather import gather
from analysis.reference import reference_table
from analysis.regime import equal_within, regimes, teacher_points
from analysis.regime_text import regime_sentences
from analysis.table_columns import typed
from analysis.turning import turning, turning_points
from analysis.weakest import surface, weakest_teachers
from salt.errors import UserError
from tests.synthetic import make_study


def pair_table(
    teachers: Sequence[Sequence[float]], students: Sequence[Sequence[float]], n_report: float = 2000
) -> pd.DataFrame:
    """One student size at one compute: accuracies of each teacher (row) and of its student, by seed."""
    rows = [
        {
            "plan": "made up", "role": "cell", "arm": "salt", "student": "s", "teacher": f"t{place}",
            "variant": "", "config": f"salt t{place}>s", "config_id": f"c{place}", "kind": "linear",
            "run_id": f"r{place}-{seed}", "teacher_run_id": f"above{place}-{seed}", "charge": "full",
            "convention": "matmul", "label": "motion", "frames": "ordered", "state": "done", "seed": seed,
            "teacher_share": 0.3, "budget_flops": 1e19, "total_flops": 1e19, "parameters": 1e6,
            "own_flops": 7e18 * (1 + 0.001 * place), "accuracy": student, "teacher_accuracy": teacher,
            "n_report": n_report,
        }
        for place, both in enumerate(zip(teachers, students, strict=True))
        for seed, (teacher, student) in enumerate(zip(*both, strict=True))
    ]  # fmt: skip
    for row in rows:
        row["cell_id"] = row["run_id"]
    return typed(pd.DataFrame(rows))


def one_seed(x: Sequence[float], y: Sequence[float]) -> pd.DataFrame:
    return teacher_points(pair_table([[value] for value in x], [[value] for value in y]))


X = np.linspace(0.3, 0.7, 9)
ROUGH = np.random.default_rng(4).normal(0, 0.004, 9)


# --- regime ---------------------------------------------------------------------------------------

SHAPES = {
    "teacher-limited": X + 0.05 + ROUGH,
    "student-limited": 0.7 + ROUGH,
    "between": 0.4 + 0.4 * X + ROUGH,
    "better teachers, worse students": 0.9 - 0.4 * X + ROUGH,
    "cannot be told": 0.5 + 0.5 * X + 60 * ROUGH,
}


@pytest.mark.parametrize(("expected", "students"), SHAPES.items())
def test_regime_by_the_interval_of_the_slope(expected: str, students: np.ndarray) -> None:
    row = regimes(one_seed(X, students)).iloc[0]
    fit = stats.linregress(X, students)
    reach = stats.t.ppf(0.975, len(X) - 2) * fit.stderr
    assert [row["slope"], row["slope_low"], row["slope_high"]] == pytest.approx(
        [fit.slope, fit.slope - reach, fit.slope + reach]
    )
    assert row["intercept"] == pytest.approx(fit.intercept)
    assert row["regime"] == expected


def test_few_teachers_and_equal_teachers_have_no_regime() -> None:
    two = regimes(one_seed([0.4, 0.5], [0.6, 0.65])).iloc[0]
    assert (two["regime"], two["slope"]) == ("too few teachers", pytest.approx(0.5))
    assert math.isnan(two["slope_low"])
    equal = one_seed([0.5, 0.5, 0.5], [0.6, 0.61, 0.62])
    row = regimes(equal).iloc[0]
    assert math.isnan(row["slope"])
    sentences = regime_sentences(
        regimes(equal), turning_points(equal), weakest_teachers(equal, 0.005, draws=50), 0.005
    )
    assert "equally good" in sentences[0]


def test_noise_of_the_teachers_is_said_when_it_pulls_the_slope_to_0() -> None:
    rng = np.random.default_rng(0)
    real = np.linspace(0.50, 0.52, 6)[:, None]
    teachers = real + rng.normal(0, 0.03, (6, 4))
    points = teacher_points(pair_table(teachers, real + 0.1 + rng.normal(0, 0.001, (6, 4))))
    row = regimes(points).iloc[0]
    means = teachers.mean(axis=1)
    noise = (teachers.var(axis=1, ddof=1) / 4).mean()
    assert row["reliability"] == pytest.approx(max(0.0, 1 - noise / means.var(ddof=1)))
    assert row["reliability"] < 0.8
    text = regime_sentences(regimes(points), turning_points(points), weakest_teachers(points, 0.005), 0.005)[
        0
    ]
    assert "pulls the slope to 0" in text


def test_equal_compute_is_within_2_percent_of_the_least() -> None:
    values = np.array([103.0, 100.0, 101.9, 104.0, 200.0, 102.1])
    assert list(equal_within(values)) == [1, 0, 0, 1, 2, 1]


def test_students_of_unknown_compute_are_counted_and_not_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["arm,C,acc,student,teacher,teacher_accuracy,share"]
    lines += [
        f"d,1e18,{0.5 + 0.1 * t},s,t{t},{0.3 + 0.1 * t},{share}" for t, share in enumerate((0.2, 0.2, ""))
    ]
    (tmp_path / "other.csv").write_text("\n".join(lines))
    argv = ["weak-teacher", "--table", str(tmp_path / "other.csv"), "--out", str(tmp_path / "out"), "--json"]
    assert main(argv) == 0
    data = json.loads(capsys.readouterr().out)
    assert [row["compute"] for row in data["regimes"]] == ["8e17 FLOPs"]
    assert data["regimes"][0]["teachers"] == 2
    assert any(line.startswith("1 scores of students are in no group") for line in data["statements"])


# --- turning point --------------------------------------------------------------------------------


def test_a_tent_turns_a_saturating_curve_and_a_line_do_not() -> None:
    x = np.linspace(0.3, 0.7, 15)
    rough = np.random.default_rng(0).normal(0, 0.002, 15)
    tent = turning(x, 0.7 - 0.5 * abs(x - 0.5) + rough)
    assert tent["shape"] == "peak"
    assert tent["extremum"] == pytest.approx(0.5, abs=0.02)
    assert tent["slope_before"] > 0 > tent["slope_after"]
    assert turning(x, 0.5 + 0.5 * abs(x - 0.5) + rough)["shape"] == "valley"
    assert turning(x, 0.5 + 0.3 * x + rough)["shape"] == "none shown"
    level = turning(x, 0.8 - 0.4 * np.exp(-14 * (x - 0.3)) + 0.3 * rough)
    assert level["p_quadratic"] < 0.05  # alone, the quadratic would call it a peak
    assert level["shape"] == "levels off or turns"
    assert turning(x[:4], x[:4])["shape"] == "too few teachers"


def test_quadratic_test_and_fieller_interval_against_other_ways_to_them() -> None:
    x = np.linspace(0.3, 0.7, 12)
    y = 0.7 - 1.2 * (x - 0.52) ** 2 + np.random.default_rng(1).normal(0, 0.004, 12)
    found = turning(x, y)
    (c, b, _), covariance = np.polyfit(x, y, 2, cov=True)  # scaled by the residual with n - 3
    t = stats.t(9)

    def ratio(at: float) -> float:
        gradient = np.array([2 * at, 1.0, 0.0])
        return float((2 * c * at + b) / math.sqrt(gradient @ covariance @ gradient))

    assert found["p_quadratic"] == pytest.approx(max(t.sf(ratio(x[0])), t.cdf(ratio(x[-1]))), rel=1e-4)
    assert found["extremum"] == pytest.approx(-b / (2 * c))
    grid = np.linspace(0.3, 0.7, 40_001)
    inside = grid[[abs(ratio(at)) <= t.ppf(0.975) for at in grid]]
    assert [found["extremum_low"], found["extremum_high"]] == pytest.approx(
        [inside.min(), inside.max()], abs=2e-5
    )
    sides = [stats.linregress(x[part], y[part]).slope for part in (x < -b / (2 * c), x >= -b / (2 * c))]
    assert [found["slope_before"], found["slope_after"]] == pytest.approx(sides)


# --- weakest teacher ------------------------------------------------------------------------------

TEACHERS = [[0.40, 0.42, 0.41], [0.50, 0.51, 0.49], [0.60, 0.61, 0.62]]
STUDENTS = [[0.60, 0.58, 0.59], [0.630, 0.640, 0.650], [0.640, 0.645, 0.640]]


@pytest.mark.parametrize(("within", "expected"), [(0.0, "t2"), (0.004, "t1"), (0.06, "t0")])
def test_weakest_teacher_by_hand(within: float, expected: str) -> None:
    points = teacher_points(pair_table(TEACHERS, STUDENTS))
    row = weakest_teachers(points, within).iloc[0]
    assert (row["weakest"], row["best"], row["basis"], row["seeds"]) == (expected, "t2", "seeds", 3)
    place = int(expected[1])
    assert row["shortfall"] == pytest.approx(np.mean(STUDENTS[2]) - np.mean(STUDENTS[place]))
    assert row["saved"] == pytest.approx(np.mean(TEACHERS[2]) - np.mean(TEACHERS[place]))
    assert 0 < row["probability"] <= 1
    assert (row["weaker_probability"] == 0) == (place == 0)


def test_probability_of_the_weaker_of_two_is_students_t() -> None:
    points = teacher_points(pair_table(TEACHERS[1:], STUDENTS[1:]))
    row = weakest_teachers(points, 0.005, draws=40_000).iloc[0]
    assert row["weakest"] == "t0"
    weak, best = np.array(STUDENTS[1]), np.array(STUDENTS[2])
    test = stats.ttest_1samp(weak - best, -0.005)
    assert row["probability"] == pytest.approx(stats.t.cdf(test.statistic, 2), abs=0.01)


def test_one_seed_draws_the_report_clips() -> None:
    points = one_seed([0.4, 0.6], [0.60, 0.61])
    row = weakest_teachers(points, 0.0, draws=40_000).iloc[0]
    error = math.sqrt((0.6 * 0.4 + 0.61 * 0.39) / 2000)
    assert row["probability"] == pytest.approx(stats.norm.cdf(0.01 / error), abs=0.01)
    unknown = teacher_points(pair_table([[0.4], [0.6]], [[0.60], [0.61]], n_report=float("nan")))
    assert math.isnan(weakest_teachers(unknown, 0.0).iloc[0]["probability"])


# --- surface and published numbers ----------------------------------------------------------------


def test_surface_keeps_pairs_that_were_not_run() -> None:
    points = teacher_points(reference_table().query("label == 'avg4'"))
    cells = surface(points).set_index(["compute", "teacher_name", "student"])
    assert cells.loc[("80k steps", "vit_gg", "vit_l"), "mean"] == pytest.approx(0.776)
    gap = cells.loc[("80k steps", "vit_gg", "vit_gg")]
    assert gap["n"] == 0
    assert math.isnan(gap["mean"])
    at_80k = cells.loc["80k steps"]
    assert (at_80k["n"] > 0).sum() == 16
    assert len(at_80k) == 13 * 2


def test_published_students_of_equal_steps_gain_a_sixth_of_what_their_teachers_do() -> None:
    """By the tables of teacher data, size and masks (arXiv 2509.24317) and the two longer chains."""
    points = teacher_points(reference_table().query("label == 'avg4'"))
    teachers = [72.5, 72.3, 72.2, 62.8, 72.8, 59.8, 70.7, 69.3, 49.5, 67.4, 74.2, 75.2, 77.4]
    students = [77.4, 77.4, 77.2, 75.5, 77.3, 74.9, 76.9, 77.1, 73.7, 76.5, 77.3, 77.6, 78.5]
    fit = stats.linregress(teachers, students)
    rows = regimes(points).set_index(["student", "compute"])
    row = rows.loc[("vit_l", "80k steps")]
    assert (row["teachers"], row["regime"]) == (13, "between")
    assert row["slope"] == pytest.approx(fit.slope)
    assert row["slope"] == pytest.approx(0.167, abs=5e-4)
    turn = turning_points(points).set_index(["student", "compute"]).loc[("vit_l", "80k steps")]
    assert turn["shape"] == "none shown"


# --- figure and command ---------------------------------------------------------------------------


def regime_data(points: pd.DataFrame) -> RegimeData:
    return RegimeData(
        points, regimes(points), turning_points(points), weakest_teachers(points, 0.005, draws=50),
        surface(points), 0.005, {"plan": "made up", "charge": "full", "convention": "matmul"},
    )  # fmt: skip


def test_figure_hatches_what_was_not_run_and_shows_published_numbers_hollow() -> None:
    published = teacher_points(reference_table().query("label == 'avg4'"))
    figure = draw_regime(regime_data(published), "avg4", "attentive", ("salt2025", published))
    assert figure.get_figwidth() == 3.5
    axes = [axes for part in figure.subfigs for axes in part.axes]
    hatched = [patch for patch in axes[1].patches if patch.get_hatch()]
    scored = [text for text in axes[1].texts if "(1)" in text.get_text()]
    # 13 teachers at 80k steps, 1 at 120k and 2 at 160k of 5 student sizes; the line of 40k has no room.
    assert (len(scored), len(hatched)) == (16 + 1 + 5, 16 * 5 - 22)
    markers = [line for line in axes[2].get_lines() if line.get_marker() not in ("None", "", None)]
    assert all(line.get_markerfacecolor() == "white" for line in markers if line.get_label()[0] != "_")
    assert "salt2025" in axes[2].get_title(loc="left")


def test_command_says_regime_and_weakest_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = make_study(
        tmp_path / "store", budgets=(400 * 10**9,), students=("micro",), labels=("motion",), lrs=(1e-3,)
    )
    argv = ["weak-teacher", "--store", str(study.store), "--probe", "linear", "--out", str(tmp_path / "out")]
    assert main([*argv, "--within", "2", "--reference", "salt2025", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    (row,) = data["regimes"]
    table = gather(study.store, "miniature")
    own = table[(table["arm"] == "salt") & (table["kind"] == "linear") & (table["frames"] == "ordered")]
    means = own.groupby("teacher")[["teacher_accuracy", "accuracy"]].mean()
    fit = stats.linregress(means["teacher_accuracy"], means["accuracy"])
    assert (row["teachers"], row["slope"]) == (3, pytest.approx(fit.slope))
    assert len(data["surface"]) == 3
    assert all(cell["n"] == 3 for cell in data["surface"])
    assert any("within 2 points" in line for line in data["statements"])
    assert any("23 of 23 students passed" in line for line in data["statements"])
    names = {Path(path).name for path in data["files"]}
    assert {"weak-teacher-regime-motion-linear.pdf", "weak-teacher-surface.csv"} <= names
    for bad in ("nan", "-1"):
        with pytest.raises(UserError, match="--within"):
            main([*argv, "--within", bad])


def test_two_budgets_at_one_student_compute_are_two_teachers_by_name() -> None:
    table = pair_table([[0.4], [0.5]], [[0.6], [0.7]])
    table = table.assign(teacher="t", budget_flops=[1e19, 2e19])
    assert list(teacher_points(table)["teacher_name"]) == ["t, budget 1e19", "t, budget 2e19"]
    both = weakest_teachers(teacher_points(table), 0.2, draws=50).iloc[0]
    assert both["weakest"] == "t, budget 1e19"
