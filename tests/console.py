"""The commands as processes of their own, in a folder with a store."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(folder: Path, *argv: str) -> subprocess.Popen[str]:
    environment = os.environ | {"SALT_STORE": str(folder / "store")}
    command = [sys.executable, str(ROOT / "salt_cli.py"), *argv]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def salt(folder: Path, *argv: str, code: int = 0) -> tuple[str, str]:
    process = start(folder, *argv)
    out, err = process.communicate(timeout=420)
    assert process.returncode == code, f"{argv}: {out[-2000:]}\n{err[-2000:]}"
    return out, err
