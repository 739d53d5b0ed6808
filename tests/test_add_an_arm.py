"""The steps of docs/add-an-arm.md make an arm: planned, trained, probed and drawn."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from tests.arms_kit import write_clips
from tests.console import ROOT
from tests.test_tune import STUDY

PAGE = ROOT / "docs" / "add-an-arm.md"
PACKAGES = ("salt", "slurm", "sweeps", "analysis")


def apply(diff: str, root: Path) -> None:
    """Make the changes of a diff without line numbers: each run of lines is found once, and replaced."""
    name = re.search(r"^\+\+\+ b/(.+)$", diff, re.M)
    assert name is not None
    path = root / name[1]
    text = path.read_text()
    body = [line for line in diff.splitlines() if not line.startswith(("--- ", "+++ "))]
    for old, new in hunks(body):
        assert text.count(old) == 1, f"{path.name} has {text.count(old)} times:\n{old}"
        text = text.replace(old, new)
    path.write_text(text)


def hunks(lines: list[str]) -> list[tuple[str, str]]:
    """(lines as they are, lines as they become); `@@`, or a removal after an addition, begins the next."""
    found: list[tuple[list[str], list[str]]] = [([], [])]
    last = " "
    for line in lines:
        kind, text = line[:1], line[1:]
        if kind == "@" or (kind == "-" and last == "+"):
            found.append(([], []))
        if kind in " -":
            found[-1][0].append(text)
        if kind in " +":
            found[-1][1].append(text)
        last = kind
    return [("\n".join(old) + "\n", "\n".join(new) + "\n") for old, new in found]


def test_the_steps_of_the_page_make_an_arm(tmp_path: Path) -> None:
    root = tmp_path / "code"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "salt_cli.py", root)
    diffs = re.findall(r"^```diff\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(diffs) == 4
    for diff in diffs:
        apply(diff, root)
    for first, split in ((0, "train"), (20, "selection"), (40, "report")):
        write_clips(tmp_path / split, first=first)
    (told,) = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    study = STUDY | yaml.safe_load(told) | {"budgets_flops": [5e9]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))

    def salt(*argv: str) -> str:
        environment = os.environ | {"SALT_STORE": str(tmp_path / "store"), "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-P", str(root / "salt_cli.py"), *argv],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    cells = json.loads(salt("salt-sweep", "plan", "study.yaml", "--audit", "--json"))["cells"]
    assert {cell["arm"]: cell["steps"] for cell in cells}["mean"] == cells[0]["steps"]  # as dear as pixels
    salt("salt-sweep", "submit", "small", "--on", "inline", "--yes")
    said = json.loads(salt("salt-analyze", "pareto", "small", "--out", "out", "--json"))
    scores = {row["arm"]: row["mean"] for row in said["configurations"]}
    assert set(scores) == {"pixel", "mean"}
    assert (tmp_path / "out" / "figures" / "pareto.png").read_bytes().startswith(b"\x89PNG")
    losses = {}
    for path in (tmp_path / "store" / "runs").glob("*/*/result.json"):
        arm = json.loads(path.with_name("spec.json").read_bytes())["arm"]
        losses[arm] = json.loads(path.read_bytes())["final_loss"]
    assert losses["mean"] != losses["pixel"]
