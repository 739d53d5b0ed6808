"""What a folder of a Hugging Face model holds, as hashes; weights are the same in one file or in many."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from salt.errors import UserError
from salt.hf_folder import files_of
from salt.progress import progress

#: Of a configuration, what says who saved it and how, not what the model is.
_PROVENANCE = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype", "auto_map")
#: Bytes that are hashed at a time, and a folder's size from which that is worth a line on the screen.
PIECE_BYTES, SHOWN_BYTES = 8 << 20, 1 << 30
#: No header of safetensors is longer; a number above is no safetensors file.
_LONGEST_HEADER = 100 << 20


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def weights_content_sha256(folder: Path) -> str:
    """Hash over names, types, shapes and bytes of all tensors of a folder, in the order of their names.

    Neither the order in a file nor the cut into shards matters. No torch, nothing is held in memory.

    Raises:
        UserError: there are no safetensors, or they are damaged.
    """
    places: dict[str, tuple[Path, int, _Tensor]] = {}
    for path, wanted in files_of(folder).items():
        begin, tensors = _header(path)
        absent = sorted((wanted or set()) - set(tensors))
        if absent:
            raise UserError(f"{path}: the folder's index looks for {absent[0]} there and it is not")
        for name, tensor in tensors.items():
            if wanted is None or name in wanted:
                places[name] = (path, begin, tensor)
    total = sum(tensor.data_offsets[1] - tensor.data_offsets[0] for _, _, tensor in places.values())
    digest = hashlib.sha256()
    with progress(f"reading the weights of {folder.name} (MB)", total >> 20, total >= SHOWN_BYTES) as advance:
        done = 0
        for name in sorted(places):
            path, begin, tensor = places[name]
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            first, last = tensor.data_offsets
            with open(path, "rb") as file:
                file.seek(begin + first)
                _hash(file, last - first, digest, path)
            advance((done + last - first >> 20) - (done >> 20))
            done += last - first
    return digest.hexdigest()


def _hash(file: BinaryIO, count: int, digest: Any, path: Path) -> None:
    while count:
        piece = file.read(min(count, PIECE_BYTES))
        if not piece:
            raise UserError(f"{path}: cut short: its header promises more bytes than it has")
        digest.update(piece)
        count -= len(piece)


def _header(path: Path) -> tuple[int, dict[str, _Tensor]]:
    """Where the values of a safetensors file begin, and its tensors by name."""
    try:
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > _LONGEST_HEADER:
                raise UserError(
                    f"{path}: this is no safetensors file: its header would be {length} bytes long"
                )
            raw = msgspec.json.decode(file.read(length), type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        return 8 + length, {name: msgspec.json.decode(text, type=_Tensor) for name, text in raw.items()}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as safetensors: {error}") from error


def json_content_sha256(path: Path) -> str:
    """Hash over the values of a JSON object, its keys sorted, without what says who saved it.

    Raises:
        UserError: the file is not there, or is no JSON object.
    """
    found = read_object(path)
    kept = {key: value for key, value in found.items() if key not in _PROVENANCE}
    return hashlib.sha256(msgspec.json.encode(kept, order="sorted")).hexdigest()


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object of a file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a JSON object: {error}") from error
