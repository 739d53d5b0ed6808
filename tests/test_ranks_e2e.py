"""Runs that torchrun starts, from video files to `result.json`: the numbers of one process, and one end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from salt.batches import Batches
from salt.checkpoint import load_newest
from salt.lists import VideoList
from salt.metrics import read_metrics
from salt.sizes import SIZES
from salt.specs import DataSpec, RunSpec, spec_id
from salt.store import RunDir
from tests.arms_kit import (
    BATCH,
    CLIP,
    GROUPED,
    LONG,
    SHORT,
    TUBE,
    Ended,
    Store,
    data_of,
    run_spec,
    write_clips,
)
from tests.console import ROOT
from tests.video_kit import write_video

LIMIT_S = 240
Process = subprocess.CompletedProcess[str]


def changed(value: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(value, **fields)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("lists") / "videos")


@pytest.fixture(scope="module")
def alone(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Where one process trains."""
    return Store(tmp_path_factory.mktemp("alone") / "store", (videos,))


def torchrun(
    store: Store, spec: RunSpec, processes: int, **execution: Any
) -> subprocess.CompletedProcess[str]:
    """Train a run by several processes."""
    store.plan("one", [spec], **execution)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [
        sys.executable,
        *launch,
        str(ROOT / "salt_cli.py"),
        "salt-train",
        *store.arguments(spec, "one"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)


def ended(store: Store, spec: RunSpec, done: Process) -> Ended:
    assert done.returncode == 0, done.stderr[-3000:]
    return Ended(
        code=0, err=done.stderr, run=RunDir(store.path, spec_id(spec)), shown=json.loads(done.stdout)
    )


def assert_alike(ours: Ended, theirs: Ended) -> None:
    """Losses, gradient norms and weights but for rounding; costs and inputs to the letter."""
    np.testing.assert_allclose(ours.losses, theirs.losses, atol=1e-6, rtol=0)
    np.testing.assert_allclose(ours.norms, theirs.norms, rtol=1e-5)
    for name, tensor in ours.weights.items():
        torch.testing.assert_close(tensor, theirs.weights[name], atol=1e-5, rtol=0, msg=name)
    mine, other = ours.run.read_result(), theirs.run.read_result()
    assert mine is not None
    assert other is not None
    assert (mine.cost, mine.clips_seen, mine.lists) == (other.cost, other.clips_seen, other.lists)
    assert ours.run.inputs.read_bytes() == theirs.run.inputs.read_bytes()
    assert ours.shown is not None
    assert ours.shown["done"] is True


def test_two_processes_train_an_average_as_one_does(videos: Path, alone: Store, tmp_path: Path) -> None:
    """Streamed, in micro-batches; and whole states of theirs are taken up by one process."""
    spec = run_spec("vjepa", data_of(videos), clip=changed(CLIP, source="streamed"), masks=(SHORT, LONG))
    store = Store(tmp_path / "store", (videos,))
    ours = ended(store, spec, torchrun(store, spec, 2, micro_batch_clips=3, checkpoint_every_steps=2))
    assert_alike(ours, alone.run(spec))

    ours.run.artefact.unlink()  # as if killed after the checkpoint
    ours.run.result.unlink()
    found = load_newest(ours.run, pytest.fail)
    assert found is not None
    assert found[0].step == 2
    resumed = store.run(spec)
    assert [row["attempt"] for row in read_metrics(resumed.run.metrics)] == [1, 1, 2, 2]
    np.testing.assert_allclose(resumed.losses, alone.run(spec).losses, atol=1e-6, rtol=0)


def test_four_processes_train_a_student_as_one_does(videos: Path, alone: Store, tmp_path: Path) -> None:
    teacher = run_spec("pixel", data_of(videos), size=SIZES["micro"])
    alone.run(teacher)
    spec = run_spec("salt", data_of(videos), teacher=teacher, masks=(TUBE, SHORT), cached_views=2)
    store = Store(tmp_path / "store", (videos,)).take(alone, teacher)
    assert_alike(ended(store, spec, torchrun(store, spec, 4)), alone.run(spec))


def test_weights_that_are_split_give_the_same_numbers(videos: Path, alone: Store, tmp_path: Path) -> None:
    """Sharding `full`: an average, pixels beside its latents, masks cut in groups, recomputed blocks."""
    spec = run_spec(
        "vjepa", data_of(videos), masks=(GROUPED, SHORT), objective={"pixel_weight": 0.5}, keep_steps=(2,)
    )
    store = Store(tmp_path / "store", (videos,)).take(alone)
    ours = ended(store, spec, torchrun(store, spec, 2, sharding="full", recompute=True))
    theirs = alone.run(spec)
    assert_alike(ours, theirs)
    kept, other = (load_file(run.kept_state(2)) for run in (ours.run, theirs.run))
    assert list(kept) == list(other)
    for name, tensor in kept.items():
        torch.testing.assert_close(tensor, other[name], atol=1e-5, rtol=1e-5, msg=name)


def test_a_rank_without_clips_stops_all_and_says_why(tmp_path: Path) -> None:
    """Case 13: all that rank 1 has to draw are web pages under the names of videos."""
    names = [f"{number}_html_error.mp4" for number in range(40)]
    (tmp_path / "list.csv").write_text("\n".join(["path", *names]) + "\n")
    clip = changed(CLIP, source="streamed")
    unknown = DataSpec(name="train", fingerprint="f" * 20, clips=len(names))
    drawn = Batches(
        run_spec("vjepa", unknown, clip=clip), {unknown.fingerprint: no_videos(tmp_path, names)}
    ).indices(0)
    for number, name in enumerate(names):
        if number in drawn[: BATCH // 2]:  # what rank 0 needs for its first step
            write_video(tmp_path / name, 20, width=64, height=48)
        else:
            (tmp_path / name).write_text("<html><body>404 Not Found</body></html>" * 60)
    store = Store(tmp_path / "store", (tmp_path / "list.csv",))
    spec = run_spec("vjepa", data_of(tmp_path / "list.csv"), clip=clip)
    began = time.perf_counter()
    done = torchrun(store, spec, 2, decode_workers=1)
    assert time.perf_counter() - began < 60
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert said
    for line in said:  # torchrun may end a rank before it says the same
        assert line.startswith("error: the run failed (data): rank 1 of 2: ")
        assert "_html_error.mp4: not a readable video" in line
    assert done.stderr.count("exitcode  : 1 ") + done.stderr.count("exitcode  : -15 ") == 2
    run = RunDir(store.path, spec_id(spec))
    assert run.read_result() is None
    error = run.read_error()
    assert error is not None
    assert (error.kind, error.message[:12]) == ("data", "rank 1 of 2:")


def no_videos(folder: Path, names: list[str]) -> VideoList:
    """A list as it will be read, for the order of its draws."""
    count = len(names)
    return VideoList(
        path=folder / "list.csv",
        files=tuple(folder / name for name in names),
        rows=tuple(names),
        columns={},
        line_numbers=tuple(range(count)),
        sizes_bytes=(0,) * count,
    )
