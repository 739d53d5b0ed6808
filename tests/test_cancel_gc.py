"""`salt-sweep cancel` and `gc`, with a stand-in for Slurm."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from salt.plan_specs import Plan
from salt.processes import machine, start_of
from salt.store import RunDir, write_atomically
from slurm.records import chunks, jobs_folder, read_record, readable, write_record
from tests.drain_kit import finish, holder
from tests.fake_slurm import FakeSlurm, queued, record_sent
from tests.queue_kit import plan, save, slurm, store, sweep

__all__ = ["plan", "slurm", "store"]  # fixtures


# --- cancel ----------------------------------------------------------------------------------------


def live_queue(slurm: FakeSlurm) -> None:
    slurm.answers(
        "squeue",
        queued(7, 0, "RUNNING", node="n1"),
        *(queued(7, task, "PENDING", "Priority") for task in (1, 2)),
        queued(99, 0, "RUNNING", node="n2"),
    )


def test_cancel_takes_all_lanes_of_the_plan_in_one_call(store: Path, slurm: FakeSlurm) -> None:
    live_queue(slurm)
    before = {path for path in store.rglob("*") if path.is_file()}
    text = sweep(store, "cancel", "small", "--yes")
    assert "cancelled 3 jobs with 6 unfinished runs" in text
    assert slurm.calls("scancel") == [["7"]]
    assert {path for path in store.rglob("*") if path.is_file()} == before


def test_cancel_of_some_runs_spares_the_others(store: Path, plan: Plan, slurm: FakeSlurm) -> None:
    live_queue(slurm)
    ids = [run.run_id for run in plan.runs]
    refused = sweep(store, "cancel", "small", ids[2], code=2)
    assert f"{ids[3]} (job 7_1)" in refused
    assert slurm.calls("scancel") == []
    sweep(store, "cancel", "small", ids[2], "--with-others")
    sweep(store, "cancel", "small", ids[2], ids[3][:8])
    finish(store, plan.runs[1])
    found = json.loads(sweep(store, "cancel", "small", ids[0], "--json"))
    assert slurm.calls("scancel") == [["7_1"], ["7_1"], ["7_0"]]
    assert found["lanes"] == {"7_0": [ids[0]]}


def test_cancel_says_why_it_could_not(store: Path, slurm: FakeSlurm) -> None:
    slurm.answers("squeue", code=1, error="Unable to contact slurm controller")
    assert "nothing was cancelled: squeue failed" in sweep(store, "cancel", "small", code=2)
    slurm.answers("squeue")
    assert "nothing to cancel" in sweep(store, "cancel", "small")
    live_queue(slurm)
    slurm.answers("scancel", code=1, error="Access/permission denied")
    assert "Access/permission denied" in sweep(store, "cancel", "small", code=2)


def test_cancel_knows_jobs_of_a_damaged_submission_by_their_comment(
    store: Path, plan: Plan, slurm: FakeSlurm
) -> None:
    name = "20260101-000000-aaaaaa"
    slurm.answers(
        "squeue",
        *(queued(7, task, "PENDING", "Priority", comment=f"salt {name} 0") for task in (0, 1)),
        queued(8, 0, "RUNNING", node="n1", comment=f"salt {name}x 0"),
        queued(9, 0, "RUNNING", node="n1", comment=f"of {name} somebody"),
    )
    record = jobs_folder(store, "small") / name / "submission.json"
    record.write_bytes(record.read_bytes()[:40])
    found = json.loads(sweep(store, "cancel", "small", plan.runs[0].run_id, "--json"))
    assert found["jobs"] == []  # which job has the run is not known
    found = json.loads(sweep(store, "cancel", "small", "--json"))
    assert found["jobs"] == ["7"]
    assert "`salt-sweep cancel` takes its jobs out of the queue" in found["notes"][0]
    assert slurm.calls("scancel") == [["7"]]


def test_a_submission_that_may_not_be_read_is_told_of(
    store: Path, slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As that of a colleague whose files are for him alone: nobody may take its runs for never sent."""
    folder = jobs_folder(store, "small") / "20260101-000000-aaaaaa"
    stat = os.stat

    def refuse(path: str, *args: Any, **options: Any) -> os.stat_result:  # to root nothing is forbidden
        if Path(path).parent == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", refuse)
    found, damages = readable(store, "small")
    assert found == []
    assert damages == {folder: f"{folder}: Permission denied: what was sent there is not known"}
    with pytest.raises(PermissionError):  # of what is sent
        chunks(store, "small")


def test_cancel_stops_a_local_submission_here_and_names_another_machine(
    tmp_path: Path, plan: Plan, slurm: FakeSlurm
) -> None:
    store = tmp_path / "local"
    save(store, plan)
    folder = record_sent(store, plan, None, [])
    (folder / "lanes.json").unlink()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    record = msgspec.structs.replace(
        read_record(folder), on="local", process=process.pid, started=start_of(process.pid), machine=machine()
    )
    write_record(folder, record)
    refused = sweep(store, "cancel", "small", plan.runs[0].run_id, code=2)
    assert f"process {process.pid} on this machine runs all of plan small" in refused
    assert "cancelled process" in sweep(store, "cancel", "small")
    assert process.wait(30) == -signal.SIGTERM
    assert "nothing to cancel" in sweep(store, "cancel", "small")
    write_record(folder, msgspec.structs.replace(record, machine="far/boot/ns", host="far"))
    assert "nothing to cancel" in sweep(store, "cancel", "small")  # and none of its runs beats
    claim = RunDir(store, plan.runs[0].run_id).claim
    write_atomically(claim, msgspec.json.encode(holder(machine="far/boot/ns", host="far")))
    elsewhere = sweep(store, "cancel", "small", code=2)
    assert f"as process {process.pid} on far: run `salt-sweep cancel small` there" in elsewhere
    assert slurm.calls("squeue") == []


# --- gc --------------------------------------------------------------------------------------------


def test_gc_removes_what_nobody_needs_and_no_run(store: Path, plan: Plan, slurm: FakeSlurm) -> None:
    jobs = jobs_folder(store, "small")
    code = store / "jobs" / ".code"
    for name in ("0000", "1111", "2222", "3333"):
        write_atomically(code / name / "salt" / "a.py", b"x" * 100)
        os.utime(code / name, (1.0, 1.0))
    write_atomically(code / "4444" / "salt" / "a.py", b"young")
    over = jobs / "20260101-000000-aaaaaa"
    ids = [run.run_id for run in plan.runs]
    lives, finished = (
        record_sent(store, plan, job, [[run_id]], name=name, code=str(code / snapshot))
        for job, run_id, name, snapshot in (
            ("8", ids[0], "20260102-000000-bbbbbb", "1111"),
            ("9", ids[1], "20260103-000000-cccccc", "2222"),
        )
    )
    finish(store, plan.runs[1])
    write_record(over, msgspec.structs.replace(read_record(over), code=str(code / "0000")))
    for folder in (over, lives, finished):
        write_atomically(folder / "logs" / "lane.pkl", b"pickle")
        write_atomically(folder / "logs" / "array-0.sh", b"#!/bin/sh\n")
        write_atomically(folder / "logs" / "7_0_0_log.out", b"")
        write_atomically(folder / "logs" / "7_0_0_log.err", b"said")
        write_atomically(folder / "workers" / "7_0-1.log", b"said")
    slurm.answers("squeue", code=1, error="down")
    assert "nothing is removed: squeue failed" in sweep(store, "gc", "small", code=2)
    slurm.answers("squeue", queued(8, 0, "RUNNING", node="n1"))
    runs = {path: path.stat().st_mtime_ns for path in (store / "runs").rglob("*")}
    temporary, made = (over / f".a.json.{pid}.tmp" for pid in (dead_process(), os.getppid()))
    temporary.write_text("half")
    made.write_text("half")
    write_atomically(over / "lanes" / "7_0.json", b"{}")
    found = json.loads(sweep(store, "gc", "small", "--json", "--yes"))
    assert (found["removed"]["code"], found["removed"]["temporaries"]) == ([], [str(temporary)])
    assert made.exists()
    assert not (over / "lanes").exists()
    assert sorted(found["removed"]["files"]) == sorted(
        str(folder / name)
        for folder in (over, finished)
        for name in ("logs/lane.pkl", "logs/array-0.sh", "logs/7_0_0_log.out", "lanes/7_0.json")
        if folder == over or not name.startswith("lanes")
    )
    # All but 3333 are of a plan that is not done; 4444 is young.
    found = json.loads(sweep(store, "gc", "--code", "--json", "--yes"))
    assert [Path(path).name for path in found["removed"]["code"]] == ["3333"]
    assert found["bytes"] == {"files": 0, "temporaries": 0, "logs": 0, "code": 100}
    for run in plan.runs:
        finish(store, run)
    runs = {path: path.stat().st_mtime_ns for path in (store / "runs").rglob("*")}
    sweep(store, "gc", "--code")
    assert sorted(path.name for path in code.iterdir()) == ["1111", "4444"]  # 1111: of a job in the queue
    assert (lives / "logs" / "lane.pkl").exists()
    assert (over / "logs" / "7_0_0_log.err").read_bytes() == b"said"
    assert (over / "submission.json").exists()
    assert "removed 16 bytes" in sweep(store, "gc", "--logs", "--yes")
    assert not (over / "workers" / "7_0-1.log").exists()
    assert (lives / "workers" / "7_0-1.log").exists()
    assert {path: path.stat().st_mtime_ns for path in (store / "runs").rglob("*")} == runs
    assert "nothing to remove" in sweep(store, "gc", "--logs")


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_jobs_that_another_queue_has_are_known_by_their_claims(store: Path, plan: Plan) -> None:
    folder = jobs_folder(store, "small") / "20260101-000000-aaaaaa"
    write_atomically(folder / "logs" / "lane.pkl", b"pickle")
    claim = RunDir(store, plan.runs[0].run_id).claim
    write_atomically(claim, msgspec.json.encode(holder(machine="far/boot/ns", host="far")))
    assert "nothing to remove" in sweep(store, "gc", "small")
    assert "no plan 'smal'" in sweep(store, "gc", "smal", code=2)
    claim.unlink()
    assert "removed 6 bytes" in sweep(store, "gc", "small")
    assert not (folder / "logs").exists()


def test_gc_of_local_submissions_asks_no_queue(store: Path, plan: Plan, slurm: FakeSlurm) -> None:
    slurm.answers("squeue", code=1, error="down")
    save(store, msgspec.structs.replace(plan, name="here"))
    folder = record_sent(store, msgspec.structs.replace(plan, name="here"), None, [])
    (folder / "lanes.json").unlink()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    own = {"process": process.pid, "started": start_of(process.pid), "machine": machine()}
    write_record(folder, msgspec.structs.replace(read_record(folder), on="local", **own))
    write_atomically(folder / "local.log", b"said")
    write_atomically(folder / "workers" / "worker-1-1.log", b"")
    assert "nothing to remove" in sweep(store, "gc", "here", "--logs")
    process.kill()
    process.wait()
    found = json.loads(sweep(store, "gc", "here", "--logs", "--json"))["removed"]
    assert found["files"] == [str(folder / "workers" / "worker-1-1.log")]
    assert found["logs"] == [str(folder / "local.log")]
    assert [path.name for path in folder.iterdir()] == ["submission.json"]
    assert "jobs of plan small are over is not known" in sweep(store, "gc", "here", "small", code=2)


def test_code_stays_while_a_worker_here_may_run_it(store: Path, plan: Plan) -> None:
    code = store / "jobs" / ".code" / "0000"
    write_atomically(code / "a.py", b"x")
    os.utime(code, (1.0, 1.0))
    claim = RunDir(store, plan.runs[0].run_id).claim
    (jobs_folder(store, "small") / "20260101-000000-aaaaaa" / "lanes.json").unlink()
    write_atomically(claim, msgspec.json.encode(holder()))
    found = json.loads(sweep(store, "gc", "--code", "--json", "--yes"))
    assert found["removed"]["code"] == []
    assert "all code is kept: a process outside of jobs works on" in found["kept"][0]
    claim.unlink()
    assert json.loads(sweep(store, "gc", "--code", "--json", "--yes"))["removed"]["code"] == [str(code)]
