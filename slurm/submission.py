"""What to run and how, shared by all launchers, and how a worker process is started for it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from salt.plan_specs import Plan
from slurm.states import Retry

#: Variables by which libraries take as many threads as a machine has cores, each on its own account.
_POOLS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What to run and how.

    `code` is the folder that workers import salt from, by default the one that this process did. With `lane`,
    the folder of a submission, an array of it and a task of that, workers take that lane's runs alone.
    """

    store: Path
    plan: Plan
    retry: Retry  # which errors are let be
    code: Path | None = None
    lane: tuple[Path, int, int] | None = None

    @property
    def folder(self) -> Path:
        """The launcher's own folder; disposable."""
        return self.store / "jobs" / self.plan.name

    def worker_command(self) -> list[str]:
        """The command line of a worker process that ends with this one."""
        command = [sys.executable, "-P", "-m", "slurm.worker", f"--store={self.store}"]
        command += ["--plan", self.plan.name, "--retry", msgspec.json.encode(self.retry).decode()]
        command += ["--parent", str(os.getpid())]
        if self.lane is not None:
            command += ["--lane", *map(str, self.lane)]
        return command


def worker_environment(threads: int, code: Path | None = None) -> dict[str, str]:
    """The environment of a worker: our packages first on the path, and no more threads than it was given."""
    root = str((code or Path(__file__).resolve().parent.parent).absolute())
    before = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part not in ("", root)]
    path = os.pathsep.join([root, *before])
    return {**os.environ, **dict.fromkeys(_POOLS, str(threads)), "PYTHONPATH": path}
