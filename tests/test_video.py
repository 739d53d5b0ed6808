"""Frames of clips: the right ones, whatever the width and however the file was cut."""

from __future__ import annotations

import pickle
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from salt.container import frame_table
from salt.frames import pick_by_time, spread_starts
from salt.specs import ClipSpec
from salt.video import (
    VideoError,
    decode,
    decode_clip,
    decode_clips,
    pick_frames,
    probe_video,
    read_clip,
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


@pytest.mark.parametrize("width", [16, 24, 40, 64, 72, 144])
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


def ramp(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """Light that grows to the right and, less, downwards."""
    y, x = np.mgrid[0:height, 0:width]
    return np.repeat((20 + x + y // 2)[..., None], 3, axis=-1).astype(np.uint8)


def busy_video(path: Path, frames: int = 150, **options: str) -> NDArray[np.uint8]:
    """A video whose frames all differ, and its frames as decoding from the beginning gives them."""
    write_video(path, frames, codec_options={"g": "20", **options})
    return all_frames(path)


def starting_at(path: Path, clip: ClipSpec, number: int, starts: int) -> NDArray[np.uint8]:
    return read_clip(path, clip, (number + 0.5) / starts)


@pytest.mark.parametrize(
    "coding",
    [
        {},
        {"x264-params": "open-gop=1:bframes=4:scenecut=0"},
        {"x264-params": "intra-refresh=1:bframes=0"},
        {"g": "1000"},
    ],
    ids=["closed", "open", "refresh", "long"],
)
def test_a_clip_anywhere_in_a_file_is_the_one_that_counting_gives(
    tmp_path: Path, coding: dict[str, str]
) -> None:
    shown = busy_video(tmp_path / "video.mp4", **coding)
    clip = clip_spec(frames=4, frame_stride=3, store_px=200)
    assert frame_table(tmp_path / "video.mp4").from_header
    for start in [*range(0, 141, 7), 140]:
        clip_frames = starting_at(tmp_path / "video.mp4", clip, start, 141)
        np.testing.assert_array_equal(clip_frames, shown[start : start + 10 : 3])
    # The ends of the places are the ends of the starts.
    np.testing.assert_array_equal(read_clip(tmp_path / "video.mp4", clip, 0.0), shown[:10:3])
    np.testing.assert_array_equal(read_clip(tmp_path / "video.mp4", clip, 1 - 1e-9), shown[140::3])
    for place in (-0.1, 1.0):
        with pytest.raises(VideoError, match="place"):
            read_clip(tmp_path / "video.mp4", clip, place)


def test_a_clip_of_a_file_cut_between_its_key_frames(tmp_path: Path) -> None:
    """Whole groups of pictures before the cut are in the file, and in the header's count, but not shown."""
    busy_video(tmp_path / "video.mp4")
    copy_video(tmp_path / "video.mp4", tmp_path / "cut.mp4", start_s=2.5)
    shown = all_frames(tmp_path / "cut.mp4")
    probe = probe_video(tmp_path / "cut.mp4")
    assert (probe.header_frames, probe.frames) == (150, 75)
    clip = clip_spec(frames=4, frame_stride=3, store_px=200)
    for start in (0, 1, 19, 40, 65):
        frames = starting_at(tmp_path / "cut.mp4", clip, start, 66)
        np.testing.assert_array_equal(frames, shown[start : start + 10 : 3])
    np.testing.assert_array_equal(read_frames(tmp_path / "cut.mp4", probe, [74, 0, 33]), shown[[74, 0, 33]])
    data = (tmp_path / "video.mp4").read_bytes()
    copy_video(tmp_path / "video.mp4", tmp_path / "front.mp4", options={"movflags": "faststart"})
    data = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "front.mp4").write_bytes(data[: len(data) * 6 // 10])
    for read in (probe_video, frame_table):
        with pytest.raises(VideoError, match="cut short: the header promises 150 frames"):
            read(tmp_path / "front.mp4")


def test_frames_come_upright_and_no_larger_than_asked(tmp_path: Path) -> None:
    write_video(tmp_path / "video.mp4", 20)
    data = bytearray((tmp_path / "video.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 44  # of the track header: ISO 14496-12, section 8.3.2
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 120 << 16, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(data)
    clip = clip_spec(frames=2, frame_stride=3, store_px=120)
    lying, upright = (read_clip(tmp_path / f"{name}.mp4", clip, 0.4) for name in ("video", "turned"))
    assert (lying.shape, upright.shape) == ((2, 120, 160, 3), (2, 160, 120, 3))
    np.testing.assert_array_equal(upright, np.rot90(lying, -1, axes=(1, 2)))
    stored = read_frames(tmp_path / "turned.mp4", probe_video(tmp_path / "turned.mp4"), [6, 9])
    np.testing.assert_array_equal(read_clip(tmp_path / "turned.mp4", clip, 6.5 / 17), stored)
    write_video(tmp_path / "ramp.mp4", 4, picture=ramp, codec_options={"crf": "0"})
    clip = clip_spec(frames=2, frame_stride=3, store_px=30)
    small = read_clip(tmp_path / "ramp.mp4", clip, 0.4)
    assert small.shape == (2, 30, 40, 3)
    means = ramp(0, 160, 120).reshape(30, 4, 40, 4, 3).mean(axis=(1, 3))
    assert np.abs(small - means)[:, 1:-1, 1:-1].max() <= 2


def test_frames_by_time_are_the_nearest(tmp_path: Path) -> None:
    """Two seconds at 30 frames per second, then two at 5; and a file of 1 frame per second."""
    times_ms = [round(number * 1000 / 30) for number in range(60)] + [2000 + 200 * k for k in range(11)]
    with av.open(str(tmp_path / "vfr.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "0"})
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for number, time_ms in enumerate(times_ms):
            frame = av.VideoFrame.from_ndarray(coded(number, 64, 64), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    clip = clip_spec(frames=8, frame_rate_hz=4.0, store_px=64)
    starts = sum(1 for time_ms in times_ms if time_ms + 1750 <= times_ms[-1] + 1e-3)
    for start in (0, 11, 59, starts - 1):
        frames = starting_at(tmp_path / "vfr.mp4", clip, start, starts)
        levels = frames[:, 16, 16, 0].astype(int) - 16
        moments = times_ms[start] + 250 * np.arange(8)
        nearest = [int(np.abs(np.array(times_ms) - moment).argmin()) for moment in moments]
        assert np.abs(levels - nearest).max() <= 1, start
        if start == 0:  # stored clips take the same rule; the middle of the possible starts
            stored = decode(tmp_path / "vfr.mp4", clip_spec(frames=8, frame_rate_hz=4.0, channels=1), 0)
            assert np.abs(stored.frames[:, 0, 0, 0].astype(int) - 16 - nearest).max() <= 1
    with pytest.raises(VideoError, match="slower than asked: one frame, at .* at frame_rate_hz 8"):
        read_clip(tmp_path / "vfr.mp4", clip_spec(frames=8, frame_rate_hz=8.0), 0.9)
    write_video(tmp_path / "onefps.mp4", 20, rate=1)
    with pytest.raises(VideoError, match="slower than asked.* 1 frames per second"):
        read_clip(tmp_path / "onefps.mp4", clip_spec(frames=8, frame_rate_hz=8.0), 0.0)


@pytest.mark.parametrize(
    ("policy", "numbers", "padded"),
    [
        ("repeat-last", [0, 8, 15, 22, 30, 38, 44, 44], 2),
        ("loop", [0, 8, 15, 22, 30, 38, 0, 8], 2),
        ("shrink-stride", [0, 6, 13, 19, 25, 31, 38, 44], 0),
    ],
)
def test_the_policy_for_videos_too_short_in_time(policy: str, numbers: list[int], padded: int) -> None:
    """45 frames at 30 per second: 1.47 s between the first and the last; asked for 1.75 s."""
    clip = clip_spec(frames=8, frame_rate_hz=4.0, short_clips=policy)
    picked, count = pick_by_time(np.arange(45) / 30, clip, 0)
    assert np.abs(np.array(picked) - numbers).max() <= 1  # moments half way between two frames
    assert count == padded
    with pytest.raises(ValueError, match=r"1\.47 s, but 8 frames at 4 per second span 1\.75 s"):
        pick_by_time(np.arange(45) / 30, clip_spec(frames=8, frame_rate_hz=4.0), 0)
    assert pick_by_time(np.zeros(1), clip, 0)[0] == [0] * 8


def test_several_clips_of_a_file_lie_at_the_centres_of_equal_parts(tmp_path: Path) -> None:
    write_video(tmp_path / "coded.mp4", 101, width=64, height=64, picture=coded, codec_options={"crf": "0"})
    clip = clip_spec(frames=6, frame_stride=4, channels=1, clips_per_file=4)
    several = decode_clips(tmp_path / "coded.mp4", clip)
    assert several.frames.shape == (4, 6, 32, 32, 1)
    firsts = several.frames[:, 0, 0, 0, 0].astype(int) - 16
    assert np.abs(firsts - [10, 30, 50, 70]).max() <= 1  # starts 0 to 80
    plain = clip_spec(frames=6, channels=1)
    one = decode_clips(tmp_path / "coded.mp4", plain)
    np.testing.assert_array_equal(one.frames[0], decode(tmp_path / "coded.mp4", plain).frames)
    assert [spread_starts(last, 1) for last in range(6)] == [[last // 2] for last in range(6)]


def test_an_image_is_a_still_clip_the_right_way_up(tmp_path: Path) -> None:
    """Exif orientation 1 to 8: the picture is written as the camera would and must come back as it was."""
    y, x = np.mgrid[0:60, 0:90]
    seen = np.stack([2 * x, 4 * y, x + y], -1).astype(np.uint8)
    written = {
        1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1], 5: seen.swapaxes(0, 1),
        6: np.rot90(seen), 7: np.rot90(seen, 2).swapaxes(0, 1), 8: np.rot90(seen, -1),
    }  # fmt: skip
    clip = clip_spec(frames=3, store_px=200)
    for orientation, picture in written.items():
        exif = Image.Exif()
        exif[0x112] = orientation
        Image.fromarray(np.ascontiguousarray(picture)).save(tmp_path / "a.jpg", exif=exif, quality=95)
        frames = read_clip(tmp_path / "a.jpg", clip, 0.7)
        assert frames.shape == (3, 60, 90, 3), orientation
        assert np.abs(frames[2].astype(int) - seen).mean() < 3, orientation
    for name in ("b.png", "b.webp", "b.bmp"):
        Image.fromarray(seen).save(tmp_path / name)
        probe = probe_video(tmp_path / name)
        assert (probe.frames, probe.fps, probe.width_px) == (1, None, 90)
        (tmp_path / name).rename(tmp_path / "no-name")  # told by content
        stored = decode_clips(tmp_path / "no-name", clip_spec(frames=3, store_px=30, clips_per_file=2))
        assert (stored.frames.shape, stored.padded_frames) == ((2, 3, 30, 30, 3), 0)
        expected = seen[:, 15:75].reshape(30, 2, 30, 2, 3).mean(axis=(1, 3))
        assert np.abs(stored.frames[1, 2] - expected).mean() < (6 if "webp" in name else 0.6)
    assert read_clip(tmp_path / "no-name", clip_spec(store_px=20), 0.0).shape == (16, 20, 30, 3)
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(20))
    with pytest.raises(VideoError, match=r"cut\.png: not a readable image"):
        read_clip(tmp_path / "cut.png", clip, 0.0)
