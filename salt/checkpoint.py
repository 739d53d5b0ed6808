"""Checkpoints and kept states: safetensors beside a small JSON file that seals them."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from salt.disk import require_folder, writing
from salt.errors import RunFailed
from salt.processes import temporary
from salt.store import RunDir, pretty_json, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from salt.specs import RunSpec

KEPT = 2
#: What a user says to lose what is left of a run.
FROM_START = "`salt-train run --from-start`"

_NAME = re.compile(r"step-(\d+)(\.json|\.safetensors)")


class Origin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a run was made from, by hash. Attempts, trunk and branch must agree on the teacher."""

    teacher_sha256: str | None = None  # of the frozen teacher's weights
    trunk_sha256: str | None = None  # of the file of the trunk's kept state


class Seal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`step-N.json`: written after the tensors, so a checkpoint without it is not one."""

    run_id: str
    step: int
    sha256: str  # of the file
    attempt: int
    train_wall_s: float
    origin: Origin
    highest_rank: float | None = None  # that the targets had so far; None where they do not move


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A state as it goes to disk: the bytes of the tensors' file and their seal."""

    seal: Seal
    data: bytes


def pack(
    run: RunDir,
    step: int,
    tensors: dict[str, torch.Tensor],
    *,
    attempt: int,
    train_wall_s: float,
    origin: Origin,
    highest_rank: float | None = None,
) -> Packed:
    """The state of a run after `step` steps."""
    from safetensors.torch import save as encode

    data = encode({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    seal = Seal(
        run_id=run.run_id,
        step=step,
        sha256=hashlib.sha256(data).hexdigest(),
        attempt=attempt,
        train_wall_s=train_wall_s,
        origin=origin,
        highest_rank=highest_rank,
    )
    return Packed(seal=seal, data=data)


def store(
    run: RunDir, packed: Callable[[], Packed], *, keeps: bool, saves: bool, warn: Callable[[str], None]
) -> None:
    """Pack a state once and write it as what it is to be: a kept state, a checkpoint, or both."""
    require_folder(run.path)
    state = packed()
    if keeps:  # before the checkpoint: a run that goes on from there has kept it
        keep(run, state, warn)
    if saves:
        save(run, state)


def save(run: RunDir, packed: Packed) -> None:
    """Write a checkpoint; only when it is read back whole do older ones go, but for the last.

    One of a later step goes as well: the run fell back behind it, because it was no good.
    """
    _write(_path(run, packed.seal.step), packed)
    prune(run, packed.seal.step)


def prune(run: RunDir, step: int) -> None:
    """Remove what `save` of that step leaves over; again, should it have been killed there. Nothing goes
    where that step has no checkpoint."""
    if step not in _steps(run):
        return
    older = [there for there in _steps(run) if there < step]
    stay = {step, *older[1 - KEPT :]}
    for path in sorted(run.checkpoints.glob("step-*")):  # `.json` before `.safetensors`: never a seal alone
        match = _NAME.fullmatch(path.name)
        if match is not None and int(match[1]) not in stay and not path.is_dir():
            with writing(path):
                path.unlink(missing_ok=True)


def try_out(run: RunDir, packed: Packed) -> None:
    """Write a state as `save` does, read it back and remove it: raises `DiskFailed` before a step is lost."""
    trial = temporary(run.checkpoints / "trial")
    write_atomically(trial, packed.data, sha256=packed.seal.sha256)
    with writing(trial):
        trial.unlink()


def room_bytes(run: RunDir, spec: RunSpec, state_bytes: int, artefact_bytes: int, *, saves: int) -> int:
    """Bytes that a run has still to write and to leave on disk at once.

    Checkpoints: `KEPT` and the one that is being written, no more than the `saves` that are to come; states
    to keep; the artefact. What is there already is not counted again.
    """
    wanted = min(KEPT + 1, len(_steps(run)) + saves)
    states = max(0, wanted - len(_steps(run))) + len(run.missing_kept(spec))
    return states * state_bytes + (0 if run.artefact.exists() else artefact_bytes)


def keep(run: RunDir, packed: Packed, warn: Callable[[str], None]) -> None:
    """Write a state to stay, for branches and students of this run.

    A whole one that is there already stays as it is, since others may have begun from it; `warn(message)` is
    called if the same step came out otherwise this time, as it can on devices that are not deterministic.
    """
    step, path = packed.seal.step, run.kept_state(packed.seal.step)
    if run.has_kept(step):
        try:
            there, _ = _read(run, path, step)
        except _DamagedError as damage:
            warn(f"kept state {path} {damage}; writing it again")
        else:
            if there.sha256 != packed.seal.sha256:
                warn(
                    f"run {run.run_id} came to other weights at step {step} than when it kept {path}; "
                    "what was kept stays"
                )
            return
    _write(path, packed)


def load_kept(run: RunDir, step: int, kind: str) -> tuple[Seal, dict[str, torch.Tensor]]:
    """The state that a run kept after `step` steps, with its seal; `RunFailed(kind)` without a whole one."""
    if not run.has_kept(step):
        raise RunFailed(
            kind, f"run {run.run_id} has not kept its state at step {step} in {run.kept}: train it that far"
        )
    try:
        seal, data = _read(run, run.kept_state(step), step)
        return seal, _decode(data)
    except _DamagedError as damage:
        raise RunFailed(
            kind,
            f"state of run {run.run_id} at step {step}: {run.kept_state(step)} {damage}; "
            "move the run's folder away and train it again",
        ) from damage


def load_newest(run: RunDir, warn: Callable[[str], None]) -> tuple[Seal, dict[str, torch.Tensor]] | None:
    """The newest valid checkpoint, or None in a folder that never had one.

    A damaged one is reported through `warn(message)` and the one before is taken. Damaged files and no
    valid one raise `RunFailed`: training never starts again from step 0 unasked. A file without a seal is
    reported, but is no checkpoint: its writing was cut short.
    """
    sealed = _steps(run)
    loose = [step for step in _steps(run, ".safetensors") if step not in sealed]
    for step in sorted({*sealed, *loose}, reverse=True):
        if step in loose:
            warn(f"checkpoint {_path(run, step)} has no seal, so its writing was cut short; it is not used")
            continue
        try:
            seal, data = _read(run, _path(run, step), step)
            return seal, _decode(data)
        except _DamagedError as damage:
            warn(f"checkpoint {_path(run, step)} {damage}; falling back to the one before")
    if sealed:
        raise RunFailed(
            "checkpoint",
            f"none of {len(sealed)} checkpoints in {run.checkpoints} is valid: bring a good one back, or "
            f"start over with {FROM_START}",
        )
    return None


def load_newest_kept(run: RunDir, warn: Callable[[str], None]) -> tuple[Seal, dict[str, torch.Tensor]] | None:
    """The newest valid kept state, None without one: as whole as a checkpoint, for a run that has none."""
    for step in reversed(_steps_in(run.kept, ".json")):
        try:
            seal, data = _read(run, run.kept_state(step), step)
            return seal, _decode(data)
        except _DamagedError as damage:
            warn(f"kept state {run.kept_state(step)} {damage}; it is not used")
    return None


class _DamagedError(Exception):
    """A file that is not what its seal says; the message goes after the file's name."""


def _write(path: Path, packed: Packed) -> None:
    seal = pretty_json(packed.seal)
    for place, data, sha256 in (
        (path, packed.data, packed.seal.sha256),
        (path.with_suffix(".json"), seal, hashlib.sha256(seal).hexdigest()),
    ):
        if place.is_dir():  # somebody's: out of the way, not away
            with writing(place):
                place.rename(place.with_name(f"{place.name}.{time.time_ns()}.aside"))
        write_atomically(place, data, sha256=sha256)


def _decode(data: bytes) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as decode

    try:
        return decode(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _DamagedError(f"holds no tensors ({error})") from error


def _read(run: RunDir, path: Path, step: int) -> tuple[Seal, bytes]:
    """A state's seal and bytes, verified; raises `_DamagedError`."""
    try:
        seal = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Seal)
        data = path.read_bytes()
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _DamagedError(f"is damaged ({error})") from error
    if (seal.run_id, seal.step) != (run.run_id, step):
        raise _DamagedError(f"is sealed as that of run {seal.run_id} at step {seal.step}")
    if hashlib.sha256(data).hexdigest() != seal.sha256:
        raise _DamagedError("does not match its checksum")
    return seal, data


def _path(run: RunDir, step: int) -> Path:
    return run.checkpoints / f"step-{step:08d}.safetensors"


def _steps(run: RunDir, suffix: str = ".json") -> list[int]:
    """Steps of sealed checkpoints, ascending; with ".safetensors", of those that have tensors."""
    return _steps_in(run.checkpoints, suffix)


def _steps_in(folder: Path, suffix: str) -> list[int]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:  # not as if there were none
        raise RunFailed("checkpoint", f"{folder} cannot be read: {error}; see to it, then go on") from error
    matches = (_NAME.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in matches if match and match[2] == suffix)
