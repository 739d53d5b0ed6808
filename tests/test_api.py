"""`analysis.load` in a notebook: the numbers of the command line, and every figure as a picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import analysis
from analysis.cli import main
from analysis.records import records
from analysis.study import Study
from analysis.study_figures import FIGURES
from salt.errors import UserError
from tests.synthetic import make_study


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_study(tmp_path_factory.mktemp("store"), labels=("motion",), teachers=("nano", "micro"))
    return made.store


@pytest.fixture(scope="module")
def study(store: Path) -> Study:
    return analysis.load(store).only(probe="linear")


def command(store: Path, capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert (
        main([*argv, "--store", str(store), "--out", str(store / "out"), "--probe", "linear", "--json"]) == 0
    )
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_numbers_are_those_of_the_commands(
    store: Path, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    said = command(store, capsys, "pareto", "--no-figures")
    frontier = study.pareto()
    assert said["configurations"] == records(frontier.ordered)
    assert said["crossovers"] == records(frontier.parts["crossovers"])
    assert said["verdicts"] == [each.__dict__ for each in frontier.verdicts]
    said = command(store, capsys, "weak-teacher")
    assert said["weakest"] == records(study.weak_teacher().weakest)
    said = command(store, capsys, "allocation")
    assert said["optima"] == records(study.allocation().optima)
    said = command(store, capsys, "compare", "--a", "arm=salt", "--b", "arm=pixel")
    assert said["comparisons"] == records(study.compare("arm=salt", "arm=pixel"))
    said = command(store, capsys, "loss-accuracy")
    assert said["predictions"] == records(study.loss_accuracy().predictions)


@pytest.mark.parametrize("name", sorted(set(FIGURES) - {"isoflop"}))
def test_every_figure_is_a_picture(study: Study, name: str, tmp_path: Path) -> None:
    drawn = study.figure(name)
    assert drawn._repr_png_().startswith(b"\x89PNG")
    paths = drawn.save(tmp_path, "figure")
    assert [path.read_bytes()[:4] for path in paths] == [b"\x89PNG", b"%PDF"]


def test_a_foreign_table_is_a_study_too(tmp_path: Path) -> None:
    published = analysis.load_table("salt2025").only(label="avg4")
    assert published.table["run_id"].nunique() > 20
    assert published.figure("pareto")._repr_png_().startswith(b"\x89PNG")
    page = published.report(tmp_path / "report")
    assert "Beside the published numbers" not in page.read_text()


def test_what_is_not_there_is_refused_with_its_name(study: Study, store: Path, tmp_path: Path) -> None:
    for ask, words in (
        (lambda: analysis.load(tmp_path / "none"), "none is not there"),
        (lambda: analysis.load(store, "other"), "no plan 'other'"),
        (lambda: study.only(label="emotion"), "'emotion'"),
        (lambda: study.figure("parteo"), "'parteo': know pareto"),
        (lambda: study.figure("isoflop"), "3 encoder sizes"),
        (lambda: study.fit("cubic"), "law 'cubic': know compute"),
        (lambda: study.compare("arm=salt"), "both sides"),
    ):
        with pytest.raises(UserError, match=words):
            ask()
    assert isinstance(study.configurations, pd.DataFrame)


def test_a_report_of_a_part_is_verified_as_that_part(study: Study, store: Path, tmp_path: Path) -> None:
    study.only(label="motion").report(tmp_path / "part")
    assert main(["verify", str(tmp_path / "part"), "--store", str(store)]) == 0
