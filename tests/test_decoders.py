"""Other decoders than PyAV: asked where it cannot decode, trusted only where their frames are right."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from salt import decoders, scan, video
from salt.container import FrameTable, NotDecoded, VideoError, file_index, probe_video
from salt.decoders import following, read_otherwise, refusal, scaled
from salt.specs import ClipSpec
from salt.video import decode_clips, read_clip, read_frames
from tests.test_data_hostile import encode
from tests.test_video import all_frames
from tests.video_kit import pattern, write_kit, write_video

CLIP = ClipSpec(frames=4, frame_stride=2, store_px=32, crop_px=32, channels=3)


@pytest.fixture(autouse=True)
def forgetting() -> Iterator[None]:
    """What this process has learnt of files holds for a test, and it counts as a worker."""
    yield
    decoders._served.clear()
    decoders.take_served()


@pytest.fixture
def in_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other decoders are called here and now, as in a worker, which is isolated already."""
    monkeypatch.setattr(
        decoders.multiprocessing, "current_process", lambda: types.SimpleNamespace(daemon=True)
    )


class FakeFrames:
    """What torchcodec gives; `wrong` is added to every frame, `count` to the number of frames."""

    wrong, count = 0, 0

    def __init__(self, source: str, *, dimension_order: str, num_ffmpeg_threads: int, seek_mode: str) -> None:
        assert (dimension_order, num_ffmpeg_threads, seek_mode) == ("NHWC", 1, "exact")
        self.frames = all_frames(Path(source))

    def __len__(self) -> int:
        return len(self.frames) + self.count

    def get_frames_at(self, indices: Sequence[int]) -> Any:
        frames = np.roll(self.frames, self.wrong, axis=0)[indices]
        return types.SimpleNamespace(data=torch.from_numpy(frames.copy()))


@pytest.fixture
def torchcodec(monkeypatch: pytest.MonkeyPatch) -> type[FakeFrames]:
    """A torchcodec that is alone beside PyAV."""

    class Frames(FakeFrames):
        pass

    for name, content in (("torchcodec", {}), ("torchcodec.decoders", {"VideoDecoder": Frames})):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(decoders, "installed", lambda: ("pyav", "torchcodec"))
    return Frames


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str], set[str], set[str]]:
    folder = tmp_path_factory.mktemp("kit")
    return folder, *write_kit(folder)


def spread(table: FrameTable) -> list[int]:
    return [table.frames - 1, 0, table.frames // 3, 0]


@pytest.mark.usefixtures("in_a_worker")
def test_every_decoder_gives_pyavs_frames_of_the_kit_or_is_not_trusted(
    kit: tuple[Path, set[str], set[str], set[str]],
    torchcodec: type[FakeFrames],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, good, flagged, bad = kit
    for decoder in ("decord", "torchcodec"):
        monkeypatch.setattr(decoders, "installed", lambda name=decoder: ("pyav", name))
        for name in sorted(good):
            path = folder / f"{name}.mp4"
            if decoder == "decord" and name == "tiny":  # 32 wide
                with pytest.raises(VideoError, match="not trusted with frames of 32x32"):
                    read_otherwise(path, spread, None)
                continue
            frames, table, served = read_otherwise(path, spread, None)
            assert (served, decoders.serving(path)) == (decoder, decoder)
            np.testing.assert_array_equal(frames, read_frames(path, probe_video(path), spread(table)))
        decoders._served.clear()
        for name in sorted(flagged | bad):
            with pytest.raises(VideoError):
                read_otherwise(folder / f"{name}.mp4", spread, None)


@pytest.mark.usefixtures("in_a_worker")
@pytest.mark.parametrize(
    ("name", "codec", "size", "options", "said"),
    [
        ("a.avi", "mpeg4", (64, 64), {}, "not trusted with the container avi"),
        ("a.ts", "libx264", (64, 64), {}, "not trusted with the container mpegts"),
        ("a.mp4", "libx264", (48, 64), {}, "not trusted with frames of 48x64"),
        ("b.mp4", "libx264", (64, 72), {}, "not trusted with frames of 64x72"),
        ("open.mkv", "libx264", (64, 64), {"g": "12", "bf": "2", "x264-params": "open-gop=1"}, None),
        ("open.mp4", "libx264", (64, 64), {"g": "12", "bf": "2", "x264-params": "open-gop=1"}, None),
        ("refresh.mp4", "libx264", (64, 64), {"g": "20", "x264-params": "intra-refresh=1:bframes=0"}, None),
    ],
)
def test_decord_is_kept_from_what_it_gets_wrong_and_counts_through_the_rest(
    tmp_path: Path, name: str, codec: str, size: tuple[int, int], options: dict[str, str], said: str | None
) -> None:
    path = tmp_path / name
    encode(path, codec, 40, size, **options)
    assert refusal("decord", file_index(path)) == said
    if said is None:
        numbers = [33, 7, 13, 39]
        frames = read_otherwise(path, lambda table: numbers, None)[0]
        np.testing.assert_array_equal(frames, all_frames(path)[numbers])


@pytest.mark.usefixtures("in_a_worker")
def test_a_decoder_that_counts_or_shows_otherwise_is_not_trusted(
    tmp_path: Path, torchcodec: type[FakeFrames], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, 30)
    torchcodec.wrong = 1
    with pytest.raises(VideoError, match="made up; torchcodec: its frame 29 is not PyAV's"):
        read_otherwise(path, spread, NotDecoded(path, "made up"))
    torchcodec.wrong, torchcodec.count = 0, 1
    with pytest.raises(VideoError, match="torchcodec: counts 31 frames, the container 30"):
        read_otherwise(path, spread, None)
    torchcodec.count = 0
    monkeypatch.setattr(torchcodec, "get_frames_at", lambda self, indices: 1 / 0)
    with pytest.raises(VideoError, match="torchcodec: ZeroDivisionError"):
        read_otherwise(path, spread, None)
    assert decoders.serving(path) == "pyav"


@pytest.mark.usefixtures("in_a_worker")
def test_damage_has_no_other_decoder(
    kit: tuple[Path, set[str], set[str], set[str]],
    tmp_path: Path,
    torchcodec: type[FakeFrames],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Damage stays damage: what another decoder gave there would be made up."""
    monkeypatch.setattr(decoders, "read_verified", lambda task: pytest.fail("another decoder was asked"))
    clip = ClipSpec(source="streamed", frames=12, frame_stride=10, store_px=120)
    with pytest.raises(VideoError, match="damaged"):
        read_clip(kit[0] / "midcorrupt.mp4", clip, 0.5)
    assert [following(name) for name in (None, "pyav", "torchcodec")] == ["torchcodec", "torchcodec", None]


def _no_codec(tmp_path: Path) -> tuple[Path, Path]:
    """A file, and the same with a codec that nobody knows."""
    whole, unknown = tmp_path / "whole.mp4", tmp_path / "unknown.mp4"
    write_video(whole, 30, width=160, height=120)
    unknown.write_bytes(whole.read_bytes().replace(b"avc1", b"zzz9").replace(b"avcC", b"zzzC"))
    return whole, unknown


@pytest.mark.usefixtures("in_a_worker")
def test_clips_of_a_codec_that_pyav_lacks(
    tmp_path: Path, torchcodec: type[FakeFrames], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, unknown = _no_codec(tmp_path)
    shown = all_frames(whole)
    monkeypatch.setattr(torchcodec, "__init__", lambda self, source, **_: setattr(self, "frames", shown))
    plain = ClipSpec(source="streamed", frames=4, frame_stride=3, store_px=120, crop_px=32)
    np.testing.assert_array_equal(read_clip(unknown, plain, 0.0), shown[:12:3])
    assert decoders.take_served() == "torchcodec"
    np.testing.assert_array_equal(read_clip(unknown, plain, 0.0, 15), read_clip(whole, plain, 0.0, 15))
    small = ClipSpec(source="streamed", frames=4, frame_stride=3, store_px=60, crop_px=32)
    ours = read_clip(whole, small, 0.5).astype(int)
    # Scaled as RGB and not as YUV, which shows where colours have hard edges.
    assert 0 < np.abs(read_clip(unknown, small, 0.5) - ours).mean() < 6
    stored = decode_clips(unknown, CLIP)
    assert stored.decoder == "torchcodec"
    np.testing.assert_array_equal(stored.frames, decode_clips(whole, CLIP).frames)
    decoders._served.clear()  # a scan's worker has not met the file before
    assert scan.examine_file(unknown) == scan.FileReport(
        "flagged", "no decoder for its video stream; torchcodec decodes it", None, 30, None, "torchcodec"
    )


def test_scaling_is_pyavs_own(tmp_path: Path) -> None:
    frames = np.stack([pattern(number, 64, 48) for number in range(3)])
    assert scaled(frames, None) is frames
    assert scaled(frames, 48) is frames
    half = scaled(frames, 24)
    assert half.shape == (3, 24, 32, 3)
    wanted = av.VideoFrame.from_ndarray(frames[1], format="rgb24").reformat(width=32, height=24).to_ndarray()
    np.testing.assert_array_equal(half[1], wanted)


def test_outside_a_worker_another_decoder_has_a_process_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, 20)
    decoders.prefer(path, "decord")
    before = "decord" in sys.modules
    frames = read_clip(path, ClipSpec(source="streamed", frames=4, frame_stride=2, store_px=120), 0.0)
    np.testing.assert_array_equal(frames, all_frames(path)[:8:2])
    assert decoders.take_served() == "decord"
    assert ("decord" in sys.modules) == before
    assert video.decode(path, CLIP).decoder == "decord"
