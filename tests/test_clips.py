"""The decode-once store: right clips, bad files counted, and nothing half-made is ever believed."""

from __future__ import annotations

import functools
import json
import logging
import multiprocessing
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from salt.clips import Clips, clips_path, load_clips, open_clips, require_decodable
from salt.errors import UserError
from salt.lists import data_spec, read_list
from salt.specs import ClipSpec
from salt.video import decode_clip
from tests.video_kit import coded, write_video

CLIP = ClipSpec(frames=4, frame_stride=2, store_px=16, crop_px=16, channels=1, short_clips="repeat-last")


def quiet_open(
    path: Path, cache: Path, clip: ClipSpec = CLIP, share: float = 0.05, workers: int = 1
) -> Clips:
    return open_clips(path, clip, cache, workers, False, max_bad_share=share)


def later_coded(first: int, number: int, width: int, height: int) -> NDArray[np.uint8]:
    return coded(first + number, width, height)


def build(path: Path, cache: Path) -> None:
    quiet_open(path, cache)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten good videos of rising grey, two bad ones among them."""
    folder = tmp_path_factory.mktemp("videos")
    rows = ["path,label"]
    for number in range(10):
        write_video(
            folder / f"{number}.mp4",
            5 if number == 9 else 8,
            width=64,
            height=64,
            picture=functools.partial(later_coded, number * 10),
        )
        rows.append(f"{number}.mp4,{number % 2}")
    (folder / "good.csv").write_text("\n".join(rows))
    (folder / "zero.mp4").touch()
    (folder / "html.mp4").write_text("<html>")
    rows.insert(3, "zero.mp4,2")
    rows.insert(7, "html.mp4,3")
    (folder / "dirty.csv").write_text("\n".join(rows))
    (folder / "broken.csv").write_text("path\nzero.mp4\nhtml.mp4\n")
    return folder


def test_the_store_holds_what_decoding_gives(folder: Path, tmp_path: Path) -> None:
    clips = open_clips(folder / "good.csv", CLIP, tmp_path, 2, False)
    assert clips.frames.shape == (10, 4, 16, 16, 1)
    assert clips.frames.dtype == np.uint8
    assert not clips.frames.flags.writeable
    for stored, file in zip(clips.frames, clips.files, strict=True):
        np.testing.assert_array_equal(stored, decode_clip(file, CLIP))
    assert clips.columns == {"label": tuple("0101010101")}
    assert (len(clips), clips.skipped) == (10, ())
    assert clips.fingerprint == data_spec(read_list(folder / "good.csv"), "any").fingerprint
    assert clips.padded_share == pytest.approx(1 / 40)
    with pytest.raises(UserError, match="no label column 'action' in the list; it has label"):
        clips.labels("action")


def test_bad_files_are_skipped_logged_once_and_counted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        clips = open_clips(folder / "dirty.csv", CLIP, tmp_path, 2, False, max_bad_share=0.2)
    assert [(path.name, reason.split(":")[0]) for path, reason in clips.skipped] == [
        ("zero.mp4", "empty file"),
        ("html.mp4", "not a readable video"),
    ]
    assert sorted(record.args[0].name for record in caplog.records) == ["html.mp4", "zero.mp4"]  # type: ignore[union-attr, index]
    assert clips.rows == tuple(f"{number}.mp4" for number in range(10))
    np.testing.assert_array_equal(clips.frames, quiet_open(folder / "good.csv", tmp_path).frames)
    caplog.clear()
    assert len(open_clips(folder / "dirty.csv", CLIP, tmp_path, 2, False, max_bad_share=0.2).skipped) == 2
    assert not caplog.records
    with pytest.raises(UserError, match=r"2 of 12 files give no clip \(5 % are allowed\)"):
        quiet_open(folder / "dirty.csv", tmp_path)


def test_too_many_bad_files_leave_nothing_behind(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"2 of 2 files give no clip(.|\n)*zero\.mp4: empty file"):
        quiet_open(folder / "broken.csv", tmp_path, share=1.0)
    with pytest.raises(UserError, match="2 of 12"):
        quiet_open(folder / "dirty.csv", tmp_path)
    assert [path for path in (tmp_path / "clips").iterdir() if path.suffix != ".lock"] == []
    with pytest.raises(UserError, match=r"broken\.csv: 2 of 2 files give no clip; see them all"):
        require_decodable(folder / "broken.csv", CLIP)
    assert len(require_decodable(folder / "dirty.csv", CLIP).rows) == 12


def test_the_key_is_what_decoding_depends_on(tmp_path: Path) -> None:
    here = clips_path(tmp_path, "f" * 20, CLIP)
    same = ClipSpec(
        frames=4, frame_stride=2, store_px=16, crop_px=8, channels=1, short_clips="repeat-last", mean=0.1
    )
    assert clips_path(tmp_path, "f" * 20, same) == here
    others = [
        ClipSpec(frames=4, frame_stride=2, store_px=16, crop_px=16, channels=1, short_clips="loop"),
        ClipSpec(frames=4, frame_stride=2, store_px=16, crop_px=16, channels=3, short_clips="repeat-last"),
        ClipSpec(frames=4, frame_stride=1, store_px=16, crop_px=16, channels=1, short_clips="repeat-last"),
    ]
    keys = {clips_path(tmp_path, "f" * 20, clip) for clip in others}
    assert len({here, clips_path(tmp_path, "e" * 20, CLIP), *keys}) == 5


def test_a_broken_store_is_rebuilt_and_says_so(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clips = open_clips(folder / "good.csv", CLIP, tmp_path, 1, False)
    expected, place = np.array(clips.frames), clips_path(tmp_path, clips.fingerprint, CLIP)
    index = json.loads((place / "index.json").read_text())

    def cut_array() -> None:
        os.truncate(place / "clips.npy", (place / "clips.npy").stat().st_size - 1)

    def other_type() -> None:
        np.save(place / "clips.npy", expected.astype(np.int16))

    def fewer_rows() -> None:
        np.save(place / "clips.npy", expected[:9])

    def other_list() -> None:
        (place / "index.json").write_text(json.dumps(index | {"fingerprint": "0" * 20}))

    def cut_index() -> None:
        os.truncate(place / "index.json", 40)

    def no_array() -> None:
        (place / "clips.npy").unlink()

    for damage in (cut_array, other_type, fewer_rows, other_list, cut_index, no_array):
        damage()
        caplog.clear()
        assert load_clips(tmp_path, clips.fingerprint, CLIP) is None, damage.__name__
        assert "are broken" in caplog.text
        again = open_clips(folder / "good.csv", CLIP, tmp_path, 1, False)
        np.testing.assert_array_equal(again.frames, expected)


def test_the_leftover_of_a_killed_builder_is_ignored_and_cleared(folder: Path, tmp_path: Path) -> None:
    clips = open_clips(folder / "good.csv", CLIP, tmp_path, 1, False)
    place = clips_path(tmp_path, clips.fingerprint, CLIP)
    place.rename(place.with_name(f"{place.name}.building-somewhere-1"))
    assert load_clips(tmp_path, clips.fingerprint, CLIP) is None
    open_clips(folder / "good.csv", CLIP, tmp_path, 1, False)
    assert sorted(path.name for path in place.parent.iterdir()) == [place.name, f"{place.name}.lock"]


def test_builders_at_once_are_harmless_and_the_list_may_move(folder: Path, tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    shutil.copytree(folder, videos)
    context = multiprocessing.get_context("spawn")
    builders = [context.Process(target=build, args=(videos / "good.csv", tmp_path)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join()
    assert [builder.exitcode for builder in builders] == [0, 0]
    for builder in builders:
        builder.close()
    fingerprint = data_spec(read_list(videos / "good.csv"), "any").fingerprint
    videos.rename(tmp_path / "moved")
    found = load_clips(tmp_path, fingerprint, CLIP)
    assert found is not None
    moved = open_clips(tmp_path / "moved" / "good.csv", CLIP, tmp_path, 1, False)
    np.testing.assert_array_equal(found.frames, moved.frames)


def test_padding_is_mentioned(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    clip = ClipSpec(frames=16, frame_stride=4, store_px=16, crop_px=16, channels=1, short_clips="repeat-last")
    assert open_clips(folder / "good.csv", clip, tmp_path, 1, False).padded_share > 0.8
    assert "of all frames are padding" in caplog.text
