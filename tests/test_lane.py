"""A lane that has to stop: what has it queued again, and what does not."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from salt.attempts import begin_attempt, end_attempt
from salt.plan_specs import Plan
from salt.signals import STOP
from salt.store import RunDir, write_atomically
from slurm.lane import Lane
from slurm.profile import SlurmProfile
from slurm.records import read_lanes, read_record
from slurm.worker import RUNS_FAILED, record_error
from tests.drain_kit import finish, plan
from tests.fake_slurm import FakeSlurm, queued, record_sent

__all__ = ["plan"]  # a fixture

JOB = "77_0"


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeSlurm]:
    yield FakeSlurm(tmp_path / "bin", monkeypatch)
    STOP.clear()


def lane_of(store: Path, plan: Plan, runs: list[str], **profile: int) -> Lane:
    """The lane of job 77_0, which has these runs."""
    folder = record_sent(store, plan, "77", [runs], name="20260101-000000-aaaaaa")
    record = msgspec.structs.replace(
        read_record(folder), profile=SlurmProfile(time=60, signal_delay_s=60, **profile)
    )
    (chunk,) = read_lanes(folder)
    return Lane(store, plan, folder, record, chunk, 0, JOB)


def tell(slurm: FakeSlurm, *, ends_in_s: float, state: str = "RUNNING") -> float:
    """Let squeue say when the job ends and in which state it is; the end as Unix time."""
    end = int(time.time() + ends_in_s)
    text = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(end))
    line = queued(77, 0, state, node="n1")
    path = slurm.folder / "squeue"
    calls = shlex.quote(str(slurm.folder / "squeue.calls"))
    path.write_text(
        f'#!/bin/sh\necho "$*" >> {calls}\ncase "$*" in *--jobs=*) echo {text};; *) echo "{line}";; esac\n'
    )
    return float(end)


def requeues(slurm: FakeSlurm) -> list[list[str]]:
    return [call for call in slurm.calls("scontrol") if call[0] == "requeue"]


def save(store: Path, run_id: str, step: int) -> None:
    """What a checkpoint leaves that `progress` looks at."""
    write_atomically(RunDir(store, run_id).checkpoints / f"step-{step:08d}.json", b"{}")


def test_a_warning_queues_this_one_task_again(slurm: FakeSlurm, plan: Plan, tmp_path: Path) -> None:
    """Case 32: the task, never the array."""
    lane = lane_of(tmp_path, plan, [plan.runs[0].run_id])
    lane.ends_unix_s = tell(slurm, ends_in_s=3000)
    STOP.ask(signal.SIGUSR2)
    assert lane.end(lane.progress()) == "stopped (SIGUSR2): queued again"
    assert requeues(slurm) == [["requeue", JOB]]


def test_nothing_is_queued_again_when_all_is_done(slurm: FakeSlurm, plan: Plan, tmp_path: Path) -> None:
    finish(tmp_path, plan.runs[0])
    lane = lane_of(tmp_path, plan, [plan.runs[0].run_id])
    STOP.ask(signal.SIGUSR2)
    assert lane.end(lane.progress()) == "all runs done"
    assert not requeues(slurm)


@pytest.mark.parametrize(("state", "again"), [("RUNNING", True), ("COMPLETING", False), ("CANCELLED", False)])
def test_sigterm_is_a_preemption_or_somebodys_scancel(
    slurm: FakeSlurm, plan: Plan, tmp_path: Path, state: str, again: bool
) -> None:
    lane = lane_of(tmp_path, plan, [plan.runs[0].run_id])
    tell(slurm, ends_in_s=3000, state=state)
    STOP.ask(signal.SIGTERM)
    assert ("queued again" in lane.end(lane.progress()).removesuffix("not queued again")) or not again
    assert bool(requeues(slurm)) is again


def test_time_limits_without_a_new_step_come_to_an_end(
    slurm: FakeSlurm, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Case 29: as many as `SALT_ATTEMPTS`; a new step starts the count again, a preemption is not counted."""
    run_id = plan.runs[0].run_id
    lane = lane_of(tmp_path, plan, [run_id])
    STOP.ask(signal.SIGUSR2)

    def limit() -> str:
        lane.ends_unix_s = tell(slurm, ends_in_s=60)
        return lane.end(before)

    before = lane.progress()
    assert "queued again" in limit()
    assert "queued again" in limit()
    save(tmp_path, run_id, 5)
    assert "queued again" in limit(), "it has a new step"
    before = lane.progress()
    assert "queued again" in limit()
    for _ in range(5):
        tell(slurm, ends_in_s=10)  # a preemption: the end has come nearer since the lane began
        lane.ends_unix_s = time.time() + 3000
        assert "queued again" in lane.end(before)
    assert "queued again" in limit()
    with pytest.raises(SystemExit) as stop:
        limit()
    assert stop.value.code == 1
    assert "3 times in a row the time limit came before a new step" in capsys.readouterr().out
    assert len(requeues(slurm)) == 10


def test_a_job_of_ten_minutes_is_told_apart_too(slurm: FakeSlurm, plan: Plan, tmp_path: Path) -> None:
    """A preemption early in a short job is none of its time limits."""
    lane = lane_of(tmp_path, plan, [plan.runs[0].run_id])
    lane.ends_unix_s = tell(slurm, ends_in_s=500)
    STOP.ask(signal.SIGUSR2)
    before = lane.progress()
    for _ in range(5):
        assert "queued again" in lane.end(before)
    assert not (lane.folder / "lanes").exists()


def test_a_requeue_that_is_refused_leaves_a_hole_and_says_so(
    slurm: FakeSlurm, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lane = lane_of(tmp_path, plan, [plan.runs[0].run_id])
    lane.ends_unix_s = tell(slurm, ends_in_s=3000)
    slurm.answers("scontrol", code=1, error="Requested operation is presently disabled for job 77")
    STOP.ask(signal.SIGUSR2)
    with pytest.raises(SystemExit):
        lane.end(lane.progress())
    said = capsys.readouterr().out
    assert "presently disabled" in said
    assert "submit again" in said


def test_a_controller_that_is_started_again_just_then_is_asked_again(
    slurm: FakeSlurm, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = lane_of(tmp_path, plan, [plan.runs[0].run_id])
    lane.ends_unix_s = tell(slurm, ends_in_s=3000)
    monkeypatch.setattr("slurm.lane.REQUEUE_PAUSE_S", 0.0)
    calls, asked = slurm.folder / "scontrol.calls", slurm.folder / "asked"
    (slurm.folder / "scontrol").write_text(  # fails once
        f'#!/bin/sh\necho "$*" >> {calls}\n[ -e {asked} ] && exit 0\n: > {asked}\n'
        "echo scontrol: error: Unable to contact slurm controller >&2\nexit 1\n"
    )
    STOP.ask(signal.SIGUSR2)
    assert "queued again" in lane.end(lane.progress())
    assert requeues(slurm) == [["requeue", JOB]] * 2


def test_machine_failures_go_to_another_node_and_others_do_not(
    slurm: FakeSlurm, plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, faulty = plan.runs[0].run_id, plan.runs[1].run_id
    lane = lane_of(tmp_path, plan, [broken, faulty], exclude_after=2)
    tell(slurm, ends_in_s=3000)
    for run_id, message in ((broken, "NCCL error: unhandled system error"), (faulty, "KeyError: 'x'")):
        folder = RunDir(tmp_path, run_id)
        begin_attempt(folder, {"host": "h", "node": "n1"})
        kind = "ranks" if run_id == broken else "code"
        end_attempt(folder, kind, message)
        record_error(folder, kind, message)
    assert lane.end(lane.progress()) == f"the machine failed {broken}: queued again"
    assert requeues(slurm) == [["requeue", JOB]]
    assert not any("ExcNodeList" in word for call in slurm.calls("scontrol") for word in call), (
        "once is no row"
    )

    other = RunDir(tmp_path, plan.runs[2].run_id)
    for folder in (RunDir(tmp_path, broken), other):
        begin_attempt(folder, {"host": "h", "node": "n1"})
        end_attempt(folder, "ranks", "NCCL error: unhandled system error")
    lane.end(lane.progress())
    assert ["update", f"jobid={JOB}", "ExcNodeList=n1"] in slurm.calls("scontrol")
    assert "n1: the last" in capsys.readouterr().out

    begin_attempt(RunDir(tmp_path, broken), {"host": "h", "node": "n2"})
    end_attempt(RunDir(tmp_path, broken), "ranks", "NCCL error: unhandled system error")
    with pytest.raises(SystemExit) as stop:  # three in a row without a step: given up
        lane.end(lane.progress())
    assert stop.value.code == RUNS_FAILED
