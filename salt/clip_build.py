"""Decoding a list into a store of clips, in processes that may crash; a killed build goes on where it was.

`<folder>.building` holds `clips.npy`, a row per clip of every file, and `done.jsonl`: which files are in it.
A file is noted only after its pixels are on disk.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from salt import decoders
from salt.clip_index import ClipIndex, Skipped, decode_spec
from salt.errors import UserError
from salt.folders import new_array, open_array, publish
from salt.isolate import run_isolated
from salt.lists import VideoList
from salt.progress import progress as shown_progress
from salt.signals import STOP
from salt.specs import ClipSpec, Spec
from salt.store import pretty_json, write_atomically
from salt.video import DecodedClip, VideoError, decode_clips

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Decoded bytes between two notes of what is done: what a kill may cost.
NOTE_EVERY_BYTES = 256 << 20

log = logging.getLogger(__name__)


class Done(Spec, kw_only=True):
    """A line of `done.jsonl`: a file of the list, by its place, and what became of it."""

    row: int
    padded_frames: int
    reason: str | None = None  # why it gives no clip
    decoder: str | None = None  # who gave its frames


class PackIndex(ClipIndex, kw_only=True):
    """`index.json` with the decoders that gave the clips: how many files each, and which were not PyAV's."""

    decoded_files: dict[str, int] = {}
    decoders: dict[str, str] = {}  # row -> decoder, where another than PyAV gave the frames of a video


def store_bytes(files: int, clip: ClipSpec) -> int:
    """Bytes of the clips of that many files."""
    return files * clip.clips_per_file * clip.frames * clip.store_px**2 * clip.channels


def build_clips(
    videos: VideoList,
    fingerprint: str,
    clip: ClipSpec,
    folder: Path,
    *,
    alone: bool,
    workers: int,
    show: bool,
    max_bad_share: float,
    limit_s: float,
) -> None:
    """Decode a list into `folder`, which appears whole or not at all.

    `alone`: the caller holds the builder's lock, so what a killed builder left is taken over. Raises
    UserError if more than `max_bad_share` of the files give no clip, or the disk has no room: for all of
    them, or, where some are bad, for a second copy without these.
    """
    building = folder.with_name(f"{folder.name}.building")
    if not alone:
        building = folder.with_name(f"{folder.name}.building-{os.uname().nodename}-{os.getpid()}")
    building.mkdir(exist_ok=alone)
    try:
        try:
            done = _decode_all(videos, clip, building, workers, show, max_bad_share, limit_s)
        except UserError:  # nothing to go on with; after a kill, a fault or Ctrl-C there is
            shutil.rmtree(building, ignore_errors=True)
            raise
        bad = {item.row: item.reason for item in done if item.reason is not None}
        if bad:
            _drop_rows(building / "clips.npy", bad.keys(), clip.clips_per_file)
        with open(building / "clips.npy", "rb+") as file:
            os.fsync(file.fileno())
        good = [index for index in range(len(videos.rows)) if index not in bad]
        served = {item.row: item.decoder for item in done if item.decoder is not None}
        index = PackIndex(
            fingerprint=fingerprint,
            decode=decode_spec(clip),
            folder=str(videos.path.parent.absolute()),
            rows=tuple(videos.rows[i] for i in good),
            columns={name: tuple(column[i] for i in good) for name, column in videos.columns.items()},
            skipped=tuple(
                Skipped(line=videos.line_numbers[i], path=videos.rows[i], reason=reason)
                for i, reason in sorted(bad.items())
            ),
            padded_frames=sum(item.padded_frames for item in done),
            decoded_files=dict(sorted(Counter(served.values()).items())),
            decoders={
                videos.rows[row]: name
                for row, name in sorted(served.items())
                if name not in (decoders.PYAV, decoders.PILLOW)
            },
        )
        (building / "done.jsonl").unlink()  # before the index: rows have moved, so it holds no longer
        write_atomically(building / "index.json", pretty_json(index))
        publish(building, folder)
    finally:
        if not alone:
            shutil.rmtree(building, ignore_errors=True)


@dataclass(frozen=True)
class Asked:
    """What a worker is to know of a file: how many frames decode, and the decoder to begin with."""

    clip: ClipSpec
    decodable_frames: int | None = None
    decoder: str | None = None


def decode_task(task: tuple[Path, Asked]) -> DecodedClip | str:
    """In a worker: the stored clips of a file, or why there are none."""
    path, asked = task
    if asked.decoder is not None:
        decoders.prefer(path, asked.decoder)
    try:
        return decode_clips(path, asked.clip, asked.decodable_frames)
    except VideoError as error:
        return error.reason


def lost_reason(value: DecodedClip | str | None, lost: str | None) -> str:
    return value if isinstance(value, str) else f"the decoder: {lost}"


def too_many_bad(videos: VideoList, skipped: Sequence[tuple[Path, str]], allowed: float | None) -> str:
    """The message about a list of which too many files give no clip."""
    limit = "" if allowed is None else f" ({100 * allowed:g} % are allowed)"
    shown = [f"  {path}: {reason}" for path, reason in skipped[:10]]
    if len(skipped) > 10:
        shown.append(f"  and {len(skipped) - 10} more")
    head = f"{videos.path}: {len(skipped)} of {len(videos.files)} files give no clip{limit}"
    way_out = f"see them all and write a clean list: `salt-data scan {videos.path} --clean OUT.csv`"
    return "\n".join([f"{head}; {way_out}", *shown])


def _decode_all(
    videos: VideoList,
    clip: ClipSpec,
    building: Path,
    workers: int,
    show: bool,
    max_bad_share: float,
    limit_s: float,
) -> list[Done]:
    """Decode every file that is not done yet into `building`; what became of each.

    Rows are written where they belong as they come; bad ones leave gaps, which are closed at the end.
    """
    total, clips = len(videos.files), clip.clips_per_file
    frames, done = _take_up(building, total, clip)
    bad = {item.row: item.reason for item in done if item.reason is not None}
    left = sorted(set(range(total)) - {item.row for item in done})
    with (
        shown_progress(f"decode {videos.path.name}", total, show) as advance,
        _noting(building / "done.jsonl", frames, store_bytes(1, clip)) as note,
    ):
        if done:
            log.info("%s: %d of %d files were decoded before", videos.path, len(done), total)
            advance(len(done))
        for row, value, lost in decoded_files(videos, left, clip, workers=workers, limit_s=limit_s):
            advance(1)
            if isinstance(value, DecodedClip):
                frames[row * clips : (row + 1) * clips] = value.frames
                item = Done(row=row, padded_frames=value.padded_frames, decoder=value.decoder)
            else:
                bad[row] = reason = lost_reason(value, lost)
                item = Done(row=row, padded_frames=0, reason=reason)
                log.warning("skipped %s: %s", videos.files[row], reason)
            done.append(item)
            note(item)
            STOP.check()
            # A hopeless list is given up early, but not before there is enough to show.
            if len(bad) > max(10, max_bad_share * total):
                break
    if len(bad) == total or len(bad) > max_bad_share * total:
        skipped = [(videos.files[row], reason or "") for row, reason in sorted(bad.items())]
        raise UserError(too_many_bad(videos, skipped, max_bad_share))
    return done


def decoded_files(
    videos: VideoList, rows: Sequence[int], clip: ClipSpec, *, workers: int, limit_s: float
) -> Iterator[tuple[int, DecodedClip | str | None, str | None]]:
    """(row, clips or why there are none, or else how the decoder was lost) of these rows, as they finish.

    A file that killed or hung its decoder is tried again with the next one that is installed.
    """
    counts = videos.decodable_frames
    left, name, first_lost = list(rows), None, dict[int, str]()
    while left:
        following = decoders.following(name)
        tasks = [
            (videos.files[row], Asked(clip, None if counts is None else counts[row], name)) for row in left
        ]
        again = []
        for outcome in run_isolated(decode_task, tasks, workers=workers, limit_s=limit_s):
            row = left[outcome.index]
            if outcome.lost is not None and following is not None:
                again.append(row)
                first_lost.setdefault(row, outcome.lost)
                continue
            value = outcome.value
            if isinstance(value, str) and row in first_lost:
                value = f"the decoder: {first_lost[row]}; {value}"
            yield row, value, first_lost.get(row, outcome.lost)
        left, name = sorted(again), following


def _take_up(building: Path, files: int, clip: ClipSpec) -> tuple[NDArray[np.uint8], list[Done]]:
    """The array to write into and the files that are in it already; begun afresh unless both are sound."""
    target, notes = building / "clips.npy", building / "done.jsonl"
    shape = (files * clip.clips_per_file, clip.frames, clip.store_px, clip.store_px, clip.channels)
    try:
        frames = open_array(target, shape, "r+")
        # The last line may be cut; whatever is not noted whole is decoded again.
        lines = notes.read_bytes().split(b"\n")[:-1]
        done = [msgspec.json.decode(line, type=Done) for line in lines]
        if all(0 <= item.row < files for item in done):
            _rewrite(notes, lines)
            return frames, list({item.row: item for item in done}.values())
    except (OSError, ValueError, EOFError):
        pass  # absent, or of a builder that was killed too early to be of use
    for path in building.iterdir():
        path.unlink()
    frames = new_array(target, shape, "decoded clips")
    notes.touch()
    return frames, []


def _rewrite(notes: Path, lines: Sequence[bytes]) -> None:
    write_atomically(notes, b"".join(line + b"\n" for line in lines))


@contextmanager
def _noting(path: Path, frames: Any, file_bytes: int) -> Iterator[Any]:
    """Yields `note(item)`: items are written in lots, each after the pixels it speaks of."""
    lot: list[Done] = []

    def write() -> None:
        frames.flush()
        with open(path, "ab") as file:
            file.write(b"".join(msgspec.json.encode(item) + b"\n" for item in lot))
            file.flush()
            os.fsync(file.fileno())
        lot.clear()

    def note(item: Done) -> None:
        lot.append(item)
        if len(lot) * file_bytes >= NOTE_EVERY_BYTES:
            write()

    try:
        yield note
    finally:
        write()  # after Ctrl-C too


def _drop_rows(target: Path, bad: Any, clips_per_file: int) -> None:
    """Rewrite an array without the clips of some files, a block at a time."""
    import numpy as np

    source = np.load(target, mmap_mode="r")
    good = np.array([index for index in range(len(source)) if index // clips_per_file not in bad])
    beside = target.with_name("dense.npy")
    dense: Any = new_array(beside, (len(good), *source.shape[1:]), "decoded clips without the bad files")
    for start in range(0, len(good), 256):
        dense[start : start + 256] = source[good[start : start + 256]]
    dense.flush()
    del dense, source
    os.replace(beside, target)
