"""What to run and how, shared by all launchers, and how a worker process is started for it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

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
    since_ns: int  # errors older than this are retried
    retry_diverged: bool = False
    retry_given_up: bool = False
    retry_kinds: tuple[str, ...] = ()
    code: Path | None = None
    lane: tuple[Path, int, int] | None = None

    @property
    def retry(self) -> Retry:
        """Which errors are let be."""
        return Retry(
            since_ns=self.since_ns,
            diverged=self.retry_diverged,
            given_up=self.retry_given_up,
            kinds=self.retry_kinds,
        )

    @property
    def folder(self) -> Path:
        """The launcher's own folder; disposable."""
        return self.store / "jobs" / self.plan.name

    def worker_command(self) -> list[str]:
        """The command line of a worker process that ends with this one."""
        command = [sys.executable, "-P", "-m", "slurm.worker", f"--store={self.store}"]
        command += ["--plan", self.plan.name, "--since-ns", str(self.since_ns)]
        command += ["--parent", str(os.getpid())]
        if self.lane is not None:
            command += ["--lane", *map(str, self.lane)]
        command += [f"--retry-kind={kind}" for kind in self.retry_kinds]
        command += ["--retry-diverged"] if self.retry_diverged else []
        return [*command, "--retry-given-up"] if self.retry_given_up else command


def worker_environment(threads: int, code: Path | None = None) -> dict[str, str]:
    """The environment of a worker: our packages first on the path, and no more threads than it was given."""
    root = str(code or Path(__file__).resolve().parent.parent)
    before = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part not in ("", root)]
    path = os.pathsep.join([root, *before])
    return {**os.environ, **dict.fromkeys(_POOLS, str(threads)), "PYTHONPATH": path}
