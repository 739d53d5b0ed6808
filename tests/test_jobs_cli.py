"""What `salt-sweep cancel` finds: jobs by their comment, clips being decoded, runs in a foreground."""

from pathlib import Path

import msgspec
import pytest

from salt.errors import UserError
from salt.plan_specs import Plan
from salt.plans import encode_plan, plan_dir
from salt.processes import machine
from salt.store import RunDir, write_atomically
from slurm.cancel import Cancelled, cancel
from slurm.records import Chunk, Lane, LaneRef, jobs_folder, note_sent, read_record, write_lanes
from slurm.scheduler import QueuedTask
from tests.drain_kit import finish, holder, plan
from tests.fake_slurm import FakeSlurm, queued, record_sent
from tests.fuzz_kit import Ended
from tests.fuzz_kit import command as called

__all__ = ["plan"]  # a fixture

NAME = "20260101-000000-aaaaaa"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "bin", monkeypatch)


@pytest.fixture
def store(tmp_path: Path, plan: Plan, slurm: FakeSlurm) -> Path:
    """All runs were sent, two to a lane; the sender was killed before it wrote their job down."""
    write_atomically(plan_dir(tmp_path, plan.name) / "plan.jsonl", encode_plan(plan))
    ids = [run.run_id for run in plan.runs]
    folder = record_sent(tmp_path, plan, None, [])
    lanes = tuple(Lane(runs=tuple(ids[first : first + 2])) for first in (0, 2, 4))
    write_lanes(
        folder, [Chunk(number=0, lanes=(Lane(runs=()),), prepares=True), Chunk(number=1, lanes=lanes)]
    )
    note_sent(folder, 0, "6")
    return tmp_path


def cancelled(store: Path, *argv: str) -> Ended:
    ended = called("salt-sweep", "cancel", "small", *argv, "--store", str(store))
    assert ended.code == 0, ended.err
    return ended


def test_jobs_whose_sender_was_killed_are_known_by_their_comment(store: Path, slurm: FakeSlurm) -> None:
    comment = f"salt {NAME} 1"
    slurm.answers(
        "squeue",
        queued(6, 0, "RUNNING", node="n1"),
        queued(7, 1, "PENDING", "Dependency", comment=comment),
        queued(7, 2, "PENDING", "Dependency", comment=comment),
        queued(8, 0, "RUNNING", node="n1", comment="salt 20260101-000000-bbbbbb 1"),
    )
    ended = cancelled(store)
    assert "job 6_0, running on n1: decodes clips" in ended.err
    assert "cancelled 3 jobs with 4 unfinished runs" in ended.out
    assert slurm.calls("scancel") == [["6", "7"]]
    assert (jobs_folder(store, "small") / NAME / "jobs.jsonl").read_text().count("\n") == 1  # as before


def test_what_begins_from_a_cancelled_run_is_named(store: Path, plan: Plan, slurm: FakeSlurm) -> None:
    teachers, students = plan.runs[:2], plan.runs[2:5]
    slurm.answers("squeue", *(queued(7, task, "PENDING", comment=f"salt {NAME} 1") for task in (0, 1, 2)))
    ended = cancelled(store, *(run.run_id for run in teachers))
    names = ", ".join(run.run_id for run in students)
    assert f"3 runs cannot be made without these: {names}" in ended.err
    assert slurm.calls("scancel") == [["7_0"]]
    for run in teachers:
        finish(store, run)
    assert "no job of it with a run of these to do waits or runs" in cancelled(store, teachers[0].run_id).out


def test_runs_in_the_foreground_are_for_the_one_who_started_them(store: Path, plan: Plan) -> None:
    write_atomically(RunDir(store, plan.runs[5].run_id).claim, msgspec.json.encode(holder(host="near")))
    ended = cancelled(store)
    assert "nothing to cancel" in ended.out
    assert "on near works on vjepa" in ended.err
    assert "stop it with Ctrl-C where it was started" in ended.err


def test_what_slurm_refuses_does_not_keep_a_process_from_being_told(
    store: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm.answers("scancel", code=1, error="Invalid job id")
    record = read_record(jobs_folder(store, "small") / NAME)
    here = msgspec.structs.replace(record, on="local", process=1, started=None, machine=machine())
    found = Cancelled(plan="small", local=[here])
    task = QueuedTask(job="7", task=0, state="RUNNING", reason="", nodes="n1", comment="")
    found.lanes[LaneRef(job="7", task=0)] = (task, [])
    told: list[tuple[int, int]] = []
    monkeypatch.setattr("slurm.cancel.os.kill", lambda *about: told.append(about))
    with pytest.raises(UserError, match="Invalid job id"):
        cancel(found)
    assert told[-1] == (1, 15)
