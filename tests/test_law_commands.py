"""`salt-analyze fit` and `isoflop` as a user runs them: on a study, and on results of another project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest

from analysis.allocation import allocation
from analysis.cli import main
from analysis.gather import gather
from analysis.isoflop import Exchange, optimum
from salt.errors import UserError
from salt.plans import encode_plan, plan_dir
from salt.store import write_atomically
from tests.synthetic import BUDGETS, make_study

LAW = {
    "asymptote": 1.69,
    "amplitude_size": 406.4,
    "amplitude_data": 410.7,
    "exponent_size": 0.34,
    "exponent_data": 0.28,
}


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """IsoFLOP runs of another project: five budgets, nine sizes around each optimum, 0.2 % noise."""
    budgets = np.geomspace(1e18, 1e21, 5)
    best = optimum(LAW, budgets, Exchange(6.0, 1.0))[0]
    size = np.outer(best, np.geomspace(1 / 6, 6, 9)).ravel()
    compute = np.repeat(budgets, 9)
    data = compute / 6 / size
    loss = 1.69 + 406.4 * size**-0.34 + 410.7 * data**-0.28
    loss *= np.exp(np.random.default_rng(0).normal(0, 0.002, len(loss)))
    path = tmp_path_factory.mktemp("foreign") / "runs.csv"
    pd.DataFrame({"C": compute, "N": size, "D": data, "val_loss": loss}).to_csv(path, index=False)
    return path


def command(path: Path, out: Path, *arguments: str) -> list[str]:
    columns = "compute=C,size=N,data=D,loss=val_loss"
    return [arguments[0], "--table", str(path), "--columns", columns, "--out", str(out), *arguments[1:]]


def test_a_surface_of_another_projects_losses(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("fit", "--law", "surface", "--metric", "loss", "--draws", "300", "--json")
    assert main(command(foreign, tmp_path, *options)) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["parameter"]: row for row in found["parameters"]}
    for name, value in LAW.items():
        assert rows[name]["low"] <= value <= rows[name]["high"], name
        assert rows[name]["status"] == "converged"
        assert (rows[name]["n"], rows[name]["starts_agreeing"]) == (45, 9)
    held = found["held_out"][0]
    assert abs(held["error"]) < 0.02
    assert held["factor"] == pytest.approx(10**0.75)
    figures = tmp_path / "figures"
    starts = pd.read_csv(figures / "fit-surface-loss-starts.csv")
    assert len(starts) == 9
    assert starts["converged"].all()
    points = pd.read_csv(figures / "fit-surface-loss-points.csv")
    assert np.abs(points["measured"] / points["predicted"] - 1).max() < 0.01
    assert (figures / "fit-surface-loss.pdf").exists()


def test_best_sizes_and_what_the_parabola_costs(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("isoflop", "--metric", "loss", "--at", "1e24", "--draws", "300")
    assert main(command(foreign, tmp_path, *options, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    for row in found["profiles"]:
        assert row["status"] == "bracketed"
        true = float(optimum(LAW, row["budget_flops"], Exchange(6.0, 1.0))[0])
        assert row["size_low"] <= true <= row["size_high"]
    law = found["exponents"][0]
    assert law["exponent_low"] <= 0.28 / 0.62 <= law["exponent_high"]
    assert law["extrapolation"] == pytest.approx(1000)
    assert 0 < law["bias_wasted_share"] < 0.01
    assert law["bias_wasted_gpu_hours"] is None  # nobody said how fast those runs were
    assert main(command(foreign, tmp_path, *options)) == 0
    said = capsys.readouterr().out
    assert "5 of 5 budgets bracket it" in said
    assert "parabolas without any noise say" in said
    assert list((tmp_path / "figures").glob("isoflop-*.png"))


def test_a_law_in_compute_of_a_study_and_a_prediction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    budgets = (*BUDGETS, 1600 * 10**9)
    store = make_study(tmp_path / "store", labels=("motion",), budgets=budgets, teachers=("nano",)).store
    arguments = ["fit", "--store", str(store), "--out", str(tmp_path / "out"), "--probe", "linear"]
    arguments += ["--draws", "100", "--at", "1e13"]
    assert main([*arguments, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert {row["arm"] for row in found["parameters"]} == {"pixel", "salt", "vjepa"}
    assert all(row["n"] == 12 for row in found["parameters"])
    for row in found["predictions"]:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["factor"] == pytest.approx(1e13 / 1.6e12, rel=0.02)
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "an extrapolation 6.25 times beyond the largest budget fitted" in said
    assert "teacher training charged full" in said


def test_options_that_make_no_sense_are_refused_before_anything_is_written(
    foreign: Path, tmp_path: Path
) -> None:
    for options, text in (
        (("fit", "--at", "-1"), "--at -1.0: give a number of FLOPs"),
        (("fit", "--law", "surface", "--at", "1e20"), "not in compute alone"),
        (("fit", "--huber", "0"), "--huber 0.0"),
        (("fit", "--draws", "3"), "--draws 3"),
        (("fit", "--level", "1.5"), "--level 1.5"),
        (("fit", "--law", "teacher", "--metric", "loss"), "no run of this table has a finite loss"),
        (("isoflop",), "no run of this table has a finite accuracy"),
    ):
        with pytest.raises(UserError, match=text):
            main(command(foreign, tmp_path / "out", *options))
    assert not (tmp_path / "out").exists()


def test_other_projects_tables_get_a_report_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "C,acc,method\n1e18,0.41,ours\n1e19,0.5,ours\n1e18,0.4,theirs\n"
    (tmp_path / "runs.csv").write_text(text)
    arguments = ["report", "--table", str(tmp_path / "runs.csv"), "--columns", "metric=acc,arm=method"]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 0
    assert "report.html" in capsys.readouterr().out
    assert "theirs" in (tmp_path / "out" / "report.html").read_text()


def test_plans_matched_in_steps_have_their_steps_as_the_budget_of_the_split(tmp_path: Path) -> None:
    study = make_study(tmp_path, labels=("motion",), budgets=BUDGETS[:2], teachers=("nano",))
    cells = tuple(msgspec.structs.replace(cell, budget=cell.budget_flops / 1e9) for cell in study.plan.cells)
    plan = msgspec.structs.replace(study.plan, match="steps", cells=cells)
    write_atomically(plan_dir(study.store, "miniature") / "plan.jsonl", encode_plan(plan))
    rows = gather(study.store, "miniature")
    arms = rows[(rows["role"] == "cell") & (rows["budget_flops"] > 0)]
    assert set(arms["matched_steps"]) == {200.0, 400.0}
    assert rows.loc[rows["role"] == "teacher", "matched_steps"].isna().all()
    assert rows.loc[rows["arm"] == "random", "matched_steps"].isna().all()
    assert set(allocation(rows).optima["budget"]) == {200.0, 400.0}
    assert gather(make_study(tmp_path / "flops").store, "miniature")["matched_steps"].isna().all()
