"""Slurm's commands as scripts that say what a test wants: where the real ones cannot be made to, such as to
hang, or to be without accounting.
"""

import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from salt.plan_specs import Plan
from slurm.records import (
    Chunk,
    Lane,
    SubmissionRecord,
    jobs_folder,
    note_sent,
    write_lanes,
    write_record,
)
from slurm.states import Retry

COMMANDS = ("squeue", "sacct", "scontrol", "scancel", "sbatch", "srun", "sacctmgr")


class FakeSlurm:
    """A folder that is all of PATH: a command that no test has set answers with nothing."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        self._cat, self._sleep = (shutil.which(name) for name in ("cat", "sleep"))
        monkeypatch.setenv("PATH", str(folder))
        for name in COMMANDS:
            self.answers(name)

    def answers(self, name: str, *lines: str, code: int = 0, error: str = "") -> None:
        text, said = self.folder / f"{name}.out", self.folder / f"{name}.err"
        text.write_text("".join(f"{line}\n" for line in lines))
        said.write_text(error)
        self._script(
            name, f"{self._cat} {shlex.quote(str(text))}\n{self._cat} {shlex.quote(str(said))} >&2\n", code
        )

    def hangs(self, name: str) -> None:
        """For a minute, with a child of its own that holds its output open."""
        self._script(name, f"{self._sleep} 60\n")

    def absent(self, name: str) -> None:
        (self.folder / name).unlink()

    def calls(self, name: str) -> list[list[str]]:
        """The arguments of each call, oldest first."""
        path = self.folder / f"{name}.calls"
        return [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _script(self, name: str, body: str, code: int = 0) -> None:
        calls = shlex.quote(str(self.folder / f"{name}.calls"))
        path = self.folder / name
        path.write_text(f'#!/bin/sh\necho "$*" >> {calls}\n{body}exit {code}\n')
        path.chmod(0o755)


def queued(job: int, task: int, state: str, reason: str = "None", node: str = "", comment: str = "") -> str:
    """A line of squeue, as `scheduler.queue` asks for it."""
    return f"{job}{task}|{job}|{task}|{state}|{reason}|{node}|{comment}"


def record_sent(
    store: Path,
    plan: Plan,
    job: str | None,
    lanes: Sequence[Sequence[str]],
    *,
    name: str = "20260101-000000-aaaaaa",
    code: str | None = None,
) -> Path:
    """The folder of a submission of one array to Slurm, with `job` None before that was sent."""
    folder = jobs_folder(store, plan.name) / name
    record = SubmissionRecord(
        submission=name,
        plan=plan.name,
        on="slurm",
        unix_s=time.time(),
        host="login",
        command=("salt-sweep",),
        code=code,
        retry=Retry(),
    )
    write_record(folder, record)
    write_lanes(folder, [Chunk(number=0, lanes=tuple(Lane(runs=tuple(runs)) for runs in lanes))])
    if job is not None:
        note_sent(folder, 0, job)
    return folder
