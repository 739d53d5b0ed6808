"""A process that takes a cluster down when the tests that started it are gone, however they went."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOOK_S = 0.2


def start(folder: Path) -> subprocess.Popen[bytes]:
    """Start one for this process's cluster."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.slurm", "guard", str(folder), str(os.getpid())],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # neither Ctrl-C nor the end of a group of processes reaches it
    )


def dismiss(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def watch(folder: Path, owner: int) -> None:
    """Return when the cluster has been taken down because its owner, this process's parent, has died."""
    from tests.slurm.cluster import Cluster

    while os.getppid() == owner:
        time.sleep(LOOK_S)
    Cluster(folder).down()
