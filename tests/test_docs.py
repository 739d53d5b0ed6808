"""The documentation builds, explains every key, and its shell blocks run as they stand.

A block is fenced as `sh`. A second word says why it is not run here: `build` (installs or builds
everything), `hours` (trains for long), `site` (a cluster, GPUs or a server), `weights` (published weights).
Such blocks are parsed: every salt command with the options that its parser knows.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from salt.plans import plan_dir
from sweeps.completion_cli import parsers
from sweeps.reference_doc import comments, structs, study_kinds
from sweeps.site import SiteSpec
from tests.console import ROOT, salt

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
REASONS = ("build", "hours", "site", "weights")
BLOCK = re.compile(r"^```sh([^\n]*)\n(.*?)^```", re.M | re.S)
#: Commands of ours, whatever starts them.
OURS = re.compile(r"(salt-(?:sweep|analyze|train|data) .*?)(?:$|\||>|\"\)?$)")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(reason why it is not run, or nothing; text) of every shell block."""
    return [(mark.strip(), text) for mark, text in BLOCK.findall(page.read_text())]


RUN = [page for page in PAGES if any(not mark for mark, _ in blocks(page))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted: a finished study in `salt-store`, a study file, a site profile."""
    path = tmp_path_factory.mktemp("docs") / "work"
    path.mkdir()
    environment = {"SALT_STORE": str(path / "salt-store")}
    shutil.copytree(ROOT / "notebooks", path / "notebooks")
    shutil.copytree(ROOT / "examples", path / "examples")

    def run(*argv: str) -> None:
        command = [sys.executable, str(ROOT / "salt_cli.py"), *argv]
        done = subprocess.run(command, cwd=path, env=os.environ | environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("salt-sweep", "init", ".")
    shutil.copy(path / "site.yaml", path / "cluster.yaml")
    run("salt-sweep", "plan", "--budget", "1e21")
    text = (plan_dir(path / "salt-store", "paper") / "study.yaml").read_text()
    (path / "paper-2.yaml").write_text(text.replace("name: paper", "name: paper-2"))
    run("salt-sweep", "plan", "paper-2.yaml")
    run("salt-analyze", "import", "notebooks/miniature.salt.tar.gz")  # the newest plan
    (path / "bin").mkdir()
    for name in ("salt-sweep", "salt-analyze", "salt-train", "salt-data"):
        script = path / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{ROOT / "salt_cli.py"}" {name} "$@"\n')
        script.chmod(0o755)
    return path


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_shell_blocks_run_as_they_stand(page: Path, folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "work"))
    environment = {name: value for name, value in os.environ.items() if name != "SALT_STORE"}
    environment["PATH"] = f"{place / 'bin'}{os.pathsep}{environment['PATH']}"
    for mark, text in blocks(page):
        if not mark:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=place, env=environment, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, f"{text}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"


def test_every_other_block_says_why_and_knows_its_options() -> None:
    known = {parser.prog: parser for parser in parsers()}
    ran = parsed = 0
    for page in PAGES:
        # No shell block goes without a fence: four blanks before a command of ours.
        assert not re.search(r"^    (salt-|make |torchrun )", page.read_text(), re.M), page.name
        for mark, text in blocks(page):
            assert mark == "" or mark in REASONS, f"{page.name}: {mark!r}"
            lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
            for line in lines:
                found = OURS.search(line.partition(" #")[0].strip())
                if found is None:
                    assert mark, f"{page.name}: {line}"
                    continue
                words = shlex.split(found[1].rstrip('"'))
                _parse(known[words[0]], words[1:], f"{page.name}: {line}")
                ran, parsed = (ran + (not mark), parsed + bool(mark))
    assert ran >= 30
    assert parsed >= 40


def _parse(parser: argparse.ArgumentParser, words: list[str], where: str) -> None:
    """Raises where a parser would end the process: `...` stands for arguments that are left out."""
    words = [word for word in words if word != "..."]

    def refuse(message: str) -> None:
        raise AssertionError(f"{where}: {message}")

    for each in _all(parser):
        each.error = refuse  # type: ignore[method-assign, assignment]
    parser.parse_args(words)


def _all(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                found += _all(sub)
    return found


@pytest.mark.parametrize("kind", [*study_kinds(), *structs(SiteSpec)], ids=lambda kind: kind.__name__)
def test_every_key_of_a_study_and_a_site_is_explained(kind: type[msgspec.Struct]) -> None:
    told = comments(kind)
    assert [name for name in kind.__struct_fields__ if not told.get(name)] == []
    assert (kind.__doc__ or "").strip(), f"{kind.__name__} says nothing of itself"


def test_the_site_builds_without_a_warning_and_asks_for_nothing(tmp_path: Path) -> None:
    source = shutil.copytree(
        ROOT / "docs", tmp_path / "salt" / "docs", ignore=shutil.ignore_patterns("generated")
    )
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path / "salt")
    shutil.copytree(ROOT / "examples", tmp_path / "salt" / "examples")
    out = tmp_path / "html"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(source),
        str(out),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    pages = list(out.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        text = page.read_text()
        for tag in re.findall(r"<(?:script|img|link|iframe)[^>]+>", text):
            assert not re.search(r"(?:src|href)=\"(?:https?:)?//", tag), f"{page.name}: {tag}"
    assert "budgets_flops" in (out / "generated" / "study-file.html").read_text()
    assert "salt-analyze verify" in (out / "generated" / "commands.html").read_text()
    assert "weak_teacher" in (out / "api.html").read_text()


def test_version_and_citation_agree() -> None:
    import salt as package

    assert f"version: {package.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{package.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    out, _ = salt(ROOT, "salt-sweep", "--version")
    assert package.__version__ in out
