"""From stored clips to batches of patches: order, crops and normalisation by (seed, step)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from salt.randomness import generator
from salt.specs import ClipSpec, ModelSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Batches:
    """Training batches of one run; any step can be asked for at any time."""

    def __init__(
        self, frames: NDArray[np.uint8], clip: ClipSpec, model: ModelSpec, batch: int, seed: int
    ) -> None:
        self.frames = frames  # uint8 [N, T, S, S, C]
        self.clip, self.model = clip, model
        self.batch, self.seed = batch, seed
        self._orders: dict[int, NDArray[np.int64]] = {}

    def indices(self, step: int) -> NDArray[np.int64]:
        """Clip numbers of the step's batch, int64 [B]; the epoch's permutation is kept."""
        first = step * self.batch
        epochs = range(first // len(self.frames), (first + self.batch - 1) // len(self.frames) + 1)
        if any(epoch not in self._orders for epoch in epochs):
            self._orders = {e: generator(self.seed, "order", e).permutation(len(self.frames)) for e in epochs}
        places = np.arange(first, first + self.batch)
        parts = [self._orders[e][places[places // len(self.frames) == e] % len(self.frames)] for e in epochs]
        return np.concatenate(parts)

    def __call__(self, step: int) -> torch.Tensor:
        """Patches of the step's batch, each clip cropped afresh, float32 [B, N, P]."""
        room = self.clip.store_px - self.clip.crop_px
        corners = generator(self.seed, "crop", step).integers(0, room + 1, (self.batch, 2))
        side = self.clip.crop_px
        shape = (self.batch, self.clip.frames, side, side, self.clip.channels)
        crops = np.empty(shape, dtype=np.uint8)
        for place, (index, (top, left)) in enumerate(zip(self.indices(step), corners, strict=True)):
            crops[place] = self.frames[index, :, top : top + side, left : left + side]
        return to_patches(torch.from_numpy(crops), self.clip, self.model)


def centre_crop(frames: NDArray[np.uint8], clip: ClipSpec) -> NDArray[Any]:
    """The view used by probes: uint8 [..., S, S, C] -> [..., crop_px, crop_px, C]."""
    start = (clip.store_px - clip.crop_px) // 2
    stop = start + clip.crop_px
    return frames[..., start:stop, start:stop, :]


def to_patches(crops: torch.Tensor, clip: ClipSpec, model: ModelSpec) -> torch.Tensor:
    """uint8 [B, T, side, side, C] -> normalised patches, float32 [B, N, P], time-major, channel fastest."""
    batch, frames, side, _, channels = crops.shape
    t, p = model.tubelet_frames, model.patch_px
    x = crops.view(batch, frames // t, t, side // p, p, side // p, p, channels)
    x = x.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, -1, t * p * p * channels)
    return x.float().mul_(1 / (255 * clip.std)).sub_(clip.mean / clip.std)
