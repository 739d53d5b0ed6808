"""Scan a list: decode every file to its end, in processes that may crash or hang without ending the scan."""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from salt import decoders
from salt.container import NotDecoded, not_able, open_container, video_stream
from salt.errors import UserError
from salt.folders import said_of
from salt.images import is_image, read_image
from salt.isolate import run_isolated
from salt.lists import COUNTED, VideoList, examine_list
from salt.progress import progress
from salt.store import write_atomically
from salt.video import VideoError, VideoProbe, probe_video, read_frames

Verdict = Literal["good", "flagged", "bad"]

#: Memory that the process which examines a file may take: a frame of 7680 x 4320 is 100 MB as RGB.
MEMORY_BYTES = 4_000_000_000

log = logging.getLogger(__name__)


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
    width_px: int | None  # as stored, before any turn
    height_px: int | None
    size_bytes: int | None
    codec: str | None = None
    rotation_degrees: int | None = None  # anticlockwise, to be applied by whoever shows the file
    decoder: str | None = None  # who gave its frames


@dataclass(frozen=True)
class FileReport:
    """What decoding a file to its end found; `reason` is set for bad and flagged files."""

    verdict: Verdict
    reason: str | None = None
    probe: VideoProbe | None = None
    decodable_frames: int | None = None
    rotation_degrees: int | None = None
    decoder: str | None = None


@dataclass(frozen=True)
class Decoded:
    """Frames of a file that decode cleanly by PyAV, the first damage met, and how the first one is turned.

    `unable`: FFmpeg has no way to decode the file, which another decoder may have.
    """

    frames: int
    damage: str | None
    rotation_degrees: int | None
    unable: bool


def examine_file(path: Path) -> FileReport:
    """Decode a file from end to end, then read it the way training does. Runs in a worker."""
    if is_image(path):
        return _examine_image(path)
    if decoders.serving(path) != decoders.PYAV:
        return _examine_otherwise(path, None)
    try:
        probe = probe_video(path)
    except NotDecoded as error:
        return _examine_otherwise(path, error)
    except VideoError as error:
        return FileReport("bad", error.reason)
    decoded = count_decodable(path)
    if decoded.unable:
        return _examine_otherwise(path, NotDecoded(path, decoded.damage or ""))
    verdict, reason = _judge(path, probe, decoded)
    turned = decoded.rotation_degrees
    return FileReport(verdict, reason, probe, decoded.frames, turned, decoders.PYAV)


def _judge(path: Path, probe: VideoProbe, decoded: Decoded) -> tuple[Verdict, str | None]:
    """What to say of a file that PyAV opens."""
    count = decoded.frames
    if decoded.damage is not None:
        return "bad", decoded.damage
    if count != probe.frames:
        return "bad", f"{count} frames decode of {probe.frames} in the file"
    try:
        read_frames(path, probe, sorted({0, count // 2, count - 1}))
    except VideoError as error:
        return "bad", error.reason
    if probe.hidden_frames:
        total = probe.frames + probe.hidden_frames
        return "flagged", f"cut without re-encoding: the header says {total} frames, {count} decode"
    return "good", None


def _examine_otherwise(path: Path, failure: NotDecoded | None) -> FileReport:
    """A file that PyAV cannot decode: flagged if another decoder gives its last frame, in order from the
    first."""
    said = "PyAV's decoder ended or hung" if failure is None else failure.reason
    try:
        _, table, name = decoders.read_otherwise(
            path, lambda table: sorted({0, table.frames // 2, table.frames - 1}), failure
        )
    except VideoError as error:
        return FileReport("bad", error.reason)
    return FileReport("flagged", f"{said}; {name} decodes it", None, table.frames, None, name)


def examine_by(examine: Callable[[Path], FileReport], decoder: str, path: Path) -> FileReport:
    """In a worker: examine a file whose decoders before this one ended or hung."""
    decoders.prefer(path, decoder)
    return examine(path)


def _examine_image(path: Path) -> FileReport:
    """An image is read as training reads it, by Pillow: FFmpeg has no animated WebP."""
    try:
        height, width = read_image(path).shape[:2]
    except VideoError as error:
        return FileReport("bad", error.reason)
    probe = VideoProbe(width, height, fps=None, frames=1, hidden_frames=0, header_frames=None)
    return FileReport("good", None, probe, 1, 0, decoders.PILLOW)


def count_decodable(path: Path) -> Decoded:
    """Decode a file that has been probed already to its end."""
    import av

    clean, unable = 0, False
    damage: str | None = None
    turned: int | None = None
    with open_container(path) as container:
        stream = video_stream(container)
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.FFmpegError as error:
                unable = unable or not_able(error)
                damage = (
                    damage or f"damaged: a frame after {clean} good ones does not decode: {error.strerror}"
                )
                continue
            for frame in frames:
                if frame.is_corrupt:
                    damage = damage or f"damaged: a frame after {clean} good ones is corrupt"
                    continue
                turned = frame.rotation % 360 if turned is None else turned
                clean += 1
    return Decoded(clean, damage, turned, unable)


def scan_list(
    path: Path,
    *,
    workers: int = 2,
    limit_s: float = 60.0,
    memory_bytes: int = MEMORY_BYTES,
    show_progress: bool = False,
    examine: Callable[[Path], FileReport] = examine_file,
) -> list[ScanRow]:
    """One row per line of the list, in its order; rows whose file is missing or repeated are bad too.

    `limit_s` is the time one file may take, `memory_bytes` the memory. A file that ends or hangs its process
    is tried again with each other decoder. Raises UserError if the list cannot be read as a whole.
    """
    videos, problems = examine_list(path)
    rows = [
        ScanRow(item.line, item.path, "bad", item.reason, None, None, None, None, None, None)
        for item in problems
    ]
    with progress(f"scan {path.name}", len(videos.files), show_progress) as advance:
        reports = _examined(examine, videos.files, workers, limit_s, memory_bytes)
        for index, report in reports:
            rows.append(_row(videos, index, report))
            advance(1)
    return sorted(rows, key=lambda row: row.line)


def _examined(
    examine: Callable[[Path], FileReport],
    files: Sequence[Path],
    workers: int,
    limit_s: float,
    memory_bytes: int,
) -> Iterator[tuple[int, FileReport]]:
    """(index, report) of every file, as they finish; what one decoder loses, the next one tries."""
    left, work, name = list(range(len(files))), examine, decoders.PYAV
    lost: dict[int, str] = {}
    while left:
        following = decoders.following(name)
        again = []
        chosen = [files[index] for index in left]
        for outcome in run_isolated(
            work, chosen, workers=workers, limit_s=limit_s, memory_bytes=memory_bytes
        ):
            index = left[outcome.index]
            if outcome.lost is not None:
                lost.setdefault(index, f"the decoder: {outcome.lost}")
            if outcome.value is not None:
                yield index, _with_reason(outcome.value, lost.get(index))
            elif following is None:
                yield index, FileReport("bad", lost[index])
            else:
                again.append(index)
        if following is not None:
            left, name, work = sorted(again), following, partial(examine_by, examine, following)
        else:
            left = []


def _with_reason(report: FileReport, lost: str | None) -> FileReport:
    """A report of a later decoder, with how the first was lost."""
    if lost is None:
        return report
    return replace(report, reason=lost if report.reason is None else f"{lost}; {report.reason}")


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
        codec=probe.codec if probe else None,
        rotation_degrees=report.rotation_degrees,
        decoder=report.decoder,
    )


def check_clean_path(source: Path, out: Path) -> None:
    """Raises UserError if a clean list cannot be written to `out`; asked before the long scan."""
    if out.resolve() == source.resolve():
        raise UserError(f"--clean {out} is the scanned list itself; give another name")
    if out.is_dir() or not out.parent.is_dir():
        raise UserError(f"--clean {out}: not a file in an existing folder")


def write_clean_list(source: Path, rows: Sequence[ScanRow], out: Path) -> int:
    """Write the rows that are not bad, with all columns, as a list at `out`; the number of rows.

    Two columns are added, `frames` that decode and the file's `bytes` (`salt.lists`), unless one of these is
    the name of a label. Relative paths are rewritten so that they hold from the folder of `out`. Raises
    UserError if nothing is left.
    """
    check_clean_path(source, out)
    videos, _ = examine_list(source)
    bad_lines = {row.line for row in rows if row.verdict == "bad"}
    names = list(videos.columns)
    counted = [] if set(COUNTED) & set(names) else list(COUNTED)
    if not counted:
        log.warning("%s has a label column `frames` or `bytes`: %s gets no counts of frames", source, out)
    counts = {row.line: (row.decodable_frames, row.size_bytes) for row in rows}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", *names, *counted])
    count = 0
    for index, line in enumerate(videos.line_numbers):
        if line in bad_lines:
            continue
        labels = [videos.columns[name][index] for name in names]
        writer.writerow([_rebased(videos, index, out), *labels, *counts[line][: len(counted)]])
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
