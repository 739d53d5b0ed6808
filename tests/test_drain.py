"""Many workers on one plan: who takes what, what waits, what happens to those that fail or die.

Runs are replaced by a stand-in that writes a result; claims, processes and kills are real.
"""

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from salt.attempts import DEFAULT_ATTEMPTS, begin_attempt
from salt.claim import Claim
from salt.disk import DiskFailed
from salt.errors import RunFailed
from salt.plan_specs import Plan, PlannedRun
from salt.plans import encode_plan, plan_dir
from salt.specs import ExecSpec, ProbeSpec
from salt.store import RunDir, write_atomically
from slurm.fleet import Fleet
from slurm.states import Retry, State, assess
from slurm.status import last_step, plan_status, status_tables
from slurm.submission import Submission
from slurm.worker import RUNS_FAILED, Drain, record_error
from tests.drain_kit import (
    ROOT,
    Claimant,
    StandIn,
    drain,
    finish,
    holder,
    plan,
    states,
)

__all__ = ["plan"]  # a fixture


# --- what a worker takes --------------------------------------------------------------------------


def test_one_worker_does_everything_in_the_plans_order(plan: Plan, tmp_path: Path) -> None:
    stand_in = StandIn()
    drained = drain(tmp_path, plan, stand_in).run()
    assert stand_in.executed == drained.finished == [run.run_id for run in plan.runs]
    assert drained.failed == []
    assert states(tmp_path, plan) == [State.DONE] * 6
    assert not list(tmp_path.rglob("claim"))
    again = StandIn()
    assert drain(tmp_path, plan, again).run().finished == again.executed == []


def test_students_wait_for_their_teacher_and_others_do_not(plan: Plan, tmp_path: Path) -> None:
    teachers = [run.run_id for run in plan.runs if run.role == "teacher"]
    free = plan.runs[-1].run_id
    free_has_run = threading.Event()
    taken: list[str] = []
    lock = threading.Lock()

    def execute(store: Path, run: PlannedRun, probes: Mapping[str, ProbeSpec], execution: ExecSpec) -> None:
        with lock:
            taken.append(run.run_id)
        if run.run_id in teachers:
            assert free_has_run.wait(20), "nobody took the run without a teacher while the teachers trained"
        if run.run_id == free:
            free_has_run.set()
        StandIn()(store, run, probes, execution)

    workers = [threading.Thread(target=drain(tmp_path, plan, execute).run) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert sorted(taken) == sorted(run.run_id for run in plan.runs)  # each exactly once
    assert set(taken[:3]) == {*teachers, free}
    assert states(tmp_path, plan) == [State.DONE] * 6


def test_a_failed_run_is_recorded_and_the_rest_goes_on(plan: Plan, tmp_path: Path) -> None:
    broken, sound = plan.runs[0].run_id, plan.runs[1].run_id
    diverged = plan.runs[-1].run_id
    faults = {broken: ValueError("a wrong shape"), diverged: RunFailed("diverged", "loss is nan at step 3")}
    stand_in = StandIn(faults)
    drained = drain(tmp_path, plan, stand_in).run()
    assert drained.failed == [broken, diverged]
    expected = [State.FAILED, State.DONE, State.BLOCKED, State.BLOCKED, State.DONE, State.DIVERGED]
    assert states(tmp_path, plan) == expected
    error = RunDir(tmp_path, broken).read_error()
    assert error is not None
    assert (error.kind, error.message, error.host) == (
        "code",
        "ValueError: a wrong shape",
        socket.gethostname(),
    )
    assert error.traceback is not None
    assert "ValueError" in error.traceback
    status = {run.run_id: run for run in plan_status(tmp_path, plan).runs}
    assert status[diverged].reason == "loss is nan at step 3"
    assert broken in (status[plan.runs[2].run_id].reason or "")
    assert status[sound].done_flops == status[sound].planned_flops

    # A second submission retries what failed, but not what diverged, and finishes the blocked students.
    now_ns = RunDir(tmp_path, diverged).error.stat().st_mtime_ns + 1
    second = StandIn()
    assert drain(tmp_path, plan, second, since_ns=now_ns).run().failed == []
    assert second.executed == [broken, plan.runs[2].run_id, plan.runs[3].run_id]
    third = StandIn()
    drain(tmp_path, plan, third, since_ns=now_ns, diverged=True).run()
    assert third.executed == [diverged]


def test_two_workers_do_not_both_retry_a_failing_run(plan: Plan, tmp_path: Path) -> None:
    stand_in = StandIn({run.run_id: RunFailed("data", "no clips") for run in plan.runs})
    for _ in range(2):
        drain(tmp_path, plan, stand_in).run()
    assert sorted(stand_in.executed) == sorted(
        [plan.runs[0].run_id, plan.runs[1].run_id, plan.runs[-1].run_id]
    )


def test_a_failure_that_a_full_disk_keeps_from_the_files_is_not_tried_for_ever(
    tmp_path: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = DiskFailed("no space is left", errno.ENOSPC)

    def fail(*_: object, **__: object) -> None:
        raise full

    monkeypatch.setattr("slurm.worker.record_error", fail)
    tried, said = [], []

    def execute(store: Path, planned: PlannedRun, *rest: object) -> None:
        tried.append(planned.run_id)
        fail()

    drained = Drain(tmp_path, plan, execute=execute, poll_s=0.01, report=said.append).run()
    free = [run.run_id for run in plan.runs if run.spec.teacher is None]
    assert tried == drained.failed == free
    assert sum("could not be written" in text for text in said) == len(free)


def test_a_file_damaged_meanwhile_costs_its_run_alone(tmp_path: Path, plan: Plan) -> None:
    """Damaged while the first run trains: the run it belongs to is told of, all others are trained."""
    free = RunDir(tmp_path, plan.runs[-1].run_id)
    stand_in, said = StandIn(), []

    def execute(store: Path, planned: PlannedRun, *rest: Any) -> None:
        stand_in(store, planned, *rest)
        if planned.run_id == plan.runs[0].run_id:
            write_atomically(free.env, b'{"attempts": [{"began_unix_s": "x"}]}')

    drained = Drain(tmp_path, plan, execute=execute, poll_s=0.01, report=said.append).run()
    assert drained.finished == [planned.run_id for planned in plan.runs[:-1]]
    assert [run_id for run_id, each in assess(tmp_path, plan).items() if each.state is State.DAMAGED] == [
        free.run_id
    ]


def test_what_was_left_after_a_result_is_tidied_up(tmp_path: Path, plan: Plan) -> None:
    Drain(tmp_path, plan, execute=StandIn(), poll_s=0.01, report=lambda _: None).run()
    runs = [RunDir(tmp_path, planned.run_id) for planned in plan.runs]
    whole = [sorted(run.path.iterdir()) for run in runs]
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for run in runs[:2]:
        write_atomically(run.claim, msgspec.json.encode(holder(pid=dead.pid)))
        (run.path / f".env.json.{dead.pid}.tmp").touch()
        (run.path / ".claim.0123.tmp").touch()
    write_atomically(runs[2].claim, msgspec.json.encode(holder()))  # alive: about to give it back
    Drain(tmp_path, plan, execute=StandIn(), poll_s=0.01, report=lambda _: None).run()
    assert runs[2].claim.exists()
    runs[2].claim.unlink()
    assert [[path for path in sorted(run.path.iterdir()) if path.name != "claim.lock"] for run in runs] == [
        [path for path in files if path.name != "claim.lock"] for files in whole
    ]


# --- processes ------------------------------------------------------------------------------------


@pytest.fixture
def held(plan: Plan, tmp_path: Path) -> Path:
    """A store in which only one run is left, and this process has it: a worker can only wait."""
    write_atomically(plan_dir(tmp_path, plan.name) / "plan.jsonl", encode_plan(plan))
    for run in plan.runs[:-1]:
        finish(tmp_path, run)
    return tmp_path


def test_a_worker_whose_parent_is_gone_stops(plan: Plan, held: Path) -> None:
    with Claim.acquire(RunDir(held, plan.runs[-1].run_id)):
        command = [
            sys.executable,
            "-m",
            "slurm.worker",
            "--store",
            str(held),
            "--plan",
            plan.name,
            "--parent",
            "1",
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130, done.stderr
    assert "submit again" in done.stdout


def test_a_killed_worker_is_reported_and_replaced(plan: Plan, held: Path) -> None:
    fleet = Fleet(Submission(store=held, plan=plan, retry=Retry()), workers=1)
    with Claim.acquire(RunDir(held, plan.runs[-1].run_id)):
        fleet.start()
        victim = fleet.processes[0]
        os.kill(victim.pid, signal.SIGKILL)
        victim.wait()
        assert fleet.watch()
        replaced = fleet.processes[0]
        assert replaced.pid != victim.pid
        fleet.stop()
    assert len(fleet.deaths) == 1
    assert f"process {victim.pid} was ended by SIGKILL" in fleet.deaths[0]
    assert replaced.poll() is not None
    assert not fleet.watch()


def test_a_run_that_always_kills_its_worker_is_given_up(plan: Plan, tmp_path: Path) -> None:
    spec = plan.runs[-1].spec
    lethal = msgspec.structs.replace(plan.runs[-1], run_id="ab")
    only = msgspec.structs.replace(plan, runs=(lethal,), cells=())
    assert spec == lethal.spec
    fleet = Fleet(Submission(store=tmp_path, plan=only, retry=Retry()), workers=0)
    run = RunDir(tmp_path, "ab")
    for death in range(DEFAULT_ATTEMPTS):
        assert run.read_error() is None
        victim = Claimant(tmp_path)
        victim.tell()
        assert victim.outcome() == "won", death
        begin_attempt(run, {"host": "gpu003"})
        victim.kill()
        fleet.mourn(victim.process.pid, -signal.SIGKILL, tmp_path / "log")
    error = run.read_error()
    assert error is not None
    assert (error.kind, error.attempt, error.host) == ("killed", DEFAULT_ATTEMPTS, "gpu003")
    assert (
        "3 attempts in a row without a new step, on gpu003: its process was ended by SIGKILL" in error.message
    )
    assert "memory was short" in error.message
    assert fleet.deaths[0].count("had run ab and was ended by") == 1


def test_the_workers_own_exit_code_is_not_pythons(plan: Plan) -> None:
    assert RUNS_FAILED not in (0, 1, 2, 130)


# --- status ---------------------------------------------------------------------------------------


def test_status_is_told_from_files_and_changes_none(plan: Plan, tmp_path: Path) -> None:
    teacher, other, student, _, _, free = plan.runs
    finish(tmp_path, teacher)
    folder = RunDir(tmp_path, other.run_id)
    dead = RunDir(tmp_path, student.run_id)
    write_atomically(dead.claim, msgspec.json.encode(holder(started="1")))
    RunDir(tmp_path, free.run_id).path.mkdir(parents=True)  # the holder's of its claim
    record_error(RunDir(tmp_path, free.run_id), "disk", "no space left")
    with Claim.acquire(folder):
        folder.metrics.write_text('{"step": 3, "attempt": 1}\n{"step": 4, "attempt": 1}\n{"step": 5, "att')
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
        status = plan_status(tmp_path, plan)
        tables = status_tables(status)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    found = [str(run.state) for run in status.runs]
    assert found == ["done", "running", "lost", "pending", "waiting", "failed"]
    running = status.runs[1]
    assert (running.step, running.total_steps) == (4, 10)
    assert running.done_flops == running.planned_flops * 4 // 10
    assert running.heartbeat_age_s is not None
    assert f"process {os.getpid()}" in (running.holder or "")
    assert (status.runs[5].kind, status.runs[5].reason) == ("disk", "no space left")
    assert status.done_flops == teacher.cost.total_flops + running.done_flops
    assert status.planned_flops == sum(run.cost.total_flops for run in plan.runs)
    assert not status.complete
    assert len(tables) == 3  # counts, in progress, not well


def test_the_last_step_of_a_long_or_torn_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_step(path) is None
    path.write_text("")
    assert last_step(path) is None
    path.write_text("".join(f'{{"step": {step}, "loss": 0.123456789}}\n' for step in range(1, 5000)))
    assert last_step(path) == 4999
    with open(path, "ab") as file:
        file.write(b'{"st\n{"step": 5')
    assert last_step(path) == 4999
