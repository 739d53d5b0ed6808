"""Scanning: each kind of bad file is found and named; one that kills its decoder costs only itself."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path

import pytest
from PIL import Image

from salt import clip_build, decoders
from salt.clip_build import Asked, decode_task
from salt.clips import open_clips
from salt.data_cli import main
from salt.errors import UserError
from salt.isolate import run_isolated
from salt.lists import data_spec, read_list
from salt.scan import FileReport, examine_file, scan_list, write_clean_list
from salt.specs import ClipSpec
from salt.video import DecodedClip, VideoError, read_clip
from tests.video_kit import pattern, write_kit, write_video


def misbehave(item: str) -> str:
    if item == "abort":
        os.kill(os.getpid(), signal.SIGABRT)
    if item == "hang":
        signal.pause()
    if item == "exit":
        os._exit(3)
    if item == "fault":
        raise KeyError("a fault of the program")
    return item.upper()


def examine_or_die(path: Path) -> FileReport:
    return FileReport(verdict="good", reason=misbehave(path.stem), decodable_frames=1)


def take_without_end(path: Path) -> FileReport:
    taken = []
    while path.stem == "greedy":
        taken.append(bytearray(10_000_000))
    return FileReport(verdict="good", decodable_frames=len(taken) + 1)


def die_by_pyav(path: Path) -> FileReport:
    """Files are examined as they are, but that PyAV ends the process on one."""
    if path.stem == "dies" and decoders.serving(path) == "pyav":
        os.kill(os.getpid(), signal.SIGABRT)
    return examine_file(path)


def pack_unless_pyav(task: tuple[Path, Asked]) -> DecodedClip | str:
    path, asked = task
    if path.stem == "dies" and asked.decoder is None:
        os.kill(os.getpid(), signal.SIGABRT)
    return decode_task(task)


def test_crashes_and_hangs_cost_one_item_each() -> None:
    items = [*"abc", "abort", *"defgh", "hang", *"ijk", "exit", *"lmnopqrstuvw", "abort"]
    outcomes = sorted(run_isolated(misbehave, items, workers=2, limit_s=2.0), key=lambda item: item.index)
    assert [outcome.index for outcome in outcomes] == list(range(len(items)))
    lost = {outcome.index: outcome.lost for outcome in outcomes if outcome.value is None}
    assert lost == {
        3: "its process died (SIGABRT)",
        9: "took longer than 2 s",
        13: "its process died (exit code 3)",
        26: "its process died (SIGABRT)",
    }
    assert all(
        outcome.value == items[outcome.index].upper() for outcome in outcomes if outcome.index not in lost
    )


def test_a_fault_of_the_program_is_not_a_bad_item() -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'a fault of the program'"):
        list(run_isolated(misbehave, ["a", "fault", "b"], workers=1, limit_s=5.0))
    assert list(run_isolated(misbehave, [], workers=2, limit_s=5.0)) == []


def test_leaving_early_ends_the_workers() -> None:
    outcomes = run_isolated(misbehave, ["a", "hang", "hang"], workers=2, limit_s=60.0)
    assert next(outcomes).value == "A"
    began = time.monotonic()
    outcomes.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 5


def test_a_scan_survives_its_files(tmp_path: Path) -> None:
    for name in ("a", "abort", "b", "hang", "c"):
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
    (tmp_path / "list.csv").write_text("path\na.mp4\nabort.mp4\nb.mp4\nhang.mp4\nc.mp4\n")
    rows = scan_list(tmp_path / "list.csv", workers=1, limit_s=2.0, examine=examine_or_die)
    assert [row.verdict for row in rows] == ["good", "bad", "good", "bad", "good"]
    assert rows[1].reason == "the decoder: its process died (SIGABRT)"
    assert rows[3].reason == "the decoder: took longer than 2 s"


def test_a_decoder_that_takes_memory_without_end_costs_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders, "installed", lambda: ("pyav",))
    for name in ("a", "greedy", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(b"x")
    (tmp_path / "list.csv").write_text("path\na.mp4\ngreedy.mp4\nb.mp4\n")
    rows = scan_list(
        tmp_path / "list.csv", workers=1, limit_s=60.0, memory_bytes=200_000_000, examine=take_without_end
    )
    assert [row.verdict for row in rows] == ["good", "bad", "good"]
    assert rows[1].reason == "the decoder: took more than 0.2 GB of memory"


def test_a_file_that_ends_pyav_is_packed_and_scanned_by_the_next_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "dies"):
        write_video(tmp_path / f"{name}.mp4", 20)
    listed = tmp_path / "list.csv"
    listed.write_text("path\na.mp4\ndies.mp4\n")
    monkeypatch.setattr(decoders, "installed", lambda: ("pyav", "decord"))
    monkeypatch.setattr(clip_build, "decode_task", pack_unless_pyav)
    clip = ClipSpec(frames=4, frame_stride=2, store_px=30, crop_px=30)  # of 120: no torch in workers
    clips = open_clips(listed, clip, tmp_path / "cache", workers=1, progress=False)
    assert clips.skipped == ()
    assert (clips.frames[0] == clips.frames[1]).all()
    assert clips.decoded_files == {"decord": 1, "pyav": 1}
    (index,) = (tmp_path / "cache" / "clips").glob("*/index.json")
    assert json.loads(index.read_text())["decoders"] == {"dies.mp4": "decord"}
    rows = scan_list(listed, workers=1, examine=die_by_pyav)
    assert [(row.verdict, row.decoder, row.decodable_frames) for row in rows] == [
        ("good", "pyav", 20),
        ("flagged", "decord", 20),
    ]
    lost = "the decoder: its process died (SIGABRT); PyAV's decoder ended or hung; decord decodes it"
    assert rows[1].reason == lost


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("kit")
    good, flagged, bad = write_kit(folder)
    verdicts = dict.fromkeys(good, "good") | dict.fromkeys(flagged, "flagged") | dict.fromkeys(bad, "bad")
    rows = [f"{name}.mp4,{verdict}" for name, verdict in sorted(verdicts.items())]
    (folder / "kit.csv").write_text("\n".join(["path,expected", *rows, "missing.mp4,bad", "good.mp4,bad"]))
    return folder, verdicts


def test_the_kit_of_bad_files(
    kit: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, verdicts = kit
    source, clean = folder / "kit.csv", tmp_path / "clean.csv"
    assert main(["scan", str(source), "--json", "--clean", str(clean)]) == 1
    result = json.loads(capsys.readouterr().out)
    rows = {row["path"].removesuffix(".mp4"): row for row in result["rows"] if row["line"] < 17}
    assert {name: row["verdict"] for name, row in rows.items()} == verdicts
    assert result["counts"] == {"good": 7, "flagged": 1, "bad": 9}
    assert [row["line"] for row in result["rows"]] == list(range(2, 19))
    reasons = {name: row["reason"] for name, row in rows.items() if row["verdict"] != "good"}
    said = {
        "zero_byte": "empty file",
        "trunc_nomoov": "not a readable video",
        "trunc_faststart": "the header promises 120 frames",
        "html_error": "not a readable video",
        "audio_only": "no video stream",
        "zero_frame": "no frames",
        "midcorrupt": "damaged",
        "trimmed": "the header says 200 frames",
    }
    assert reasons.keys() == said.keys()
    assert all(said[name] in reasons[name] for name in said)
    tiny = rows["tiny"]
    assert (tiny["decodable_frames"], tiny["header_frames"], tiny["fps"]) == (3, 3, 5.0)
    assert (tiny["width_px"], tiny["height_px"]) == (32, 32)
    assert (rows["frag"]["decodable_frames"], rows["frag"]["header_frames"]) == (60, None)
    assert (tiny["codec"], tiny["rotation_degrees"], tiny["decoder"]) == ("h264", 0, "pyav")
    # The clean list lies elsewhere and still finds its files and labels.
    videos = read_list(clean)
    assert {path.resolve().stem for path in videos.files} == {n for n, v in verdicts.items() if v != "bad"}
    assert set(videos.columns["expected"]) == {"good", "flagged"}
    assert videos.decodable_frames is not None
    assert dict(zip(videos.columns["expected"], videos.decodable_frames, strict=True))["flagged"] == 125
    assert sorted(videos.decodable_frames) == [1, 3, 9, 60, 120, 120, 125, 200]
    assert main(["scan", str(clean)]) == 0
    printed = capsys.readouterr().out
    assert "7 good, 1 flagged, 0 bad" in printed
    assert "trimmed.mp4" in printed
    assert "tiny.mp4" not in printed


def test_mistakes_end_with_code_2_and_write_nothing(
    kit: tuple[Path, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = kit[0] / "kit.csv"
    broken = tmp_path / "broken.csv"
    with open(broken, "w", newline="") as file:
        csv.writer(file).writerows([["path"], [str(kit[0] / "zero_byte.mp4")]])
    for arguments, said in [
        (["scan", str(tmp_path / "none.csv")], "no list at"),
        (["scan", str(source), "--clean", str(source)], "the scanned list itself"),
        (["scan", str(source), "--clean", str(tmp_path / "no" / "clean.csv")], "existing folder"),
        (["scan", str(broken), "--clean", str(tmp_path / "clean.csv")], "no usable file"),
    ]:
        assert main(arguments) == 2
        assert said in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.csv"]


def test_pictures_and_old_titles_are_good_as_training_reads_them(tmp_path: Path) -> None:
    """FFmpeg has no animated WebP, and PyAV wants tags to be UTF-8."""
    frames = [Image.fromarray(pattern(number, 80, 60)) for number in range(3)]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "still.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "still.jpg").read_bytes()[:600])
    write_video(tmp_path / "new.mp4", 9)
    data = (tmp_path / "new.mp4").read_bytes()
    assert data.count(b"Lavf") == 1
    (tmp_path / "old.mp4").write_bytes(data.replace(b"Lavf", "L\xe9v\xea".encode("latin-1")))
    (tmp_path / "list.csv").write_text("path\nmoving.webp\nstill.jpg\ncut.jpg\nold.mp4\n")
    rows = scan_list(tmp_path / "list.csv", workers=1)
    assert [row.verdict for row in rows] == ["good", "good", "bad", "good"]
    assert [(row.width_px, row.height_px) for row in rows[:2]] == [(80, 60)] * 2
    assert "not a readable image" in (rows[2].reason or "")
    assert rows[3].decodable_frames == 9
    with pytest.raises(UserError, match="cannot write in /proc"):
        write_clean_list(tmp_path / "list.csv", rows, Path("/proc/clean.csv"))


def test_counts_of_a_scan_bound_clips_and_change_no_identity(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, frames in (("a", 20), ("b", 30)):
        write_video(tmp_path / f"{name}.mp4", frames)
    plain, counted = tmp_path / "plain.csv", tmp_path / "counted.csv"
    plain.write_text("path,kind\na.mp4,x\nb.mp4,y\n")
    write_clean_list(plain, scan_list(plain, workers=1), counted)
    sizes = [(tmp_path / f"{name}.mp4").stat().st_size for name in "ab"]
    assert counted.read_text() == (f"path,kind,frames,bytes\na.mp4,x,20,{sizes[0]}\nb.mp4,y,30,{sizes[1]}\n")
    videos = read_list(counted)
    assert videos.decodable_frames == (20, 30)
    assert videos.labels == ("kind",)
    assert data_spec(videos, "list") == data_spec(read_list(plain), "list")
    # Nothing past the count is asked for; a count that says what the file says changes nothing.
    clip = ClipSpec(source="streamed", frames=4, frame_stride=2, store_px=120)
    last = [read_clip(tmp_path / "b.mp4", clip, 0.999, count) for count in (12, 30, None, 99)]
    assert (last[0] == read_clip(tmp_path / "b.mp4", clip, 5.5 / 24)).all()
    assert (last[1] == last[2]).all()
    assert (last[3] == last[2]).all()
    with pytest.raises(VideoError, match="6 frames, but 4 frames at stride 2 span 7"):
        read_clip(tmp_path / "b.mp4", clip, 0.5, 6)
    # A file that is another since: its count is not believed.
    write_video(tmp_path / "b.mp4", 25)
    assert caplog.text == ""
    assert read_list(counted).decodable_frames == (20, None)
    assert "counted.csv:3: b.mp4 has" in caplog.text
    counted.write_text("path,frames,bytes\na.mp4,many,12\n")
    with pytest.raises(UserError, match="frames is 'many', not a whole number above 0"):
        read_list(counted)
    counted.write_text("path,frames\na.mp4,many\n")  # one of the two alone is a label as any other
    assert read_list(counted).labels == ("frames",)
    assert write_clean_list(counted, scan_list(counted, workers=1), tmp_path / "again.csv") == 1
    assert (tmp_path / "again.csv").read_text() == "path,frames\na.mp4,many\n"
