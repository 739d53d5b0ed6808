"""Files that ended or hung their decoder while a run trained, and from which draw on each is out.

Whether a decoder dies is no function of the run, so what was decided is written down: a line for each file
and each process of the run, saying which places of a batch that process makes and the first of their draws
that goes without the file. Looked up by step and place, the lines give any later attempt, with any number of
processes, the clips that were trained on. A draw that no line covers is tried.

    <run>/quarantine/<rank>.jsonl
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated

import msgspec

from salt.decoders import ORDER
from salt.errors import RunFailed
from salt.specs import NonNegativeInt, PositiveInt, Spec

DecoderName = Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(ORDER)})$")]

log = logging.getLogger(__name__)


class Lost(Spec, kw_only=True):
    """A file that ended or hung a decoder, and from where on that counts.

    `clip` is the number of the file's first clip (`salt.batches`). `decoder` gives its frames instead; None:
    none does, and the next file of the list takes its place. It counts for the `places` places of a batch
    from `first_place` on, from place `place` of step `step` on.
    """

    clip: NonNegativeInt
    path: str
    reason: str
    decoder: DecoderName | None = None
    step: NonNegativeInt
    place: NonNegativeInt
    first_place: NonNegativeInt
    places: PositiveInt

    def counts_at(self, step: int, place: int) -> bool:
        inside = self.first_place <= place < self.first_place + self.places
        return inside and (step, place) >= (self.step, self.place)


class Quarantine:
    """The lost files of a run, read from `folder` once; without a folder they are forgotten with the process.

    `rank` is this process's number among those that train the run: each writes a file of its own. Raises
    RunFailed (`data`) for a file of another version or one that is damaged other than at its end.
    """

    def __init__(self, folder: Path | None = None, rank: int = 0) -> None:
        self._file = None if folder is None else Path(folder) / f"{rank}.jsonl"
        self._lost: dict[int, list[Lost]] = {}
        for path in sorted(Path(folder).glob("*.jsonl")) if folder is not None else ():
            for lost in _read(path):
                self._lost.setdefault(lost.clip, []).append(lost)

    def __len__(self) -> int:
        """How many files are in it."""
        return len(self._lost)

    def verdict(self, clip: int, step: int, place: int) -> Lost | None:
        """What is known of the file whose first clip is `clip`, at one draw: the latest, and the worst of
        those.

        Of two lines about one draw, of two attempts, the second was written because the first's decoder died.
        """
        known = [lost for lost in self._lost.get(clip, ()) if lost.counts_at(step, place)]
        return max(known, key=lambda lost: (lost.step, lost.place, _badness(lost.decoder)), default=None)

    def add(self, lost: Lost) -> None:
        """Note a file, on disk before the draw that it is about is handed over."""
        self._lost.setdefault(lost.clip, []).append(lost)
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with open(self._file, "ab") as file:
            cut = file.tell() > 0 and not _ends_whole(self._file)
            file.write((b"\n" if cut else b"") + msgspec.json.encode(lost) + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _badness(decoder: str | None) -> int:
    return len(ORDER) if decoder is None else ORDER.index(decoder)


def _ends_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _read(path: Path) -> list[Lost]:
    """The lines of one process; one that a kill cut is left out, as its draw was never handed over."""
    found = []
    for number, line in enumerate(path.read_bytes().split(b"\n"), 1):
        if not line:
            continue
        try:
            found.append(msgspec.json.decode(line, type=Lost))
        except msgspec.ValidationError as error:
            raise RunFailed(
                "data", f"{path}:{number}: not a line of this version: {error}; move the file away"
            ) from error
        except msgspec.DecodeError:
            log.warning("%s:%d: a line that was cut is left out", path, number)
    return found
