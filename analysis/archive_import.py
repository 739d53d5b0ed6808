"""An archive of a study back into a run store: everything checked first, then put in place, nothing
replaced.
"""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import msgspec

from analysis.archive import ENDING, FORMAT, GATHERED, MANIFEST, WEIGHTS, Contents, Entry
from salt.errors import UserError
from salt.plans import plan_dir, read_plan
from salt.store import write_atomically

#: More than this is no list of files.
_LONGEST_MANIFEST = 1 << 28
_CHUNK = 1 << 20
_BROKEN = (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error)


def is_archive(text: str) -> bool:
    """Whether a name given for a study or store is that of an archive."""
    return text.endswith(ENDING) or (text.endswith((".tar.gz", ".tgz")) and Path(text).is_file())


def extract(file: Path, into: Path) -> Contents:
    """Put the files of an archive under an empty folder; what it holds.

    Names, kinds, sizes and hashes are held to the list at its head: a file that leads out of the folder, is
    no plain file, is longer than it says, is not in the list, or is there twice, is refused.

    Raises:
        UserError: it is no archive of salt, of another version, or damaged. The folder then holds only a
        part.
    """
    if not file.is_file():
        raise UserError(f"{file} is not there; `salt-analyze export STUDY` makes such a file")
    try:
        with tarfile.open(file, mode="r|gz") as tar:
            contents = _contents(file, tar)
            waiting = dict(contents.files)
            while (member := tar.next()) is not None:
                entry = waiting.pop(member.name, None)
                if entry is None or not member.isreg() or member.size != entry.bytes:
                    raise UserError(
                        f"{file}: {member.name!r} is not as the archive's own list says; get it again"
                    )
                data = tar.extractfile(member)
                assert data is not None
                _put(file, data.read, entry, into / member.name)
    except _BROKEN as error:
        raise UserError(f"{file}: not an archive of salt, or damaged: {error}; get it again") from error
    if waiting:
        raise UserError(f"{file} ends too early: {len(waiting)} files are missing, such as {min(waiting)}")
    return contents


def _contents(file: Path, tar: tarfile.TarFile) -> Contents:
    first = tar.next()
    if first is None or first.name != MANIFEST or not first.isreg() or first.size > _LONGEST_MANIFEST:
        raise UserError(f"{file}: not an archive of salt: its first file is not {MANIFEST}")
    data = tar.extractfile(first)
    assert data is not None
    try:
        contents = msgspec.json.decode(data.read(), type=Contents)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{file}: {MANIFEST}: {error}: damaged, or written by another version of salt"
        ) from error
    if contents.format != FORMAT:
        raise UserError(
            f"{file}: format {contents.format}, written by salt {contents.salt}; this version reads {FORMAT}"
        )
    for name in contents.files:
        if not _safe(name, contents.plan):
            raise UserError(
                f"{file}: {name!r} is no name of a file of a study: this archive was not made by salt"
            )
    folded = {name.casefold() for name in contents.files}
    if len(folded) < len(contents.files):
        raise UserError(f"{file}: two files differ in upper and lower case alone: not made by salt")
    return contents


def _safe(name: str, plan: str) -> bool:
    """Whether a name is one of a study's files, in the folders of a run store."""
    path = PurePosixPath(name)
    if str(path) != name or path.is_absolute() or ".." in path.parts or any(c in name for c in "\\\0:"):
        return False
    if name == GATHERED:
        return True
    folder, *rest = path.parts
    if folder == "plans":
        return len(rest) == 2 and rest[0] == plan
    if folder == "tuning":
        return len(rest) == 2
    return folder == "runs" and len(rest) in (3, 4) and rest[1].startswith(rest[0]) and len(rest[0]) == 2


def _put(file: Path, read: Callable[[int], bytes], entry: Entry, place: Path) -> None:
    digest, left = hashlib.sha256(), entry.bytes

    place.parent.mkdir(parents=True, exist_ok=True)
    with open(place, "xb") as out:
        while left:
            part = read(min(_CHUNK, left))
            if not part:
                raise UserError(f"{file}: {place.name} ends too early; get it again")
            digest.update(part)
            out.write(part)
            left -= len(part)
    if digest.hexdigest() != entry.sha256:
        raise UserError(f"{file}: {place.name} is not what was put in (its sha256 differs); get it again")


def import_study(file: Path, store: Path) -> tuple[Contents, int, int]:
    """Put a study into a run store; what the archive holds, and how many of its runs are new and were there.

    A run that is there already stays as it is; where its results are not those of the archive, or the plan
    is another one, nothing is put in place. Runs come first and the plan last, so that a plan that can be
    seen is whole; the same import again goes on where one was cut off.

    Raises:
        UserError: as `extract`; or what is there and what is in the archive differ.
    """
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=store) as folder:
        staged = Path(folder)
        contents = extract(file, staged)
        read_plan(staged, contents.plan)  # is whole, and named as its folder
        runs = sorted(path for path in (staged / "runs").glob("*/*"))
        refused = [*_plan_conflict(staged, store, contents.plan)]
        refused += [text for run in runs for text in _run_conflict(run, store / run.relative_to(staged))]
        if refused:
            shown = "\n  ".join(refused[:8]) + ("\n  ..." if len(refused) > 8 else "")
            raise UserError(
                f"{file} cannot go into {store}; nothing was changed. What is there differs:\n  {shown}\n"
                "import it into a store of its own: --store DIR"
            )
        new = sum(_place(run, store / run.relative_to(staged)) for run in runs)
        for record in sorted((staged / "tuning").glob("*/*")):
            _add(record, store / record.relative_to(staged))
        for part in sorted(
            plan_dir(staged, contents.plan).iterdir(), key=lambda path: path.name == "plan.jsonl"
        ):
            _add(part, store / part.relative_to(staged))
    return contents, new, len(runs) - new


def _plan_conflict(staged: Path, store: Path, name: str) -> list[str]:
    mine, there = (plan_dir(root, name) / "plan.jsonl" for root in (staged, store))
    if there.is_file() and there.read_bytes() != mine.read_bytes():
        return [f"plan {name!r} is there, and is another one"]
    return []


def _run_conflict(mine: Path, there: Path) -> list[str]:
    """Where a run that is there says something else than the archive: its spec, result, weights or scores."""
    if not there.exists():
        return []
    found = []
    for path in sorted(
        [mine / "spec.json", mine / "result.json", mine / WEIGHTS, *(mine / "probes").glob("*")]
    ):
        other = there / path.relative_to(mine)
        if path.is_file() and other.is_file() and other.read_bytes() != path.read_bytes():
            found.append(f"run {mine.name}: {path.relative_to(mine)}")
    if (mine / "result.json").is_file() and not (there / "result.json").is_file():
        found.append(f"run {mine.name} has been started there and has no result: it may be running")
    return found


def _place(mine: Path, there: Path) -> bool:
    """Put a run's folder in place; whether it is new. One that is there gets what it lacks."""
    if there.exists():
        for path in sorted(mine.rglob("*")):
            if path.is_file():
                _add(path, there / path.relative_to(mine))
        return False
    there.parent.mkdir(parents=True, exist_ok=True)
    mine.rename(there)
    return True


def _add(mine: Path, there: Path) -> None:
    if not there.exists():
        write_atomically(there, mine.read_bytes())
