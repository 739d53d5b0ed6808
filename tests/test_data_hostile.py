"""Out to break the data path: odd containers, odd pictures, disks that are full or closed."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import salt_cli
from salt import augment, clip_build, clips, container, folders
from salt.clips import clips_path, find_packs, load_clips, open_clips
from salt.container import VideoError, decodes_a_frame, frame_table, probe_video
from salt.crew import available_bytes
from salt.data_cli import main
from salt.errors import UserError
from salt.frames import pick_by_time
from salt.images import read_image
from salt.lists import data_spec, read_list
from salt.seeking import read_at
from salt.specs import ClipSpec
from salt.video import decode, read_clip, read_frames
from tests.test_video import all_frames
from tests.video_kit import coded, pattern, write_video

#: One stored clip of 4 x 16 x 16 grey pixels a file, of files with 7 frames or more.
CLIP = ClipSpec(frames=4, frame_stride=2, store_px=16, crop_px=16, channels=1)
FRAMES = 40


def encode(
    path: Path, codec: str, frames: int = FRAMES, size: tuple[int, int] = (64, 48), **options: str
) -> None:
    """A busy video in whatever container the name asks for."""
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream(codec, rate=25, options={"threads": "1", **options})
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pattern(number, *size), format="rgb24")))
        file.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("h264.avi", "libx264", {"g": "12", "bf": "2"}),
        ("mpeg4.avi", "mpeg4", {"g": "12", "bf": "2"}),
        ("h264.ts", "libx264", {"g": "12", "bf": "2"}),
        ("mpeg2.mpg", "mpeg2video", {"g": "12", "bf": "2"}),
        ("wmv2.asf", "wmv2", {"g": "12"}),
        ("h264.flv", "libx264", {"g": "12", "bf": "2"}),
        ("h264.mkv", "libx264", {"g": "12", "bf": "2"}),
        ("bare.h264", "libx264", {"g": "12", "bf": "2"}),
        ("open.mp4", "libx264", {"g": "12", "bf": "2", "x264-params": "open-gop=1"}),
        ("refresh.mp4", "libx264", {"g": "20", "x264-params": "intra-refresh=1:bframes=0"}),
    ],
)
def test_every_container_gives_the_frames_that_counting_gives(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    """Stored and streamed: an AVI's index has no times of showing, and many readers seek wrong in others."""
    path = tmp_path / name
    encode(path, codec, **options)
    shown = all_frames(path)
    assert len(shown) == FRAMES
    np.testing.assert_array_equal(read_frames(path, probe_video(path), [33, 0, 13]), shown[[33, 0, 13]])
    plain = ClipSpec(frames=7, frame_stride=5, store_px=48)
    for start in (0, 4, FRAMES - 31):  # across key frames
        square = shown[start : start + 31 : 5, :, 8:-8]
        np.testing.assert_array_equal(decode(path, plain, start).frames, square)
    clip = ClipSpec(source="streamed", frames=3, frame_stride=5, store_px=48)
    for start in (0, 7, 14, 26, FRAMES - 11):
        frames = read_clip(path, clip, (start + 0.5) / (FRAMES - 10))
        np.testing.assert_array_equal(frames, shown[start : start + 11 : 5])


@pytest.mark.parametrize("name", ["cut.ts", "cut.mov"])
def test_a_stream_that_begins_between_key_frames_has_only_what_decodes(tmp_path: Path, name: str) -> None:
    cut = tmp_path / name
    encode(tmp_path / "whole.ts", "libx264", g="12", bf="2")
    data = (tmp_path / "whole.ts").read_bytes()
    if name == "cut.ts":
        cut.write_bytes(data[len(data) // 188 // 2 * 188 :])
    else:  # an MP4's header lists these frames as any others
        encode(tmp_path / "whole.mov", "libx264", g="12", bf="2")
        with av.open(str(tmp_path / "whole.mov")) as old, av.open(str(cut), "w") as new:
            copy = new.add_stream_from_template(old.streams.video[0])
            for packet in [packet for packet in old.demux(video=0) if packet.dts is not None][5:]:
                packet.stream = copy
                new.mux(packet)
    shown, probe = all_frames(cut), probe_video(cut)
    assert 0 < probe.frames == len(shown) < FRAMES
    assert probe.hidden_frames > 0
    numbers = [0, len(shown) // 2, len(shown) - 1]
    table = frame_table(cut)
    np.testing.assert_array_equal(read_frames(cut, probe, numbers), shown[numbers])
    for number in numbers:
        np.testing.assert_array_equal(read_at(cut, table, [number])[0], shown[number])
    clip = ClipSpec(source="streamed", frames=2, store_px=48)
    np.testing.assert_array_equal(read_clip(cut, clip, 0.0), shown[[0, 4]])


def test_frames_that_change_in_size_and_covers_without_a_film_are_bad_files(tmp_path: Path) -> None:
    for name, size in (("a.h264", (64, 48)), ("b.h264", (48, 32))):
        encode(tmp_path / name, "libx264", 12, size)
    glued = tmp_path / "glued.h264"
    glued.write_bytes((tmp_path / "a.h264").read_bytes() + (tmp_path / "b.h264").read_bytes())
    with pytest.raises(VideoError, match="different sizes: 48x32 and 64x48"):
        read_frames(glued, probe_video(glued), [0, 20])
    song = tmp_path / "song.m4a"
    with av.open(str(song), "w", format="mp4") as file:
        sound: Any = file.add_stream("aac", rate=44100)
        cover: Any = file.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        file.mux(cover.encode(av.VideoFrame.from_ndarray(pattern(0, 64, 48), format="rgb24")))
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 44100
        file.mux(sound.encode(silence))
        for stream in (cover, sound):
            file.mux(stream.encode(None))
    with av.open(str(song)) as file:
        assert file.streams.video  # the cover
    for look in (probe_video, frame_table):
        with pytest.raises(VideoError, match="no video stream"):
            look(song)
    assert not decodes_a_frame(song)


def test_tags_that_are_not_text_and_pictures_without_a_decoder(tmp_path: Path) -> None:
    """Old files have Latin-1 titles; a run must not end for that."""
    good = tmp_path / "good.mp4"
    with av.open(str(good), "w") as file:
        file.metadata["title"] = "titletitle"
        stream: Any = file.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(9):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pattern(number, 64, 48), format="rgb24")))
        file.mux(stream.encode(None))
    data = good.read_bytes()
    assert data.count(b"titletitle") == 1
    (tmp_path / "old.mp4").write_bytes(
        data.replace(b"titletitle", "\xe9t\xe9 \xe0 N\xeeme".encode("latin-1"))
    )
    clip = ClipSpec(source="streamed", frames=3, frame_stride=2, store_px=48)
    np.testing.assert_array_equal(
        read_clip(tmp_path / "old.mp4", clip, 0.5), read_clip(tmp_path / "good.mp4", clip, 0.5)
    )
    assert decodes_a_frame(tmp_path / "old.mp4")
    (tmp_path / "new.mp4").write_bytes(data.replace(b"avc1", b"zzz9").replace(b"avcC", b"zzzC"))
    for look in (lambda path: read_clip(path, clip, 0.5), probe_video):
        with pytest.raises(VideoError, match="no decoder for its video stream"):
            look(tmp_path / "new.mp4")
    assert not decodes_a_frame(tmp_path / "new.mp4")


def test_a_rate_is_served_from_the_header_and_the_same_as_from_the_packets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_video(tmp_path / "video.mp4", 120, codec_options={"g": "20", "bf": "2"})
    clip = ClipSpec(source="streamed", frames=6, frame_rate_hz=7.0, store_px=200)

    def no_packets(*_: Any) -> None:
        raise AssertionError("the whole file was read")

    with monkeypatch.context() as patch:
        patch.setattr(container, "_read_packets", no_packets)
        clips = [read_clip(tmp_path / "video.mp4", clip, place) for place in (0.0, 0.4, 0.99)]
    container._look_at.cache_clear()
    monkeypatch.setattr(container, "_from_header", lambda *_: None)
    for place, frames in zip((0.0, 0.4, 0.99), clips, strict=True):
        np.testing.assert_array_equal(read_clip(tmp_path / "video.mp4", clip, place), frames)
    container._look_at.cache_clear()


def test_a_rate_beyond_all_measure_is_refused_and_not_divided_by_zero() -> None:
    clip = ClipSpec(frames=4, frame_rate_hz=1e9, short_clips="repeat-last")
    for times_s, said in ((np.zeros(1), "the file has one frame"), (np.arange(9) / 30, "30 frames per sec")):
        with pytest.raises(ValueError, match=f"slower than asked.*{said}"):
            pick_by_time(times_s, clip, 0)


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "RGBA", "L", "1", "I;16"])
def test_pictures_of_all_modes_show_the_same(tmp_path: Path, mode: str) -> None:
    """A ramp from black to white; one of 16 bits must not come out all white."""
    ramp = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8), (48, 64))
    picture = Image.fromarray(ramp.astype(np.uint16) << 8) if mode == "I;16" else Image.fromarray(ramp)
    path = tmp_path / "picture"
    if mode == "I;16":
        picture.save(path, "PNG")
    else:
        picture.convert("RGB").convert(mode).save(path, "JPEG" if mode == "CMYK" else "PNG")
    off = np.abs(read_image(path).mean(axis=(0, 2)) - ramp[0]).mean()
    assert off < (30 if mode == "1" else 8), off  # two levels, or a web palette of six


def test_a_still_clip_is_cropped_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(pattern(0, 60, 40)).save(tmp_path / "still.png")
    clip = ClipSpec(source="streamed", frames=5, store_px=32, crop_px=24, crop="random_resized", flip=True)
    frames = read_clip(tmp_path / "still.png", clip, 0.5)
    assert frames.shape == (5, 32, 48, 3)
    sizes: list[int] = []
    resize = augment.resize

    def counted(part: NDArray[np.uint8], height: int, width: int) -> Any:
        sizes.append(len(part))
        return resize(part, height, width)

    tries = augment.view_chances(np.arange(2), np.arange(2)).tries[1]
    wanted = augment.crop(np.array(frames), clip, tries, 0.1)
    monkeypatch.setattr(augment, "resize", counted)
    np.testing.assert_array_equal(augment.crop(frames, clip, tries, 0.1), wanted)
    assert sizes == [1]


def test_names_that_begin_with_dots_stay_beneath_the_list(tmp_path: Path) -> None:
    """Absolute and relative paths of one file are one row, and a moved folder keeps its fingerprint."""
    (tmp_path / "..odd.mp4").write_bytes(b"x")
    for name in (f"{tmp_path}/..odd.mp4", "..odd.mp4", f"../{tmp_path.name}/..odd.mp4"):
        (tmp_path / "list.csv").write_text(f"path\n{name}\n")
        assert read_list(tmp_path / "list.csv").rows == ("..odd.mp4",)
    (tmp_path / "list.csv").write_text(f"path\n..odd.mp4\n{tmp_path}/..odd.mp4\n")
    with pytest.raises(UserError, match="line 3.*repeats line 2"):
        read_list(tmp_path / "list.csv")


@pytest.fixture(scope="module")
def dirty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of four good files and a bad one."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(5):
        write_video(folder / f"{number}.mp4", 8, width=64, height=64, picture=lambda n, w, h: coded(90, w, h))
    (folder / "2.mp4").write_text("<html>")
    (folder / "list.csv").write_text("path\n" + "".join(f"{number}.mp4\n" for number in range(5)))
    return folder / "list.csv"


def pack(path: Path, cache: Path) -> clips.Clips:
    return open_clips(path, CLIP, cache, 1, False, max_bad_share=0.5)


def test_places_that_cannot_be_written_are_mistakes_of_the_user(tmp_path: Path, dirty: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write in .*file/clips: Not a directory.*another store"):
        pack(dirty, tmp_path / "file")
    (tmp_path / "cache" / "clips").mkdir(parents=True)
    (clips_path(tmp_path / "cache", data_spec(read_list(dirty), "").fingerprint, CLIP)).with_suffix(
        ".lock"
    ).mkdir()
    with pytest.raises(UserError, match="cannot write in"):
        pack(dirty, tmp_path / "cache")


def test_a_full_disk_is_said_before_decoding_and_leaves_nothing(tmp_path: Path, dirty: Path) -> None:
    """`ulimit -f`, in a process of its own: a memory map would have ended it without a word."""
    command = [sys.executable, salt_cli.__file__, "salt-data", "pack", str(dirty), "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--frames", "4", "--stride", "2", "--px", "64"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "no room for 0.00 GB of decoded clips" in done.stderr
    assert "File too large" in done.stderr
    assert [path.suffix for path in (tmp_path / "clips").iterdir()] == [".lock"]


def test_no_room_for_a_copy_without_bad_files_keeps_what_was_decoded(
    tmp_path: Path, dirty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_array = folders.new_array

    def full(target: Path, shape: tuple[int, ...], what: str) -> NDArray[np.uint8]:
        if target.name == "dense.npy":
            raise UserError("no room")
        return new_array(target, shape, what)

    with monkeypatch.context() as patch:
        patch.setattr(clip_build, "new_array", full)
        with pytest.raises(UserError, match="no room"):
            pack(dirty, tmp_path)

    def no_decoding(task: Any, items: Any, **_: Any) -> list[Any]:
        assert not items
        return []

    monkeypatch.setattr(clip_build, "run_isolated", no_decoding)
    found = pack(dirty, tmp_path)
    assert found.rows == ("0.mp4", "1.mp4", "3.mp4", "4.mp4")
    np.testing.assert_array_equal(found.frames[3], decode(dirty.parent / "4.mp4", CLIP).frames)


def test_what_killed_builders_left_aside_stops_nobody(tmp_path: Path, dirty: Path) -> None:
    first = pack(dirty, tmp_path)
    folder = clips_path(tmp_path, first.fingerprint, CLIP)
    for name in (f"{folder.name}.building.old", f"{folder.name}.building-host-1"):
        (tmp_path / "clips" / name).mkdir()
        (tmp_path / "clips" / name / "clips.npy").touch()
    array = folder / "clips.npy"
    for damage in (b"broken", array.read_bytes().replace(b"), }", b"(, }")):
        array.write_bytes(damage)
        assert load_clips(tmp_path, first.fingerprint, CLIP) is None
    assert pack(dirty, tmp_path).rows == first.rows
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == [
        folder.name,
        f"{folder.name}.lock",
    ]
    (folder / "index.json").write_text(f'{{\n  "fingerprint": "{first.fingerprint}",\n  "later": 1\n}}\n')
    assert load_clips(tmp_path, first.fingerprint, CLIP) is None
    assert list(find_packs(tmp_path, first.fingerprint)) == []


def test_waiting_for_another_builder_is_said(
    tmp_path: Path, dirty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two open files of one process are two holders of a lock."""
    folder = clips_path(tmp_path, data_spec(read_list(dirty), "").fingerprint, CLIP)
    folder.parent.mkdir(parents=True)
    finished: list[int] = []
    said: SimpleQueue[str] = SimpleQueue()
    monkeypatch.setattr(folders.log, "warning", lambda text, *items: said.put(text % items))
    with folders.builders_lock(folder.with_suffix(".lock")) as held:
        assert held
        other = threading.Thread(target=lambda: finished.append(len(pack(dirty, tmp_path))))
        other.start()
        assert said.get(timeout=60) == f"another process is building {folder}: waiting for it"
        assert not finished
        assert not folder.exists()
    other.join()
    assert finished == [4]


def test_packing_reads_its_list_once(
    tmp_path: Path, dirty: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A look at every file of a large list on a network disk takes minutes."""
    from salt import pack as packing

    reads: list[Path] = []
    read: Callable[[Path], Any] = packing.read_list
    monkeypatch.setattr(packing, "read_list", lambda path: reads.append(path) or read(path))
    monkeypatch.setattr(clips, "read_list", lambda path: pytest.fail("read again"))
    options = ["--frames", "4", "--stride", "2", "--px", "16", "--max-bad", "50"]
    assert main(["pack", str(dirty), "--out", str(tmp_path), *options]) == 0
    assert reads == [dirty]
    assert "5 files, 5 clips: 15.4 kB" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["pack", str(dirty), "--frames", "many"])
    assert "argument --frames: 'many' is not a whole number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "folder", "files", "free"),
    [
        (
            "0::/job/step",
            "job",
            {"max": "900", "current": "500", "stat": "inactive_file 50\nactive_file 30"},
            480,
        ),
        ("0::/job/step", "job/step", {"max": "max", "current": "1", "stat": ""}, 2048),
        (
            "4:cpu,memory:/slurm/job\n1:name=systemd:/",
            "memory/slurm",
            {
                "limit_in_bytes": "900",
                "usage_in_bytes": "500",
                "stat": "inactive_file 1\nactive_file 1\ntotal_inactive_file 50\ntotal_active_file 30",
            },
            480,
        ),
        ("4:memory:/docker/1", "memory", {"limit_in_bytes": "9", "usage_in_bytes": "9", "stat": ""}, 2048),
    ],
)
def test_memory_is_that_of_the_tightest_group(
    tmp_path: Path, line: str, folder: str, files: dict[str, str], free: int
) -> None:
    """Both versions of control groups; one whose numbers cannot be read limits nothing."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable: 2 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text(f"{line}\n")
    group = tmp_path / "sys" / "fs" / "cgroup" / folder
    group.mkdir(parents=True)
    for name, text in files.items():
        (group / f"memory.{name}").write_text(f"{text}\n")
    assert available_bytes(tmp_path) == free
    assert available_bytes(tmp_path / "elsewhere") is None
