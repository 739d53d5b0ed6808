"""Checkpoints: safetensors beside a small JSON file that seals them."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any

import msgspec

from salt.errors import RunFailed
from salt.store import RunDir, pretty_json, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    import torch

KEPT = 2


class Seal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`step-N.json`: written after the tensors, so a checkpoint without it is not one."""

    step: int
    sha256: str
    attempt: int
    train_wall_s: float


def save(run: RunDir, step: int, tensors: dict[str, torch.Tensor], attempt: int, train_wall_s: float) -> None:
    """Write a checkpoint after `step` steps; only when it is whole do older ones go, but for the last."""
    from safetensors.torch import save as encode

    data = encode({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    path = _path(run, step)
    write_atomically(path, data)
    seal = Seal(
        step=step, sha256=hashlib.sha256(data).hexdigest(), attempt=attempt, train_wall_s=train_wall_s
    )
    write_atomically(path.with_suffix(".json"), pretty_json(seal))
    for old in _steps(run)[:-KEPT]:
        _path(run, old).with_suffix(".json").unlink()
        _path(run, old).unlink()


def load_newest(run: RunDir, warn: Any) -> tuple[Seal, dict[str, torch.Tensor]] | None:
    """The newest valid checkpoint, or None in a folder that never had one.

    A damaged one is reported through `warn(message)` and the one before is taken. Damaged files and no
    valid one raise `RunFailed`: training never starts again from step 0 unasked.
    """
    from safetensors.torch import load as decode

    steps = _steps(run)
    for step in reversed(steps):
        path = _path(run, step)
        try:
            seal = msgspec.json.decode(path.with_suffix(".json").read_bytes(), type=Seal)
            data = path.read_bytes()
        except (OSError, msgspec.DecodeError) as error:
            warn(f"checkpoint {path} is damaged ({error}); falling back to the one before")
            continue
        if hashlib.sha256(data).hexdigest() != seal.sha256 or seal.step != step:
            warn(f"checkpoint {path} does not match its checksum; falling back to the one before")
            continue
        return seal, decode(data)
    if steps:
        raise RunFailed(
            "checkpoint",
            f"none of {len(steps)} checkpoints in {run.checkpoints} is valid: "
            "move the folder away to start over",
        )
    return None


def _path(run: RunDir, step: int) -> Path:
    return run.checkpoints / f"step-{step:08d}.safetensors"


def _steps(run: RunDir) -> list[int]:
    """Steps of sealed checkpoints, ascending."""
    names = (re.fullmatch(r"step-(\d+)\.json", path.name) for path in run.checkpoints.glob("step-*.json"))
    return sorted(int(name[1]) for name in names if name)
