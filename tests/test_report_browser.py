"""The report as a reader meets it: opened from disk in a real browser, on a desk and on a phone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from analysis.cli import main
from tests.synthetic import BUDGETS, make_study

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        assert "CI" not in os.environ, "no Chromium: install the Debian package chromium"
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    # Its sandbox needs a user that is not root.
    flags = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=found, args=flags)
        yield running
        running.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with names that would run as markup if any were taken for it."""
    study = make_study(
        tmp_path_factory.mktemp("store"),
        budgets=BUDGETS[1:],
        labels=(HOSTILE,),
        students=("micro",),
        teachers=("nano", "micro"),
        question=f"{HOSTILE}<script>alert(2)</script>?",
    )
    assert main(["report", "miniature", "--store", str(study.store), "--probe", "linear"]) == 0
    return study.store / "reports" / "miniature" / "report.html"


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)], ids=["desktop", "phone"])
def test_report_opens_from_disk_shows_runs_and_is_accessible(
    browser: Any, report: Path, width: int, height: int
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = browser.new_page(viewport={"width": width, "height": height})
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("dialog", lambda dialog: said.append(dialog.message))
    page.goto(report.as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [report.as_uri()]
    assert said == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 100)")
    assert page.locator("img[src=x]").count() == 0
    assert HOSTILE in page.inner_text("header")

    point = page.locator(".point").nth(2)
    told = point.locator("span")
    assert not told.is_visible()
    point.hover(force=True)
    shown = page.locator(".point span:visible")
    assert shown.count() == 1
    text, box = shown.inner_text(), shown.bounding_box()
    assert " %" in text and "run " in text and "seed" in text  # noqa: PT018
    assert box is not None
    assert box["x"] >= 0 and box["x"] + box["width"] <= width  # noqa: PT018

    place = page.locator(".picture").first.bounding_box()
    assert place is not None
    assert place["width"] <= width
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    page.close()
