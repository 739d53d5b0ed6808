"""`salt-sweep logs`: what workers, jobs and Slurm said about one run."""

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from salt.attempts import Environment
from salt.plan_specs import Plan
from salt.plans import encode_plan, plan_dir
from salt.store import RunDir, pretty_json, write_atomically
from slurm.records import jobs_folder
from tests.drain_kit import holder, plan
from tests.fake_slurm import record_sent
from tests.fuzz_kit import command as called

__all__ = ["plan"]  # a fixture

NAME = "20260101-000000-aaaaaa"


@pytest.fixture
def store(tmp_path: Path, plan: Plan) -> Path:
    """The plan on disk; all runs sent as job 7, two to a lane."""
    write_atomically(plan_dir(tmp_path, plan.name) / "plan.jsonl", encode_plan(plan))
    ids = [run.run_id for run in plan.runs]
    record_sent(tmp_path, plan, "7", [ids[0:2], ids[2:4], ids[4:6]])
    return tmp_path


def wrote(store: Path, name: str, text: str, until: str) -> Path:
    """A log of the submission, last changed at that time of this machine's clock."""
    path = jobs_folder(store, "small") / NAME / name
    write_atomically(path, text.encode())
    os.utime(path, (datetime.fromisoformat(until).timestamp(),) * 2)
    return path


def attempts(store: Path, run_id: str, *those: Mapping[str, str | None]) -> None:
    write_atomically(
        RunDir(store, run_id).env, pretty_json(Environment(attempts=[dict(one) for one in those]))
    )


def attempt(started: str, node: str, job: str | None, ended: str | None) -> dict[str, str | None]:
    return {"started": f"{started}+0000", "host": "vm", "node": node, "slurm_job": job, "ended": ended}


def logs(store: Path, *argv: str, code: int = 0) -> str:
    ended = called("salt-sweep", "logs", *argv, "--plan", "small", "--store", str(store))
    assert ended.code == code, ended.out + ended.err
    return ended.out if code == 0 else ended.err


def test_logs_of_a_damaged_submission_are_still_read(store: Path, plan: Plan) -> None:
    run = plan.runs[0].run_id
    wrote(store, "workers/7_0-1.log", f"10:00:00 start teacher nano ({run})\nhello\n", "2026-01-02T10:00:20")
    record = jobs_folder(store, "small") / NAME / "submission.json"
    record.write_bytes(record.read_bytes()[:40])
    assert logs(store, run).endswith("hello\n")


def test_an_attempt_has_its_worker_and_what_its_job_and_slurm_said_meanwhile(store: Path, plan: Plan) -> None:
    run, other = plan.runs[0].run_id, plan.runs[1].run_id
    first = wrote(
        store,
        "workers/7_0-1.log",
        f"09:58:00 start teacher tiny ({other})\nof another\n"
        f"09:59:59 done teacher tiny ({other}) in 119.0 s\n"
        f"10:00:00 start teacher nano ({run})\nwarning: slow disk\x1b[2J\n",
        "2026-01-02T10:00:20",
    )
    second = wrote(
        store,
        "workers/7_0-2.log",
        f"10:00:31 start teacher nano ({run})\nTraceback (most recent call last):\n"
        f"10:00:50 FAILED teacher nano ({run}): first line\nsecond line\n"
        f"10:00:51 start teacher tiny ({other})\nof another\n",
        "2026-01-02T10:09:00",
    )
    dead = f"worker process 11 had run {run} and was ended by SIGKILL; its log: {first}"
    out = wrote(
        store,
        "logs/7_0_0_log.out",
        "submitit INFO (2026-01-02 09:57:59,100) - Starting\n2026-01-02 09:57:59 lane 7_0 on n1, plan small\n"
        f"2026-01-02 09:58:30 worker process 9 had run {other} and was ended by SIGKILL; its log: x\n"
        f"2026-01-02 10:00:30 {dead}\n2026-01-02 10:08:00 1 of 2 runs failed: {run}\n",
        "2026-01-02T10:09:00",
    )
    err = wrote(
        store,
        "logs/7_0_0_log.err",
        "slurmstepd-n1: error: Detected 1 oom-kill event(s) in StepId=7.0\n",
        "2026-01-02T10:00:21",
    )
    wrote(store, "logs/7_1_0_log.err", "slurmstepd: of another lane\n", "2026-01-02T10:00:21")
    attempts(
        store, run, attempt("2026-01-02T10:00:07", "n1", "7_0", None),
        attempt("2026-01-02T10:00:38", "n1", "7_0", "code"),
    )  # fmt: skip
    text = logs(store, run[:6])
    about = "on n1 (host vm), job 7_0, began 2026-01-02"
    assert text.splitlines() == [
        f"==> {first}, from line 4; attempt 1 {about} 10:00:07, no end noted <==",
        f"10:00:00 start teacher nano ({run})",
        "warning: slow disk\\x1b[2J",
        f"==> {err} <==",
        "slurmstepd-n1: error: Detected 1 oom-kill event(s) in StepId=7.0",
        f"==> {out} <==",
        f"2026-01-02 10:00:30 {dead}",
        f"==> {second}, from line 1; attempt 2 {about} 10:00:38, code <==",
        f"10:00:31 start teacher nano ({run})",
        "Traceback (most recent call last):",
        f"10:00:50 FAILED teacher nano ({run}): first line",
        "second line",
        f"==> {out} <==",
        f"2026-01-02 10:08:00 1 of 2 runs failed: {run}",
    ]
    assert logs(store, run, "--lines", "3").splitlines() == [
        f"==> {second}, from line 3; attempt 2 {about} 10:00:38, code <==",
        f"10:00:50 FAILED teacher nano ({run}): first line",
        "second line",
        *text.splitlines()[-2:],
    ]
    of_other = logs(store, other)
    assert "of another" in of_other
    assert "slow disk" not in of_other
    assert "oom-kill" in of_other  # of this lane, without a time, and a worker still has the run


def test_what_stopped_a_run_is_told_after_it_and_a_finished_one_has_no_more(store: Path, plan: Plan) -> None:
    run = plan.runs[0].run_id
    stopped = (
        f"23:59:58 start teacher nano ({run})\n00:00:10 teacher nano ({run}) stopped after step 3; saved\n"
    )
    path = wrote(
        store,
        "workers/7_0-1.log",
        f"{stopped}00:02:20 start teacher nano ({run})\n00:03:00 done teacher nano ({run}) in 40.0 s\n",
        "2026-01-05T00:03:00",
    )
    wrote(
        store,
        "logs/7_0_0_log.err",
        "srun: the job begins\n"
        "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-05T00:00:11 DUE TO JOB REQUEUE ***\n"
        "srun: error: n1: task 0: Terminated\n"
        "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-05T00:09:00 DUE TO TIME LIMIT ***\n",
        "2026-01-05T00:09:00",
    )
    attempts(
        store, run, attempt("2026-01-03T08:00:00", "vm", None, "node"),
        attempt("2026-01-05T00:00:02", "n1", "7_0", "stopped"),
        attempt("2026-01-05T00:02:30", "n2", "7_0", "oom"),
        attempt("2026-01-05T00:02:40", "n2", "7_0", "done"),
    )  # fmt: skip
    parts = json.loads(logs(store, run, "--json"))["parts"]
    assert [(one["kind"], one["first_line"]) for one in parts] == [("worker", 1), ("lane", 1), ("worker", 3)]
    assert [[each["number"] for each in one["attempts"]] for one in parts] == [[2], [], [3, 4]]
    assert [one["began"] for one in parts] == [
        "2026-01-04T23:59:58", "2026-01-04T23:59:58", "2026-01-05T00:02:20"
    ]  # fmt: skip
    assert parts[1]["lines"] == [
        "srun: the job begins",
        "slurmstepd-n1: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-05T00:00:11 DUE TO JOB REQUEUE ***",
        "srun: error: n1: task 0: Terminated",
    ]
    assert parts[0]["path"] == str(path)
    said = called("salt-sweep", "logs", run, "--plan", "small", "--store", str(store)).err
    assert "no log is left of attempt 1" in said


def test_a_lane_that_died_before_its_runs_tells_why_while_they_are_not_done(store: Path, plan: Plan) -> None:
    run = plan.runs[4].run_id
    nothing = logs(store, run, code=2)
    assert f"looked in {store / 'jobs' / 'small'}: worker-*.log" in nothing
    assert "it is waiting: the state that it begins from" in nothing
    assert "no run begins so" in logs(store, "zz", code=2)
    wrote(
        store, "logs/7_2_0_log.err", "ModuleNotFoundError: No module named 'msgspec'\n", "2026-01-02T10:00:00"
    )
    assert logs(store, run).splitlines()[-1] == "ModuleNotFoundError: No module named 'msgspec'"
    wrote(
        store,
        "../worker-4-1.log",
        f"11:00:00 start student ({run})\n11:00:05 done student ({run}) in 5.0 s\n",
        "2026-01-02T11:00:05",
    )
    assert logs(store, run).splitlines()[1:] == [
        f"11:00:00 start student ({run})",
        f"11:00:05 done student ({run}) in 5.0 s",
    ]


def test_a_sender_that_was_killed_before_it_wrote_the_job_down_costs_no_log(store: Path, plan: Plan) -> None:
    run = plan.runs[4].run_id
    wrote(store, "workers/7_2-1.log", f"10:00:00 start student ({run})\nstep 1\n", "2026-01-02T10:00:05")
    wrote(store, "logs/7_2_0_log.err", "slurmstepd: error: killed\n", "2026-01-02T10:00:05")
    (jobs_folder(store, "small") / NAME / "jobs.jsonl").write_text("")
    said = [line for line in logs(store, run).splitlines() if not line.startswith("==>")]
    assert said == [f"10:00:00 start student ({run})", "step 1", "slurmstepd: error: killed"]


def test_following_goes_on_while_a_process_has_the_run(
    store: Path, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plan.runs[0]
    folder = RunDir(store, run.run_id)
    text = f"10:00:00 start teacher nano ({run.run_id})\nstep 1\n"
    log = wrote(store, "workers/7_0-1.log", text, "2026-01-02T10:00:01")
    write_atomically(folder.claim, msgspec.json.encode(holder()))
    steps = [lambda: _add(log, "step 2\n"), folder.claim.unlink, lambda: _add(log, _done(run.run_id))]
    monkeypatch.setattr("sweeps.logs_cli.time.sleep", lambda seconds: steps.pop(0)())
    shown = logs(store, run.run_id, "--follow")
    assert shown.splitlines()[1:] == [*text.splitlines(), "step 2", _done(run.run_id).strip()]
    assert steps == []
    killed = [lambda: None] * 3  # without a claim and without a last word: it does not wait for one for ever
    wrote(store, "workers/7_0-1.log", text, "2026-01-02T10:00:01")
    monkeypatch.setattr("sweeps.logs_cli.time.sleep", lambda seconds: killed.pop()())
    assert logs(store, run.run_id, "--follow").splitlines()[1:] == text.splitlines()
    assert killed == []


def _done(run_id: str) -> str:
    return f"10:00:09 done teacher nano ({run_id}) in 9.0 s\n"


def _add(log: Path, text: str) -> None:
    with open(log, "a") as file:
        file.write(text)


def test_damaged_records_cost_their_notes_and_not_the_logs(store: Path, plan: Plan) -> None:
    run = plan.runs[0].run_id
    wrote(store, "workers/7_0-1.log", f"10:00:00 start teacher ({run})\nstep 1\n", "2026-01-02T10:00:01")
    (jobs_folder(store, "small") / NAME / "lanes.json").write_text("{")
    RunDir(store, run).env.parent.mkdir(parents=True, exist_ok=True)
    RunDir(store, run).env.write_text("{")
    ended = called("salt-sweep", "logs", run, "--plan", "small", "--store", str(store))
    assert ended.out.splitlines()[-1] == "step 1"
    assert "lanes.json" in ended.err
    assert "env.json" in ended.err
