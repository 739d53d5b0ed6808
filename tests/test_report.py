"""Figures and the report as files: written in every hostile case, and saying what the store holds."""

from __future__ import annotations

import base64
import csv
import html
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from analysis.cli import main
from analysis.compare import arm_differences
from analysis.figure_pareto import draw_pareto, panels, pareto_data, write_pareto
from analysis.figure_weak_teacher import draw_column, weak_teacher_data, write_weak_teacher
from analysis.findings import limits
from analysis.gather import gather
from analysis.pareto import configurations
from analysis.plots import printable
from analysis.report import render
from analysis.report_analyses import analyse, collect
from analysis.report_figures import write_figures
from analysis.report_sections import sections
from analysis.tables import frontier_table, percent
from salt.plan_specs import Cell, PlannedRun
from tests.synthetic import BUDGETS, Study, make_study

TOP = BUDGETS[-1]
STRANGE = "研究_a$b$c"


def small(store: Path, **options: object) -> Study:
    chosen = {
        "budgets": BUDGETS[1:],
        "labels": ("motion",),
        "students": ("micro",),
        "teachers": ("nano",),
    } | options
    return make_study(store, **chosen)


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, str, pd.DataFrame]:
    """A damaged study with an unkind name, reported by the command line; the study, the page, the table."""
    study = small(
        tmp_path_factory.mktemp("store"),
        name=STRANGE,
        labels=("motion", "<b>外観_$x$"),
        question="'<script>?'",
    )
    study.fail(study.cell("vjepa", seed=1, budget=TOP).run_id, "diverged", "loss is <nan>", step=37)
    assert main(["report", STRANGE, "--store", str(study.store), "--probe", "linear"]) == 0
    page = (study.store / "reports" / STRANGE / "report.html").read_text()
    table = gather(study.store, STRANGE)
    return study, page, table[table["kind"] == "linear"].reset_index(drop=True)


class Outline(HTMLParser):
    """Headings, images, links outside, and whether every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.headings: list[int] = []
        self.images: list[dict[str, str | None]] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "img":
            self.images.append(values)
        self.ids += [str(values["id"])] if "id" in values else []
        self.links += [str(values[name]) for name in ("href", "src") if name in values]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_accessible_and_needs_no_network(written: tuple[Study, str, pd.DataFrame]) -> None:
    _, page, _ = written
    outline = Outline()
    outline.feed(page)
    assert not outline.open
    assert '<html lang="en">' in page
    assert outline.headings[0] == 1
    assert outline.headings.count(1) == 1
    assert all(
        after - before <= 1 for before, after in zip(outline.headings, outline.headings[1:], strict=False)
    )
    assert len(outline.images) >= 4
    assert all(len(str(image["alt"])) > 30 for image in outline.images)
    for link in outline.links:
        assert link.startswith("data:image/png;base64,") or (link[0] == "#" and link[1:] in outline.ids), (
            link[:60]
        )
    first = base64.b64decode(str(outline.images[0]["src"]).split(",")[1])
    assert first.startswith(b"\x89PNG")
    assert "<script" not in page
    assert "<b>" not in page
    assert html.escape("'<script>?'", quote=False)[1:-1] in page


def _cell(text: str) -> str:
    return f"<td{' class=' + chr(34) + 'long' + chr(34) if len(text) > 32 else ''}>{html.escape(text)}</td>"


def test_page_numbers_come_from_the_store_with_their_runs(written: tuple[Study, str, pd.DataFrame]) -> None:
    study, page, table = written
    configs = configurations(table)
    shown = frontier_table(configs[configs["frames"] == "ordered"])
    assert shown.rows
    for row, ids in zip(shown.rows, shown.run_ids, strict=True):
        assert "".join(_cell(cell) for cell in row[2:8]) in page
        assert " ".join(ids) in page
    pixel = [study.cell("pixel", seed=seed, budget=TOP) for seed in range(3)]
    mean = table[
        (table["run_id"].isin([c.run_id for c in pixel]))
        & (table["kind"] == "linear")
        & (table["label"] == "motion")
        & (table["frames"] == "ordered")
    ]["accuracy"].mean()
    assert f"<td>{percent(mean)}</td>" in page
    texts = set(re.findall(r"run ([0-9a-f]{16})(?:, teacher|</span>)", page))
    assert texts >= {cell.run_id for cell in pixel}
    for _, row in arm_differences(table, configs).iterrows():
        assert html.escape(row["verdict"]) in page
    assert "diverged at step 37: loss is &lt;nan&gt;" in page
    assert (
        re.search(r"<p>(\d+) of (\d+) cells used", page)[0]
        == f"<p>{len(study.plan.cells) - 1} of {len(study.plan.cells)} cells used"
    )


def test_data_beside_the_figures_is_the_table(written: tuple[Study, str, pd.DataFrame]) -> None:
    study, _, table = written
    folder = study.store / "reports" / STRANGE / "figures"
    with open(folder / "gathered.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(table)
    assert not {"nan", "NaN", "inf"} & {value for row in rows for value in row.values()}
    lost = [row for row in rows if row["state"] == "diverged"]
    assert lost
    assert all(row["accuracy"] == "" and row["reason"] for row in lost)
    for name in ("pareto", "weak-teacher"):
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")


def topics(table: pd.DataFrame) -> dict[str, str]:
    return {finding.topic: finding.text for finding in limits(collect(table))}


def test_limits_follow_the_data(tmp_path: Path) -> None:
    table = gather(
        make_study(tmp_path / "a", budgets=BUDGETS[1:], students=("micro",), teachers=("nano",)).store,
        "miniature",
    )
    said = topics(table)
    assert any(topic.startswith("No gain shown: appearance") for topic in said)
    assert "No gain shown: motion, linear" not in said
    assert "Arms are not separable" in said
    assert "Little headroom: motion, attentive" in said
    assert "Headroom unknown: appearance" in said
    assert "Below raw pixels: motion, knn" in said
    assert said["Few seeds"].startswith("Seeds per configuration: 3.")
    assert "Runs are missing" not in said
    assert "A label leaks without order" not in said
    assert "Data repeat" in said
    assert "one training list (train)" in said["Small scale, one data set"]

    def other(cell: Cell | None, run: PlannedRun, kind: str, label: str, frames: str) -> float:
        arms = {"vjepa": 0.9, "pixel": 0.6, "salt": 0.3, "random": 0.2, "supervised": 0.95, "raw": 0.2}
        return arms[run.spec.arm] + 0.002 * run.spec.seed * (1 + len(run.spec.arm) + run.spec.seed) / 7

    table = gather(small(tmp_path / "b", accuracy=other).store, "miniature")
    said = topics(table)
    assert "A label leaks without order" in said
    assert not any("not separable" in topic for topic in said)
    assert not any(topic.startswith(("No gain", "Little headroom", "Below raw")) for topic in said)


def test_hostile_values_are_drawn_counted_and_never_lost(tmp_path: Path) -> None:
    table = gather(small(tmp_path / "store", name=STRANGE).store, STRANGE)
    linear = table["kind"].eq("linear") & table["frames"].eq("ordered")
    table.loc[linear & table["arm"].eq("vjepa") & table["seed"].eq(0), "accuracy"] = math.nan
    table.loc[linear & table["arm"].eq("pixel") & table["seed"].eq(0), "total_flops"] = 0.0
    table.loc[linear & table["arm"].eq("salt") & table["seed"].eq(1), "accuracy"] = math.inf
    data = pareto_data(table)
    figure = draw_pareto(data, [("motion", "linear")])
    assert len(data.runs[data.runs["kind"] == "linear"]) == 18
    assert "6 of 18 runs not shown" in texts(figure)
    assert any(r"_a\$b\$c" in text for text in texts(figure))
    write_pareto(table[linear], tmp_path / "figures")
    write_weak_teacher(table[linear], tmp_path / "figures")
    assert len(list((tmp_path / "figures").glob("*.png"))) == 3

    nothing = table.assign(accuracy=math.nan)
    assert "no finite scores" in texts(draw_pareto(pareto_data(nothing), [("motion", "linear")]))
    assert "no finite pair of scores" in texts(draw_column(weak_teacher_data(nothing), "motion", "linear"))
    write_pareto(nothing[linear], tmp_path / "nothing")
    write_pareto(table[linear & table["arm"].eq("pixel") & table["seed"].eq(1)], tmp_path / "few")
    assert (tmp_path / "nothing" / "pareto.png").exists()
    assert (tmp_path / "few" / "pareto.pdf").exists()


def test_names_are_printable_and_dollars_are_no_mathematics() -> None:
    assert printable("a_b$c$") == r"a_b\$c\$"
    assert printable("tab\there") == "tab here"
    assert all(ord(c) < 0x3000 for c in printable("\U0010fffd"))
    assert "U+10FFFD" in printable("\U0010fffd").replace("[", "")


def test_nothing_is_drawn_outside_the_page_or_over_other_panels(tmp_path: Path) -> None:
    table = gather(
        make_study(tmp_path / "store", budgets=BUDGETS[1:], students=("micro", "tiny")).store, "miniature"
    )
    data = pareto_data(table)
    weak = weak_teacher_data(table)
    figures = [
        draw_pareto(data, panels(data)),
        draw_pareto(data, [("motion", "linear")]),
        draw_column(weak, "motion", "linear"),
    ]
    for figure in figures:
        figure.draw_without_rendering()
        page = figure.bbox
        drawn = figure.findobj(Axes)
        # Ticks beyond the limits of an axis exist, but are not drawn: the boxes of the axes count the others.
        ticks = {id(label) for axes in drawn for label in (*axes.get_xticklabels(), *axes.get_yticklabels())}
        words = [text for text in figure.findobj(Text) if text.get_text().strip() and id(text) not in ticks]
        boxes = [axes.get_tightbbox() for axes in drawn]
        for box, name in [(text.get_window_extent(), text.get_text()) for text in words] + [
            (b, "axes") for b in boxes
        ]:
            assert page.x0 - 1 <= box.x0 <= box.x1 <= page.x1 + 1, name
            assert page.y0 - 1 <= box.y0 <= box.y1 <= page.y1 + 1, name
        for i, one in enumerate(boxes):
            for other in boxes[i + 1 :]:
                assert not one.overlaps(other)


def test_report_without_teachers_still_stands(tmp_path: Path) -> None:
    study = small(tmp_path / "store", teachers=())
    table = gather(study.store, "miniature")
    table = table[table["kind"] == "linear"].reset_index(drop=True)
    made = analyse(table)
    write_figures(made, tmp_path / "figures")
    page = render(table, "Why?", sections(made, tmp_path / "figures", []))
    assert "Why?" in page
    assert "No cell of this study has a frozen teacher." in page
    assert "The charge decides" not in page
