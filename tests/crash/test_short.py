"""A short choice of what `python -m tests.crash` does; `make crash` does all of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.console import ROOT


def test_a_disturbed_study_ends_as_one_that_was_left_alone(tmp_path: Path) -> None:
    """In a process of its own: attempts are forked, and that needs one that has computed nothing."""
    told = tmp_path / "crash.json"
    command = [sys.executable, "-m", "tests.crash", "--short", "--folder", tmp_path / "stores"]
    command += ["--json", told]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=420)
    assert ended.returncode == 0, f"{ended.stdout[-6000:]}\n{ended.stderr[-3000:]}"
    figures = json.loads(told.read_bytes())
    assert figures["problems"] == 0
    assert figures["kills"] >= 15
    assert figures["writes"] >= 8
    assert figures["disk_rooms"] == figures["file_limits"] == 3
    assert figures["most_lost_steps"] <= figures["checkpoint_every_steps"]
