"""Names of weights: wrappers' prefixes taken off, and every way in which they fail to fit a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

#: What torch.compile and DistributedDataParallel put into the names of the weights that they wrap.
WRAPPERS = ("_orig_mod", "module")
#: Names listed in a message before it only counts.
LISTED = 3


def plain_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """The same weights without wrappers' parts of their names, wherever they stand.

    Raises:
        ValueError: two names become one.
    """
    plain: dict[str, T] = {}
    for name, tensor in tensors.items():
        short = ".".join(part for part in name.split(".") if part not in WRAPPERS)
        if short in plain:
            raise ValueError(f"two weights are called {short} once {' and '.join(WRAPPERS)} are taken off")
        plain[short] = tensor
    return plain


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def misfits(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> str | None:
    """What keeps weights of the shapes `found` from being exactly those `wanted`; None if they are."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    misshapen = [
        f"{name} {list(found[name])} instead of {list(wanted[name])}"
        for name in wanted
        if name in found and found[name] != wanted[name]
    ]
    kinds = (("missing", missing), ("unexpected", unexpected), ("misshapen", misshapen))
    return "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in kinds if names) or None


def _first(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (", ..." if len(names) > LISTED else "")
