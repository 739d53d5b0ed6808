"""Workers whose runs take several processes: one claim, the numbers of one process, one error, no orphans."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest

from salt.metrics import read_metrics
from salt.plans import read_plan
from salt.specs import spec_id
from salt.store import RunDir
from slurm.submission import worker_environment
from slurm.worker import Drain
from tests.arms_kit import CLIP, Store, data_of, run_spec, write_clips
from tests.console import ROOT

LIMIT_S = 120.0


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("lists") / "videos")


def test_a_worker_trains_a_run_with_two_processes(videos: Path, tmp_path: Path) -> None:
    spec = run_spec("vjepa", data_of(videos))
    alone, together = (Store(tmp_path / name, (videos,)) for name in ("alone", "together"))
    wanted = alone.run(spec).losses
    together.plan("two", [spec], processes=2)
    drained = Drain(together.path, read_plan(together.path, "two")).run()
    assert drained.finished == [spec_id(spec)]
    folder = RunDir(together.path, spec_id(spec))
    np.testing.assert_allclose([row["loss"] for row in read_metrics(folder.metrics)], wanted, atol=1e-6)
    result = folder.read_result()
    assert result is not None
    assert result.attempts == 1
    assert not folder.claim.exists()
    assert not list((together.path / "jobs").rglob("*.json"))


def test_what_stops_a_rank_is_the_error_of_the_run(videos: Path, tmp_path: Path) -> None:
    bad = write_clips(tmp_path / "bad")
    for path in bad.parent.glob("*.mp4"):
        path.write_bytes(b"no video " * 40)
    spec = run_spec("pixel", data_of(bad), clip=msgspec.structs.replace(CLIP, source="streamed"))
    store = Store(tmp_path / "store", (bad,))
    store.plan("two", [spec], processes=2)
    drained = Drain(store.path, read_plan(store.path, "two")).run()
    assert drained.failed == [spec_id(spec)]
    error = RunDir(store.path, spec_id(spec)).read_error()
    assert error is not None
    assert error.kind == "data"
    assert "of 2: " in error.message
    assert "files that give none" in error.message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_streamed_file_that_is_skipped_is_named_once(workers: int, tmp_path: Path) -> None:
    videos = write_clips(tmp_path / "videos")
    bad = videos.parent / "3.mp4"
    bad.write_text("<html>404</html>" * 60)
    store = Store(tmp_path / "store", (videos,))
    spec = run_spec("vjepa", data_of(videos), clip=msgspec.structs.replace(CLIP, source="streamed"))
    ended = store.run(spec, decode_workers=workers)
    assert ended.err.count(str(bad)) == 1, ended.err
    assert "not a readable video" in ended.err
    assert read_metrics(ended.run.metrics)[-1]["skipped_files"] == 1


def test_ranks_end_with_a_worker_that_is_killed(videos: Path, tmp_path: Path) -> None:
    spec = run_spec("pixel", data_of(videos), steps=100_000)
    store = Store(tmp_path / "store", (videos,))
    store.plan("two", [spec], processes=2)
    command = [sys.executable, "-P", "-m", "slurm.worker", "--store", str(store.path), "--plan", "two"]
    worker = subprocess.Popen(command, env=worker_environment(1), cwd=ROOT, stdout=subprocess.DEVNULL)
    metrics = RunDir(store.path, spec_id(spec)).metrics
    deadline = time.monotonic() + LIMIT_S
    try:
        while not (metrics.exists() and read_metrics(metrics)):
            assert time.monotonic() < deadline, "no step was taken"
            assert worker.poll() is None
        ranks = psutil.Process(worker.pid).children()
        assert len(ranks) == 2
    finally:
        worker.kill()
        worker.wait()
    gone, alive = psutil.wait_procs(ranks, timeout=30)
    for process in alive:
        process.kill()
    assert (len(gone), alive) == (2, [])
