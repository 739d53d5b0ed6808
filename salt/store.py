"""The run store: files are the database.

<store>/plans/<name>/{study.yaml, plan.jsonl, costs.csv}
<store>/runs/<id[:2]>/<id>/{spec.json, env.json, claim, metrics.jsonl, inputs.json, ckpt/, kept/,
                            artefact.safetensors, probes/<probe_id>.json, error.json, result.json}
<store>/cache/       disposable: decoded clips
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import msgspec

from salt.errors import UserError
from salt.result_specs import ProbeResult, RunError, RunInputs, RunResult
from salt.specs import RunSpec

T = TypeVar("T")


def store_path(option: str | None) -> Path:
    """`--store`, else `$SALT_STORE`, else `./salt-store`."""
    return Path(option or os.environ.get("SALT_STORE") or "salt-store")


def write_atomically(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the whole new one.

    Data that is large comes in pieces.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(beside, "wb") as file:
        file.writelines((data,) if isinstance(data, bytes) else data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
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


def read_json(path: Path, kind: type[T]) -> T:
    """Decode a file strictly; the error names the file and the field."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a valid {kind.__name__}: {error}") from error


class RunDir:
    """The files of one run. Each run owns its folder; nothing else writes there."""

    def __init__(self, store: Path, run_id: str) -> None:
        self.store = store
        self.run_id = run_id
        self.path = store / "runs" / run_id[:2] / run_id
        self.spec = self.path / "spec.json"
        self.env = self.path / "env.json"
        self.claim = self.path / "claim"
        self.metrics = self.path / "metrics.jsonl"
        self.inputs = self.path / "inputs.json"
        self.checkpoints = self.path / "ckpt"
        self.kept = self.path / "kept"
        self.artefact = self.path / "artefact.safetensors"
        self.probes = self.path / "probes"
        self.error = self.path / "error.json"
        self.result = self.path / "result.json"

    def read_spec(self) -> RunSpec:
        return read_json(self.spec, RunSpec)

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
