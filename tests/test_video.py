"""Frames of clips: the right ones, whatever the width and however the file was cut."""

from __future__ import annotations

import pickle
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from salt.specs import ClipSpec
from salt.video import (
    DECORD_BAD_WIDTHS,
    VideoError,
    decode,
    decode_clip,
    pick_frames,
    probe_video,
    read_frames,
    resize_square,
)
from tests.video_kit import coded, copy_video, write_video


def clip_spec(**fields: object) -> ClipSpec:
    defaults: dict[str, object] = {"frames": 16, "frame_stride": 4, "store_px": 32, "crop_px": 32}
    return ClipSpec(**{**defaults, **fields})  # type: ignore[arg-type]


def all_frames(path: Path) -> NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


@pytest.mark.parametrize(
    ("frames", "policy", "numbers", "padded"),
    [
        (61, "skip", list(range(0, 61, 4)), 0),
        (64, "skip", list(range(1, 62, 4)), 0),
        (60, "repeat-last", [*range(0, 57, 4), 59], 1),
        (60, "loop", [*range(0, 57, 4), 0], 1),
        (60, "shrink-stride", list(range(0, 46, 3)), 0),
        (9, "repeat-last", [0, 4, *[8] * 14], 13),
        (9, "loop", [0, 4, 8, 3, 7, 2, 6, 1, 5, 0, 4, 8, 3, 7, 2, 6], 13),
        (9, "shrink-stride", [*range(9), *[8] * 7], 7),
        (1, "repeat-last", [0] * 16, 15),
        (1, "loop", [0] * 16, 15),
        (1, "shrink-stride", [0] * 16, 15),
    ],
)
def test_the_policy_for_short_videos(frames: int, policy: str, numbers: list[int], padded: int) -> None:
    assert pick_frames(frames, clip_spec(short_clips=policy), None) == (numbers, padded)


def test_gaps_are_equal_and_both_ends_can_be_reached() -> None:
    clip = clip_spec()
    assert pick_frames(200, clip, 0)[0][0] == 0
    assert pick_frames(200, clip, 139)[0][-1] == 199
    for start in (-1, 140):
        with pytest.raises(ValueError, match=r"outside 0\.\.139"):
            pick_frames(200, clip, start)
    with pytest.raises(ValueError, match="span 61"):
        pick_frames(60, clip, None)
    assert pick_frames(7, clip_spec(frames=1, short_clips="shrink-stride"), None) == ([3], 0)


def test_the_frames_asked_for_are_the_frames_returned(tmp_path: Path) -> None:
    write_video(tmp_path / "coded.mp4", 120, width=64, height=64, picture=coded, codec_options={"crf": "0"})
    clip = clip_spec(channels=1)
    for start in (0, 17, 59):
        levels = decode_clip(tmp_path / "coded.mp4", clip, start)[:, 16, 16, 0].astype(int)
        assert np.abs(levels - (16 + start + 4 * np.arange(16))).max() <= 1
    middle = decode(tmp_path / "coded.mp4", clip)
    assert (middle.padded_frames, middle.video_frames) == (0, 120)
    assert abs(int(middle.frames[0, 0, 0, 0]) - (16 + 29)) <= 1


@pytest.mark.parametrize("width", sorted(DECORD_BAD_WIDTHS | {40, 64, 80}))
def test_every_width_gives_the_picture(tmp_path: Path, width: int) -> None:
    path = tmp_path / "video.mp4"
    write_video(path, 6, width=width, height=48)
    frames = read_frames(path, probe_video(path), [5, 0, 3, 3])
    assert frames.shape == (4, 48, width, 3)
    np.testing.assert_array_equal(frames, all_frames(path)[[5, 0, 3, 3]])


def test_a_file_cut_without_encoding_gives_what_it_shows(tmp_path: Path) -> None:
    write_video(
        tmp_path / "long.mp4", 200, picture=coded, width=64, height=64, codec_options={"g": "500", "crf": "0"}
    )
    copy_video(tmp_path / "long.mp4", tmp_path / "trimmed.mp4", start_s=2.5)
    probe = probe_video(tmp_path / "trimmed.mp4")
    shown = all_frames(tmp_path / "trimmed.mp4")
    assert (probe.header_frames, probe.frames + probe.hidden_frames, probe.frames) == (200, 200, len(shown))
    assert 120 <= len(shown) <= 130
    np.testing.assert_array_equal(
        read_frames(tmp_path / "trimmed.mp4", probe, [99, 3, 50]), shown[[99, 3, 50]]
    )
    with pytest.raises(VideoError, match="past the end"):
        read_frames(tmp_path / "trimmed.mp4", probe, [0, len(shown)])


def test_bad_files_name_themselves(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match=r"empty\.mp4: empty file"):
        decode_clip(tmp_path / "empty.mp4", clip_spec())
    with pytest.raises(VideoError, match=r"none\.mp4: cannot be read"):
        decode_clip(tmp_path / "none.mp4", clip_spec())
    write_video(tmp_path / "short.mp4", 9)
    with pytest.raises(VideoError, match="9 frames, but 16 frames at stride 4 span 61") as caught:
        decode_clip(tmp_path / "short.mp4", clip_spec())
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.path, again.reason) == (caught.value.path, caught.value.reason)


def test_resizing_two_ways() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (3, 60, 90, 3), dtype=np.uint8)
    square = torch.from_numpy(frames[:, :, 15:75].astype(np.float64)).permute(0, 3, 1, 2)
    # Whole-number reduction against torch's block mean.
    means = torch.nn.functional.avg_pool2d(square, 3).permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(resize_square(frames, 20, 3), np.floor(means + 0.5).astype(np.uint8))
    luma = means @ np.array([0.299, 0.587, 0.114])
    assert np.abs(resize_square(frames, 20, 1)[..., 0] - luma).max() <= 0.5 + 1e-3
    # Same size: untouched. Other sizes: a plane of light stays a plane of light.
    np.testing.assert_array_equal(resize_square(frames, 60, 3), frames[:, :, 15:75])
    ramp = np.broadcast_to(np.arange(60, dtype=np.uint8)[:, None, None] * 4, (2, 60, 60, 3))
    for side in (25, 90):
        resized = resize_square(np.ascontiguousarray(ramp), side, 3)
        inner = slice(3, side - 3)
        expected = ((np.arange(side) + 0.5) * 60 / side - 0.5) * 4
        assert np.abs(resized[0, inner, 0, 0] - expected[inner]).max() <= 1.0
