"""Checkpoints and kept states: safetensors beside a small JSON file that seals them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from salt.errors import RunFailed
from salt.store import RunDir, pretty_json, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    import torch

KEPT = 2


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
    )
    return Packed(seal=seal, data=data)


def store(
    run: RunDir, packed: Callable[[], Packed], *, keeps: bool, saves: bool, warn: Callable[[str], None]
) -> None:
    """Pack a state once and write it as what it is to be: a kept state, a checkpoint, or both."""
    state = packed()
    if keeps:  # before the checkpoint: a run that goes on from there has kept it
        keep(run, state, warn)
    if saves:
        save(run, state)


def save(run: RunDir, packed: Packed) -> None:
    """Write a checkpoint; only when it is whole do older ones go, but for the last."""
    _write(_path(run, packed.seal.step), packed)
    for old in _steps(run)[:-KEPT]:
        _path(run, old).with_suffix(".json").unlink()
        _path(run, old).unlink()


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
    from safetensors.torch import load as decode

    if not run.has_kept(step):
        raise RunFailed(
            kind, f"run {run.run_id} has not kept its state at step {step} in {run.kept}: train it that far"
        )
    try:
        seal, data = _read(run, run.kept_state(step), step)
    except _DamagedError as damage:
        raise RunFailed(
            kind,
            f"state of run {run.run_id} at step {step}: {run.kept_state(step)} {damage}; "
            "move the run's folder away and train it again",
        ) from damage
    return seal, decode(data)


def load_newest(run: RunDir, warn: Callable[[str], None]) -> tuple[Seal, dict[str, torch.Tensor]] | None:
    """The newest valid checkpoint, or None in a folder that never had one.

    A damaged one is reported through `warn(message)` and the one before is taken. Damaged files and no
    valid one raise `RunFailed`: training never starts again from step 0 unasked.
    """
    from safetensors.torch import load as decode

    steps = _steps(run)
    for step in reversed(steps):
        try:
            seal, data = _read(run, _path(run, step), step)
        except _DamagedError as damage:
            warn(f"checkpoint {_path(run, step)} {damage}; falling back to the one before")
            continue
        return seal, decode(data)
    if steps:
        raise RunFailed(
            "checkpoint",
            f"none of {len(steps)} checkpoints in {run.checkpoints} is valid: "
            "move the folder away to start over",
        )
    return None


class _DamagedError(Exception):
    """A file that is not what its seal says; the message goes after the file's name."""


def _write(path: Path, packed: Packed) -> None:
    write_atomically(path, packed.data)
    write_atomically(path.with_suffix(".json"), pretty_json(packed.seal))


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


def _steps(run: RunDir) -> list[int]:
    """Steps of sealed checkpoints, ascending."""
    names = (re.fullmatch(r"step-(\d+)\.json", path.name) for path in run.checkpoints.glob("step-*.json"))
    return sorted(int(name[1]) for name in names if name)
