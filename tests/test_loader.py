"""Batches ahead of time: the same for any number of workers, and a name for every file that goes wrong."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from salt import decoders
from salt import loader as loader_module
from salt.batches import Batches, Reader
from salt.crew import available_bytes
from salt.errors import RunFailed
from salt.lists import VideoList, read_list
from salt.loader import Loader
from salt.quarantine import Lost, Quarantine
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


def _survived(
    pretend: VideoList, read: Reader, folder: Path, steps: range = range(4), places: range = range(6)
) -> tuple[list[int], torch.Tensor, Loader]:
    """Clip numbers and crops of these steps, with two workers and a quarantine."""
    batches = Batches(run(CLIP, one_list(6), batch=6), {"one": pretend}, read)
    kept = Quarantine(folder, rank=places.start)
    with Loader(batches, steps, places, workers=2, micro=2, limit_s=3.0, quarantine=kept) as loader:
        pieces = [(crops, loader.indices) for _, crops in loader]
    taken = np.concatenate([indices for _, indices in pieces]).tolist()
    return taken, torch.cat([crops for crops, _ in pieces]), loader


@pytest.mark.parametrize("read", [dying_at_third, hanging_at_third])
def test_a_file_that_ends_or_hangs_its_worker_is_replaced_and_kept_out(
    pretend: VideoList, tmp_path: Path, read: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "installed", lambda: ("pyav",))
    spec, sources = run(CLIP, one_list(6), batch=6), {"one": pretend}
    bad = Batches(spec, sources, without_third)
    wanted = torch.cat([bad.crops(step) for step in range(4)])
    drawn = np.concatenate([bad.indices(step) for step in range(4)]).tolist()
    taken, crops, loader = _survived(pretend, read, tmp_path)
    assert torch.equal(crops, wanted)
    assert taken == [index + 2 if index // 2 == 3 else index for index in drawn]
    how = "died (SIGKILL, which is how a machine short of memory ends processes)"
    reason = f"the decoder: {how if read is dying_at_third else 'took longer than 3 s'}"
    assert loader.skipped == [(Path("/3.mp4"), reason)]
    assert (loader.batches.skips.drawn, loader.batches.skips.bad) == (24, 4)
    # The same clips again, from what was written down: by other workers, by none, by each of two ranks.
    lines = (tmp_path / "0.jsonl").read_text()
    whole = wanted.view(4, 6, *wanted.shape[1:])
    for places in (range(6), range(3), range(3, 6)):
        again, crops, _ = _survived(pretend, _numbered, tmp_path, places=places)
        assert torch.equal(crops, whole[:, places.start : places.stop].flatten(0, 1))
        with Loader(
            Batches(spec, sources, _numbered), range(1, 4), places, quarantine=Quarantine(tmp_path)
        ) as alone:
            assert torch.equal(
                torch.cat([c for _, c in alone]), whole[1:, places.start : places.stop].flatten(0, 1)
            )
    assert (tmp_path / "0.jsonl").read_text() == lines
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.jsonl"]


def dying_by_pyav_at_third(path: Path, clip: ClipSpec, place: float) -> NDArray[np.uint8]:
    decoders.note_served(decoders.serving(path))
    if path.stem == "3" and decoders.serving(path) == "pyav":
        os.kill(os.getpid(), signal.SIGABRT)
    return _numbered(path, clip, place)


def test_a_file_that_ends_one_decoder_is_served_by_the_next(
    pretend: VideoList, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "installed", lambda: ("pyav", "decord"))
    wanted = Batches(run(CLIP, one_list(6), batch=6), {"one": pretend}, _numbered)
    taken, crops, loader = _survived(pretend, dying_by_pyav_at_third, tmp_path)
    assert torch.equal(crops, torch.cat([wanted.crops(step) for step in range(4)]))
    assert taken == np.concatenate([wanted.indices(step) for step in range(4)]).tolist()
    assert loader.skipped == []
    served = loader.decoders
    assert served.pop("pyav") + served.pop("decord") == 24
    assert served == {}
    kept = Quarantine(tmp_path)
    first = next(step for step in range(4) if 3 in wanted.indices(step) // 2)
    lost = kept.verdict(6, first, 5)
    assert lost is not None
    assert (lost.decoder, lost.reason, lost.step) == ("decord", "the decoder: died (SIGABRT)", first)
    # A second attempt asks the second decoder at once.
    deaths = (tmp_path / "0.jsonl").read_text()
    assert torch.equal(_survived(pretend, dying_by_pyav_at_third, tmp_path)[1], crops)
    assert (tmp_path / "0.jsonl").read_text() == deaths


def _pages_after(batches: Batches, steps: range) -> int:
    """Resident pages of the one worker of a loader after these steps."""
    with Loader(batches, steps, workers=1) as loader:
        for _ in loader:
            pass
        assert loader._crew is not None
        (worker,) = loader._crew._workers
        return int(Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1])


def test_a_worker_takes_no_more_memory_after_thousands_of_clips(videos: dict[str, VideoList]) -> None:
    clip = ClipSpec(source="streamed", frames=2, frame_stride=3, store_px=24, crop_px=24)
    batches = Batches(run(clip, one_list(5), batch=50), {"one": videos["print 0"]})
    few, many = (_pages_after(batches, range(steps)) for steps in (4, 44))
    assert many < 1.1 * few


def test_too_many_lost_files_stop_the_run_with_the_name_of_the_last(pretend: VideoList) -> None:
    error = _failure(pretend, dying_at_third, 2)
    assert isinstance(error, RunFailed)
    assert error.kind == "data"
    assert str(error).startswith("11 tries, for ")
    assert "last /3.mp4: the decoder: died (SIGKILL" in str(error)


def lost_at(clip: int, step: int, place: int, decoder: str | None = None, first: int = 0) -> Lost:
    at = {"clip": clip, "path": "/a.mp4", "step": step, "place": place, "first_place": first, "places": 3}
    return msgspec.convert({**at, "reason": "died", "decoder": decoder}, Lost)


def test_a_quarantine_says_the_same_to_all_that_read_it(tmp_path: Path) -> None:
    first = Quarantine(tmp_path, rank=0)
    first.add(lost_at(4, 7, 1, "decord"))
    first.add(lost_at(4, 9, 0))
    Quarantine(tmp_path, rank=1).add(lost_at(4, 8, 5, first=3))
    with open(tmp_path / "1.jsonl", "ab") as file:
        file.write(b'{"clip": 4, "pa')  # a kill
    Quarantine(tmp_path, rank=1).add(lost_at(6, 1, 3, first=3))
    for kept in (Quarantine(tmp_path), Quarantine(tmp_path, rank=1)):
        said = {
            (step, place): None if (lost := kept.verdict(4, step, place)) is None else lost.decoder or "none"
            for step in (6, 7, 8, 9)
            for place in range(6)
        }
        assert [said[6, place] for place in range(6)] == [None] * 6
        assert [said[7, place] for place in range(6)] == [None, "decord", "decord", None, None, None]
        assert [said[8, place] for place in range(6)] == ["decord"] * 3 + [None, None, "none"]
        assert [said[9, place] for place in range(6)] == ["none"] * 6
        assert kept.verdict(5, 9, 0) is None
        assert kept.verdict(6, 1, 3) is not None
        assert len(kept) == 2
    # Another attempt at the same draw: what it found is worse, whoever wrote it.
    Quarantine(tmp_path, rank=0).add(lost_at(4, 7, 1))
    assert [Quarantine(tmp_path).verdict(4, 7, place).decoder for place in (1, 2)] == [None, None]  # type: ignore[union-attr]
    (tmp_path / "2.jsonl").write_text('{"clip": 4}\n')
    with pytest.raises(RunFailed, match=r"2\.jsonl:1: not a line of this version"):
        Quarantine(tmp_path)


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
