"""The run store: files are the database.

<store>/plans/<name>/{study.yaml, plan.jsonl, costs.csv}
<store>/runs/<id[:2]>/<id>/{spec.json, env.json, claim, metrics.jsonl, ckpt/, kept/, artefact.safetensors,
                            probes/<probe_id>.json, error.json, result.json}
<store>/cache/       disposable: decoded clips
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from salt.errors import UserError
from salt.specs import (
    Cell,
    ExecSpec,
    Plan,
    PlannedRun,
    ProbeResult,
    ProbeSpec,
    RunError,
    RunResult,
    RunSpec,
    Spec,
)

T = TypeVar("T")


def store_path(option: str | None) -> Path:
    """`--store`, else `$SALT_STORE`, else `./salt-store`."""
    return Path(option or os.environ.get("SALT_STORE") or "salt-store")


def write_atomically(path: Path, data: bytes) -> None:
    """Write beside, flush to disk, rename: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(beside, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


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


# --- plans --------------------------------------------------------------------------------------


class PlanHeader(Spec, kw_only=True, tag_field="record", tag="plan"):
    name: str
    study_sha256: str
    convention: str
    charge: str
    execution: ExecSpec


class ProbeLine(Spec, kw_only=True, tag_field="record", tag="probe"):
    probe_id: str
    spec: ProbeSpec


class RunLine(Spec, kw_only=True, tag_field="record", tag="run"):
    run: PlannedRun


class CellLine(Spec, kw_only=True, tag_field="record", tag="cell"):
    cell: Cell


PlanLine = PlanHeader | ProbeLine | RunLine | CellLine


def plan_dir(store: Path, name: str) -> Path:
    return store / "plans" / name


def encode_plan(plan: Plan) -> bytes:
    """`plan.jsonl`: a header, then probes, runs (teachers first) and cells, one JSON object a line."""
    lines: list[PlanLine] = [
        PlanHeader(
            name=plan.name,
            study_sha256=plan.study_sha256,
            convention=plan.convention,
            charge=plan.charge,
            execution=plan.execution,
        )
    ]
    lines += [ProbeLine(probe_id=name, spec=spec) for name, spec in sorted(plan.probes.items())]
    lines += [RunLine(run=run) for run in plan.runs]
    lines += [CellLine(cell=cell) for cell in plan.cells]
    return b"".join(msgspec.json.encode(line, order="sorted") + b"\n" for line in lines)


def read_plan(store: Path, name: str) -> Plan:
    """Read `plans/<name>/plan.jsonl`; a bad line is an error that gives its number."""
    path = plan_dir(store, name) / "plan.jsonl"
    if not path.exists():
        raise UserError(
            f"no plan {name!r} in {store}: have {', '.join(plan_names(store)) or 'none'}; "
            "make one with `salt-sweep plan STUDY.yaml`"
        )
    header: PlanHeader | None = None
    probes: dict[str, ProbeSpec] = {}
    runs: list[PlannedRun] = []
    cells: list[Cell] = []
    decoder = msgspec.json.Decoder(PlanLine)
    for number, text in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            line = decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}:{number}: {error}") from error
        if isinstance(line, PlanHeader):
            header = line
        elif isinstance(line, ProbeLine):
            probes[line.probe_id] = line.spec
        elif isinstance(line, RunLine):
            runs.append(line.run)
        else:
            cells.append(line.cell)
    if header is None:
        raise UserError(f"{path}: no plan header; make the plan again with `salt-sweep plan`")
    return msgspec.convert(
        {
            "name": header.name,
            "study_sha256": header.study_sha256,
            "convention": header.convention,
            "charge": header.charge,
            "execution": header.execution,
            "probes": probes,
            "runs": tuple(runs),
            "cells": tuple(cells),
        },
        Plan,
    )


def plan_names(store: Path) -> list[str]:
    """Plans of a store, newest first."""
    files = list((store / "plans").glob("*/plan.jsonl"))
    files.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    return [path.parent.name for path in files]


def choose_plan(store: Path, name: str | None) -> str:
    """The named plan, or the newest one of the store."""
    if name is not None:
        # A study file is accepted where a name is meant.
        return Path(name).stem if name.endswith((".yaml", ".yml")) else name
    names = plan_names(store)
    if not names:
        raise UserError(f"no plan in {store}: make one with `salt-sweep plan STUDY.yaml`")
    return names[0]
