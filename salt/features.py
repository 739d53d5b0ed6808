"""What a frozen encoder says of a list of clips, computed once for all probes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from salt.batches import centre_crop, to_patches
from salt.randomness import generator
from salt.specs import ClipSpec, Frames, ModelSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from salt.vit import Encoder

#: Clips encoded at once. It changes speed only.
CHUNK = 128


def arrange_frames(crops: NDArray[np.uint8], frames: Frames, seed: int) -> NDArray[np.uint8]:
    """The clip's frames as a probe sees them, uint8 [n, T, H, W, C].

    `shuffled` gives each clip its own random order; `first` and `middle` repeat one frame: controls that
    hold everything but order, or but motion.
    """
    count, time = crops.shape[:2]
    if frames == "ordered":
        return crops
    if frames == "shuffled":
        orders = generator(seed, "shuffled frames").random((count, time)).argsort(axis=1)
        return crops[np.arange(count)[:, None], orders]
    place = 0 if frames == "first" else time // 2
    return np.repeat(crops[:, place : place + 1], time, axis=1)


@torch.no_grad()
def encode_clips(
    encoder: Encoder | None, crops: NDArray[np.uint8], clip: ClipSpec, model: ModelSpec, device: str
) -> torch.Tensor:
    """Output tokens of all clips, float32 [n, N, D] on the CPU; without an encoder, normalised patches."""
    parts = []
    for start in range(0, len(crops), CHUNK):
        patches = to_patches(
            torch.from_numpy(np.ascontiguousarray(crops[start : start + CHUNK])), clip, model
        )
        parts.append(patches if encoder is None else encoder(patches.to(device)).cpu())
    return torch.cat(parts)


def pooled(tokens: torch.Tensor, flatten: bool) -> NDArray[np.float32]:
    """One vector a clip: the mean token [n, D], or for raw pixels all values [n, N * P]."""
    return (tokens.flatten(1) if flatten else tokens.mean(dim=1)).numpy()


def view(frames: NDArray[np.uint8], chosen: NDArray[np.int64], clip: ClipSpec) -> NDArray[np.uint8]:
    """Centre crops of the chosen clips, uint8 [n, T, H, W, C]."""
    return np.ascontiguousarray(centre_crop(frames[chosen], clip))
