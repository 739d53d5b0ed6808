"""The documentation builds, explains every key, and its shell blocks run as they stand.

A block is fenced as `sh`. A second word says why it is not run here: see `NOT_RUN`. Such blocks are parsed:
every salt command with the options that its parser knows. No command is in a block of another kind.
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
import yaml

from salt.plans import plan_dir
from sweeps.completion_cli import parsers
from sweeps.reference_doc import NOT_RUN, comments, structs, study_kinds
from sweeps.site import SiteSpec
from tests.console import ROOT, salt

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.M | re.S)
#: What may stand in a fence that holds no commands; `{...}` is Sphinx's.
SILENT = ("yaml", "python", "diff", "text", "json")
#: Commands of ours, whatever starts them.
OURS = re.compile(r"(salt-(?:sweep|analyze|train|data) .*?)(?:$|\||>|\"\)?$)")
#: Lines that a reader would type.
TYPED = re.compile(
    r"^(?:\$ )?(?:salt-(?:sweep|analyze|train|data) (?![a-z-]+: )|make [a-z]|git [a-z]|pip |"
    r"python3? -m|torchrun |srun |sbatch |apt-get |optuna-dashboard )"
)


def fences(page: Path) -> list[tuple[str, str]]:
    """(what stands behind the fence, text) of every fenced block."""
    return [(info.strip(), text) for _, info, text in FENCE.findall(page.read_text())]


def blocks(page: Path) -> list[tuple[str, str]]:
    """(reason why it is not run, or nothing; text) of every shell block."""
    return [(info[2:].strip(), text) for info, text in fences(page) if re.match(r"sh\b", info)]


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


def finished_study(place: Path) -> None:
    """The plan `study` is the shipped one, which is done, under another name."""
    plans = place / "salt-store" / "plans"
    shutil.copytree(plans / "miniature", plans / "study")
    lines = plans / "study" / "plan.jsonl"
    lines.write_text(lines.read_text().replace('"name":"miniature"', '"name":"study"', 1))


def results_of_others(place: Path) -> None:
    """results.csv: a loss that falls with parameters and tokens by a law, as another project writes it."""
    rows = ["C,N,tokens,val_loss,seed,method"]
    for budget in (1e18, 3e18, 1e19, 3e19, 1e20):
        for size in (1e8, 2e8, 4e8, 8e8):
            tokens = budget / (6 * size)
            rows.append(f"{budget},{size},{tokens},{1.7 + 400 / size**0.34 + 410 / tokens**0.28},0,plain")
    (place / "results.csv").write_text("\n".join(rows) + "\n")


#: What a page takes for granted beside the rest.
BEFORE = {"cluster.md": finished_study, "analysis-tables.md": results_of_others}


def test_python_blocks_run_as_they_stand(folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "work"))
    code = "\n".join(text for info, text in fences(ROOT / "docs" / "python.md") if info == "python")
    assert "import analysis" in code
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-1500:]
    assert (place / "report" / "report.html").is_file()


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_shell_blocks_run_as_they_stand(page: Path, folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "work"))
    BEFORE.get(page.name, lambda place: None)(place)
    environment = {name: value for name, value in os.environ.items() if name != "SALT_STORE"}
    environment["PATH"] = f"{place / 'bin'}{os.pathsep}{environment['PATH']}"
    for mark, text in blocks(page):
        if not mark:
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", text],
                cwd=place, env=environment, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, f"{text}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"


def test_no_command_is_outside_a_shell_block() -> None:
    for page in PAGES:
        for info, text in fences(page):
            kind = info.partition(" ")[0]
            assert kind == "sh" or kind in SILENT or kind.startswith("{"), f"{page.name}: ```{info}\n{text}"
            if kind != "sh":
                typed = [line for line in text.splitlines() if TYPED.match(line.strip())]
                assert typed == [], f"{page.name}: ```{info}"
        rest = FENCE.sub("", page.read_text())
        typed = [line for line in rest.splitlines() if line.startswith("    ") and TYPED.match(line.strip())]
        assert typed == [], page.name


def test_every_block_is_run_or_says_why_and_knows_its_options() -> None:
    known = {parser.prog: parser for parser in parsers()}
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    ran = parsed = 0
    for page in PAGES:
        for mark, text in blocks(page):
            assert mark == "" or mark in NOT_RUN, f"{page.name}: {mark!r}"
            lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
            for line in lines:
                ran, parsed = (ran + (not mark), parsed + bool(mark))
                found = OURS.search(line.partition(" #")[0].strip())
                if found is None:
                    assert mark, f"{page.name}: {line}"
                    if line.startswith("make "):
                        assert line.split()[1] in targets, f"{page.name}: {line}"
                    continue
                words = shlex.split(found[1].rstrip('"'))
                _parse(known[words[0]], words[1:], f"{page.name}: {line}")
    # As many as when this was written, or more: lines that run here, and lines that are only parsed.
    assert ran >= 50
    assert parsed >= 51


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

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    for work in (citation, *citation["references"]):
        people = [tuple(sorted(person.items())) for person in work["authors"]]
        assert len(set(people)) == len(people) > 0  # as the format asks

    assert f"version: {package.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{package.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    out, _ = salt(ROOT, "salt-sweep", "--version")
    assert package.__version__ in out
