"""Packing, measuring and comparing lists through the command line, on real files."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from salt import clip_build
from salt.clips import load_clips, open_clips
from salt.data_bench import StreamedSpeed, enough_workers
from salt.data_cli import main
from salt.duplicates import alike_groups, near_pairs
from salt.errors import UserError
from salt.specs import ClipSpec
from salt.video import decode
from tests.video_kit import pattern, write_video

CLIP = ClipSpec(frames=4, frame_stride=2, store_px=16, crop_px=16, channels=1, clips_per_file=3)
OPTIONS = ["--frames", "4", "--stride", "2", "--px", "16", "--channels", "1"]


def blobs(seed: int, number: int, width: int, height: int) -> NDArray[np.uint8]:
    """Coarse moving light and dark, of its own kind for each seed."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / height
    light = sum(
        np.sin(2 * np.pi * (a * x + b * y + c * number / 40) + phase)
        for a, b, c, phase in rng.uniform(-1.8, 1.8, (6, 4))
    )
    return np.repeat((128 + 20 * np.asarray(light))[..., None], 3, axis=-1).clip(0, 255).astype(np.uint8)


def blob_video(path: Path, seed: int, frames: int = 40, **options: object) -> None:
    write_video(path, frames, picture=lambda n, w, h: blobs(seed, n, w, h), **options)  # type: ignore[arg-type]


def write_list(path: Path, names: list[str]) -> Path:
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows(
            [["path", "label"], *([name, f"l{i % 2}"] for i, name in enumerate(names))]
        )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for number in range(4):
        blob_video(folder / f"{number}.mp4", number, width=128, height=96)
    (folder / "empty.mp4").touch()
    Image.fromarray(pattern(0, 64, 64)).save(folder / "still.png")
    write_list(folder / "good.csv", ["0.mp4", "1.mp4", "still.png", "2.mp4", "3.mp4"])
    write_list(folder / "dirty.csv", ["0.mp4", "empty.mp4", "1.mp4", "2.mp4"])
    return folder


def test_a_pack_holds_each_files_clips_side_by_side(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["pack", str(folder / "good.csv"), *OPTIONS, "--clips-per-file", "3", "--out", str(tmp_path)]
    assert main([*argv, "--json"]) == 0
    packed = json.loads(capsys.readouterr().out)
    assert (packed["clips"], packed["files"], packed["pixel_bytes"]) == (15, 5, 15 * 4 * 16 * 16)
    clips = load_clips(tmp_path, packed["fingerprint"], CLIP)
    assert clips is not None
    assert Path(packed["folder"], "clips.npy").stat().st_size == clips.frames.nbytes + 128
    assert (clips.clips_per_file, len(clips)) == (3, 15)
    assert clips.rows[:4] == ("0.mp4", "0.mp4", "0.mp4", "1.mp4")
    assert clips.labels("label")[:7] == ("l0", "l0", "l0", "l1", "l1", "l1", "l0")
    for number, start in enumerate((5, 16, 27)):  # of the starts 0 to 33, centres of three parts
        np.testing.assert_array_equal(clips.frames[3 + number], decode(folder / "1.mp4", CLIP, start).frames)
    assert (clips.frames[6:9] == clips.frames[6, 0]).all()  # the image
    # Again: nothing to do. Other settings: another pack.
    assert main([*argv, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wall_s"] is None
    assert main([*argv, "--rate-hz", "15"]) == 0
    assert "15 clips of 5 files, 15.4 kB, 0 files skipped: " in capsys.readouterr().out
    assert len(list((tmp_path / "clips").glob("*/index.json"))) == 2


def test_packing_says_what_it_skips_and_what_it_refuses(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["pack", str(folder / "dirty.csv"), *OPTIONS, "--store", str(tmp_path)]
    assert main(argv) == 2
    assert "1 of 4 files give no clip (5 % are allowed)" in capsys.readouterr().err
    assert main([*argv, "--max-bad", "30"]) == 0
    printed = capsys.readouterr()
    assert "empty.mp4: empty file" in printed.err
    assert "3 clips of 3 files, 3.07 kB, 1 file skipped" in printed.out
    assert Path(printed.out.splitlines()[-1]).parent == tmp_path / "cache" / "clips"
    big = ["pack", str(folder / "good.csv"), "--store", str(tmp_path), "--clips-per-file", "1000000000"]
    assert main(big) == 2
    assert "GB of decoded clips in" in capsys.readouterr().err
    assert [path for path in (tmp_path / "cache" / "clips").iterdir() if "building" in path.name] == []


def killed_build(path: Path, cache: Path) -> None:
    """Build with a note after every file, and kill this process after three notes."""
    clip_build.NOTE_EVERY_BYTES = 1
    notes = 0
    fsync = os.fsync

    def counting(descriptor: int) -> None:
        nonlocal notes
        fsync(descriptor)
        notes += 1
        if notes == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = counting
    open_clips(path, CLIP, cache, 1, False)


def test_a_killed_build_goes_on_where_it_was(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    builder = multiprocessing.get_context("spawn").Process(
        target=killed_build, args=(folder / "good.csv", tmp_path)
    )
    builder.start()
    builder.join()
    assert builder.exitcode == -signal.SIGKILL
    builder.close()
    (building,) = (tmp_path / "clips").glob("*.building")
    noted = (building / "done.jsonl").read_bytes()
    assert noted.count(b"\n") == 3
    (building / "done.jsonl").write_bytes(noted + b'{"row": 4, "padd')  # a line that was cut by the kill
    handed: list[Path] = []
    run = clip_build.run_isolated

    def watching(work: object, items: list[tuple[Path, ClipSpec]], **options: object) -> object:
        handed.extend(file for file, _ in items)
        return run(work, items, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(clip_build, "run_isolated", watching)
    clips = open_clips(folder / "good.csv", CLIP, tmp_path, 1, False)
    assert len(handed) == 2
    fresh = open_clips(folder / "good.csv", CLIP, tmp_path / "fresh", 1, False)
    np.testing.assert_array_equal(clips.frames, fresh.frames)
    assert not list((tmp_path / "clips").glob("*.building*"))


def test_measuring_a_list(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["bench", str(folder / "good.csv"), *OPTIONS, "--store", str(tmp_path), "--seconds", "0.2"]
    assert main([*argv, "--workers", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (speed,) = found["streamed"]
    assert (found["packed"], found["enough_workers"], speed["workers"]) == (None, None, 1)
    assert speed["clips_per_s"] == pytest.approx(speed["clips"] / speed["wall_s"])
    # A clip is [4, 16, 21, 3] of a video of 128 x 96, or [4, 16, 16, 3] of the square image.
    assert 4 * 16 * 16 * 3 < speed["pixel_bytes_per_s"] / speed["clips_per_s"] <= 4 * 16 * 21 * 3
    assert main(["pack", str(folder / "good.csv"), *OPTIONS, "--store", str(tmp_path)]) == 0
    assert main([*argv, "--workers", "1", "--step-s", "0.001", "--batch", "100000"]) == 0
    printed = capsys.readouterr().out
    assert "stored, 1 process: " in printed
    assert "1e+08 clips/s are needed: " in printed
    assert "if more processes add as much each; this machine has" in printed
    write_list(folder / "none.csv", ["empty.mp4"])
    assert main(["bench", str(folder / "none.csv"), "--store", str(tmp_path), "--workers", "1"]) == 2
    assert "empty.mp4: empty file" in capsys.readouterr().err
    for wrong in (["--batch", "2"], ["--needs", "1", "--step-s", "1", "--batch", "2"], ["--workers", "0,1"]):
        with pytest.raises(SystemExit):
            main([*argv, *wrong])


def test_how_many_processes_are_enough() -> None:
    speeds = [StreamedSpeed(n, 10, 0, 1.0, rate, 1.0, 1.0) for n, rate in ((1, 30.0), (4, 100.0), (2, 55.0))]
    assert enough_workers(speeds, 50.0) == (2, True)
    assert enough_workers(speeds, 100.0) == (4, True)
    assert enough_workers(speeds, 101.0) == (5, False)
    assert enough_workers(speeds, None) == (None, None)


@pytest.fixture(scope="module")
def copies(folder: Path) -> Path:
    """Beside the four videos: 1 smaller, coarser, in other groups of pictures; 2 byte for byte; stills."""
    blob_video(folder / "small.mp4", 1, width=96, height=72, codec_options={"crf": "28", "g": "7"})
    (folder / "same.mp4").write_bytes((folder / "2.mp4").read_bytes())
    write_video(folder / "grey.mp4", 20, picture=lambda n, w, h: np.full((h, w, 3), 90, np.uint8))
    picture = Image.fromarray(blobs(9, 0, 200, 150))
    picture.save(folder / "large.png")
    picture.resize((100, 75)).save(folder / "small.jpg", quality=60)
    names = ["0.mp4", "1.mp4", "2.mp4", "3.mp4", "grey.mp4", "empty.mp4", "small.mp4", "large.png"]
    write_list(folder / "train.csv", names)
    write_list(folder / "report.csv", ["same.mp4", "small.jpg"])
    return folder


def test_copies_are_found_within_a_list_and_across_two(
    copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["duplicates", str(copies / "train.csv"), "--store", str(tmp_path)]
    assert main([*argv, "--other", str(copies / "report.csv"), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    groups = [[(Path(item["list"]).stem, item["path"]) for item in group] for group in found["groups"]]
    assert groups == [
        [("train", "1.mp4"), ("train", "small.mp4")],
        [("train", "2.mp4"), ("report", "same.mp4")],
        [("train", "large.png"), ("report", "small.jpg")],
    ]
    assert found["across"] == [1, 2]
    assert [found["groups"][1][n]["distance"] for n in (0, 1)] == [0, 0]
    assert [found["groups"][1][n]["line"] for n in (0, 1)] == [4, 2]
    assert (found["files"], found["flat"], found["packed"]) == (10, 1, False)
    assert [Path(path).name for path, _ in found["skipped"]] == ["empty.mp4"]
    assert main([*argv, "--distance", "100"]) == 2
    assert "--distance 100" in capsys.readouterr().err
    write_list(copies / "apart.csv", ["0.mp4", "1.mp4", "2.mp4", "3.mp4"])
    assert main(["duplicates", str(copies / "apart.csv"), "--store", str(tmp_path)]) == 0
    assert "4 files: 0 groups, 0 files more than needed" in capsys.readouterr().out


def test_stored_clips_spare_the_decoding(
    copies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "report"):
        argv = ["pack", str(copies / f"{name}.csv"), "--store", str(tmp_path), "--max-bad", "20"]
        assert main([*argv, "--frames", "4", "--stride", "2", "--px", "24", "--channels", "1"]) == 0
    capsys.readouterr()
    argv = ["duplicates", str(copies / "train.csv"), "--other", str(copies / "report.csv")]
    assert main([*argv, "--store", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert "10 files: 3 groups, 3 files more than needed, 2 groups in both lists" in printed.out
    assert "1 too flat to compare, 1 skipped (frames of stored clips)" in printed.out
    assert "hash" not in printed.err


def test_pairs_are_those_of_comparing_all_with_all() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**63, (300, 3), dtype=np.uint64)
    for row in range(100, 200):  # children a few bits away, and some further
        for _ in range(row % 20):
            hashes[row, rng.integers(3)] ^= np.uint64(1 << int(rng.integers(63)))
        hashes[row] ^= hashes[row] ^ hashes[row - 100] if row % 2 else np.uint64(0)
        hashes[row, 0] ^= np.uint64((1 << (row % 17)) - 1)
    apart = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=2)
    for distance in (0, 3, 12):
        expected = np.argwhere(np.triu(apart <= distance, 1))
        np.testing.assert_array_equal(near_pairs(hashes, distance), expected)
    groups = alike_groups(np.concatenate([hashes, hashes[:2], hashes[:1]]), 0)
    assert [group.tolist()[-1] for group in groups[:2]] == [302, 301]
    assert alike_groups(hashes[:0], 3) == []
    with pytest.raises(UserError, match="no list at"):
        open_clips(Path("nowhere.csv"), CLIP, Path("nowhere"))
