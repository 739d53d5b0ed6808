"""The miniature's clips: what carries the motion label and what does not, and the files they become."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from salt.clips import open_clips
from salt.data_cli import main
from salt.digits import (
    FRAMES,
    GREY_OFFSET,
    GREY_RANGE,
    PHASE_PX,
    PHASES,
    SPEEDS,
    SPLIT_DIGITS,
    SPLITS,
    TORUS_PX,
    ClipDraw,
    draw_clip,
    draw_labels,
    render_clips,
    split_sources,
)
from salt.digits_files import EncodeTask, encode_clips
from salt.lists import read_list
from salt.specs import ClipSpec

CLIP = ClipSpec(
    frames=8,
    frame_stride=1,
    store_px=32,
    crop_px=24,
    channels=1,
    mean=GREY_OFFSET / GREY_RANGE,
    std=1 / GREY_RANGE,
)
COUNT = 1024
CHANCE = 1 / len(SPEEDS)
#: A classifier at chance stays inside with probability 99.99 % (exact binomial, 1024 clips): 0.124 to 0.215.
LOW, HIGH = (float(bound) / COUNT for bound in stats.binom.interval(0.9999, COUNT, CHANCE))

Array = NDArray[np.float32]


@dataclasses.dataclass
class Split:
    clips: Array  # [N, 8, 24, 24]
    motion: NDArray[np.int64]
    digit: NDArray[np.int64]


def load(split: str) -> Split:
    draws = [draw_clip(split, 0, number) for number in range(COUNT)]
    window = render_clips(draws)[:, :, 4:28, 4:28, 0].astype(np.float32) / np.float32(255)
    motion = np.array([SPEEDS.index(draw.labels.speed) for draw in draws])
    return Split(window, motion, np.array([draw.labels.digit for draw in draws]))


@pytest.fixture(scope="module")
def splits() -> tuple[Split, Split]:
    return load("train"), load("report")


def ridge(train: Array, labels: NDArray[np.int64], report: Array, truth: NDArray[np.int64]) -> float:
    """Accuracy of one-against-all ridge regression in its dual form, on standardised pixels."""
    mean, deviation = train.mean(0), train.std()
    a, b = (train - mean) / deviation, (report - mean) / deviation
    targets = np.eye(labels.max() + 1)[labels] - CHANCE
    weights = np.linalg.solve(a @ a.T + 1e4 * np.eye(len(a)), targets)
    return float(((b @ a.T @ weights).argmax(1) == truth).mean())


def nearest(train: Array, labels: NDArray[np.int64], report: Array, truth: NDArray[np.int64]) -> float:
    """Accuracy of the nearest neighbour."""
    distances = (train**2).sum(1) - 2 * report @ train.T
    return float((labels[distances.argmin(1)] == truth).mean())


def accuracies(splits: tuple[Split, Split], view: object) -> tuple[float, float]:
    train, report = splits
    a, b = (view(split.clips).reshape(COUNT, -1) for split in splits)  # type: ignore[operator]
    return (
        ridge(a, train.motion, b, report.motion),
        nearest(a, train.motion, b, report.motion),
    )


def shuffled(clips: Array) -> Array:
    rng = np.random.default_rng(0)
    return np.stack([clip[rng.permutation(FRAMES)] for clip in clips])


def test_frames_without_their_order_say_nothing_about_motion(splits: tuple[Split, Split]) -> None:
    views = {"first": lambda x: x[:, :1], "middle": lambda x: x[:, 4:5], "shuffled": shuffled}
    for name, view in views.items():
        for accuracy in accuracies(splits, view):
            assert LOW <= accuracy <= HIGH, name


def test_the_whole_clip_says_much(splits: tuple[Split, Split]) -> None:
    raw = accuracies(splits, lambda x: x)
    assert min(raw) > HIGH + 0.05
    # Raw pixels are weak only as they are: without the clip's mean the nearest neighbour is right.
    assert accuracies(splits, lambda x: x - x.mean(1, keepdims=True))[1] > 0.98


def test_the_set_of_frames_is_the_same_for_every_speed() -> None:
    """The exact form of the control: started elsewhere, any speed shows the very frames of any other."""
    draw = draw_clip("report", 5, 17)
    flat = dataclasses.replace(draw, slope=0)

    def frames_of(speed: int, missing_phase: int) -> list[bytes]:
        # A clip that starts `speed` phases after the missing one visits all others.
        left = flat.left_px + (missing_phase + speed) * PHASE_PX
        clip = render_clips([with_speed(dataclasses.replace(flat, left_px=left % TORUS_PX), speed)])[0]
        return sorted(frame.tobytes() for frame in clip)

    sets = {speed: [frames_of(speed, phase) for phase in range(PHASES)] for speed in SPEEDS}
    assert all(sets[speed] == sets[1] for speed in SPEEDS)
    assert len({frame for frames in sets[1] for frame in frames}) == PHASES


def with_speed(draw: ClipDraw, speed: int) -> ClipDraw:
    return dataclasses.replace(draw, labels=dataclasses.replace(draw.labels, speed=speed))


def test_the_missing_phase_is_uniform_for_every_speed() -> None:
    counts = np.zeros((len(SPEEDS), PHASES))
    for number in range(3000):
        draw = draw_clip("train", 1, number)
        visited = {(draw.left_px + step * draw.labels.speed * PHASE_PX) % TORUS_PX for step in range(FRAMES)}
        phases = {column // PHASE_PX for column in visited}
        assert len(phases) == FRAMES
        counts[SPEEDS.index(draw.labels.speed), (set(range(PHASES)) - phases).pop()] += 1
    assert counts.sum(1).tolist() == [500] * len(SPEEDS)
    assert stats.chisquare(counts.ravel()).pvalue > 1e-3


def test_labels_are_balanced_and_sources_are_not_shared() -> None:
    sources = {split: set(split_sources(split)) for split in SPLITS}
    assert {split: len(found) for split, found in sources.items()} == SPLIT_DIGITS
    assert len(set.union(*sources.values())) == 1797
    for split in SPLITS:
        labels = [draw_labels(split, 0, number) for number in range(720)]
        assert {label.source for label in labels} <= sources[split]
        assert set(Counter(label.speed for label in labels).values()) == {120}
        assert max(Counter(label.source for label in labels).values()) <= 2
        # Knowing the digit does not help to know the speed.
        table = np.zeros((10, len(SPEEDS)))
        for label in labels:
            table[label.digit, SPEEDS.index(label.speed)] += 1
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_a_clip_is_a_function_of_its_number_and_golden() -> None:
    numbers = (0, 1, 999)
    clips = render_clips([draw_clip("train", 0, number) for number in numbers])
    assert clips.shape == (3, 8, 32, 32, 1)
    np.testing.assert_array_equal(clips[2:], render_clips([draw_clip("train", 0, 999)]))
    assert draw_clip("train", 0, 5) != draw_clip("train", 1, 5)
    assert draw_clip("train", 0, 5) != draw_clip("report", 0, 5)
    # Without light, what is seen is ink: dark ground at 1.6 / 4.2, the brightest stroke at the contrast.
    draw = dataclasses.replace(draw_clip("train", 0, 0), light=(0.0, 0.0, 0.0))
    values = render_clips([draw])[0] / 255 * GREY_RANGE - GREY_OFFSET
    assert np.median(values) == pytest.approx(0, abs=0.01)
    assert values.max() == pytest.approx(draw.contrast, abs=0.1)
    # The view is the torus and five pixels of it again; the digit drifts by k phases of 3 px.
    np.testing.assert_array_equal(values[:, :, 27:], values[:, :, :5])
    shift = (draw.labels.speed * PHASE_PX * draw.slope, draw.labels.speed * PHASE_PX)
    torus = values[:, :TORUS_PX, :TORUS_PX, 0]
    np.testing.assert_array_equal(torus[1], np.roll(torus[0], shift, (0, 1)))


def test_files_come_back_as_they_were_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "clips"
    settings = ["--clips", "96", "--selection", "12", "--report", "12"]
    assert main(["digits", str(out), *settings, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["made"] == 120
    clips = open_clips(out / "train.csv", CLIP, tmp_path / "cache", 2, False)
    draws = [draw_clip("train", 0, number) for number in range(96)]
    assert clips.columns == {
        "motion": tuple(f"speed{draw.labels.speed:+d}" for draw in draws),
        "appearance": tuple(f"digit-{draw.labels.digit}" for draw in draws),
        "group": tuple(f"source-{draw.labels.source:04d}" for draw in draws),
    }
    error = np.abs(clips.frames.astype(int) - render_clips(draws))
    assert error.mean() < 0.8  # of 255
    assert error.max() <= 10

    # The same bytes elsewhere; nothing is made twice; what is missing is.
    def digests(folder: Path) -> dict[str, str]:
        files = (path for path in folder.rglob("*") if path.is_file())
        return {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files
        }

    other = tmp_path / "other"
    other.mkdir()
    assert encode_clips(EncodeTask(other, "train", 0, tuple(range(96)))) == 96
    assert digests(other) == digests(out / "train")
    before = digests(out)
    assert len(before) == 124
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(["digits", str(out), *settings]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times
    (out / "train" / "00003.mp4").unlink()
    (out / "train" / "00004.mp4").write_bytes(b"")
    (out / "report.csv").unlink()
    assert main(["digits", str(out), *settings, "--json"]) == 0
    assert json.loads(capsys.readouterr().out.split("\n", 1)[1])["made"] == 2
    assert digests(out) == before


def test_folders_in_use_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--clips", "6", "--selection", "6", "--report", "6"]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").write_text("mine")
    assert main(["digits", str(foreign), *few]) == 2
    assert "is not empty and holds no clips of salt-data" in capsys.readouterr().err
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    assert main(["digits", str(foreign), *few, "--force"]) == 0
    capsys.readouterr()
    changed = ["--clips", "4", *few[2:], "--seed", "9"]
    assert main(["digits", str(foreign), *changed]) == 2
    assert "clips 6 (asked: 4), seed 0 (asked: 9)" in capsys.readouterr().err
    assert main(["digits", str(foreign), *changed, "--force"]) == 0
    assert len(read_list(foreign / "train.csv").rows) == 4
    assert len(list((foreign / "train").iterdir())) == 4
    assert (foreign / "thesis.tex").read_text() == "mine"
    assert main(["digits", str(foreign / "thesis.tex"), *few]) == 2
    assert "is a file" in capsys.readouterr().err
