"""The run store: files are the database.

<store>/plans/<name>/{study.yaml, plan.jsonl, costs.csv}
<store>/runs/<id[:2]>/<id>/{spec.json, env.json, claim, metrics.jsonl, reached.json, inputs.json, ckpt/,
                            kept/, artefact.safetensors, probes/<probe_id>.json, error.json, result.json}
<store>/cache/       disposable: decoded clips
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from salt.disk import DiskFailed, writing
from salt.errors import RunFailed, UserError
from salt.processes import temporary
from salt.result_specs import ProbeResult, RunError, RunInputs, RunResult
from salt.spec_diff import differences
from salt.specs import RunSpec

T = TypeVar("T")

#: The way out where a file of a run is damaged, by what it should hold. Others are mended by who wrote them.
_WAYS_OUT = {
    "Environment": "move it away and submit again; the attempts of the run are then counted anew",
    "RunError": "move it away and submit again; the run is then tried once more",
    "RunResult": "put back a good copy, or move the run's folder away to train it anew",
    "RunInputs": "put back a good copy, or move the run's folder away to train it anew",
    "ProbeResult": "move it away and submit again; the probe is then made anew",
}

_PUT_BACK = "put back what was there, plan again, or move the run's folder away to train it anew"


def store_path(option: str | None) -> Path:
    """`--store`, else `$SALT_STORE`, else `./salt-store`."""
    return Path(option or os.environ.get("SALT_STORE") or "salt-store")


def write_atomically(path: Path, data: bytes | Iterable[bytes], *, sha256: str | None = None) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the whole new one.

    Data that is large comes in pieces. With `sha256` the file is read back before it gets its name, from the
    disk where the system lets go of its copy in memory, and refused if that is not its hash.

    Raises:
        DiskFailed: there is no room, no right, no disk; or what was read back is not what was written. The
            file that was there before stays, and nothing is left beside it.
    """
    beside = temporary(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(beside, "wb") as file:
                file.writelines((data,) if isinstance(data, bytes) else data)
                file.flush()
                os.fsync(file.fileno())
                if sha256 is not None and hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if sha256 is not None and file_sha256(beside) != sha256:
                raise DiskFailed(
                    f"{path}: what was read back is not what was written; have the disk looked at, or use "
                    "another store",
                    errno.EIO,
                    path,
                )
            os.replace(beside, path)
        except BaseException:
            with suppress(OSError):
                beside.unlink()
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pretty_json(value: object) -> bytes:
    """Indented JSON of a spec or of plain data, ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


class DamagedFile(UserError):
    """A file that is not what it should hold; the message names it, what is wrong with it and the way out."""


def read_json(path: Path, kind: type[T], way_out: str | None = None) -> T:
    """Decode a file strictly; the error names the file, the field and the way out.

    Raises:
        DamagedFile: it holds something else than `kind`.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        what = "JSON object" if kind is dict else kind.__name__
        way_out = way_out or _WAYS_OUT.get(what, "correct it, put back a good copy, or move it away")
        raise DamagedFile(f"{path}: not a valid {what}: {error}; {way_out}") from error


class _Inside:
    """A path inside a run's folder, put together when it is first asked for.

    Who looks at thousands of runs looks at few files of each.
    """

    def __init__(self, file: str) -> None:
        self._file = file

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, folder: RunDir, owner: type) -> Path:
        path = folder.path / self._file
        folder.__dict__[self._name] = path  # found there from now on
        return path


class RunDir:
    """The files of one run. Each run owns its folder; nothing else writes there."""

    spec = _Inside("spec.json")
    env = _Inside("env.json")
    claim = _Inside("claim")
    metrics = _Inside("metrics.jsonl")
    reached = _Inside("reached.json")
    inputs = _Inside("inputs.json")
    checkpoints = _Inside("ckpt")
    kept = _Inside("kept")
    artefact = _Inside("artefact.safetensors")
    quarantine = _Inside("quarantine")
    probes = _Inside("probes")
    error = _Inside("error.json")
    result = _Inside("result.json")

    def __init__(self, store: Path, run_id: str) -> None:
        self.store = store
        self.run_id = run_id
        self.path = store / "runs" / run_id[:2] / run_id

    def read_spec(self) -> RunSpec:
        return read_json(self.spec, RunSpec, _PUT_BACK)

    def require_whole(self) -> None:
        """Raises `DamagedFile` where the next attempt could not read the spec that an earlier one wrote.

        A spec that can be read and is another than the planned one is told by `require_spec`, field by field.
        """
        with suppress(FileNotFoundError):  # none yet
            read_json(self.spec, dict, _PUT_BACK)

    def require_spec(self, spec: RunSpec) -> None:
        """Raises `RunFailed` unless `spec.json` is this spec, naming each field that differs.

        The file is read as plain JSON: one that was edited by hand, or written by another version, need not
        be a spec of this one.
        """
        data = self.spec.read_bytes()
        try:
            there = msgspec.json.decode(data)
            if msgspec.convert(there, RunSpec) == spec:
                return
        except msgspec.ValidationError:
            pass  # fields that this version does not know are among the differences
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise RunFailed("code", f"{self.spec} is not JSON ({error}): {_PUT_BACK}") from error
        lines = differences(there, msgspec.json.decode(msgspec.json.encode(spec)))
        if lines:
            raise RunFailed(
                "code",
                f"{self.spec} is not what is planned as run {self.run_id}: one was edited by hand, or "
                "written by another version. They differ so (there -> planned):\n  "
                + "\n  ".join(lines)
                + f"\n{_PUT_BACK}",
            )

    def read_result(self) -> RunResult | None:
        return read_json(self.result, RunResult) if self.result.exists() else None

    def read_inputs(self) -> RunInputs | None:
        return read_json(self.inputs, RunInputs) if self.inputs.exists() else None

    def read_error(self) -> RunError | None:
        return read_json(self.error, RunError) if self.error.exists() else None

    def probe(self, probe_id: str) -> Path:
        return self.probes / f"{probe_id}.json"

    def read_probe(self, probe_id: str) -> ProbeResult | None:
        path = self.probe(probe_id)
        return read_json(path, ProbeResult) if path.exists() else None

    def kept_state(self, step: int) -> Path:
        """The whole state after `step` steps (`RunSpec.keep_steps`); its seal is beside it."""
        return self.kept / f"step-{step:08d}.safetensors"

    def has_kept(self, step: int) -> bool:
        """Whether that state is there, sealed. Its checksum is looked at when it is loaded."""
        path = self.kept_state(step)
        return path.with_suffix(".json").exists() and path.exists()

    def missing_kept(self, spec: RunSpec) -> tuple[int, ...]:
        """Steps whose state the run is to keep and that is not there."""
        return tuple(step for step in spec.keep_steps if not self.has_kept(step))

    def is_complete(self, probe_ids: tuple[str, ...]) -> bool:
        """Trained, every wanted probe written, and every state that its spec keeps still there."""
        if not self.result.exists() or not all(self.probe(name).exists() for name in probe_ids):
            return False
        return not self.spec.exists() or not self.missing_kept(self.read_spec())
