"""Where a computation came from: code, machine, packages. None of it is part of a run's identity.

What cannot be told is None or says why; nothing here raises, and nothing waits for long.
"""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import distributions, version
from pathlib import Path

import msgspec

from salt.code_identity import PACKAGES, code_root, code_sha256

GIT_LIMIT_S = 10.0
#: Beside the packages of a snapshot, which has no repository: what was known where it was taken.
SNAPSHOT_FILE = "provenance.json"


class CodeSource(msgspec.Struct, kw_only=True, frozen=True):
    """What git says of a folder of code. `problem`: why it says nothing; then all else is None or empty."""

    commit: str | None = None
    branch: str | None = None
    dirty: bool | None = None  # files that git knows differ from the commit
    untracked: tuple[str, ...] = ()  # files of our packages that git does not know
    problem: str | None = None

    def __str__(self) -> str:
        if self.commit is None:
            return "unknown"
        return self.commit + ("-dirty" if self.dirty else "")


class Provenance(msgspec.Struct, kw_only=True, frozen=True):
    """`provenance.json` of a snapshot of code."""

    code_sha256: str
    source: CodeSource
    diff: str | None  # what became of it: the name of the file beside this one, or why there is none
    taken: str
    host: str
    python: str
    executable: str
    gpu_driver: str | None
    packages: dict[str, str]


def attempt_provenance() -> dict[str, str | None]:
    """What an attempt at a run notes of itself."""
    return {
        "host": socket.gethostname(),
        "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        "slurm_job": slurm_job(),
        "pid": str(os.getpid()),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "gpu_driver": gpu_driver(),
        "git_commit": str(source_of_running_code()),
        "code_sha256": code_sha256(),
    }


def slurm_job() -> str | None:
    """`<array job>_<task>` or the job's number; None outside of Slurm."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


@cache
def source_of_running_code() -> CodeSource:
    """What is known of the code of this process: of a snapshot, what was known where it was taken."""
    root = code_root()
    try:
        return msgspec.json.decode((root / SNAPSHOT_FILE).read_bytes(), type=Provenance).source
    except (OSError, msgspec.DecodeError):
        return git_source(root)


def git_source(root: Path) -> CodeSource:
    """What git says of a folder. Works without git, without a repository, and where git refuses."""
    try:
        commit = _git(root, "rev-parse", "HEAD").strip()
        branch = _git(root, "rev-parse", "--abbrev-ref", "HEAD").strip()
        lines = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *_ours(root))
    except _GitSilent as silent:
        return CodeSource(problem=str(silent))
    changed = [line for line in lines.splitlines() if not line.startswith("??")]
    untracked = tuple(line[3:] for line in lines.splitlines() if line.startswith("??"))
    return CodeSource(
        commit=commit,
        branch=None if branch == "HEAD" else branch,
        dirty=bool(changed or untracked),
        untracked=untracked,
    )


def git_diff(root: Path) -> str | None:
    """The difference of our packages to the commit; None where git does not say."""
    try:
        return _git(root, "diff", "HEAD", "--no-color", "--no-ext-diff", "--", *_ours(root))
    except _GitSilent:
        return None


def _ours(root: Path) -> list[str]:
    return [name for name in (*PACKAGES, "salt_cli.py", "pyproject.toml") if (root / name).exists()]


class _GitSilent(RuntimeError):
    pass


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=GIT_LIMIT_S,
            check=False,
        )
    except FileNotFoundError as error:
        raise _GitSilent("git is not installed") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _GitSilent(f"git did not answer: {error}") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise _GitSilent(lines[0] if lines else f"git ended with {done.returncode}")
    return done.stdout


@cache
def gpu_driver() -> str | None:
    """Version of NVIDIA's driver as its kernel module says it; None where there is none."""
    try:
        return Path("/sys/module/nvidia/version").read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def provenance_of(root: Path, digest: str, diff: str | None) -> Provenance:
    """All that is known of the code in a folder and of this machine."""
    found = {each.metadata["Name"]: each.version for each in distributions() if each.metadata["Name"]}
    return Provenance(
        code_sha256=digest,
        source=git_source(root),
        diff=diff,
        taken=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        host=socket.gethostname(),
        python=platform.python_version(),
        executable=sys.executable,
        gpu_driver=gpu_driver(),
        packages=dict(sorted(found.items(), key=lambda item: item[0].lower())),
    )
