"""Stops: signals only set a flag, every long loop looks at it, and what goes on later is the same run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
import pytest

from salt import attentive, target_cache
from salt.attempts import read_attempts
from salt.clips import open_clips
from salt.errors import Interrupted, UserError
from salt.metrics import read_metrics
from salt.plans import read_plan
from salt.signals import ASKING, STOP, grace_s, grace_warning, heeding, shielded
from salt.specs import RunSpec, spec_id
from salt.store import RunDir
from slurm.states import State, assess
from slurm.status import plan_status
from slurm.submission import worker_environment
from tests.arms_kit import CLIP, STEPS, Store, data_of, run_spec, write_clips
from tests.console import ROOT
from tests.probe_kit import probe, suite
from tests.test_target_cache import SHARD_BYTES, Source, contents

LIMIT_S = 120.0
#: More steps than any test waits for.
ENDLESS = 100_000


@pytest.fixture
def asked() -> Iterator[Callable[[], None]]:
    """Asks this process to stop; forgotten after the test."""
    yield lambda: STOP.ask(signal.SIGTERM)
    STOP.clear()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("lists") / "videos")


# --- the flag -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", ASKING)
def test_a_signal_sets_the_flag_once_and_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in ASKING]
    with heeding() as stop:
        stop.check()
        assert (stop.requested, stop.left_s()) == (False, grace_s())
        os.kill(os.getpid(), number)
        assert stop.request is not None
        first = stop.request
        assert first.signal_name == number.name
        assert abs(time.time() - first.unix_s) < 60
        for again in ASKING:
            os.kill(os.getpid(), again)
        assert stop.request is first
        assert 0 < stop.left_s() < grace_s()
        with pytest.raises(Interrupted, match="stopped; what was saved before stays"):
            stop.check()
        with heeding():  # as a worker in a process that heeds already
            pass
        assert stop.request is first
    assert not STOP.requested
    assert [signal.getsignal(each) for each in ASKING] == before


def test_other_threads_install_nothing() -> None:
    found = []

    def look() -> None:
        with heeding():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGTERM)] != [STOP.ask]


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf", "nan", ""])
def test_a_grace_time_that_is_none_is_refused_at_the_start(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SALT_GRACE_S", text)
    with pytest.raises(UserError, match=f"SALT_GRACE_S='{text}'"), heeding():
        pass
    assert signal.getsignal(signal.SIGTERM) != STOP.ask


def test_a_save_of_more_than_half_the_grace_time_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SALT_GRACE_S", "10")
    assert grace_warning(5.0, 200) is None
    said = grace_warning(5.1, 200)
    assert said is not None
    assert "a save takes 5.1 s and a stop gives 10 s (SALT_GRACE_S): a stop may lose up to 200 steps" in said
    monkeypatch.delenv("SALT_GRACE_S")
    assert grace_warning(15.0, 1) is None
    assert grace_warning(15.1, 1) is not None


def test_shielded_processes_see_no_signal_and_ours_come_afterwards() -> None:
    code = "import sys; sys.stdin.read(); print('whole')"
    command = [sys.executable, "-c", code]
    with heeding() as stop, ExitStack() as stack:
        with shielded():
            child = stack.enter_context(
                subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(child.kill)
            # To this thread: one to the process would go to any other thread of the tests that takes it.
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
            assert not stop.requested
        assert stop.requested
        for number in ASKING:
            child.send_signal(number)
        said, _ = child.communicate(timeout=LIMIT_S)
    assert (child.returncode, said) == (0, "whole\n")


def test_a_signal_that_another_thread_takes_is_not_lost_to_a_shielded_one() -> None:
    done = threading.Event()
    other = threading.Thread(target=done.wait)
    with heeding() as stop:
        other.start()
        with shielded():
            os.kill(os.getpid(), signal.SIGUSR1)
        done.set()
        other.join()
        assert stop.request is not None
        assert stop.request.signal_name == "SIGUSR1"


# --- loops that look at it ------------------------------------------------------------------------


def test_decoding_a_list_stops_and_keeps_what_it_has(
    videos: Path, tmp_path: Path, asked: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    asked()
    with pytest.raises(Interrupted):
        open_clips(videos, CLIP, tmp_path / "cache", 1, False)
    STOP.clear()
    with caplog.at_level("INFO"):
        clips = open_clips(videos, CLIP, tmp_path / "cache", 1, False)
    assert "1 of 12 files were decoded before" in caplog.text
    whole = open_clips(videos, CLIP, tmp_path / "other", 1, False)
    np.testing.assert_array_equal(clips.frames, whole.frames)


def test_encoding_targets_stops_between_chunks_and_goes_on(
    tmp_path: Path, asked: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = target_cache._encode, []

    def encode(*arguments: Any) -> Any:
        calls.append(None)
        if len(calls) == 4:  # two clips of the second shard, of five, are done
            asked()
        return real(*arguments)

    monkeypatch.setattr(target_cache, "_encode", encode)
    stopped, fresh = Source(), Source()
    with pytest.raises(Interrupted):
        stopped.open(tmp_path / "cache", shard_bytes=SHARD_BYTES)
    (building,) = (tmp_path / "cache" / "targets").glob("*.building")
    assert [path.name for path in building.glob("*.npy")] == ["00000.npy"]
    assert not list(building.glob(".*"))
    STOP.clear()
    again = stopped.open(tmp_path / "cache", shard_bytes=SHARD_BYTES)
    assert again.encoded_rows == again.index.rows - 5
    assert contents(again.folder) == contents(fresh.open(tmp_path / "other", shard_bytes=SHARD_BYTES).folder)


def test_probing_stops_in_features_and_in_training(
    asked: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = attentive._epoch

    def epoch(*arguments: Any) -> Any:
        asked()
        return real(*arguments)

    monkeypatch.setattr(attentive, "_epoch", epoch)  # called inside the loop, after its look at the flag
    with pytest.raises(Interrupted):
        probe(suite(kinds=("attentive",)))
    assert STOP.requested
    monkeypatch.undo()
    monkeypatch.setattr("salt.features.to_patches", lambda *_: pytest.fail("encoded after a request"))
    with pytest.raises(Interrupted):
        probe(suite(kinds=("linear",)))


# --- whole runs, in processes of their own --------------------------------------------------------


def streamed(videos: Path, **fields: Any) -> RunSpec:
    return run_spec("vjepa", data_of(videos), clip=msgspec.structs.replace(CLIP, source="streamed"), **fields)


def wait_for(process: subprocess.Popen[Any], there: Callable[[], object]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not there():
        assert process.poll() is None, f"it ended first: {process.communicate()}"
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def require_tidy(run: RunDir) -> None:
    """No claim, no error, nothing half written."""
    assert not run.claim.exists()
    assert not run.error.exists()
    assert not [path for path in run.path.rglob("*") if path.name.endswith(".tmp")]
    assert read_attempts(run)[-1]["ended"] == "stopped"


def test_a_group_that_is_signalled_twice_in_training_saves_and_goes_on(videos: Path, tmp_path: Path) -> None:
    store, spec = Store(tmp_path / "store", (videos,)), streamed(videos, steps=ENDLESS)
    process = store.start(spec, decode_workers=2, checkpoint_every_steps=ENDLESS)
    run = RunDir(store.path, spec_id(spec))
    wait_for(process, lambda: run.metrics.exists() and len(read_metrics(run.metrics)) > 2)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 4  # two decoders, the server that forks them, a tracker
    os.killpg(process.pid, signal.SIGTERM)  # decoders get it too, as from a scheduler
    os.killpg(process.pid, signal.SIGUSR1)
    _, said = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, said
    (saved,) = (int(path.stem[5:]) for path in run.checkpoints.glob("step-*.json"))
    assert f"stopped after step {saved}; its state is saved; the same command goes on" in said
    assert "Traceback" not in said
    _, alive = psutil.wait_procs(children, timeout=30)
    assert alive == []
    require_tidy(run)
    (standing,) = assess(store.path, read_plan(store.path, "one")).values()
    assert standing.state is State.STOPPED
    (status,) = plan_status(store.path, read_plan(store.path, "one")).runs
    assert (status.attempts, status.reason) == (1, "asked to stop; submit again to go on")
    assert read_metrics(run.metrics)[-1]["step"] == saved  # each step that was logged is in it


def test_a_stop_while_starting_costs_nothing(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The request comes in the first step, and the run goes on from wherever it was heeded."""
    spec = streamed(videos)
    whole = Store(tmp_path / "whole", (videos,)).run(spec)
    store = Store(tmp_path / "store", (videos,))
    from salt import train as training

    real, steps = training.set_schedule, []

    def schedule(*arguments: Any) -> None:
        steps.append(None)
        if len(steps) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        real(*arguments)

    monkeypatch.setattr(training, "set_schedule", schedule)
    stopped = store.run(spec, code=130)
    assert "stopped after step 1; its state is saved" in stopped.err
    require_tidy(stopped.run)
    assert len(steps) == 1
    ended = store.run(spec)
    assert ended.losses == whole.losses
    assert len(ended.losses) == STEPS
    assert [attempt["ended"] for attempt in read_attempts(ended.run)] == ["stopped", "done"]
    for name, tensor in whole.weights.items():
        assert ended.weights[name].equal(tensor), name


def test_a_worker_passes_a_stop_on_to_its_ranks(videos: Path, tmp_path: Path) -> None:
    spec = run_spec("pixel", data_of(videos), steps=ENDLESS)
    store = Store(tmp_path / "store", (videos,))
    store.plan("two", [spec], processes=2, checkpoint_every_steps=ENDLESS)
    command = [sys.executable, "-P", "-m", "slurm.worker", "--store", str(store.path), "--plan", "two"]
    worker = subprocess.Popen(
        command,
        env=worker_environment(1),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run = RunDir(store.path, spec_id(spec))
    try:
        wait_for(worker, lambda: run.metrics.exists() and read_metrics(run.metrics))
        ranks = psutil.Process(worker.pid).children()
        worker.send_signal(signal.SIGTERM)
        said, _ = worker.communicate(timeout=LIMIT_S)
    finally:
        worker.kill()
        worker.wait()
    _, alive = psutil.wait_procs(ranks, timeout=30)
    for process in alive:
        process.kill()
    assert alive == []
    assert worker.returncode == 130, said
    assert "its state is saved" in said
    assert "submit again to go on" in said
    assert "FAILED" not in said
    require_tidy(run)
    assert len(list(run.checkpoints.glob("step-*.json"))) == 1


#: Submits a plan to one worker process, as `salt-sweep submit --on local` does.
SUBMIT = """
import sys
from pathlib import Path
from salt.plans import read_plan
from slurm.local import run_local
from slurm.states import Retry
from slurm.submission import Submission
store = Path(sys.argv[1])
try:
    run_local(Submission(store=store, plan=read_plan(store, "one"), retry=Retry()), 1)
except KeyboardInterrupt:
    sys.exit(130)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_submission_waits_for_its_workers_to_save(
    number: signal.Signals, videos: Path, tmp_path: Path
) -> None:
    spec = run_spec("pixel", data_of(videos), steps=ENDLESS)
    store = Store(tmp_path / "store", (videos,))
    store.plan("one", [spec], checkpoint_every_steps=ENDLESS)
    parent = subprocess.Popen(
        [sys.executable, "-c", SUBMIT, str(store.path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    run = RunDir(store.path, spec_id(spec))
    wait_for(parent, lambda: run.metrics.exists() and read_metrics(run.metrics))
    for _ in range(2):  # an impatient user
        parent.send_signal(number)
    said, _ = parent.communicate(timeout=LIMIT_S)
    assert parent.returncode == 130, said
    assert f"asked to stop ({number.name}): runs save, and go on when submitted again" in said
    require_tidy(run)
    assert len(list(run.checkpoints.glob("step-*.json"))) == 1
