"""Lists of videos: CSV files with a header, `path,label...`.

The format, whole: UTF-8 (a byte-order mark and CRLF are accepted), commas, a header that has a column
`path`, and any other columns as labels. `group` is reserved: it names the source that several clips were
cut from, so that splits do not leak. So are `frames` and `bytes` where a list has both, as `salt-data scan`
writes them: how many frames of the file decode, and its size when they were counted. Of a file of another
size the count is ignored, with a warning; it is part of no identity. Every cell is text: `NA`, `007` and
`1e5` stay what they are. Relative paths are relative to the list's own folder. A cell that contains a comma
or begins with a quote is quoted as CSV quotes (`"a, b.mp4"`). Blank lines are ignored; nothing is a comment.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from salt.errors import UserError
from salt.specs import DataSpec

#: How many bad rows an error message lists.
SHOWN_PROBLEMS = 10

#: Columns that a scan adds: decodable frames of a file, and its size when they were counted.
COUNTED = ("frames", "bytes")

log = logging.getLogger(__name__)

_HELP = "a list is a CSV file with a header line, `path,label` or just `path`"


@dataclass(frozen=True)
class VideoList:
    """The rows of a list whose files exist, in the order of the file.

    `rows` are the paths as identity sees them: relative to the list's folder where they are beneath it,
    with forward slashes. `columns` holds every column but `path` and a scan's counts; all tuples have one
    item per row. `decodable_frames` are the counts that hold, None where a file has none.
    """

    path: Path
    files: tuple[Path, ...]
    rows: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    line_numbers: tuple[int, ...]
    sizes_bytes: tuple[int, ...]
    decodable_frames: tuple[int | None, ...] | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the label columns: all but `group`."""
        return tuple(name for name in self.columns if name != "group")

    @property
    def groups(self) -> tuple[str, ...]:
        """The source each row comes from: the column `group`, else the path itself."""
        return self.columns.get("group", self.rows)


@dataclass(frozen=True)
class RowProblem:
    """A row that cannot be used: its line in the list, its path as written, and why."""

    line: int
    path: str
    reason: str


def read_list(path: Path) -> VideoList:
    """Read a list; any bad row is an error that gives its line number.

    Raises UserError for a missing, empty or malformed list, and for rows that name no regular file, repeat
    an earlier row, have a wrong number of fields, or an empty or space-padded label. The message lists the
    first ten such rows.
    """
    videos, problems = examine_list(path)
    if problems:
        shown = [f"  line {item.line}: {item.path!r}: {item.reason}" for item in problems[:SHOWN_PROBLEMS]]
        if len(problems) > SHOWN_PROBLEMS:
            shown.append(f"  and {len(problems) - SHOWN_PROBLEMS} more")
        count = "1 bad row" if len(problems) == 1 else f"{len(problems)} bad rows"
        way_out = f"correct them, or write a list without them: `salt-data scan {path} --clean OUT.csv`"
        raise UserError("\n".join([f"{path}: {count}; {way_out}", *shown]))
    return videos


def examine_list(path: Path) -> tuple[VideoList, tuple[RowProblem, ...]]:
    """The usable rows of a list and the problems of the others.

    Raises UserError if the list as a whole cannot be read: missing, not UTF-8, no `path` column, no rows.
    """
    path = Path(path)
    header, records = _parse(path)
    place = header.index("path")
    folder = path.parent
    # Plain texts until the end: a path object costs more than a look at the file.
    kept: list[tuple[int, str, str, int, list[str]]] = []
    problems: list[RowProblem] = []
    first_seen: dict[str, int] = {}
    for line, fields in records:
        written = fields[place] if place < len(fields) else ""
        reason = _field_problem(header, fields)
        size = None
        if reason is None:
            size, reason = _file_size(folder, written)
        if reason is None:
            row = _identity(folder, written)
            if row in first_seen:
                reason = f"repeats line {first_seen[row]}; a video counts once"
            else:
                first_seen[row] = line
        if reason is not None or size is None:
            problems.append(RowProblem(line, written, reason or "unreadable"))
            continue
        kept.append((line, os.path.join(folder, written), row, size, fields))
    counted = COUNTED if set(COUNTED) <= set(header) else ()
    columns = {
        name: tuple(item[4][index] for item in kept)
        for index, name in enumerate(header)
        if index != place and name not in counted
    }
    videos = VideoList(
        path=path,
        files=tuple(Path(item[1]) for item in kept),
        rows=tuple(item[2] for item in kept),
        columns=columns,
        line_numbers=tuple(item[0] for item in kept),
        sizes_bytes=tuple(item[3] for item in kept),
        decodable_frames=_counts(path, header, kept) if counted else None,
    )
    return videos, tuple(problems)


def _counts(
    path: Path, header: list[str], kept: list[tuple[int, str, str, int, list[str]]]
) -> tuple[int | None, ...]:
    """Decodable frames of each file as a scan counted them; None of a file that has changed since."""
    frames, size = (header.index(name) for name in COUNTED)
    changed = [item for item in kept if item[4][size] and int(item[4][size]) != item[3]]
    if changed:
        line, _, row, now_bytes, fields = changed[0]
        log.warning(
            "%s:%d: %s has %d bytes and had %s when its frames were counted; the counts of %d such files are "
            "ignored: scan the list again",
            path, line, row, now_bytes, fields[size], len(changed),
        )  # fmt: skip
    lines = {item[0] for item in changed}
    return tuple(
        None if item[0] in lines or not (item[4][frames] and item[4][size]) else int(item[4][frames])
        for item in kept
    )


def _parse(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and (line number, fields) of the rows that are not blank."""
    text = _read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                records.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(
            f'{path}:{line}: {error}; a quoted cell is written "like ""this"", with commas"'
        ) from error
    if not records:
        raise UserError(f"{path}: empty list; {_HELP}, then one video a line")
    header_line, header = records[0]
    _check_header(path, header_line, header)
    if len(records) == 1:
        raise UserError(f"{path}: the list has a header and no rows; add one video a line")
    return header, records[1:]


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"no list at {path}; {_HELP}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the list: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8 text; save the list as UTF-8") from error


def _check_header(path: Path, line: int, header: list[str]) -> None:
    where = f"{path}:{line}"
    padded = [name for name in header if name != name.strip()]
    if padded:
        raise UserError(
            f"{where}: column name {padded[0]!r} has spaces around it; "
            f"write `{','.join(name.strip() for name in header)}`"
        )
    if "path" not in header:
        raise UserError(
            f"{where}: no column `path` in the header, which reads {','.join(header)!r}; "
            f"{_HELP}, separated by commas"
        )
    if "" in header:
        raise UserError(f"{where}: column {header.index('') + 1} has no name; {_HELP}")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise UserError(f"{where}: column {twice[0]!r} appears twice; give each column its own name")


def _field_problem(header: list[str], fields: list[str]) -> str | None:
    if len(fields) != len(header):
        advice = (
            "quote a cell that contains a comma"
            if len(fields) > len(header)
            else "every row needs every column"
        )
        return f"{len(fields)} fields where the header has {len(header)}; {advice}"
    counted = COUNTED if set(COUNTED) <= set(header) else ()
    for name, value in zip(header, fields, strict=True):
        if name in counted:
            if value and not (value.isascii() and value.isdigit() and int(value) > 0):
                return f"{name} is {value!r}, not a whole number above 0: scan the list again"
            continue
        if not value.strip():
            return (
                f"{name} is empty"
                if name == "path"
                else f"label {name!r} is empty; leave the row or the column out"
            )
        if name != "path" and value != value.strip():
            return f"label {name!r} is {value!r}, with spaces around it, which makes a class of its own"
    return None


def _file_size(folder: Path, written: str) -> tuple[int | None, str | None]:
    """Size in bytes of the file of a row, or why there is none."""
    try:
        found = os.stat(os.path.join(folder, written))  # three times as fast as `folder / written`
    except ValueError:
        return None, "the path contains a NUL character"
    except OSError as error:
        return None, _why_missing(folder, written, error)
    if stat.S_ISDIR(found.st_mode):
        return None, "is a folder, not a video file"
    if not stat.S_ISREG(found.st_mode):
        return None, "is not a regular file"
    return found.st_size, None


def _why_missing(folder: Path, written: str, error: OSError) -> str:
    full = folder / written
    if os.path.islink(full):
        return f"dangling link: it points to {os.readlink(full)!r}, which does not exist"
    stripped = written.strip()
    if stripped != written:
        exists = "which exists" if (folder / stripped).exists() else "which does not exist either"
        return f"the path has spaces around it; without them it is {stripped!r}, {exists}"
    if isinstance(error, FileNotFoundError):
        return f"no such file (paths are relative to the list's folder, {folder})"
    return f"cannot be read: {error.strerror}"


def _identity(folder: Path, written: str) -> str:
    """The path without its place: relative to the list's folder where it is beneath it."""
    normal = os.path.normpath(written)
    if os.path.isabs(normal) or normal.startswith(".."):
        whole = os.path.abspath(folder)
        inside = os.path.relpath(os.path.join(whole, normal), whole)
        normal = normal if inside == ".." or inside.startswith(f"..{os.sep}") else inside
    return normal.replace(os.sep, "/")


def data_spec(videos: VideoList, name: str) -> DataSpec:
    """The identity of a list by content: rows, labels and file sizes in order, not where it lies.

    Moving a folder together with its list keeps the fingerprint; changing a label, a size, a name or the
    order changes it. A scan's counts change nothing: they say of the same files what the files say
    themselves.
    """
    digest = hashlib.sha256(b"salt list 1\n")
    names = sorted(videos.columns)
    digest.update(json.dumps(names).encode() + b"\n")
    for index, (row, size) in enumerate(zip(videos.rows, videos.sizes_bytes, strict=True)):
        record = [row, size, *(videos.columns[column][index] for column in names)]
        digest.update(json.dumps(record).encode() + b"\n")
    return DataSpec(name=name, fingerprint=digest.hexdigest()[:20], clips=len(videos.rows))


def split_by_group(videos: VideoList, share: float, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(rest, held out) row numbers of a list; see `split_groups`."""
    return split_groups(videos.groups, share, seed)


def split_groups(groups: Sequence[str], share: float, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Hold whole groups out: (rest, held out) positions, ascending, about `share` of the rows held out.

    Groups are ordered by a hash of (seed, group), so the split does not depend on the order of rows. Groups
    are taken until the share is reached; one group at least stays on each side. Raises UserError if there
    is only one group.
    """
    if not 0.0 < share < 1.0:
        raise UserError(f"held-out share {share} must lie between 0 and 1")
    sizes: dict[str, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    if len(sizes) < 2:
        raise UserError(
            f"cannot hold out a part of {len(groups)} clips: all are of one group; give a selection list"
        )
    ordered = sorted(sizes, key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())
    wanted = share * len(groups)
    held: set[str] = set()
    count = 0
    for group in ordered[:-1]:
        if held and count >= wanted:
            break
        held.add(group)
        count += sizes[group]
    rest = tuple(index for index, group in enumerate(groups) if group not in held)
    return rest, tuple(index for index, group in enumerate(groups) if group in held)
