"""Write the miniature's clips as H.264 files with their lists; what is there already is not made again."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from salt.digits import (
    FILE_PX,
    SPLITS,
    VIEW_PX,
    DigitSettings,
    check_settings,
    draw_clip,
    draw_labels,
    render_clips,
)
from salt.errors import UserError
from salt.isolate import run_isolated
from salt.processes import temporary
from salt.progress import progress
from salt.specs import Spec
from salt.store import pretty_json, write_atomically

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MANIFEST = "digits.json"
#: Clips that one task of an encoding process makes.
TASK_CLIPS = 64
FPS = 8


class Manifest(Spec, kw_only=True):
    """`digits.json`: what the folder is meant to hold, and whether it does."""

    settings: DigitSettings
    complete: bool


@dataclass(frozen=True)
class EncodeTask:
    """Clips of one split that are to be encoded into `folder`."""

    folder: Path
    split: str
    seed: int
    numbers: tuple[int, ...]


def make_digits(
    out: Path, settings: DigitSettings, *, workers: int = 2, force: bool = False, show_progress: bool = False
) -> int:
    """Make `out/{train,selection,report}/NNNNN.mp4` and the three lists; the number of clips made now.

    Files that are there are kept, so an interrupted call is completed by the same call. Raises UserError,
    before anything is written, for a folder that holds clips of other settings or anything else; with
    `force` the former are replaced and the latter is left where it is.
    """
    check_settings(settings)
    _check_folder(out, settings, force)
    out.mkdir(parents=True, exist_ok=True)
    if force:
        _remove_others(out, settings)
    missing = {split: _missing(out / split, settings.count(split)) for split in SPLITS}
    made = sum(len(numbers) for numbers in missing.values())
    lists_there = all((out / f"{split}.csv").is_file() for split in SPLITS)
    recorded = _read_manifest(out)
    if not made and lists_there and recorded is not None and recorded.complete:
        return 0
    write_atomically(out / MANIFEST, pretty_json(Manifest(settings=settings, complete=False)))
    tasks = []
    for split, numbers in missing.items():
        (out / split).mkdir(exist_ok=True)
        chunks = [tuple(numbers[i : i + TASK_CLIPS]) for i in range(0, len(numbers), TASK_CLIPS)]
        tasks += [EncodeTask(out / split, split, settings.seed, chunk) for chunk in chunks]
    with progress("encode clips", made, show_progress) as advance:
        for count in _encode_all(tasks, workers if made > TASK_CLIPS else 0):
            advance(count)
    for split in SPLITS:
        write_atomically(out / f"{split}.csv", list_text(split, settings).encode())
    write_atomically(out / MANIFEST, pretty_json(Manifest(settings=settings, complete=True)))
    return made


def _encode_all(tasks: list[EncodeTask], workers: int) -> Iterator[int]:
    """Numbers of clips as they are made; without workers here, as for a few clips, which start faster so."""
    if workers == 0:
        yield from map(encode_clips, tasks)
        return
    for outcome in run_isolated(encode_clips, tasks, workers=workers, limit_s=300):
        if outcome.value is None:
            raise RuntimeError(f"encoding into {tasks[outcome.index].folder} stopped: {outcome.lost}")
        yield outcome.value


def list_text(split: str, settings: DigitSettings) -> str:
    """The list of a split: `path,motion,appearance,group`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "motion", "appearance", "group"])
    for number in range(settings.count(split)):
        labels = draw_labels(split, settings.seed, number)
        writer.writerow([f"{split}/{_name(number)}", labels.motion, labels.appearance, labels.group])
    return text.getvalue()


def encode_clips(task: EncodeTask) -> int:
    """Draw, render and encode the clips of a task; how many. Runs in a worker."""
    draws = [draw_clip(task.split, task.seed, number) for number in task.numbers]
    for number, frames in zip(task.numbers, render_clips(draws), strict=True):
        # Under another name, then renamed: whole after a killed process. Not flushed to disk: clips can be
        # made again.
        beside = temporary(task.folder / _name(number))
        encode(beside, frames)
        os.replace(beside, task.folder / _name(number))
    return len(draws)


#: One thread, and no macroblock tree: with it x264's lookahead reads memory that nobody wrote at this size of
#: picture, and the bytes differ from one process to the next.
X264 = {"preset": "veryfast", "crf": "12", "threads": "1", "x264-params": "mbtree=0"}


def encode(path: Path, frames: NDArray[np.uint8]) -> None:
    """Encode grey uint8 [T, 32, 32, 1], doubled in size, as near lossless H.264, the same bytes each time."""
    import av

    doubled = frames[..., 0].repeat(FILE_PX // VIEW_PX, axis=1).repeat(FILE_PX // VIEW_PX, axis=2)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options=X264)
        stream.width = stream.height = FILE_PX
        stream.pix_fmt = "yuv420p"
        for picture in doubled:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
        container.mux(stream.encode(None))


def _name(number: int) -> str:
    return f"{number:05d}.mp4"


def _missing(folder: Path, count: int) -> list[int]:
    """Numbers of the clips that are not there; an empty file is not there."""
    have: set[str] = set()
    if folder.is_dir():
        with os.scandir(folder) as entries:
            have = {
                entry.name for entry in entries if entry.name.endswith(".mp4") and entry.stat().st_size > 0
            }
    return [number for number in range(count) if _name(number) not in have]


def _read_manifest(out: Path) -> Manifest | None:
    """The folder's manifest; None if there is none or it is not one of ours."""
    try:
        return msgspec.json.decode((out / MANIFEST).read_bytes(), type=Manifest)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def _check_folder(out: Path, settings: DigitSettings, force: bool) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a folder for the clips")
    if force or not out.exists() or not any(out.iterdir()):
        return
    manifest = _read_manifest(out)
    if manifest is None:
        raise UserError(
            f"{out} is not empty and holds no clips of salt-data; name another folder, or use it with --force"
        )
    if manifest.settings != settings:
        old, new = (msgspec.to_builtins(item) for item in (manifest.settings, settings))
        differences = ", ".join(
            f"{key} {old[key]} (asked: {new[key]})" for key in new if old[key] != new[key]
        )
        raise UserError(
            f"{out} holds clips of other settings: {differences}; "
            "name another folder, or replace them with --force"
        )


def _remove_others(out: Path, settings: DigitSettings) -> None:
    """Remove clips and lists of other or unknown settings, and only files that we name."""
    manifest = _read_manifest(out)
    if manifest is not None and manifest.settings == settings:
        return
    for split in SPLITS:
        (out / f"{split}.csv").unlink(missing_ok=True)
        for number in range(manifest.settings.count(split) if manifest else settings.count(split)):
            (out / split / _name(number)).unlink(missing_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)
