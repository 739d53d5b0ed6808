"""Scan a list: decode every file to its end, in processes that may crash or hang without ending the scan."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from salt.container import open_container, video_stream
from salt.errors import UserError
from salt.folders import said_of
from salt.images import is_image, read_image
from salt.isolate import run_isolated
from salt.lists import VideoList, examine_list
from salt.progress import progress
from salt.store import write_atomically
from salt.video import VideoError, VideoProbe, probe_video, read_frames

Verdict = Literal["good", "flagged", "bad"]


@dataclass(frozen=True)
class ScanRow:
    """What a scan says of one row. `flagged` files are usable but deserve a look; `None` is unknown."""

    line: int
    path: str
    verdict: Verdict
    reason: str | None
    decodable_frames: int | None
    header_frames: int | None
    fps: float | None
    width_px: int | None
    height_px: int | None
    size_bytes: int | None


@dataclass(frozen=True)
class FileReport:
    """What decoding a file to its end found; `reason` is set for bad and flagged files."""

    verdict: Verdict
    reason: str | None = None
    probe: VideoProbe | None = None
    decodable_frames: int | None = None


def examine_file(path: Path) -> FileReport:
    """Decode a file from end to end, then read it the way training does. Runs in a worker."""
    if is_image(path):
        return _examine_image(path)
    try:
        probe = probe_video(path)
    except VideoError as error:
        return FileReport("bad", error.reason)
    decodable, damage = count_decodable(path)
    if damage is not None:
        return FileReport("bad", damage, probe, decodable)
    if decodable != probe.frames:
        return FileReport("bad", f"{decodable} frames decode of {probe.frames} in the file", probe, decodable)
    try:
        read_frames(path, probe, sorted({0, decodable // 2, decodable - 1}))
    except VideoError as error:
        return FileReport("bad", error.reason, probe, decodable)
    if probe.hidden_frames:
        total = probe.frames + probe.hidden_frames
        reason = f"cut without re-encoding: the header says {total} frames, {decodable} decode"
        return FileReport("flagged", reason, probe, decodable)
    return FileReport("good", None, probe, decodable)


def _examine_image(path: Path) -> FileReport:
    """An image is read as training reads it, by Pillow: FFmpeg has no animated WebP."""
    try:
        height, width = read_image(path).shape[:2]
    except VideoError as error:
        return FileReport("bad", error.reason)
    probe = VideoProbe(width, height, fps=None, frames=1, hidden_frames=0, header_frames=None)
    return FileReport("good", None, probe, 1)


def count_decodable(path: Path) -> tuple[int, str | None]:
    """Frames that decode cleanly, and the first damage met, if any. The file has been probed already."""
    import av

    clean = 0
    damage: str | None = None
    with open_container(path) as container:
        stream = video_stream(container)
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                damage = (
                    damage or f"damaged: a frame after {clean} good ones does not decode: {error.strerror}"
                )
                continue
            for frame in frames:
                if frame.is_corrupt:
                    damage = damage or f"damaged: a frame after {clean} good ones is corrupt"
                else:
                    clean += 1
    return clean, damage


def scan_list(
    path: Path,
    *,
    workers: int = 2,
    limit_s: float = 60.0,
    show_progress: bool = False,
    examine: Callable[[Path], FileReport] = examine_file,
) -> list[ScanRow]:
    """One row per line of the list, in its order; rows whose file is missing or repeated are bad too.

    `limit_s` is the time one file may take. Raises UserError if the list cannot be read as a whole.
    """
    videos, problems = examine_list(path)
    rows = [
        ScanRow(item.line, item.path, "bad", item.reason, None, None, None, None, None, None)
        for item in problems
    ]
    with progress(f"scan {path.name}", len(videos.files), show_progress) as advance:
        for outcome in run_isolated(examine, videos.files, workers=workers, limit_s=limit_s):
            if outcome.value is None:
                report = FileReport("bad", f"the decoder: {outcome.lost}")
            else:
                report = outcome.value
            rows.append(_row(videos, outcome.index, report))
            advance(1)
    return sorted(rows, key=lambda row: row.line)


def _row(videos: VideoList, index: int, report: FileReport) -> ScanRow:
    probe = report.probe
    return ScanRow(
        line=videos.line_numbers[index],
        path=videos.rows[index],
        verdict=report.verdict,
        reason=report.reason,
        decodable_frames=report.decodable_frames,
        header_frames=probe.header_frames if probe else None,
        fps=probe.fps if probe else None,
        width_px=probe.width_px if probe else None,
        height_px=probe.height_px if probe else None,
        size_bytes=videos.sizes_bytes[index],
    )


def check_clean_path(source: Path, out: Path) -> None:
    """Raises UserError if a clean list cannot be written to `out`; asked before the long scan."""
    if out.resolve() == source.resolve():
        raise UserError(f"--clean {out} is the scanned list itself; give another name")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--clean {out}: not a file in an existing folder")


def write_clean_list(source: Path, rows: Sequence[ScanRow], out: Path) -> int:
    """Write the rows that are not bad, with all columns, as a list at `out`; the number of rows.

    Relative paths are rewritten so that they hold from the folder of `out`. Raises UserError if nothing is
    left.
    """
    check_clean_path(source, out)
    videos, _ = examine_list(source)
    bad_lines = {row.line for row in rows if row.verdict == "bad"}
    names = list(videos.columns)
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", *names])
    count = 0
    for index, line in enumerate(videos.line_numbers):
        if line in bad_lines:
            continue
        writer.writerow([_rebased(videos, index, out), *(videos.columns[name][index] for name in names)])
        count += 1
    if count == 0:
        raise UserError(f"{source}: no usable file, so no clean list is written")
    with said_of(out.parent):
        write_atomically(out, text.getvalue().encode())
    return count


def _rebased(videos: VideoList, index: int, out: Path) -> str:
    row = videos.rows[index]
    if Path(row).is_absolute() or videos.path.resolve().parent == out.resolve().parent:
        return row
    return Path(os.path.relpath(videos.files[index].absolute(), out.resolve().parent)).as_posix()
