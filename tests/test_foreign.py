"""Results of other projects: what is recognised, what is computed only when asked, how mistakes are told."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from pandas.testing import assert_frame_equal

from analysis.cli import main
from analysis.foreign import notes, read_table
from analysis.pareto import configurations, usable
from analysis.table_columns import NUMBERS, TEXT
from salt.errors import UserError

#: Table 1 of a made-up paper.
RESULTS = """\
# read from a figure
Method,Params,Tokens,Training FLOPs,Val loss,Top-1,seed
ours,1e8,2e9,1.2e18,3.1,61.5,0
ours,1e8,2e9,1.2e18,3.0,62.5,1

"other, larger",2e8,2e9,2.4e18,2.9,70,0
"other, larger",2e8,2e9,2.4e18,,,1
ours,4e8,2e9,4.8e18,nan,inf,0
"""


def write(folder: Path, text: str, name: str = "results.csv") -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_obvious_names_are_recognised_and_percent_is_said(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, RESULTS.replace("inf", "80")))
    assert list(table.columns) == [*TEXT, *NUMBERS]
    assert list(table["run_id"]) == [f"results.csv:{line}" for line in (3, 4, 6, 7, 8)]
    first = table.iloc[0]
    assert first[["total_flops", "parameters", "clips_seen", "final_loss", "accuracy"]].tolist() == [
        1.2e18, 1e8, 2e9, 3.1, 0.615,
    ]  # fmt: skip
    assert first[["role", "label", "kind", "frames", "convention"]].tolist() == [
        "cell", "metric", "reported", "ordered", "as given",
    ]  # fmt: skip
    assert table["arm"].tolist() == ["ours", "ours", "other, larger", "other, larger", "ours"]
    assert any("percent and divided by 100 (its values lie between 61.5 and 80)" in n for n in notes(table))
    assert table["config_id"].iloc[0] == table["config_id"].iloc[1] != table["config_id"].iloc[2]
    configs = configurations(table).set_index("config")
    assert configs.loc["ours 1e+08", ["n", "n_lost"]].tolist() == [2, 0]
    assert configs.loc["other, larger 2e+08", ["n", "n_lost"]].tolist() == [1, 1]


def test_rows_that_are_not_finite_stay_with_state_and_reason(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, RESULTS), "metric=Top-1%")
    assert len(table) == 5
    assert table["state"].tolist() == ["done", "done", "done", "missing", "failed"]
    assert table["reason"].tolist()[3:] == [
        "no metric; no loss",
        "metric is inf, not a finite number; loss is nan, not a finite number",
    ]
    assert usable(table).tolist() == [True, True, True, False, False]
    assert math.isnan(table["accuracy"].iloc[3])


def test_what_is_missing_is_computed_only_when_asked(tmp_path: Path) -> None:
    path = write(tmp_path, "N,D,loss\n1e8,2e9,3\n2e8,2e9,2.5\n")
    plain = read_table(path)
    assert plain["total_flops"].isna().all()
    assert not any("6ND" in note for note in notes(plain))
    asked = read_table(path, "compute=6ND")
    assert asked["total_flops"].tolist() == [1.2e18, 2.4e18]
    assert asked["budget_flops"].tolist() == [1.2e18, 2.4e18]
    assert any("6ND" in note for note in notes(asked))
    back = read_table(write(tmp_path, "C,N,loss\n1.2,1e8,3\n2.4,2e8,2.5\n"), "data=C/6N,compute=C*1e18")
    assert back["clips_seen"].tolist() == pytest.approx([2e9, 2e9])
    with pytest.raises(UserError, match="gives no size; name the column"):
        read_table(write(tmp_path, "D,loss\n1,2\n"), "compute=6ND")


def test_teachers_shares_and_configurations_are_named(tmp_path: Path) -> None:
    text = (
        "C;budget;N;acc;task;lr;wd;frozen;part;tacc\n"
        "1e18;1e18;1e8;0.5;k400;1e-3;0;S;0.2;0.4\n"
        "1e18;1e18;1e8;0.6;k400;2e-3;0;;;\n"
    )
    columns = "config=lr+wd,teacher=frozen,share=part,teacher_metric=tacc,arm=method"
    with pytest.raises(UserError, match="no column 'method'"):
        read_table(write(tmp_path, text), columns)
    table = read_table(write(tmp_path, text), columns.replace(",arm=method", ""))
    first, second = table.iloc[0], table.iloc[1]
    assert first[["teacher", "teacher_share", "teacher_accuracy", "label"]].tolist() == [
        "S",
        0.2,
        0.4,
        "k400",
    ]
    assert first["config"] == "imported S>1e+08 20% lr=1e-3, wd=0"
    assert second[["teacher", "teacher_run_id", "teacher_state"]].tolist() == [None, None, None]
    assert first["config_id"] != second["config_id"]


def test_copies_are_one_row_and_contradictions_are_refused(tmp_path: Path) -> None:
    rows = "C,acc,seed\n1e18,0.5,0\n1e18,0.6,1\n"
    twice = read_table(write(tmp_path, rows + "1e18,0.6,1\n1e18,0.5,0\n"))
    assert twice["accuracy"].tolist() == [0.5, 0.6]
    assert any("2 rows are copies of earlier ones and were left out: line 4, 5" in n for n in notes(twice))
    with pytest.raises(UserError, match=r"lines 2 and 4 give different results .* seed 0 .*config=COLUMN"):
        read_table(write(tmp_path, rows + "1e18,0.7,0\n"))


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("C,acc\n1e18,0.5\n1e18,1.2 M\n", None, r"csv:3: column 'acc' holds '1.2 M', which is not a number"),
        ("C,acc\n1e18,0.5\n1e18,61\n", None, r"csv:3: column 'acc' holds '61', .* metric=acc%"),
        ("C,acc\n1e18,0.5,7\n", None, r"csv:2: 3 fields, but the header names 2 columns"),
        ('C,acc\n1e18,"0.5\n', None, r"csv:2: not CSV: unexpected end of data"),
        ("C,acc,acc\n1,1,1\n", None, "two columns are called 'acc'"),
        ("C,acc,top1\n1,1,1\n", None, "'acc' and 'top1' could both be metric; .*--columns metric=acc"),
        ("C,err\n1,1\n", None, "no column is known to be an accuracy or a loss"),
        ("C,acc\n", None, "it has no rows"),
        ("", None, "it is empty"),
        ("C,acc\n1,1\n", "compte=C", "did you mean 'compute'"),
        ("Cost,acc\n1,1\n", "compute=Csot", "has no column 'Csot'; did you mean 'Cost'"),
        ("C,acc\n1,1\n", "compute", "write FIELD=COLUMN"),
        ("C,acc\n1,1\n", "compute=C,compute=acc", "names compute twice"),
        ("C,acc\n1,1\n", "compute=C*ten", "'ten' is not a number"),
    ],
)  # fmt: skip
def test_mistakes_name_place_value_and_way_out(
    tmp_path: Path, text: str, columns: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        read_table(write(tmp_path, text), columns)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; name a CSV or Parquet file, or salt2025"):
        read_table(str(tmp_path / "gone.csv"))
    (tmp_path / "latin.csv").write_bytes("C,acc\n1,0.5 é\n".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8"):
        read_table(str(tmp_path / "latin.csv"))
    with pytest.raises(UserError, match="leave --columns out"):
        read_table("salt2025", "compute=C")
    pytest.importorskip("pyarrow")
    with pytest.raises(UserError, match="not a Parquet file"):
        read_table(write(tmp_path, "C,acc\n1,1\n", "text.parquet"))


def test_parquet_is_read_like_csv(tmp_path: Path) -> None:
    parquet, arrow = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    columns = {"C": [1e18, 2e18], "acc": [0.5, None], "seed": [0, 1], "method": ["a", "b"]}
    parquet.write_table(arrow.table(columns), tmp_path / "results.parquet")
    table = read_table(str(tmp_path / "results.parquet"))
    csv = read_table(write(tmp_path, "C,acc,seed,method\n1e18,0.5,0,a\n2e18,,1,b\n"))
    same = ["arm", "accuracy", "seed", "total_flops", "config_id", "state", "reason"]
    assert table[same].equals(csv[same])
    assert table["run_id"].tolist() == ["results.parquet:1", "results.parquet:2"]


def test_without_pyarrow_the_way_out_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r"--parquet needs pyarrow.*salt-scaling\[parquet\]"):
        main(["gather", "--store", str(tmp_path), "--parquet"])
    with pytest.raises(UserError, match="or use CSV"):
        read_table(write(tmp_path, "x", "results.parquet"))


def test_the_published_numbers_are_gathered_and_come_back(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    assert main(["gather", "--table", "salt2025", "--out", str(tmp_path), "--parquet"]) == 0
    published = read_table("salt2025")
    for name in ("gathered.csv", "gathered.parquet"):
        again = read_table(str(tmp_path / name))
        assert_frame_equal(again[[*TEXT, *NUMBERS]], published[[*TEXT, *NUMBERS]], check_exact=True)
