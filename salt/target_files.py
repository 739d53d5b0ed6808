"""The files of cached teacher latents: what they depend on, their shards, and when one is whole.

    <cache>/targets/<key>/{index.json, 00000.npy, 00001.npy, ...}

`key` hashes everything that the latents depend on (`TargetIdentity`). They are stored before the loss's layer
norm, so that one cache serves runs with it and without. View v of clip i is row v * clips + i; a shard is a
run of rows, [rows, N, D] as .npy, and ends in the SHA-256 of its values, which readers of .npy ignore. It is
written under another name, flushed to disk and renamed: whole or absent.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from salt.errors import RunFailed
from salt.flops import target_adapter, target_blocks, whole_clip_lines
from salt.sizes import tokens
from salt.specs import ClipSpec, RunSpec, Spec, TeacherRef, canonical_json

#: Raised by hand when the files change.
LAYOUT = 1
#: A shard is about this large, larger only where there would be more than `MOST_SHARDS`.
SHARD_BYTES = 64 * 2**20
MOST_SHARDS = 4096

Storage = Literal["float32", "float16", "bfloat16"]
#: numpy has no bfloat16: its bits are stored.
FILE_TYPES: dict[Storage, str] = {"float32": "<f4", "float16": "<f2", "bfloat16": "<u2"}
_SEAL_BYTES = 32

log = logging.getLogger(__name__)


class TargetIdentity(Spec, kw_only=True):
    """All that cached latents depend on. `teacher.run_id` hashes the teacher's whole spec, positions too."""

    teacher: TeacherRef
    teacher_sha256: str
    teacher_layer: int | None
    precision: str  # in which the teacher computed
    fingerprint: str
    clips: int
    rows_sha256: str  # names of the clips in their order, without those that did not decode
    clip: ClipSpec
    views: int
    storage: Storage
    numerics: int
    layout: int = LAYOUT


class TargetIndex(Spec, kw_only=True):
    """`index.json`: what the shards hold, and the FLOPs of encoding them."""

    identity: TargetIdentity
    tokens: int
    width: int
    shard_rows: int
    teacher_flops: int

    @property
    def rows(self) -> int:
        """Clip-views."""
        return self.identity.views * self.identity.clips

    @property
    def row_bytes(self) -> int:
        return self.tokens * self.width * self.file_type.itemsize

    @property
    def file_type(self) -> np.dtype[Any]:
        return np.dtype(FILE_TYPES[self.identity.storage])

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def shard_range(self, shard: int) -> range:
        """Rows of a shard."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    def header(self, shard: int) -> bytes:
        """The first bytes of a shard: those of an .npy file."""
        shape = (len(self.shard_range(shard)), self.tokens, self.width)
        file = io.BytesIO()
        about = {"descr": FILE_TYPES[self.identity.storage], "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, about)
        return file.getvalue()


def target_identity(
    spec: RunSpec, teacher_sha256: str, rows: Sequence[str], storage: Storage | None = None
) -> TargetIdentity:
    """What the cached targets of a run depend on; `rows` names each clip of its list, in the list's order.

    Unless `storage` says otherwise, a run in float32 stores float32, one in bfloat16 float16: as small, and
    eight times as exact for numbers that come out of a layer norm. Raises ValueError for a run
    without a frozen teacher or cached views.
    """
    if spec.teacher is None or spec.cached_views is None:
        raise ValueError(f"a {spec.arm} run with cached_views {spec.cached_views} has no cached targets")
    names = hashlib.sha256()
    for row in rows:
        names.update(f"{len(row)} {row}\n".encode())
    return TargetIdentity(
        teacher=spec.teacher,
        teacher_sha256=teacher_sha256,
        teacher_layer=spec.objective.teacher_layer,
        precision=spec.optim.precision,
        fingerprint=spec.data.fingerprint,
        clips=len(rows),
        rows_sha256=names.hexdigest(),
        clip=spec.clip,
        views=spec.cached_views,
        storage=storage or ("float32" if spec.optim.precision == "float32" else "float16"),
        numerics=spec.numerics,
    )


def target_index(spec: RunSpec, identity: TargetIdentity, shard_bytes: int = SHARD_BYTES) -> TargetIndex:
    """The index of a cache that is to be built."""
    teacher = target_blocks(spec)  # of the teacher, what runs up to the layer of the targets
    assert teacher is not None
    rows, count = identity.views * identity.clips, tokens(spec.model, spec.clip)
    lines = whole_clip_lines(teacher, spec.model, spec.clip, target_adapter(spec))
    row_bytes = count * teacher.width * np.dtype(FILE_TYPES[identity.storage]).itemsize
    return TargetIndex(
        identity=identity,
        tokens=count,
        width=teacher.width,
        shard_rows=max(1, shard_bytes // row_bytes, -(-rows // MOST_SHARDS)),
        teacher_flops=rows * sum(lines.values()),
    )


def targets_path(cache: Path, identity: TargetIdentity) -> Path:
    """The folder of these latents."""
    return Path(cache) / "targets" / hashlib.sha256(canonical_json(identity)).hexdigest()[:16]


def shard_path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.npy"


def read_index(folder: Path, wanted: TargetIndex) -> TargetIndex | None:
    """A folder's index, if it is of the same latents, in shards of any size; else None, which is logged."""
    try:
        index = msgspec.json.decode((folder / "index.json").read_bytes(), type=TargetIndex)
    except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
        log.warning("cached targets in %s have no valid index (%s): encoding again", folder, error)
        return None
    same = (index.identity, index.tokens, index.width) == (wanted.identity, wanted.tokens, wanted.width)
    if not same or index.shard_rows < 1:
        log.warning("cached targets in %s are not those that its name says: encoding again", folder)
        return None
    return index


def is_whole(folder: Path, index: TargetIndex, shard: int, *, deep: bool = False) -> bool:
    """Whether a shard is there in its full size and shape; `deep`: and its values are those written."""
    header = index.header(shard)
    values_bytes = len(index.shard_range(shard)) * index.row_bytes
    try:
        with open(shard_path(folder, shard), "rb") as file:
            if os.fstat(file.fileno()).st_size != len(header) + values_bytes + _SEAL_BYTES:
                return False
            if file.read(len(header)) != header:
                return False
            if not deep:
                return True
            digest = hashlib.sha256()
            for start in range(0, values_bytes, 2**20):
                digest.update(file.read(min(2**20, values_bytes - start)))
            return file.read() == digest.digest()
    except FileNotFoundError:
        return False


def write_shard(folder: Path, index: TargetIndex, shard: int, pieces: Iterable[NDArray[Any]]) -> None:
    """Write a shard whole, from arrays [n, N, D] that make up its rows in order.

    Raises `RunFailed` (`disk`) if there is no room for it; nothing of it stays then.
    """
    path = shard_path(folder, shard)
    beside = path.with_name(f".{path.name}.{os.uname().nodename}-{os.getpid()}.tmp")
    digest = hashlib.sha256()
    try:
        with open(beside, "wb") as file:
            file.write(index.header(shard))
            for piece in pieces:
                data = np.ascontiguousarray(piece, dtype=index.file_type).tobytes()
                file.write(data)
                digest.update(data)
            file.write(digest.digest())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        flush_folder(folder)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise no_room(folder, index, "the disk filled up meanwhile") from error
    finally:
        beside.unlink(missing_ok=True)


def no_room(folder: Path, index: TargetIndex, why: str) -> RunFailed:
    """The error of a cache that does not fit, with its size and the ways out."""
    identity, gigabytes = index.identity, index.rows * index.row_bytes / 1e9
    return RunFailed(
        "disk",
        f"no room for cached targets in {folder.parent}: {identity.views} views x {identity.clips:,} clips x "
        f"{index.tokens:,} tokens x {index.width} numbers in {identity.storage} are {gigabytes:,.2f} GB, "
        f"{why}; put the store on a larger disk, plan fewer views, or plan with `targets: online`",
    )


def remove_leftovers(folder: Path, shard: int) -> None:
    """Remove what killed writers of a shard left. Only for the holder of its lock."""
    for leftover in folder.glob(f".{shard_path(folder, shard).name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Make renames in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[bool | None]:
    """Hold a lock that the kernel frees if the process dies. Yields True if it is held, False if another
    process has it (only without `wait`), None where the file system has no locks."""
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            held: bool | None = True
        except BlockingIOError:
            held = False
        except OSError as error:
            held = None
            log.warning("no lock on %s (%s): other processes may encode the same clips", path, error.strerror)
        yield held
