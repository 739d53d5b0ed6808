"""A folder of a Hugging Face model as it lies on disk: weights, whole or in shards, and its processor."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from salt.errors import UserError
from salt.hf_weights import hf_names
from salt.tensor_names import plain_names

if TYPE_CHECKING:
    import torch

    from salt.specs import ClipSpec

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
#: Where a folder says how its videos are normalised; the first one that is there counts.
PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")


def read_float32(folder: Path, drop: Sequence[str]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """All weights of a folder in float32, under the names of a `VJEPA2Model`, and what the user must know.

    Raises:
        UserError: nothing that can be read, a type of numbers that float32 does not hold, or values that are
            not finite.
    """
    import torch

    tensors = _read_weights(folder, drop)
    kinds = {tensor.dtype for tensor in tensors.values()}
    odd = kinds - {torch.float32, torch.float16, torch.bfloat16}
    if odd:
        raise UserError(f"{folder}: weights of type {odd.pop()} cannot be imported: save them as float32")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise UserError(f"{folder}: {name} holds values that are not finite: these weights are of no use")
    half, remarks = kinds - {torch.float32}, []
    if half:
        remarks.append(f"weights are {', '.join(sorted(map(str, half)))}: kept, and exported, as float32")
    return {name: tensor.float() for name, tensor in tensors.items()}, remarks


def _read_weights(folder: Path, drop: Sequence[str]) -> dict[str, torch.Tensor]:
    """All weights of a folder, whole or in shards, under the names of a `VJEPA2Model`."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for file, names in files_of(folder).items():
        try:
            part = load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: cannot be read as safetensors: {error}") from error
        absent = sorted((names or set()) - set(part))
        if absent:
            raise UserError(f"{file}: {INDEX} looks for {absent[0]} there and it is not")
        tensors |= part if names is None else {name: part[name] for name in names}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(tuple(drop))}
    try:
        return hf_names(plain_names(tensors))
    except ValueError as error:
        raise UserError(f"{folder}: {error}") from error


def files_of(folder: Path) -> dict[Path, set[str] | None]:
    """Files of weights and the names that are wanted of each (None: all)."""
    if (folder / WEIGHTS).exists():
        return {folder / WEIGHTS: None}
    if not (folder / INDEX).exists():
        raise UserError(
            f"{folder}: neither {WEIGHTS} nor {INDEX} is there; other formats (pickles) are not read: "
            "save the model with `save_pretrained`"
        )
    try:
        places = msgspec.json.decode((folder / INDEX).read_bytes(), type=dict[str, msgspec.Raw])
        shards = msgspec.json.decode(places["weight_map"], type=dict[str, str])
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{folder / INDEX}: not an index of shards: {error!r}") from error
    found: dict[Path, set[str] | None] = {}
    for name, file in shards.items():
        if Path(file).name != file:
            raise UserError(f"{folder / INDEX}: {file!r} is not a file of this folder")
        names = found.setdefault(folder / file, set())
        assert names is not None
        names.add(name)
    return found


def normalisation_remarks(folder: Path, clip: ClipSpec) -> list[str]:
    """A remark if the folder's processor normalises pixels otherwise than the clip does."""
    path = next((folder / name for name in PROCESSORS if (folder / name).exists()), None)
    if path is None:
        return []
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
        mean, std = (
            msgspec.json.decode(found[key], type=tuple[float, ...]) for key in ("image_mean", "image_std")
        )
    except (KeyError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return [f"{path} does not say how pixels are normalised ({error!r})"]
    ours = [value if isinstance(value, tuple) else (value,) * len(mean) for value in (clip.mean, clip.std)]
    if ours == [mean, std]:
        return []
    return [
        f"{path.name} normalises pixels by mean {list(mean)} and deviation {list(std)}, the clip by "
        f"{clip.mean} and {clip.std}: give --mean and --std if the weights need theirs"
    ]
