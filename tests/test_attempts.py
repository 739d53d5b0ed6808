"""Attempts without progress, kinds of failures, and what people are told of both."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from salt.attempts import (
    DEFAULT_ATTEMPTS,
    Fruitless,
    attempts_allowed,
    begin_attempt,
    end_attempt,
    fruitless,
    read_attempts,
    was_stopped,
)
from salt.claim import Claim
from salt.errors import ClaimLost, Interrupted, RunFailed, UserError
from salt.failures import as_failure, ended_how
from salt.plan_specs import Plan, PlannedRun
from salt.signals import STOP
from salt.store import RunDir, write_atomically
from salt.video import VideoError
from slurm.ranks import RankError, _failure, _wait
from slurm.states import Retry, State
from slurm.status import plan_status, status_tables
from slurm.worker import Drain
from tests.drain_kit import Claimant, StandIn, drain, finish, plan, states

__all__ = ["plan"]  # a fixture


# --- attempts -------------------------------------------------------------------------------------


def attempt(run: RunDir, ended: str | None, host: str = "gpu003", message: str | None = None) -> None:
    """One attempt that got nowhere; None: it was killed."""
    begin_attempt(run, {"host": host})
    if ended is not None:
        end_attempt(run, ended, message)


def advance(run: RunDir, step: int) -> None:
    write_atomically(run.checkpoints / f"step-{step:08d}.json", b"{}")


def test_attempts_in_vain_are_counted_from_files_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "ab")
    assert fruitless(run) == Fruitless(count=0, hosts=(), last=None)
    attempt(run, None)
    attempt(run, "data", "gpu004", "no clips")
    attempt(run, "stopped", "gpu005")
    attempt(run, None, "gpu003")
    vain = fruitless(run)
    assert vain == Fruitless(count=3, hosts=("gpu003", "gpu004"), last="no clips")
    assert str(vain) == "3 attempts in a row without a new step, on gpu003, gpu004"
    assert not was_stopped(run)
    advance(run, 200)
    assert fruitless(run).count == 0  # the last attempt wrote it before it was killed
    attempt(run, "oom")
    assert fruitless(run) == Fruitless(count=1, hosts=("gpu003",), last=None)
    advance(run, 1000)
    attempt(run, "stopped")
    assert fruitless(run).count == 0
    assert was_stopped(run)
    write_atomically(run.artefact, b"weights")
    attempt(run, None)
    assert fruitless(run).count == 1
    write_atomically(run.probe("p"), b"{}")  # a probe is progress, too
    assert fruitless(run).count == 0
    assert [each["from"] for each in read_attempts(run)] == [
        *["step 0"] * 4,
        "step 200",
        "step 1000",
        "trained, 0 probes",
    ]


def test_attempts_before_a_forced_submission_do_not_count(tmp_path: Path) -> None:
    run = RunDir(tmp_path, "ab")
    for _ in range(3):
        attempt(run, None)
    began_s = float(read_attempts(run)[-1]["began_unix_s"] or 0)
    assert fruitless(run, int(began_s * 1e9) - 1).count <= 3
    assert fruitless(run, int((began_s + 1) * 1e9)).count == 0


@pytest.mark.parametrize("text", ["0", "-1", "2.5", "many", ""])
def test_a_number_of_attempts_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert attempts_allowed() == DEFAULT_ATTEMPTS == 3
    monkeypatch.setenv("SALT_ATTEMPTS", text)
    with pytest.raises(UserError, match="SALT_ATTEMPTS"):
        attempts_allowed()
    monkeypatch.setenv("SALT_ATTEMPTS", "12")
    assert attempts_allowed() == 12


class Failing(StandIn):
    """Notes its attempts as `salt.run.execute` does, and fails as told."""

    def __call__(self, store: Path, run: PlannedRun, *rest: Any) -> None:
        folder = RunDir(store, run.run_id)
        begin_attempt(folder, {"host": "gpu007"})
        try:
            super().__call__(store, run, *rest)
        except RunFailed as failure:
            end_attempt(folder, failure.kind, str(failure))
            raise
        end_attempt(folder, "done")


def test_a_run_that_fails_three_times_is_only_retried_when_asked(plan: Plan, tmp_path: Path) -> None:
    only = msgspec.structs.replace(plan, runs=plan.runs[-1:], cells=())
    run = RunDir(tmp_path, only.runs[0].run_id)
    failing = Failing({run.run_id: RunFailed("disk", "no space left in /data; free some room there")})

    def submit(**options: Any) -> list[str]:
        """Runs that a submission now would execute."""
        since_ns = run.error.stat().st_mtime_ns + 1 if run.error.exists() else 0
        before = len(failing.executed)
        retry = Retry(since_ns=since_ns, **options)
        Drain(tmp_path, only, execute=failing, retry=retry, poll_s=0.005, report=lambda _: None).run()
        return failing.executed[before:]

    for count in range(1, DEFAULT_ATTEMPTS + 1):
        assert submit() == [run.run_id]
        assert states(tmp_path, only) == [State.FAILED if count < DEFAULT_ATTEMPTS else State.GIVEN_UP]
    assert submit() == []
    assert submit(diverged=True) == []
    (status,) = plan_status(tmp_path, only).runs
    assert (status.kind, status.attempts, status.host) == ("disk", 3, "gpu007")
    assert status.reason == (
        "3 attempts in a row without a new step, on gpu007: no space left in /data; free some room there; "
        f"not retried: `salt-train run {run.run_id} --plan small` tries once more"
    )
    assert submit(given_up=True) == [run.run_id]
    assert states(tmp_path, only) == [State.GIVEN_UP]
    failing.faults.clear()
    assert submit(given_up=True) == [run.run_id]
    assert states(tmp_path, only) == [State.DONE]


def test_a_worker_gives_up_what_was_killed_three_times(plan: Plan, tmp_path: Path) -> None:
    """Nobody watched: the workers that died are known by their attempts alone."""
    only = msgspec.structs.replace(plan, runs=plan.runs[-1:], cells=())
    run = RunDir(tmp_path, only.runs[0].run_id)
    stand_in = StandIn()
    attempt(run, "oom", message="out of memory at step 3")
    for _ in range(2):
        attempt(run, None)
    assert drain(tmp_path, only, stand_in).run().failed == [run.run_id]
    assert stand_in.executed == []
    error = run.read_error()
    assert error is not None
    assert (error.kind, error.attempt, error.host) == ("killed", 3, "gpu003")
    assert error.message.endswith("on gpu003: out of memory at step 3")
    assert states(tmp_path, only) == [State.GIVEN_UP]
    advance(run, 100)  # somebody brought it forward by hand
    assert drain(tmp_path, only, stand_in, since_ns=run.error.stat().st_mtime_ns + 1).run().finished


# --- four cells, four ends ------------------------------------------------------------------------


def test_four_ends_are_four_states_with_reasons(plan: Plan, tmp_path: Path) -> None:
    """One raises, one is killed, one diverges, one is fine; a second submission sends what it should."""
    four = msgspec.structs.replace(
        plan, runs=tuple(run for run in plan.runs if run.spec.teacher is None), cells=()
    )
    extra = msgspec.structs.replace(four.runs[-1], run_id="ab")
    four = msgspec.structs.replace(four, runs=(*four.runs, extra))
    raises, killed, diverges, fine = four.runs
    faults = {
        raises.run_id: ZeroDivisionError("division by zero"),
        diverges.run_id: RunFailed("diverged", "loss is nan at step 3"),
    }
    stand_in = StandIn(dict(faults))
    finish(tmp_path, killed)  # out of the way of this worker, for now
    drained = drain(tmp_path, four, stand_in).run()
    assert (drained.failed, drained.finished) == ([raises.run_id, diverges.run_id], [fine.run_id])
    victim_store = RunDir(tmp_path, killed.run_id)
    victim_store.result.unlink()
    victim_store.artefact.unlink()
    victim = Claimant(tmp_path / "elsewhere")
    victim.tell()
    assert victim.outcome() == "won"
    write_atomically(victim_store.claim, RunDir(tmp_path / "elsewhere", "ab").claim.read_bytes())
    begin_attempt(victim_store, {"host": "gpu001"})
    victim.kill()

    status = plan_status(tmp_path, four)
    found = {run.run_id: run for run in status.runs}
    assert [str(run.state) for run in status.runs] == ["failed", "lost", "diverged", "done"]
    assert (found[raises.run_id].kind, found[raises.run_id].error_class) == ("code", "ZeroDivisionError")
    assert found[raises.run_id].reason == "ZeroDivisionError: division by zero"
    assert (found[killed.run_id].attempts, found[killed.run_id].host) == (1, "gpu001")
    assert "is gone; submit again" in (found[killed.run_id].reason or "")
    assert found[diverges.run_id].reason == "loss is nan at step 3"
    assert found[fine.run_id].reason is None
    assert len(status_tables(status)) == 2  # counts, not well

    now_ns = RunDir(tmp_path, diverges.run_id).error.stat().st_mtime_ns + 1
    again = StandIn()
    drain(tmp_path, four, again, since_ns=now_ns).run()
    assert again.executed == [raises.run_id, killed.run_id]


def test_a_stopped_run_ends_the_worker_and_waits_for_the_next(plan: Plan, tmp_path: Path) -> None:
    only = msgspec.structs.replace(plan, runs=plan.runs[-1:], cells=())
    run = RunDir(tmp_path, only.runs[0].run_id)

    class Stopped(Failing):
        def __call__(self, store: Path, planned: PlannedRun, *rest: Any) -> None:
            begin_attempt(RunDir(store, planned.run_id), {"host": "gpu001"})
            os.kill(os.getpid(), signal.SIGTERM)
            end_attempt(RunDir(store, planned.run_id), "stopped")
            raise Interrupted(step=7, saved=True)

    said: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        Drain(tmp_path, only, execute=Stopped(), poll_s=0.005, report=said.append).run()
    assert said[-1].endswith("stopped after step 7; its state is saved")
    assert not run.claim.exists()
    assert run.read_error() is None
    assert states(tmp_path, only) == [State.STOPPED]
    assert drain(tmp_path, only, Failing()).run().finished == [run.run_id]


# --- kinds ----------------------------------------------------------------------------------------


def memory_of_the_host() -> Exception:
    """What torch really says when the host's memory is short."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (memory_of_the_host(), "oom", "decode_workers"),
        (MemoryError(), "oom", "ask for more memory"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "oom", "run fewer workers"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB\nmore"), "oom", "lower execution: micro"),
        (RunFailed("code", "rank 1 of 2: OutOfMemoryError: CUDA out of memory"), "oom", "rank 1 of 2"),
        (OSError(errno.ENOSPC, "No space left on device", "/store/x"), "disk", "/store/x: no space is left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/store/x"), "disk", "larger quota"),
        (
            RuntimeError("[tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"),
            "ranks",
            "its own output",
        ),
        (VideoError(Path("a.mp4"), "not a readable video"), "data", "a.mp4"),
        (UserError("train.csv: no such file"), "data", "train.csv: no such file"),
        (RunFailed("diverged", "loss is nan"), "diverged", "loss is nan"),
        (RunFailed("teacher", "weights changed"), "teacher", "weights changed"),
        (RunFailed("config", "33 clips"), "config", "33 clips"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x.py"), "code", "FileNotFoundError"),
        (ZeroDivisionError("division by zero"), "code", "ZeroDivisionError: division by zero"),
        (Interrupted(step=3, saved=True), "interrupted", "stopped after step 3; its state is saved"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_kinds_of_failures(error: Exception, kind: str, says: str) -> None:
    failure = as_failure(error)
    assert failure.kind == kind
    assert says in str(failure)
    assert "\n" not in str(failure)
    assert as_failure(failure) is failure


def test_what_ended_a_process() -> None:
    assert ended_how(3) == "ended with code 3"
    assert ended_how(-signal.SIGSEGV) == "was ended by SIGSEGV"
    assert "SIGKILL: likely by the kernel, because memory was short" in ended_how(-signal.SIGKILL)


def test_of_several_ranks_errors_the_cause_is_told() -> None:
    lost = RankError(rank=0, kind="ranks", message="rank 0 of 2 lost the others")
    own = RankError(rank=1, kind="oom", message="OutOfMemoryError: CUDA out of memory")
    found = _failure([1, 1], [own], [lost, own])
    assert (found.kind, str(found)) == ("oom", "rank 1 of 2: OutOfMemoryError: CUDA out of memory")
    found = _failure([1, -signal.SIGKILL], [], [lost])
    assert found.kind == "killed"
    assert "process 1 of 2 was ended by SIGKILL: likely" in str(found)
    assert str(_failure([1, 1], [], [lost])) == "rank 0 of 2 lost the others"
    assert "0 with 1" in str(_failure([1, 0], [], []))


def test_the_class_of_an_error_is_read_from_its_traceback(plan: Plan, tmp_path: Path) -> None:
    class OddError(Exception):
        pass

    only = msgspec.structs.replace(plan, runs=plan.runs[-1:], cells=())
    fault = OddError("first line\nNote: in the middle\nlast line")
    drain(tmp_path, only, StandIn({only.runs[0].run_id: fault})).run()
    (status,) = plan_status(tmp_path, only).runs
    assert status.error_class is not None
    assert status.error_class.endswith("OddError")
    assert status.reason == "OddError: first line ... last line"
    assert status.attempts == 0  # it failed before an attempt was noted


def test_a_claim_is_given_back_to_a_store_that_is_gone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(tmp_path / "store", "ab")
    claim = Claim.acquire(run)
    os.rename(tmp_path / "store", tmp_path / "away")
    claim.release()
    assert "could not be given back" in caplog.text


def test_processes_of_a_run_that_another_one_took_over_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time to save: what they would write is another process's by now."""
    monkeypatch.setattr(STOP, "lost", True)
    ranks = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(2)]
    with pytest.raises(ClaimLost, match="has taken the run over"):
        _wait(ranks)
    for rank in ranks:
        assert rank.wait(20) == -signal.SIGKILL
        assert rank.stdin is not None
        rank.stdin.close()
