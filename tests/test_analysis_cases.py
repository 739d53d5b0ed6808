"""Reported failures of other tools, tried here: NaN that wins, rows that multiply, points that vanish."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from analysis.cli import main
from analysis.figure_pareto import draw_pareto, panels, pareto_data, write_pareto
from analysis.foreign import read_table
from analysis.gather import SCORE_KEY, cells_used, gather
from analysis.law_fit import fit_law
from analysis.law_points import point_sets
from analysis.laws import LAWS
from analysis.pareto import arm_rows, configurations, usable
from tests.synthetic import BUDGETS, make_study

SMALL = {"budgets": BUDGETS[:1], "labels": ("motion",), "students": ("micro",), "teachers": ("nano",)}
FIRST = BUDGETS[0]


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


# --- NaN and infinity win ---------------------------------------------------------------------------


def test_the_order_of_rows_with_nan_and_infinity_changes_nothing(tmp_path: Path) -> None:
    """ai-dynamo/aiperf#1325, ludwig-ai/ludwig#4016: a diverged run is picked as the best."""
    study = make_study(tmp_path, seeds=(0, 1), **SMALL)
    study.fail(study.cell("pixel", seed=0, budget=FIRST).run_id, "diverged", "loss is nan", step=7)
    study.folder(study.cell("salt", seed=0, budget=FIRST, teacher="nano")).probe("attentive").unlink()
    table = gather(tmp_path, "miniature")
    cells = table["cell_id"]
    table.loc[cells == study.cell("vjepa", seed=0, budget=FIRST).cell_id, "accuracy"] = math.inf
    table.loc[cells == study.cell("vjepa", seed=1, budget=FIRST).cell_id, "total_flops"] = math.nan
    six = arm_rows(table)
    assert cells_used(six) == (4, 6)
    expected = configurations(six)
    order = list(expected.columns)
    draw = np.random.default_rng(0)
    for _ in range(20):
        shuffled = six.iloc[draw.permutation(len(six))]
        assert cells_used(shuffled) == (4, 6)
        pd.testing.assert_frame_equal(configurations(shuffled)[order], expected, check_exact=True)
        assert usable(shuffled).sum() == usable(six).sum()
    linear = expected[(expected["kind"] == "linear") & (expected["frames"] == "ordered")].set_index("arm")
    assert linear["n"].to_dict() == {"pixel": 1, "salt": 2, "vjepa": 0}
    assert linear["on_frontier"].to_dict() == {"pixel": True, "salt": True, "vjepa": False}


def test_a_fit_is_the_same_in_any_order_and_leaves_out_what_is_not_finite(tmp_path: Path) -> None:
    rows = [
        f"1e{power},{2 + 40 * 10 ** (-0.12 * power)!r},{seed}" for power in range(16, 22) for seed in (0, 1)
    ]
    bad = ["1e18,nan,2", "1e19,inf,2", "1e20,,2", ",2.5,2"]
    for order in range(3):
        lines = [*rows, *bad]
        np.random.default_rng(order).shuffle(lines)
        (tmp_path / "loss.csv").write_text("\n".join(["C,loss,seed", *lines]) + "\n")
        (points,) = point_sets(read_table(str(tmp_path / "loss.csv")), LAWS["compute"], "loss")
        assert (len(points.data), points.lost) == (12, 4)
        found = fit_law(LAWS["compute"], points.data).parameters
        assert found["exponent_compute"] == pytest.approx(0.12, rel=1e-6)
        assert found["asymptote"] == pytest.approx(2.0, rel=1e-6)


def test_json_of_a_study_with_a_diverged_run_is_strict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Medical-Event-Data-Standard/MEDS-DEV#286: bare NaN is not JSON."""
    study = make_study(tmp_path, seeds=(0,), **SMALL)
    study.fail(study.cell("vjepa", budget=FIRST).run_id, "diverged", "loss is nan", step=7)

    def refuse(name: str) -> float:
        raise AssertionError(f"{name} is not JSON")

    for command in ("gather", "pareto"):
        assert main([command, "--store", str(tmp_path), "--json"]) == 0
        json.loads(capsys.readouterr().out, parse_constant=refuse)
    written = pd.read_csv(tmp_path / "reports" / "miniature" / "gathered.csv")
    lost = written[written["state"] == "diverged"]
    assert len(lost)
    assert lost["accuracy"].isna().all()
    assert lost["reason"].str.contains("diverged at step 7").all()


# --- duplicates -------------------------------------------------------------------------------------


def test_rows_are_distinct_configurations_seeds_and_probes(tmp_path: Path) -> None:
    """pandas-dev/pandas#14736 and others: joins multiply rows after reruns."""
    study = make_study(tmp_path / "store", seeds=(0, 1), **SMALL)
    cell = study.cell("pixel", seed=0, budget=FIRST)
    folder = study.folder(cell)
    # A second attempt of one run, which replaced the result of the first.
    folder.env.write_text(json.dumps({"attempts": [{"hardware": "cpu"}, {"hardware": "cpu"}]}))
    folder.result.write_text(folder.result.read_text().replace('"attempts": 1', '"attempts": 2'))
    table = gather(study.store, "miniature")
    cells = table[table["role"] == "cell"]
    key = ["config_id", "seed", "budget_flops", *SCORE_KEY]
    assert len(cells) == len(cells[key].drop_duplicates())
    mine = cells[cells["cell_id"] == cell.cell_id]
    assert len(mine) == len(mine[list(SCORE_KEY)].drop_duplicates()) == 7  # of three suites
    assert cells[cells["arm"] == "pixel"]["seed"].nunique() == 2
    assert cells[cells["arm"] == "pixel"]["config_id"].nunique() == 1

    # The same folder given twice: as a plan of another name, and as one table under the other.
    shutil.copytree(study.store, tmp_path / "copy")
    pd.testing.assert_frame_equal(gather(tmp_path / "copy", "miniature"), table)
    text = "C,acc,seed,arm\n1e18,0.5,0,a\n1e18,0.6,1,a\n"
    (tmp_path / "once.csv").write_text(text)
    (tmp_path / "twice.csv").write_text(text + text.partition("\n")[2])
    assert len(read_table(str(tmp_path / "twice.csv"))) == len(read_table(str(tmp_path / "once.csv"))) == 2


# --- log axes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    store = tmp_path_factory.mktemp("store")
    make_study(store, seeds=(0, 1), **SMALL)
    return gather(store, "miniature")


def zero_compute(rows: pd.DataFrame) -> pd.DataFrame:
    rows.loc[rows["arm"].eq("pixel") & rows["seed"].eq(0), ["total_flops", "budget_flops"]] = 0.0
    return rows


def zero_accuracy(rows: pd.DataFrame) -> pd.DataFrame:
    rows.loc[rows["seed"].eq(0), "accuracy"] = 0.0
    return rows


def bar_larger_than_the_value(rows: pd.DataFrame) -> pd.DataFrame:
    rows["accuracy"] = np.where(rows["seed"].eq(0), 0.001, 0.4)
    return rows


def one_point(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.head(1)


def all_nan(rows: pd.DataFrame) -> pd.DataFrame:
    rows["accuracy"] = math.nan
    return rows


def all_zero(rows: pd.DataFrame) -> pd.DataFrame:
    rows[["accuracy", "total_flops", "budget_flops"]] = 0.0
    return rows


@pytest.mark.parametrize(
    ("spoil", "note"),
    [
        (zero_compute, "1 of 6 runs not shown"),
        (zero_accuracy, "6 of 6 scores shown"),
        (bar_larger_than_the_value, "6 of 6 scores shown"),
        (one_point, "1 of 1 scores shown"),
        (all_nan, "no finite scores"),
        (all_zero, "6 of 6 runs not shown"),
    ],
)
def test_what_a_log_axis_cannot_show_is_counted_in_the_figure(
    tmp_path: Path, table: pd.DataFrame, spoil: Callable[[pd.DataFrame], pd.DataFrame], note: str
) -> None:
    """matplotlib/matplotlib#21579, #9149: points at zero vanish without a word, an all-zero series raises."""
    rows = arm_rows(table)
    rows = rows[(rows["kind"] == "linear") & (rows["frames"] == "ordered")].reset_index(drop=True)
    rows = spoil(rows)
    write_pareto(rows, tmp_path / "figures")
    for suffix in ("png", "pdf"):
        assert (tmp_path / "figures" / f"pareto.{suffix}").stat().st_size > 1000
    data = pareto_data(rows)
    assert note in texts(draw_pareto(data, panels(data))).replace("\n", " ")
    assert len(pd.read_csv(tmp_path / "figures" / "pareto-runs.csv")) == len(rows)


# --- headless, and names of all scripts ---------------------------------------------------------------


def test_figures_need_no_display_and_names_of_all_scripts_are_readable(tmp_path: Path) -> None:
    """swing-research/icecream#6: training dies at the first plot; missing glyphs, `$` as mathematics."""
    name = "漢字_run$1$"
    make_study(tmp_path, name, seeds=(0,), **SMALL)
    code = "import sys; from analysis.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, "pareto", name, "--store", str(tmp_path),
         "--probe", "linear"],
        env={"DISPLAY": "localhost:64.0", "PATH": "/usr/bin:/bin", "MPLCONFIGDIR": str(tmp_path / "mpl"),
             "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "reports" / name / "figures"
    assert (folder / "pareto.pdf").read_bytes().startswith(b"%PDF")
    assert imread(folder / "pareto.png").std() > 0.01
    data = pareto_data(gather(tmp_path, name))
    figure = draw_pareto(data, [("motion", "linear")])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph is a warning
        figure.draw_without_rendering()
    shown = texts(figure)
    assert r"_run\$1\$" in shown
    assert "漢字" in shown or "[U+6F22][U+5B57]" in shown
