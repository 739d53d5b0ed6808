"""`salt-analyze verify`: a true report passes; a number that was changed, on either side, is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

import salt_cli
from analysis.cli import main
from analysis.gather import gather
from analysis.gathered_file import read_gathered
from analysis.report_source import plan_source
from analysis.verify import verify
from tests.synthetic import BUDGETS, Study, make_study

ASKED = ["--probe", "linear", "--label", "motion"]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    made = make_study(
        tmp_path_factory.mktemp("store"), budgets=BUDGETS[1:], students=("micro",), teachers=("nano",)
    )
    made.fail(made.cell("vjepa", seed=1, budget=BUDGETS[-1]).run_id, "diverged", "loss is <nan>", step=37)
    assert main(["report", "miniature", "--store", str(made.store), *ASKED]) == 0
    return made


@pytest.fixture
def report(study: Study, tmp_path: Path) -> Path:
    """A copy of the report, to be changed."""
    return Path(shutil.copytree(study.store / "reports" / "miniature", tmp_path / "report"))


def verified(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = salt_cli.run("salt-analyze", ["verify", *argv, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_table_comes_back_from_its_file(study: Study) -> None:
    table = gather(study.store, "miniature")
    table = table[(table["label"] == "motion") & (table["kind"] == "linear")].reset_index(drop=True)
    file = study.store / "reports" / "miniature" / "figures" / "gathered.csv"
    pd.testing.assert_frame_equal(read_gathered(file), table, check_exact=True)


def test_a_fresh_report_is_true_from_the_store_and_from_its_own_table(
    study: Study, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in report.rglob("*") if path.is_file()}
    code, said = verified(capsys, str(report), "--store", str(study.store))
    assert (code, said["stale"], said["differences"], said["causes"]) == (0, False, [], [])
    assert said["of"] == "the run store"
    assert said["texts"] > 500
    assert said["cells"] > 1000
    assert said["pictures"] == len(list(report.rglob("*.png")))
    elsewhere = report.parent / "nowhere"
    code, said = verified(capsys, str(report), "--from-table", "--store", str(elsewhere))
    assert (code, said["differences"], said["of"]) == (0, [], "the table in the report")
    assert {path: path.read_bytes() for path in report.rglob("*") if path.is_file()} == before
    assert not elsewhere.exists()


def test_what_was_changed_in_the_report_is_named(
    study: Study, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = report / "report.html"
    text = page.read_text()
    start = text.index("<tbody", text.index('data-block="frontier/frontier"'))
    row = text[start : text.index("</tr>", start)]
    cells = row.split("<td>")
    accuracy = cells[7].removesuffix("</td>")
    forged = f"{float(accuracy) + 1:.1f}"
    page.write_text(text.replace(row, row.replace(f"<td>{accuracy}</td>", f"<td>{forged}</td>", 1), 1))
    data = report / "figures" / "pareto-runs.csv"
    lines = data.read_text().splitlines()
    fields = lines[3].split(",")
    place = lines[0].split(",").index("accuracy")
    fields[place] = "0.987"
    data.write_text("\n".join([*lines[:3], ",".join(fields), *lines[4:]]) + "\n")
    picture = report / "figures" / "weak-teacher.png"
    with Image.open(picture) as image:
        image.putpixel((40, 40), (255, 0, 0))
        image.save(picture)
    (report / "tables" / "frontier.tex").unlink()

    code, said = verified(capsys, str(report), "--store", str(study.store))
    assert code == 1
    found = {each["file"]: each for each in said["differences"]}
    assert sorted(found) == [
        "figures/pareto-runs.csv", "figures/weak-teacher.png", "report.html", "tables/frontier.tex"
    ]  # fmt: skip
    assert len(said["differences"]) == 4
    number = found["report.html"]
    assert (number["report"], number["now"]) == (repr(forged), repr(accuracy))
    assert "frontier/frontier, row 1 (motion, linear, pixel)" in number["place"]
    assert "'accuracy %'" in number["place"]
    assert study.cell("pixel", seed=0, budget=BUDGETS[1]).run_id in number["runs"]
    assert found["figures/pareto-runs.csv"]["report"] == "'0.987'"
    assert "'accuracy'" in found["figures/pareto-runs.csv"]["place"]
    assert "1 of" in found["figures/weak-teacher.png"]["report"]
    assert found["tables/frontier.tex"]["report"] == "not there"
    assert said["causes"][0].startswith(
        "3 files were changed after the report was written: figures/pareto-runs.csv"
    )


def test_what_changed_since_is_the_cause(tmp_path: Path, study: Study, report: Path) -> None:
    table = read_gathered(report / "figures" / "gathered.csv")
    source = plan_source(study.store, "miniature", ("motion",), ("linear",))
    run = study.cell("salt", seed=0, budget=BUDGETS[-1], teacher="nano").run_id
    moved = table.assign(
        accuracy=table["accuracy"].where(table["run_id"] != run, table["accuracy"] + 0.01), charge="none"
    )
    found = verify(report, moved, replace(source, plan_sha256="0" * 64), "the run store", lambda text: None)
    assert found.stale
    assert "the study was planned again: its plan.jsonl is another one" in found.causes
    assert "the charge for teachers was full, is none" in found.causes
    assert any("runs have other rows in the table" in cause for cause in found.causes)
    assert any(each.file == "report.html" and "salt" in each.place for each in found.differences)


def test_what_is_no_report_is_refused(study: Study, report: Path, tmp_path: Path, capsys: Any) -> None:
    for argv, words in (
        ([str(tmp_path / "none")], "is no report"),
        ([str(report), "--store", str(tmp_path / "none")], "--from-table"),
    ):
        assert salt_cli.run("salt-analyze", ["verify", *argv]) == 2
        assert words in capsys.readouterr().err
    (report / "report.json").write_text("{")
    assert salt_cli.run("salt-analyze", ["verify", str(report)]) == 2
    assert "report.json" in capsys.readouterr().err
