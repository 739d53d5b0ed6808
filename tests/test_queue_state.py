"""What the queue says of runs, and what is said when it says nothing."""

import os
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from salt.plan_specs import Plan
from salt.store import RunDir, pretty_json, write_atomically
from slurm import scheduler
from slurm.queue_state import LanePhase, QueueView, lane_states
from slurm.records import read_record, write_record
from slurm.run_status import RunStatus
from slurm.states import Retry, State
from slurm.status import StatusReader
from slurm.worker import record_error
from tests.drain_kit import finish, holder, plan
from tests.fake_slurm import FakeSlurm, queued, record_sent

__all__ = ["plan"]  # a fixture


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    return FakeSlurm(tmp_path / "bin", monkeypatch)


@pytest.fixture
def store(tmp_path: Path, plan: Plan) -> Path:
    """Each run was sent as a lane of its own: job 7, in the plan's order."""
    record_sent(tmp_path, plan, "7", [[run.run_id] for run in plan.runs])
    return tmp_path


def hold(store: Path, run_id: str, age_s: float, step: int | None = None) -> None:
    """A claim of a process on another machine."""
    folder = RunDir(store, run_id)
    write_atomically(folder.claim, msgspec.json.encode(holder(machine="n1/boot/ns", host="n1")))
    os.utime(folder.claim, (time.time() - age_s,) * 2)
    if step is not None:
        folder.metrics.write_text(f'{{"step": {step}, "attempt": 1}}\n')


def rows(store: Path, plan: Plan) -> list[RunStatus]:
    return list(StatusReader(store, plan).ask().runs)


def test_a_plan_that_was_never_sent_to_slurm_asks_nobody(
    tmp_path: Path,
    plan: Plan,
    slurm: FakeSlurm,
) -> None:
    assert lane_states(tmp_path, plan) == QueueView()
    assert slurm.calls("squeue") == slurm.calls("sacct") == []
    assert {row.reason for row in rows(tmp_path, plan)[:2]} == {"not submitted"}


def test_squeue_first_then_sacct_for_what_is_gone(store: Path, plan: Plan, slurm: FakeSlurm) -> None:
    first, second, third, fourth, *_ = (run.run_id for run in plan.runs)
    finish(store, plan.runs[0])
    slurm.answers(
        "squeue",
        queued(7, 1, "RUNNING", node="n2"),
        queued(7, 2, "PENDING", "Dependency"),
        *(queued(7, task, "PENDING", "Priority") for task in (4, 5)),
        queued(99, 0, "RUNNING", node="n1"),
    )
    slurm.answers("sacct", "7_0|COMPLETED|0:0|n1|60", "7_3|TIMEOUT|0:0|n1|3600", "7_[4-5%2]|PENDING|0:0||0")
    view = lane_states(store, plan, done={first})
    assert view.notes == ()
    found = {name: (str(lane.lane), lane.phase) for name, lane in view.lanes.items()}
    assert found[first] == ("7_0", LanePhase.GONE)  # it is done: accounting was not asked about it
    assert found[second] == ("7_1", LanePhase.RUNNING)
    assert found[third] == ("7_2", LanePhase.WAITING)
    assert found[fourth] == ("7_3", LanePhase.ENDED)
    (call,) = slurm.calls("sacct")
    assert "--jobs=7" in call
    since = next(part for part in call if part.startswith("--starttime="))
    asked_s = time.mktime(time.strptime(since.partition("=")[2], "%Y-%m-%dT%H:%M:%S"))
    assert abs(asked_s - (time.time() - 86_400)) < 60
    status = rows(store, plan)
    assert status[3].reason == "job 7_3 ended (TIMEOUT on n1) before it was done: submit again"
    assert (status[1].job, status[1].node, status[1].queue_state) == ("7_1", "n2", "running")
    assert status[5].reason == "queued as 7_5 (Priority)"


def test_accounting_is_not_asked_when_the_queue_has_all(store: Path, plan: Plan, slurm: FakeSlurm) -> None:
    slurm.answers("squeue", *(queued(7, task, "PENDING", "Priority") for task in range(6)))
    lane_states(store, plan)
    assert slurm.calls("sacct") == []


@pytest.mark.parametrize("how", ["exit 1", "absent", "hangs", "ranges"])
def test_without_accounting_every_run_has_a_state(
    store: Path,
    plan: Plan,
    slurm: FakeSlurm,
    how: str,
) -> None:
    """Case 28."""
    hold(store, plan.runs[0].run_id, age_s=3.0)
    slurm.answers("squeue", queued(7, 0, "RUNNING", node="n1"), queued(7, 1, "PENDING", "Resources"))
    if how == "exit 1":
        slurm.answers("sacct", code=1, error="Slurm accounting storage is disabled")
    elif how == "absent":
        slurm.absent("sacct")
    elif how == "hangs":
        slurm.hangs("sacct")
    else:
        slurm.answers("sacct", "7_[2-5%2]|PENDING|0:0|None assigned|0")
    began = time.monotonic()
    status = StatusReader(store, plan).ask()
    assert time.monotonic() - began < 10
    assert [str(row.state) for row in status.runs] == ["running", "pending", *["waiting"] * 3, "pending"]
    assert status.runs[1].reason == "queued as 7_1 (Resources)"
    assert status.runs[5].reason == "job 7_5 is no longer in the queue before it was done: submit again"
    wanted = {
        "exit 1": "sacct failed with code 1: Slurm accounting storage is disabled",
        "absent": "sacct is not on this machine's PATH",
        "hangs": "sacct did not answer within 4 s",
    }
    notes = status.notes
    assert len(notes) == (how in wanted)
    assert all(note.startswith(wanted[how]) for note in notes)


def test_both_commands_may_hang(store: Path, plan: Plan, slurm: FakeSlurm) -> None:
    slurm.hangs("squeue")
    slurm.hangs("sacct")
    hold(store, plan.runs[0].run_id, age_s=60.0)
    began = time.monotonic()
    status = StatusReader(store, plan).ask()
    assert time.monotonic() - began < 10
    assert [note.partition(":")[0] for note in status.notes] == [
        "squeue did not answer within 4 s",
        "sacct did not answer within 2.5 s",
    ]
    # Nobody knows that its lane is gone, so its heartbeat counts.
    assert status.runs[0].state is State.RUNNING
    assert status.runs[1].reason == "sent as 7_1; the queue was not asked"


def test_the_controller_is_down_and_accounting_is_not(store: Path, plan: Plan, slurm: FakeSlurm) -> None:
    slurm.answers("squeue", code=1, error="slurm_load_jobs error: Unable to contact slurm controller")
    slurm.answers(
        "sacct", "7_0|RUNNING|0:0|n1|60", "7_1|PENDING|0:0|None assigned|0", "7_5|NODE_FAIL|0:0|n3|5"
    )
    hold(store, plan.runs[0].run_id, age_s=60.0)
    status = StatusReader(store, plan).ask()
    assert [row.queue_state for row in status.runs] == ["running", "waiting", *["unknown"] * 3, "ended"]
    assert status.runs[0].state is State.RUNNING
    (note,) = status.notes
    assert "Unable to contact slurm controller: states are told from files" in note


def test_what_is_queued_again_after_a_node_failed_has_not_ended(
    store: Path,
    plan: Plan,
    slurm: FakeSlurm,
) -> None:
    """Accounting says NODE_FAIL for some seconds, while the queue has the job again."""
    slurm.answers("sacct", "7_0|NODE_FAIL|0:0|n1|60")
    slurm.answers("squeue", queued(7, 0, "PENDING", "BeginTime"))
    hold(store, plan.runs[0].run_id, age_s=40.0, step=6)  # by its claim alone it would run
    hold(store, plan.runs[1].run_id, age_s=200.0, step=4)
    row, other, *_ = rows(store, plan)
    assert (row.state, row.reason) == (
        State.PENDING,
        "queued again as 7_0 (BeginTime), goes on from step 6",
    )
    assert other.state is State.LOST
    assert other.reason == (
        "the process that held it is gone (job 7_1 is no longer in the queue); submit again to resume"
    )


def test_a_run_whose_lane_is_gone_is_lost_as_soon_as_a_heartbeat_is_missed(
    store: Path,
    plan: Plan,
    slurm: FakeSlurm,
) -> None:
    slurm.answers("sacct", "7_0|OUT_OF_MEMORY|0:0|n1|60", "7_1|CANCELLED by 0|0:0|n2|9")
    hold(store, plan.runs[0].run_id, age_s=31.0, step=6)
    hold(store, plan.runs[1].run_id, age_s=5.0)  # somebody beats: not that lane, but it is not lost
    write_atomically(RunDir(store, plan.runs[5].run_id).claim, msgspec.json.encode(holder()))  # this process
    row, beats, *_, here = rows(store, plan)
    assert row.state is State.LOST
    assert row.reason == (
        "job 7_0 ended (OUT_OF_MEMORY on n1); its last heartbeat was 31 s ago; submit again: "
        "it goes on from step 6"
    )
    assert beats.state is State.RUNNING
    assert here.state is State.RUNNING


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        (
            "PENDING",
            "JobHeldUser",
            "queued as 7_0 (JobHeldUser): held; let it go with `scontrol release 7_0`",
        ),
        ("PENDING", "JobHeldAdmin", "an administrator lets it go with `scontrol release 7_0`"),
        (
            "PENDING",
            "job requeued in held state",
            "queued again as 7_0 (job requeued in held state): held; let",
        ),
        ("REQUEUE_HOLD", "None", "queued again as 7_0 (REQUEUE_HOLD): held; let it go with"),
    ],
)
def test_held_jobs_are_shown_with_the_way_out(
    store: Path,
    plan: Plan,
    slurm: FakeSlurm,
    state: str,
    reason: str,
    words: str,
) -> None:
    """Case 29."""
    slurm.answers("squeue", queued(7, 0, state, reason))
    assert words in (rows(store, plan)[0].reason or "")


def test_a_student_that_waits_for_ever_says_so(store: Path, plan: Plan, slurm: FakeSlurm) -> None:
    """Case 27: its teacher failed, and the scheduler keeps its job."""
    teacher, student = plan.runs[0], plan.runs[2]
    RunDir(store, teacher.run_id).path.mkdir(parents=True)
    slurm.answers("squeue", queued(7, 2, "PENDING", "DependencyNeverSatisfied"))
    waiting = rows(store, plan)[2]
    assert waiting.state is State.WAITING
    assert "7_2 (DependencyNeverSatisfied): what it waits for will not come; `salt-sweep cancel`" in (
        waiting.reason or ""
    )
    record_error(RunDir(store, teacher.run_id), "data", "no clips")
    blocked = rows(store, plan)[2]
    assert student.spec.teacher is not None
    assert blocked.state is State.BLOCKED
    name = rows(store, plan)[0].name
    assert (blocked.reason or "").startswith(
        f"teacher {teacher.run_id} failed: no clips ({name}); queued as 7_2"
    )
    assert "`salt-sweep cancel`; submit again when it is mended" in (blocked.reason or "")


def test_what_failed_and_is_sent_again_waits_and_so_does_what_it_blocked(
    store: Path,
    plan: Plan,
    slurm: FakeSlurm,
) -> None:
    teacher, student, diverged = plan.runs[0].run_id, plan.runs[2].run_id, plan.runs[1].run_id
    for name, kind in ((teacher, "data"), (diverged, "diverged")):
        RunDir(store, name).path.mkdir(parents=True)
        record_error(RunDir(store, name), kind, "no clips")
    slurm.answers("squeue", queued(7, 0, "RUNNING", node="n1"), queued(7, 2, "PENDING", "Dependency"))
    first = rows(store, plan)
    assert (first[0].state, first[2].state) == (State.FAILED, State.BLOCKED)  # that job made the error
    folder = record_sent(store, plan, "8", [[teacher], [student], [diverged]], name="20260102-000000-bbbbbb")
    written_ns = RunDir(store, teacher).error.stat().st_mtime_ns
    later = Retry(since_ns=written_ns + 10**9)
    write_record(folder, msgspec.structs.replace(read_record(folder), retry=later))
    slurm.answers("squeue", *(queued(8, task, "PENDING", "Priority") for task in range(3)))
    again = rows(store, plan)
    assert (again[0].state, again[0].kind, again[0].reason) == (
        State.PENDING,
        "data",
        "queued as 8_0 (Priority); its last attempt failed: no clips",
    )
    assert (again[2].state, again[2].reason) == (State.WAITING, "queued as 8_1 (Priority)")
    assert again[1].state is State.DIVERGED  # only tried again where that was asked for
    slurm.answers("squeue")
    gone = rows(store, plan)
    assert (gone[0].state, gone[2].state) == (State.FAILED, State.BLOCKED)


def test_an_array_that_was_never_sent_and_one_found_by_its_comment(
    tmp_path: Path,
    plan: Plan,
    slurm: FakeSlurm,
) -> None:
    folder = record_sent(tmp_path, plan, None, [[run.run_id] for run in plan.runs[:2]])
    assert rows(tmp_path, plan)[0].reason == "not submitted: its array was written down, but not sent"
    assert rows(tmp_path, plan)[5].reason == "not submitted"
    slurm.answers("squeue", queued(31, 1, "RUNNING", node="n4", comment=f"salt {folder.name} 0"))
    view = lane_states(tmp_path, plan)
    assert (str(view.lanes[plan.runs[1].run_id].lane), view.lanes[plan.runs[1].run_id].node) == ("31_1", "n4")


def test_the_newest_lane_counts_unless_an_older_one_lives(store: Path, plan: Plan, slurm: FakeSlurm) -> None:
    runs = [run.run_id for run in plan.runs]
    record_sent(store, plan, "8", [runs[:2]], name="20260102-000000-bbbbbb")
    slurm.answers("squeue", queued(7, 1, "RUNNING", node="n1"))
    lanes = lane_states(store, plan).lanes
    assert [str(lanes[name].lane) for name in runs[:3]] == ["8_0", "7_1", "7_2"]


def test_a_damaged_record_costs_its_submission_alone(store: Path, plan: Plan, slurm: FakeSlurm) -> None:
    folder = record_sent(store, plan, "8", [[plan.runs[0].run_id]], name="20260102-000000-bbbbbb")
    (folder / "submission.json").write_text("{")
    slurm.answers("squeue", queued(7, 0, "RUNNING", node="n1"))
    view = lane_states(store, plan)
    assert str(view.lanes[plan.runs[0].run_id].lane) == "7_0"
    assert any(str(folder / "submission.json") in note for note in view.notes)


def test_the_status_changes_nothing(store: Path, plan: Plan, slurm: FakeSlurm) -> None:
    hold(store, plan.runs[0].run_id, age_s=500.0, step=3)
    finish(store, plan.runs[1])
    (RunDir(store, plan.runs[2].run_id).path / "x").parent.mkdir(parents=True)
    write_atomically(RunDir(store, plan.runs[2].run_id).env, pretty_json({"attempts": []}))
    folders = ("runs", "jobs")
    before = {path: path.stat().st_mtime_ns for name in folders for path in (store / name).rglob("*")}
    StatusReader(store, plan).ask()
    assert {path: path.stat().st_mtime_ns for name in folders for path in (store / name).rglob("*")} == before


def test_a_command_being_started_when_asking_stops_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    def interrupted(*arguments: Any, **options: Any) -> Any:
        process = real(*arguments, **options)
        scheduler.stop_asking()  # it runs, and nobody could find it yet
        return process

    monkeypatch.setattr(scheduler.subprocess, "Popen", interrupted)
    with pytest.raises(scheduler.SchedulerSilent, match="failed with code -9"):
        scheduler.ask(["sleep", "60"], timeout_s=50)
    monkeypatch.undo()
    assert scheduler.ask(["echo", "again"]) == "again\n"
