"""Gathering: columns beside the scores, by another way to the same number; the kept table; the command."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import analysis.gather_cache as gather_cache
from analysis.cli import main
from analysis.foreign import read_table
from analysis.gather import gather
from analysis.table_columns import NUMBERS, TEXT
from salt.flops import path_cost
from salt.plans import plan_dir
from salt.specs import RunSpec
from tests.synthetic import BUDGETS, Study, make_study

SMALL = {"budgets": BUDGETS[:1], "labels": ("motion",), "students": ("micro",), "teachers": ("nano",)}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("store"), seeds=(0, 1), charge="shared", **SMALL)


def age(store: Path) -> None:
    """Set all files back a minute: what has just been written is never kept."""
    then = time.time() - 60
    for path in store.rglob("*"):
        os.utime(path, (then, then))


def spec_of(study: Study, run_id: str) -> RunSpec:
    return next(run.spec for run in study.plan.runs if run.run_id == run_id)


def test_flops_by_both_conventions_are_those_of_the_specs(study: Study) -> None:
    table = gather(study.store, "miniature")
    for cell in study.plan.cells:
        row = table[table["cell_id"] == cell.cell_id].iloc[0]
        spec = spec_of(study, cell.run_id)
        for convention in ("matmul", "paper"):
            above = 0
            if spec.teacher is not None:
                above = path_cost(spec_of(study, spec.teacher.run_id), convention).total_flops
            assert row[f"own_flops_{convention}"] == path_cost(spec, convention).total_flops
            assert row[f"above_flops_{convention}"] == above
            assert row[f"cache_flops_{convention}"] == 0
        if cell.teacher_cost is not None:
            assert row["above_flops_matmul"] == cell.teacher_cost.total_flops
            assert row["teacher_students"] == 1
        else:
            assert np.isnan(row["teacher_students"])
    assert (table.loc[table["arm"] == "salt", "own_flops_paper"] > 0).all()


def test_gpu_hours_burnt_flops_and_label_free_metrics(tmp_path: Path) -> None:
    study = make_study(tmp_path, seeds=(0,), **SMALL)
    attempts = {
        "pixel": [{"hardware": "H100, 80 GiB", "processes": "4"}] * 2,
        "salt": [{"hardware": "cpu", "processes": "1"}],
        "vjepa": [{"hardware": "A100", "processes": "4"}, {"hardware": "A100", "processes": "2"}],
    }
    for arm, each in attempts.items():
        cell = study.cell(arm, budget=BUDGETS[0], teacher="nano" if arm == "salt" else None)
        study.folder(cell).env.write_text(json.dumps({"attempts": each}))
    pixel = study.folder(study.cell("pixel", budget=BUDGETS[0]))
    pixel.result.write_text(pixel.result.read_text().replace('"burnt_flops": null', '"burnt_flops": 77'))
    probe = json.loads(pixel.probe("main").read_text())
    pixel.probe("main").write_text(json.dumps(probe | {"label_free": {"rankme": 12.5, "alpha_req": 0.75}}))
    study.folder(study.cell("raw", "raw")).env.write_text('{"attempts": 3}')

    table = gather(study.store, "miniature")
    rows = table[table["role"] == "cell"].drop_duplicates("cell_id").set_index("arm")
    assert rows.loc["pixel", "gpu_hours"] == pytest.approx(10.0 * 4 / 3600)
    assert np.isnan(rows.loc[["salt", "vjepa", "supervised", "raw"], "gpu_hours"]).all()
    assert rows.loc["pixel", "burnt_flops"] == 77
    assert np.isnan(rows.loc["salt", "burnt_flops"])
    mine = table[table["run_id"] == rows.loc["pixel", "run_id"]].set_index("probe_id")
    assert set(mine.loc["main", "rankme"]) == {12.5}
    assert set(mine.loc["main", "alpha_req"]) == {0.75}
    assert mine["lidar"].isna().all()
    assert mine.loc[["attentive", "controls"], "rankme"].isna().all()
    assert "env.json cannot be read" in table.attrs["notes"][0]


def test_runs_without_a_teacher_stay_in_the_counts_by_teacher(study: Study) -> None:
    from analysis.gather_tables import counts

    table = gather(study.store, "miniature")
    found = counts(table)
    assert found["rows"].sum() == len(table)
    assert found.set_index(["role", "arm"]).loc[("cell", "pixel"), "runs"].sum() == 2
    assert list(found["arm"])[:3] == ["pixel", "salt", "vjepa"]


# --- the kept table -------------------------------------------------------------------------------


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study whose table is kept, although it is small, and has been gathered once."""
    monkeypatch.setattr(gather_cache, "KEPT_FROM_RUNS", 1)
    study = make_study(tmp_path, seeds=(0,), **SMALL)
    study.fail(study.cell("vjepa", budget=BUDGETS[0]).run_id, "diverged", "loss is nan", step=3)
    study.lose(study.cell("random").run_id)
    age(tmp_path)
    gather(tmp_path, "miniature")
    assert gather_cache.cache_path(tmp_path, "miniature").exists()
    return study


def refuse_to_read(*_: object) -> None:
    raise AssertionError("the store was read anew")


def test_a_kept_table_is_the_same_table_without_reading_a_run(
    kept: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gather_cache, "KEPT_FROM_RUNS", 10**9)
    again = gather(kept.store, "miniature")
    gather_cache.cache_path(kept.store, "miniature").rename(kept.store / "aside.npz")
    anew = gather(kept.store, "miniature")
    pd.testing.assert_frame_equal(again, anew, check_exact=True)
    assert list(again.columns)[: len(TEXT) + len(NUMBERS)] == [*TEXT, *NUMBERS]
    (kept.store / "aside.npz").rename(gather_cache.cache_path(kept.store, "miniature"))
    monkeypatch.setattr("analysis.gather.read_plan", refuse_to_read)
    gather(kept.store, "miniature")


@pytest.mark.parametrize(
    "changed", ["score", "result", "error", "environment", "started", "plan", "probe gone"]
)
def test_a_kept_table_counts_only_while_nothing_has_changed(
    kept: Study, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixel, vjepa = (kept.folder(kept.cell(arm, budget=BUDGETS[0])) for arm in ("pixel", "vjepa"))
    if changed == "score":
        kept.edit_scores(kept.cell("pixel", budget=BUDGETS[0]), accuracy=0.123)
    elif changed == "result":
        pixel.result.write_text(pixel.result.read_text().replace("0.3", "0.4"))
    elif changed == "error":
        vjepa.error.unlink()
    elif changed == "environment":
        pixel.env.write_text('{"attempts": [{"hardware": "A100", "processes": "1"}]}')
    elif changed == "started":
        kept.folder(kept.cell("random")).path.rename(kept.store / "elsewhere")
    elif changed == "plan":
        path = plan_dir(kept.store, "miniature") / "plan.jsonl"
        path.write_text(path.read_text().replace('"charge":"full"', '"charge":"none"'))
    else:
        pixel.probe("main").unlink()
    found = gather(kept.store, "miniature")
    gather_cache.cache_path(kept.store, "miniature").unlink()
    pd.testing.assert_frame_equal(found, gather(kept.store, "miniature"), check_exact=True)


@pytest.mark.parametrize("damage", ["torn", "empty", "text", "foreign", "pickle", "other code"])
def test_a_torn_or_foreign_file_is_made_anew(
    kept: Study, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gather_cache.cache_path(kept.store, "miniature")
    whole = path.read_bytes()
    expected = gather(kept.store, "miniature")
    if damage == "foreign":
        np.savez(path, numbers=np.zeros((2, 2)))
    elif damage == "pickle":
        np.savez(path, head=np.array([{"a": 1}], dtype=object))
    elif damage == "other code":
        monkeypatch.setattr(gather_cache, "FORMAT", gather_cache.FORMAT + 1)
    else:
        path.write_bytes({"torn": whole[: len(whole) // 2], "empty": b"", "text": b"no table\n"}[damage])
    pd.testing.assert_frame_equal(gather(kept.store, "miniature"), expected, check_exact=True)
    assert abs(len(path.read_bytes()) - len(whole)) < 200


def test_what_has_just_changed_is_not_kept_and_a_full_disk_costs_only_time(
    kept: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gather_cache.cache_path(kept.store, "miniature")
    path.unlink()
    result = kept.folder(kept.cell("pixel", budget=BUDGETS[0])).result
    future = time.time() + 60
    os.utime(result, (future, future))
    gather(kept.store, "miniature")
    assert not path.exists()
    age(kept.store)
    path.parent.rmdir()
    path.parent.write_text("in the way")
    table = gather(kept.store, "miniature")
    assert "could not be kept" in table.attrs["notes"][0]
    assert (table["state"] == "done").any()


# --- the command ----------------------------------------------------------------------------------


def test_the_command_writes_what_it_gathered(
    study: Study, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    arguments = ["gather", "miniature", "--store", str(study.store), "--out", str(tmp_path), "--parquet"]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    table = gather(study.store, "miniature")
    assert printed["rows"] == len(table)
    assert sum(each["rows"] for each in printed["counts"]) == len(table)
    for path in printed["files"]:
        pd.testing.assert_frame_equal(read_table(path), table, check_exact=True)
    header, first = (tmp_path / "gathered.csv").read_text().splitlines()[:2]
    assert header.split(",") == list(table.columns)
    assert "nan" not in first
    assert main([*arguments, "--label", "motion"]) == 0
    assert "cell" in capsys.readouterr().out


def test_a_plan_that_has_not_begun_is_gathered_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_study(tmp_path, seeds=(0,), run=False, **SMALL)
    assert main(["gather", "--store", str(tmp_path)]) == 0
    assert "missing" in capsys.readouterr().out
    rows = pd.read_csv(tmp_path / "reports" / "miniature" / "gathered.csv")
    assert set(rows["state"]) == {"missing"}
    assert rows[["accuracy", "total_flops", "own_flops_paper"]].isna().all(axis=None)
    assert (rows["planned_flops"].dropna() >= 0).all()
