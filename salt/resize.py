"""Frames cut to their middle square and resized, in numbers that do not depend on the decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Luma weights of ITU-R BT.601, section 2.5.1, for the single-channel clips.
BT601_LUMA = (0.299, 0.587, 0.114)


def resize_square(frames: NDArray[np.uint8], side_px: int, channels: int) -> NDArray[np.uint8]:
    """Middle square of uint8 [T, H, W, 3], resized to uint8 [T, side_px, side_px, channels].

    A whole-number reduction is the exact mean over each block; any other change of size is bilinear,
    antialiased where it shrinks. Values are rounded to nearest once, after the luma.
    """
    import numpy as np

    height, width = frames.shape[1:3]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    frames = frames[:, top : top + square, left : left + square]
    if square == side_px:
        resized: NDArray[Any] = frames
    elif square % side_px == 0:
        resized = _block_mean(frames, square // side_px)
    else:
        resized = _bilinear(frames, side_px)
    if channels == 1:
        red, green, blue = (resized[..., colour, None].astype(np.float32) for colour in range(3))
        resized = BT601_LUMA[0] * red + BT601_LUMA[1] * green + BT601_LUMA[2] * blue
    if resized.dtype == np.uint8:
        return np.ascontiguousarray(resized)
    return np.clip(np.floor(resized + 0.5), 0, 255).astype(np.uint8)


def _block_mean(frames: NDArray[np.uint8], block: int) -> NDArray[np.float32]:
    import numpy as np

    total = np.zeros((len(frames), frames.shape[1] // block, frames.shape[2] // block, 3), dtype=np.uint32)
    for row in range(block):
        for column in range(block):
            total += frames[:, row::block, column::block]
    return total.astype(np.float32) / np.float32(block * block)


def _bilinear(frames: NDArray[np.uint8], side_px: int) -> NDArray[np.float32]:
    import numpy as np
    import torch

    planes = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float()  # [T, 3, H, W]
    resized = torch.nn.functional.interpolate(
        planes, size=(side_px, side_px), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.permute(0, 2, 3, 1).numpy()
