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

from salt.data_cli import main
from salt.errors import UserError
from salt.isolate import run_isolated
from salt.lists import read_list
from salt.scan import FileReport, scan_list, write_clean_list
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
    # The clean list lies elsewhere and still finds its files and labels.
    videos = read_list(clean)
    assert {path.resolve().stem for path in videos.files} == {n for n, v in verdicts.items() if v != "bad"}
    assert set(videos.columns["expected"]) == {"good", "flagged"}
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
