"""A small plan whose runs are in Slurm's hands, and the commands that are asked about it."""

from __future__ import annotations

from pathlib import Path

import pytest

from salt.plan_specs import Plan
from salt.plans import encode_plan, plan_dir
from salt.store import write_atomically
from tests.drain_kit import plan
from tests.fake_slurm import FakeSlurm, record_sent
from tests.fuzz_kit import command as called

__all__ = ["plan"]  # a fixture


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "bin", monkeypatch)


@pytest.fixture
def store(tmp_path: Path, plan: Plan, slurm: FakeSlurm) -> Path:
    """The plan on disk; all runs sent as job 7, two to a lane."""
    store = tmp_path / "store"
    save(store, plan)
    ids = [run.run_id for run in plan.runs]
    record_sent(store, plan, "7", [ids[0:2], ids[2:4], ids[4:6]])
    return store


def save(store: Path, plan: Plan) -> None:
    write_atomically(plan_dir(store, plan.name) / "plan.jsonl", encode_plan(plan))


def sweep(store: Path, *argv: str, code: int = 0) -> str:
    """What a command prints: its output, or its error."""
    ended = called("salt-sweep", argv[0], *argv[1:], "--store", str(store))
    assert ended.code == code, ended.out + ended.err
    return ended.out if code == 0 else ended.err
