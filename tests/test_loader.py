"""Batches ahead of time: the same for any number of workers, and a name for every file that goes wrong."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from salt import loader as loader_module
from salt.batches import Batches, Reader
from salt.crew import available_bytes
from salt.errors import RunFailed
from salt.lists import VideoList, read_list
from salt.loader import Loader
from salt.specs import ClipSpec
from salt.video import VideoError, read_clip
from tests.batch_kit import mixed, one_list, run, stored
from tests.video_kit import write_video

CLIP = ClipSpec(
    source="streamed",
    frames=4,
    frame_stride=3,
    store_px=64,
    crop_px=48,
    crop="random_resized",
    flip=True,
    clips_per_file=2,
)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, VideoList]:
    """Two lists of small videos, by fingerprint."""
    folder = tmp_path_factory.mktemp("videos")
    found = {}
    for number, count in enumerate((5, 3)):
        for file in range(count):
            frames = 20 + 7 * file
            write_video(folder / f"{number}-{file}.mp4", frames, width=112, height=80 + 8 * number)
        path = folder / f"{number}.csv"
        path.write_text("path\n" + "".join(f"{number}-{file}.mp4\n" for file in range(count)))
        found[f"print {number}"] = read_list(path)
    return found


@pytest.fixture(scope="module")
def pretend() -> VideoList:
    """Six files that only readers of this module know."""
    files = tuple(Path(f"/{number}.mp4") for number in range(6))
    rows = tuple(map(str, files))
    return VideoList(Path("/list.csv"), files, rows, {}, tuple(range(2, 8)), (1,) * 6)


def _numbered(path: Path, clip: ClipSpec, place: float) -> NDArray[np.uint8]:
    """Frames that tell the file and the place."""
    frames = np.empty((clip.frames, 50, 60, 3), dtype=np.uint8)
    frames[..., 0], frames[..., 1], frames[..., 2] = int(path.stem), int(100 * place), 7
    return frames


def without_third(path: Path, clip: ClipSpec, place: float) -> NDArray[np.uint8]:
    if path.stem == "3":
        raise VideoError(path, "made up to be bad")
    return _numbered(path, clip, place)


def without_any(path: Path, clip: ClipSpec, place: float) -> NDArray[np.uint8]:
    raise VideoError(path, "made up to be bad")


def dying_at_third(path: Path, clip: ClipSpec, place: float) -> NDArray[np.uint8]:
    if path.stem == "3":
        os.kill(os.getpid(), signal.SIGKILL)
    return _numbered(path, clip, place)


def hanging_at_third(path: Path, clip: ClipSpec, place: float) -> NDArray[np.uint8]:
    while path.stem == "3":
        signal.pause()
    return _numbered(path, clip, place)


def faulty(path: Path, clip: ClipSpec, place: float) -> NDArray[np.uint8]:
    raise ZeroDivisionError("a fault of the program")


def told_to_stop(path: Path, clip: ClipSpec, place: float) -> NDArray[np.uint8]:
    """Gets what schedulers send to all processes of a job."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT):
        os.kill(os.getpid(), number)
    return _numbered(path, clip, place)


def _loaded(batches: Batches, steps: range, places: range, workers: int, micro: int | None) -> torch.Tensor:
    """All crops of these steps; the steps come in order, in pieces of `micro`."""
    with Loader(batches, steps, places, workers, micro) as loader:
        pieces = [(step, crops, loader.indices) for step, crops in loader]
        assert loader.wait_s() > 0
        assert loader.wait_s() == 0
        assert loader.skipped == []
    size = micro or len(places)
    counts = [min(size, len(places) - start) for start in range(0, len(places), size)]
    assert [step for step, _, _ in pieces] == [step for step in steps for _ in counts]
    assert [len(crops) for _, crops, _ in pieces] == counts * len(steps)
    wanted = np.concatenate([batches.indices(step, places) for step in steps])
    assert (np.concatenate([indices for _, _, indices in pieces]) == wanted).all()
    return torch.cat([crops for _, crops, _ in pieces])


def test_streamed_clips_are_the_same_for_any_workers_and_slices(videos: dict[str, VideoList]) -> None:
    spec = run(CLIP, mixed([5, 3], [2.0, 1.0]), batch=6)
    whole = Batches(spec, videos)
    wanted = torch.stack([whole.crops(step) for step in range(2, 5)])
    assert len({crop.numpy().tobytes() for crop in wanted.flatten(0, 1)}) == 18
    for workers, micro in ((0, None), (1, None), (2, 2)):
        for places in (range(3), range(3, 6)):
            found = _loaded(Batches(spec, videos), range(2, 5), places, workers, micro)
            assert torch.equal(found, wanted[:, places.start : places.stop].flatten(0, 1))


def test_a_streamed_shift_shows_the_frames_of_the_file(videos: dict[str, VideoList]) -> None:
    clip = ClipSpec(source="streamed", frames=4, frame_stride=3, store_px=80, crop_px=80)
    data, sources = one_list(5), {"one": videos["print 0"]}
    batches = Batches(run(clip, data, batch=4), sources)
    chances = batches.chances(1)
    for row, index in enumerate(batches.indices(1).tolist()):
        frames = read_clip(batches.file(index), clip, float(chances.start[row]))
        assert frames.shape == (4, 80, 112, 3)
        left = int(chances.tries[row, 0, 3] * 33)
        assert np.array_equal(batches.crops(1)[row].numpy(), frames[:, :, left : left + 80])


def test_stored_clips_come_from_a_thread_and_it_ends_with_the_loop() -> None:
    clip = ClipSpec(frames=4, store_px=32, crop_px=24, channels=1)
    batches = Batches(run(clip, one_list(10), batch=4), {"one": stored(clip, 10)})
    found = _loaded(batches, range(3, 9), range(1, 4), workers=2, micro=2)
    assert torch.equal(found, torch.cat([batches.crops(step, range(1, 4)) for step in range(3, 9)]))
    with Loader(batches, range(10**9)) as loader:
        assert next(loader)[0] == 0
    with Loader(batches, range(0)) as loader:
        assert list(loader) == []
        assert list(loader) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_file_is_replaced_by_the_next_and_told(pretend: VideoList, workers: int) -> None:
    batches = Batches(run(CLIP, one_list(6), batch=6), {"one": pretend}, without_third)
    drawn = np.concatenate([batches.indices(step) for step in range(4)])
    with Loader(batches, range(4), workers=workers) as loader:
        pieces = [(crops, loader.indices) for _, crops in loader]
        assert loader.skipped == [(Path("/3.mp4"), "made up to be bad")]
    assert (batches.skips.drawn, batches.skips.bad) == (24, 4)  # two clips of each file, two epochs
    taken = np.concatenate([indices for _, indices in pieces])
    assert taken.tolist() == [index + 2 if index // 2 == 3 else index for index in drawn.tolist()]
    crops = torch.cat([crops for crops, _ in pieces])
    assert crops[:, 0, 0, 0, 0].tolist() == (taken // 2).tolist()
    starts = np.concatenate([batches.chances(step).start for step in range(4)])
    assert crops[:, 0, 0, 0, 1].tolist() == (100 * starts).astype(int).tolist()


def _failure(pretend: VideoList, read: Reader, workers: int, limit_s: float = 60.0) -> BaseException:
    batches = Batches(run(CLIP, one_list(6), batch=6), {"one": pretend}, read)
    with Loader(batches, range(1000), workers=workers, limit_s=limit_s) as loader:
        with pytest.raises((RunFailed, RuntimeError)) as failure:
            list(loader)
        with pytest.raises(type(failure.value)):  # it does not go away
            next(loader)
    return failure.value


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_bad_files_stop_the_run(pretend: VideoList, workers: int) -> None:
    error = _failure(pretend, without_third, workers)  # a sixth of all draws
    assert isinstance(error, RunFailed)
    assert error.kind == "data"
    assert str(error).startswith("11 tries, for ")
    assert "last /3.mp4: made up to be bad" in str(error)
    hopeless = str(_failure(pretend, without_any, workers))
    assert "met files that give none (5 % are allowed)" in hopeless


def test_a_worker_that_dies_or_hangs_is_told_with_step_and_file(pretend: VideoList) -> None:
    batches = Batches(run(CLIP, one_list(6), batch=6), {"one": pretend}, _numbered)
    step = next(step for step in range(9) if 3 in batches.indices(step) // 2)
    died, hung = _failure(pretend, dying_at_third, 2), _failure(pretend, hanging_at_third, 2, limit_s=1.5)
    for error in (died, hung):
        assert isinstance(error, RunFailed)
        assert error.kind == "data"
        assert str(error).startswith(f"step {step}: decoding /3.mp4")
    assert "the process died (SIGKILL, which is how a machine short of memory ends processes)" in str(died)
    assert "took longer than 1.5 s" in str(hung)


def test_a_fault_in_a_worker_is_raised_with_its_trace(pretend: VideoList) -> None:
    error = _failure(pretend, faulty, 1)
    assert type(error) is RuntimeError
    assert "ZeroDivisionError: a fault of the program" in str(error)
    assert "in faulty" in str(error)


def test_signals_that_end_a_job_are_not_for_workers(pretend: VideoList) -> None:
    spec, sources = run(CLIP, one_list(6), batch=6), {"one": pretend}
    with Loader(Batches(spec, sources, told_to_stop), range(2), workers=2) as loader:
        found = torch.cat([crops for _, crops in loader])
        assert loader._crew is not None
        processes = [worker.process.pid for worker in loader._crew._workers]
    wanted = Batches(spec, sources, _numbered)
    assert torch.equal(found, torch.cat([wanted.crops(step) for step in range(2)]))
    assert len(processes) == 2
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process or 0, 0)


def test_too_little_memory_is_said_before_it_is_taken(
    pretend: VideoList, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = Batches(run(CLIP, one_list(6), batch=6), {"one": pretend}, _numbered)
    needed = 5 * 6 * 4 * 48 * 48 * 3
    monkeypatch.setattr(loader_module, "available_bytes", lambda: needed - 1)
    with (
        pytest.raises(RunFailed, match=r"5 x 6 clips under way are 0.00 GB.*lower micro_batch_clips"),
        Loader(batches, range(2), workers=1),
    ):
        pass
    monkeypatch.setattr(loader_module, "available_bytes", lambda: needed)
    with Loader(batches, range(10**9), workers=1) as loader:  # left while the worker is busy
        assert next(loader)[0] == 0
    assert 10**6 < (available_bytes() or 0) < 10**14
