"""The table, the frontier, intervals and comparisons: against brute force, by hand, and with hostile "
"input."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.cli import main
from analysis.compare import arm_differences, verdict
from analysis.gather import SCORE_KEY, cells_used, gather
from analysis.intervals import Interval, holm, t_interval
from analysis.pareto import configurations, frontier, selected, usable
from analysis.weak_teacher import student_teacher_pairs, teacher_student_table
from salt.errors import UserError
from salt.plan_specs import Cell, PlannedRun
from salt.plans import read_plan
from tests.synthetic import BUDGETS, Study, make_study, touch_plan

TOP = BUDGETS[-1]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def table(study: Study) -> pd.DataFrame:
    return gather(study.store, "miniature")


def small(tmp_path: Path, **options: object) -> Study:
    chosen = {
        "budgets": BUDGETS[:1],
        "labels": ("motion",),
        "students": ("micro",),
        "teachers": ("nano",),
    } | options
    return make_study(tmp_path / "store", **chosen)


# --- gather ---------------------------------------------------------------------------------------


def test_gather_has_one_row_for_every_score_that_the_plan_asks_for(study: Study, table: pd.DataFrame) -> None:
    plan = read_plan(study.store, "miniature")
    runs = {run.run_id: run for run in plan.runs}

    def scores(run_id: str) -> int:
        specs = [plan.probes[name] for name in runs[run_id].probe_ids]
        return sum(len(s.kinds) * len(s.labels) * len(s.frames) for s in specs)

    teachers = {cell.teacher_run_id for cell in plan.cells if cell.teacher_run_id}
    assert len(table) == sum(scores(cell.run_id) for cell in plan.cells) + sum(map(scores, teachers))
    assert not table.duplicated(["role", "run_id", "cell_id", *SCORE_KEY]).any()
    assert cells_used(table) == (len(plan.cells), len(plan.cells))
    assert (table["state"] == "done").all()
    assert table["accuracy"].notna().all()


@pytest.mark.parametrize("charge", ["full", "shared", "none"])
def test_total_flops_follow_the_charge(tmp_path: Path, charge: str) -> None:
    study = small(tmp_path, charge=charge, students=("micro", "tiny"))
    rows = gather(study.store, "miniature")
    row = rows[(rows["arm"] == "salt") & (rows["student"] == "tiny") & (rows["seed"] == 1)].iloc[0]
    cell = study.cell("salt", "tiny", 1, BUDGETS[0], "nano")
    assert cell.teacher_cost is not None
    assert cell.teacher_students == 2
    own, teacher = cell.cost.total_flops, cell.teacher_cost.total_flops
    assert row["total_flops"] == own + teacher * {"full": 1, "shared": 0.5, "none": 0}[charge]
    assert row["planned_flops"] == row["total_flops"]
    parts = [name for name in rows.columns if name.startswith("flops_")]
    assert row[parts].sum() == own
    assert row["flops_teacher_forward"] > 0


def test_students_get_the_score_of_their_own_teacher(study: Study, table: pd.DataFrame) -> None:
    teachers = table[table["role"] == "teacher"].set_index(["run_id", *SCORE_KEY])["accuracy"]
    students = table[table["teacher_run_id"].notna()]
    assert len(students) > 200
    for row in students.itertuples():
        assert row.teacher_accuracy == teachers[row.teacher_run_id, row.kind, row.label, row.frames]
    assert table.loc[table["teacher_run_id"].isna(), "teacher_accuracy"].isna().all()


def test_what_is_not_there_keeps_its_row_state_and_reason(tmp_path: Path) -> None:
    study = small(tmp_path)
    budget = BUDGETS[0]
    student = study.cell("salt", "micro", 0, budget, "nano")
    assert student.teacher_run_id is not None
    study.fail(student.teacher_run_id, "disk", "no space left")
    study.lose(student.run_id)
    study.fail(study.cell("vjepa", seed=1, budget=budget).run_id, "diverged", "loss is nan", step=37)
    study.edit_scores(study.cell("vjepa", seed=2, budget=budget), accuracy=None)
    study.edit_scores(study.cell("pixel", seed=0, budget=budget), accuracy=1.5)
    study.folder(study.cell("pixel", seed=1, budget=budget)).probe("main").unlink()
    study.folder(study.cell("pixel", seed=2, budget=budget)).result.write_text("{}")
    rows = gather(study.store, "miniature")
    linear = rows[(rows["kind"] == "linear") & (rows["frames"] == "ordered")].set_index(
        ["arm", "seed", "role"]
    )
    found = {
        (arm, seed): (linear.loc[(arm, seed, "cell"), "state"], linear.loc[(arm, seed, "cell"), "reason"])
        for arm, seed in [("salt", 0), ("vjepa", 1), ("vjepa", 2), ("pixel", 0), ("pixel", 1), ("pixel", 2)]
    }
    assert found["salt", 0][0] == "missing"
    assert "its teacher" in found["salt", 0][1]
    assert "no space" in found["salt", 0][1]
    assert found["vjepa", 1] == ("diverged", "diverged at step 37: loss is nan")
    assert found["vjepa", 2][0] == "failed"
    assert "main.json" in found["vjepa", 2][1]
    assert "accuracy" in found["vjepa", 2][1]
    assert found["pixel", 0] == ("failed", "accuracy 1.5 is not a share between 0 and 1")
    assert found["pixel", 1] == ("missing", "trained, but probe main is not there")
    assert found["pixel", 2][0] == "failed"
    assert "result.json" in found["pixel", 2][1]
    lost = rows[rows["state"] != "done"]
    assert lost["accuracy"].isna().all()
    assert lost["reason"].notna().all()
    complete = gather(
        make_study(
            tmp_path / "other",
            budgets=BUDGETS[:1],
            labels=("motion",),
            students=("micro",),
            teachers=("nano",),
        ).store,
        "miniature",
    )
    assert len(rows) == len(complete)


def test_student_of_a_replaced_teacher_is_not_used(tmp_path: Path) -> None:
    study = small(tmp_path)
    cell = study.cell("salt", "micro", 0, BUDGETS[0], "nano")
    path = study.folder(cell).result
    path.write_text(path.read_text().replace(str(cell.teacher_run_id) * 4, "0" * 64))
    rows = gather(study.store, "miniature")
    mine = rows[rows["cell_id"] == cell.cell_id]
    assert set(mine["state"]) == {"failed"}
    assert mine["accuracy"].isna().all()
    assert mine["reason"].str.contains("trained against teacher artefact 000000000000").all()


def test_probe_of_other_weights_is_not_used(tmp_path: Path) -> None:
    study = small(tmp_path)
    cell = study.cell("vjepa", seed=2, budget=BUDGETS[0])
    path = study.folder(cell).probe("main")
    path.write_text(path.read_text().replace(cell.run_id * 4, "0" * 64))
    rows = gather(study.store, "miniature")
    mine = rows[(rows["cell_id"] == cell.cell_id) & (rows["probe_id"] == "main")]
    assert set(mine["state"]) == {"failed"}
    assert mine["reason"].str.contains("other weights").all()


def test_the_same_score_twice_is_refused_and_seeds_are_not_duplicates(tmp_path: Path) -> None:
    study = small(tmp_path)
    assert gather(study.store, "miniature")["seed"].nunique() == 3
    path = study.folder(study.cell("pixel", budget=BUDGETS[0])).probe("main")
    data = json.loads(path.read_text())
    data["scores"].append(data["scores"][0])
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="two scores for linear/motion/ordered"):
        gather(study.store, "miniature")
    plan_file = study.store / "plans" / "miniature" / "plan.jsonl"
    plan_file.write_text(
        plan_file.read_text().replace('"kinds":["attentive"]', '"kinds":["attentive","linear"]')
    )
    data["scores"].pop()
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=r"more than once \(pixel-none-micro"):
        gather(study.store, "miniature")


def test_a_swept_rate_makes_configurations_apart_and_seeds_one(tmp_path: Path) -> None:
    rows = gather(small(tmp_path, lrs=(1e-3, 2e-3)).store, "miniature")
    configs = configurations(rows)
    pixel = configs[
        (configs["arm"] == "pixel") & (configs["kind"] == "linear") & (configs["frames"] == "ordered")
    ]
    assert list(pixel["variant"]) == ["optim.lr=0.001", "optim.lr=0.002"]
    assert list(pixel["n"]) == [3, 3]
    assert selected(pixel)["n_choices"].tolist() == [2]


def test_budgets_beyond_64_bits(tmp_path: Path) -> None:
    rows = gather(small(tmp_path, budgets=(10**20,), teachers=(), run=False).store, "miniature")
    assert rows.loc[rows["arm"] == "pixel", "budget_flops"].iloc[0] == 1e20


# --- frontier and intervals -----------------------------------------------------------------------


def brute_force(points: list[tuple[float, float]]) -> list[bool]:
    finite = [p for p in points if all(map(math.isfinite, p))]
    return [
        p in finite and not any((q[0] <= p[0] and q[1] >= p[1]) and q != p for q in finite) for p in points
    ]


def test_frontier_is_exact_in_any_order_with_ties_and_non_finite_points() -> None:
    draw = random.Random(3)
    for _ in range(40):
        points = [(float(draw.randint(1, 6)), float(draw.randint(0, 5))) for _ in range(draw.randint(1, 14))]
        points += [(1.0, math.nan), (2.0, math.inf), (math.nan, 9.0), (-math.inf, 9.0)]
        draw.shuffle(points)
        marks = frontier(pd.Series([p[0] for p in points]), pd.Series([p[1] for p in points]))
        assert marks.tolist() == brute_force(points)
    assert frontier(pd.Series([], dtype=float), pd.Series([], dtype=float)).tolist() == []
    assert frontier(pd.Series([0.0]), pd.Series([0.1])).tolist() == [True]


def test_shuffled_rows_with_missing_values_give_identical_numbers(tmp_path: Path) -> None:
    study = small(tmp_path, budgets=BUDGETS)
    study.fail(study.cell("pixel", seed=0, budget=TOP).run_id, "diverged", "loss is inf")
    rows = gather(study.store, "miniature")
    rows.loc[(rows["arm"] == "vjepa") & (rows["seed"] == 1), "accuracy"] = math.inf
    rows.loc[(rows["arm"] == "salt") & (rows["seed"] == 2), "total_flops"] = math.nan
    expected = configurations(rows)
    for seed in range(4):
        again = configurations(rows.sample(frac=1.0, random_state=seed))
        pd.testing.assert_frame_equal(again, expected)
    lost = expected[(expected["kind"] == "linear") & (expected["frames"] == "ordered")]
    assert lost.groupby("arm")["n_lost"].sum().to_dict() == {"pixel": 1, "salt": 3, "vjepa": 3}
    assert np.isfinite(expected.loc[expected["n"] > 0, "mean"]).all()


def test_a_cell_slightly_below_its_budget_is_not_thereby_on_the_frontier(table: pd.DataFrame) -> None:
    configs = configurations(table)
    for _, group in configs.groupby([*SCORE_KEY, "arm"]):
        front = group[group["on_frontier"]]
        assert set(front["compared_flops"]) <= {float(budget) for budget in BUDGETS}
        assert front["compared_flops"].is_unique
        assert front.sort_values("compared_flops")["mean"].is_monotonic_increasing


def test_t_interval_by_hand_and_its_coverage_for_three_seeds() -> None:
    interval = t_interval([1.0, 2.0, 6.0])
    assert interval.mean == 3.0
    # Spread sqrt(7), 4.302653 standard errors for 2 degrees of freedom.
    assert interval.high == pytest.approx(3 + 4.302653 * math.sqrt(7 / 3), abs=1e-5)
    draws = np.random.default_rng(0).normal(0.3, 0.02, size=(3000, 3))
    covered = np.mean([t_interval(row).holds(0.3) for row in draws])
    assert abs(covered - 0.95) < 0.012
    assert t_interval([0.5]) == Interval(1, 0.5, None, None, None)
    assert t_interval([]).mean is None
    assert t_interval([0.1, 0.1, 0.1]).low is None
    with pytest.raises(ValueError, match="finite"):
        t_interval([0.1, math.nan])


def test_holm_against_the_definition() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, None, 0.9]) == [pytest.approx(0.06), None, 1.0]


def test_gain_over_random_is_paired_by_seed_and_size(table: pd.DataFrame) -> None:
    rows = table[(table["kind"] == "linear") & (table["label"] == "motion") & (table["frames"] == "ordered")]
    by_seed = {
        arm: rows[(rows["arm"] == arm) & (rows["student"] == "tiny")].set_index("seed")
        for arm in ("vjepa", "random")
    }
    top = by_seed["vjepa"][by_seed["vjepa"]["budget_flops"] == TOP]
    gains = top["accuracy"] - by_seed["random"].loc[top.index, "accuracy"]
    configs = configurations(rows)
    mine = configs[(configs["config"] == "vjepa tiny") & (configs["budget_flops"] == TOP)].iloc[0]
    assert mine["gain"] == pytest.approx(gains.mean())
    assert mine["gain_n"] == 3
    assert mine["gain_low"] < mine["gain"] < mine["gain_high"]
    assert mine["run_ids"] == tuple(top.sort_index()["run_id"])


# --- comparisons ----------------------------------------------------------------------------------


def constant_gap(gap: float, noise: float) -> object:
    """vjepa above the other arms by `gap`, with noise per run."""

    def accuracy(cell: Cell | None, run: PlannedRun, kind: str, label: str, frames: str) -> float:
        jitter = random.Random(run.run_id + kind + frames).gauss(0, noise)
        return 0.4 + gap * (run.spec.arm == "vjepa") + jitter

    return accuracy


def test_a_large_gap_is_claimed_and_a_small_one_is_not(tmp_path: Path) -> None:
    rows = gather(small(tmp_path / "a", accuracy=constant_gap(0.3, 0.004)).store, "miniature")
    found = arm_differences(rows, configurations(rows))
    linear = found[found["kind"] == "linear"].set_index(["a", "b"])
    best = linear.loc[("pixel micro", "vjepa micro")]
    assert best["claimed"]
    assert best["difference"] == pytest.approx(-0.3, abs=0.02)
    assert "vjepa micro is above" in best["verdict"]
    assert not linear.loc[("pixel micro", "salt nano>micro 30%"), "claimed"]
    assert (found["family"] == 3).all()
    assert (found["n"] == 3).all()

    rows = gather(small(tmp_path / "b", accuracy=constant_gap(0.002, 0.02)).store, "miniature")
    found = arm_differences(rows, configurations(rows))
    assert not found["claimed"].any()
    assert (
        found.loc[(found["low"] < 0) & (found["high"] > 0), "verdict"]
        .str.contains("no difference shown")
        .all()
    )


def test_verdict_says_why_nothing_is_claimed() -> None:
    clear = Interval(3, 0.1, 0.02, 0.18, 0.02)
    assert verdict(clear, 0.18, 9, "a", "b") == (
        False,
        "the interval excludes 0, but not after correction for 9 comparisons: not claimed",
    )
    assert verdict(clear, 0.02, 1, "a", "b")[0]
    assert verdict(Interval(3, -0.1, -0.2, -0.01, 0.04), 0.04, 1, "a", "b")[1].startswith("b is")
    assert "no interval" in verdict(Interval(1, 0.5, None, None, None), None, 1, "a", "b")[1]
    assert "nothing can be said" in verdict(Interval(0, None, None, None, None), None, 1, "a", "b")[1]


def test_choice_is_made_on_the_selection_split(tmp_path: Path) -> None:
    study = small(tmp_path, lrs=(1e-3, 2e-3))
    rows = gather(study.store, "miniature")
    worse = rows["variant"].eq("optim.lr=0.002") & rows["arm"].eq("pixel")
    rows.loc[worse, "accuracy"], rows.loc[worse, "selection_accuracy"] = 0.01, 0.99
    chosen = selected(configurations(rows))
    assert (chosen.loc[chosen["arm"] == "pixel", "variant"] == "optim.lr=0.002").all()


def test_weak_teacher_numbers_by_hand(study: Study, table: pd.DataFrame) -> None:
    pairs = student_teacher_pairs(table)
    assert ((pairs["gap"] > 0) == pairs["passed"]).all()
    assert pairs["teacher_accuracy"].notna().all()
    cells = teacher_student_table(table)
    key = {
        "kind": "linear",
        "label": "motion",
        "frames": "ordered",
        "budget_flops": TOP,
        "teacher": "nano",
        "student": "tiny",
    }
    row = cells[np.logical_and.reduce([cells[name] == value for name, value in key.items()])].iloc[0]
    gaps, over = [], []
    for seed in range(3):
        cell = study.cell("salt", "tiny", seed, TOP, "nano")
        rows = table[np.logical_and.reduce([table[name] == key[name] for name in SCORE_KEY])].set_index(
            "run_id"
        )["accuracy"]
        gaps.append(rows[cell.run_id] - rows[cell.teacher_run_id])
        over.append(rows[cell.run_id] - rows[study.cell("pixel", "tiny", seed, TOP).run_id])
    assert row["gap"] == pytest.approx(np.mean(gaps))
    assert row["above"] == sum(gap > 0 for gap in gaps)
    assert row["over_pixel"] == pytest.approx(np.mean(over))
    assert row["over_pixel_n"] == 3
    assert len(cells) == len({tuple(line) for line in cells[[*key, "config"]].itertuples(index=False)})


# --- command line ---------------------------------------------------------------------------------


def test_pareto_json_is_strict_and_names_the_newest_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = small(tmp_path, name="old").store
    study = small(tmp_path, name="new", question="?")
    touch_plan(store, "old", 1.0)
    study.lose(study.cell("pixel", seed=0, budget=BUDGETS[0]).run_id)
    assert main(["pareto", "--store", str(store), "--probe", "linear", "--json"]) == 0
    printed = capsys.readouterr()
    assert "study: new" in printed.err
    assert "cells used" in printed.err

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    data = json.loads(printed.out, parse_constant=refuse)
    assert data["plan"] == "new"
    assert data["cells_used"] == data["cells"] - 1
    assert data["charge"] == "full"
    pixel = next(row for row in data["configurations"] if row["arm"] == "pixel")
    assert pixel["n"] == 2
    assert pixel["n_lost"] == 1
    assert len(pixel["run_ids"]) == 2
    assert all(Path(path).stat().st_size > 0 for path in data["files"])
    assert Path(data["files"][0]).parent == store / "reports" / "new" / "figures"


def test_weak_teacher_json_counts_students_above(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = small(tmp_path).store
    out = tmp_path / "elsewhere"
    options = ["--label", "motion", "--probe", "linear", "--json"]
    assert main(["weak-teacher", "miniature", "--store", str(store), "--out", str(out), *options]) == 0
    data = json.loads(capsys.readouterr().out)
    assert len(data["pairs"]) == 3
    assert (
        data["share_above"][0]["above"]
        == sum(pair["passed"] for pair in data["pairs"])
        == data["table"][0]["above"]
    )
    assert sorted(path.name for path in (out / "figures").glob("*.png")) == [
        "weak-teacher-motion-linear.png",
        "weak-teacher.png",
    ]
    assert not (store / "reports").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pareto", "nothing"], "no plan 'nothing'"),
        (["pareto", "miniature", "--label", "motoin"], "did you mean 'motion'"),
        (["report", "miniature", "--probe", "svm"], "it has attentive, knn, linear"),
        (["pareto", "empty"], r"no scores yet: 0 of 3 cells of the arms of 'empty'"),
        (["weak-teacher", "alone"], "no cell of this study has a frozen teacher"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    tmp_path: Path, arguments: list[str], message: str
) -> None:
    store = small(tmp_path).store
    small(tmp_path, name="empty", budgets=(10**11,), seeds=(7,), run=False)
    small(tmp_path, name="alone", teachers=(), seeds=(8,))
    with pytest.raises(UserError, match=message):
        main([*arguments, "--store", str(store)])
    assert not (store / "reports").exists()


def test_help_imports_nothing_heavy() -> None:
    for arguments in itertools.chain(
        [["--help"]], ([name, "--help"] for name in ("pareto", "weak-teacher", "report"))
    ):
        code = (
            "import sys\nfrom analysis.cli import main\n"
            f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert end.code == 0\n"
            "heavy = {'numpy', 'pandas', 'matplotlib', 'torch', 'scipy', 'moocore', 'jinja2'} & "
            "set(sys.modules)\n"
            "assert not heavy, heavy"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[1]
        )
        assert done.returncode == 0, done.stderr
        assert "examples:" in done.stdout


def test_usable_needs_state_accuracy_and_flops(table: pd.DataFrame) -> None:
    rows = table.head(4).copy()
    rows.loc[rows.index[0], "accuracy"] = math.nan
    rows.loc[rows.index[1], "total_flops"] = math.inf
    rows.loc[rows.index[2], "state"] = "failed"
    assert usable(rows).tolist() == [False, False, False, True]
