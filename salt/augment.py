"""Which part of a clip a training step sees: the random crop, its size, its mirror image.

Random numbers are addressed, not drawn in turn: those of the clip at place i of step s are a pure function of
(seed, s, i), and those of a fixed view of a clip of (clip, view). Any rank or worker makes just the ones of
its own clips.

`random_resized` follows torchvision's RandomResizedCrop: an area that is a uniform share of the picture's,
an aspect ratio (width by height) that is log-uniform, ten tries to fit such a box in, else the largest middle
box within the aspect limits. All frames of a clip share one box. Sizes change by bilinear interpolation,
antialiased where they shrink, on whole grey levels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from salt.randomness import generator, hash64, stream_key
from salt.specs import ClipSpec
from salt.video import BT601_LUMA

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Boxes that `random_resized` tries before it takes the middle one.
TRIES = 10

#: Numbers of one clip: where it starts in its file, the mirror, then area, aspect, top and left of each try.
NUMBERS = 2 + 4 * TRIES


@dataclass(frozen=True)
class Chances:
    """The random numbers of n clips, float64 in [0, 1).

    `start` [n] is where in its file a streamed clip starts, `mirror` [n] whether it is mirrored (below one
    half), `tries` [n, TRIES, 4] are area, aspect, top and left of each box.
    """

    start: NDArray[np.float64]
    mirror: NDArray[np.float64]
    tries: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, rows: slice) -> Chances:
        return Chances(self.start[rows], self.mirror[rows], self.tries[rows])


@dataclass(frozen=True)
class Box:
    """A part of a picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int


def step_chances(seed: int, step: int, places: range, clip: ClipSpec, batch_clips: int) -> Chances:
    """The numbers of the clips at these places of a step's batch."""
    chances = _chances(
        stream_key(seed, "augment", step), np.arange(places.start, places.stop, dtype=np.uint64)
    )
    if clip.source == "stored" and clip.crop == "shift":
        # Whole corners of the whole batch: how stored clips have been cropped from the first version on.
        room = clip.store_px - clip.crop_px + 1
        corners = generator(seed, "crop", step).integers(0, room, (batch_clips, 2))
        chances.tries[:, 0, 2:] = (corners[places.start : places.stop] + 0.5) / room
    return chances


def view_chances(indices: NDArray[np.int64], views: NDArray[np.int64]) -> Chances:
    """The numbers of a fixed view of each clip, by clip and view number; they are the same in every run."""
    rows = (views.astype(np.uint64) << np.uint64(40)) + indices.astype(np.uint64)
    return _chances(stream_key(0, "view"), rows)


def _chances(key: int, rows: NDArray[np.uint64]) -> Chances:
    columns = np.arange(NUMBERS, dtype=np.uint64)
    numbers = hash64(np.uint64(key), rows[:, None] * np.uint64(NUMBERS) + columns)
    uniform = (numbers >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return Chances(uniform[:, 0], uniform[:, 1], uniform[:, 2:].reshape(-1, TRIES, 4))


def shift_corners(tries: NDArray[np.float64], height: int, width: int, side_px: int) -> NDArray[np.int64]:
    """Top and left of squares of `side_px` in pictures of one size, by the first of `tries`.

    `tries` is [..., TRIES, 4], the result int64 [..., 2].
    """
    room = np.array([height - side_px + 1, width - side_px + 1])
    corners: NDArray[np.int64] = (tries[..., 0, 2:] * room).astype(np.int64)
    return corners


def resized_box(tries: NDArray[np.float64], height: int, width: int, clip: ClipSpec) -> Box:
    """The box of `random_resized` in a picture of this size, by `tries` [TRIES, 4]."""
    low, high = math.log(clip.crop_aspect_min), math.log(clip.crop_aspect_max)
    for area, aspect, top, left in tries.tolist():
        share = clip.crop_scale_min + (clip.crop_scale_max - clip.crop_scale_min) * area
        ratio = math.exp(low + (high - low) * aspect)
        wide = round(math.sqrt(share * height * width * ratio))
        tall = round(math.sqrt(share * height * width / ratio))
        if 1 <= wide <= width and 1 <= tall <= height:
            return Box(int(top * (height - tall + 1)), int(left * (width - wide + 1)), tall, wide)
    tall, wide = height, width
    if width / height < clip.crop_aspect_min:
        tall = min(height, max(1, round(width / clip.crop_aspect_min)))
    elif width / height > clip.crop_aspect_max:
        wide = min(width, max(1, round(height * clip.crop_aspect_max)))
    return Box((height - tall) // 2, (width - wide) // 2, tall, wide)


def crop(
    frames: NDArray[np.uint8], clip: ClipSpec, tries: NDArray[np.float64], mirror: float
) -> torch.Tensor:
    """One training view of whole frames, uint8 [T, H, W, C or 3] -> [T, crop_px, crop_px, C].

    `tries` [TRIES, 4] and `mirror` are the clip's numbers. `shift` first scales the frames so that their
    short side is `store_px`. Colour becomes BT.601 luma, last, where the clip has one channel.
    """
    count, height, width = frames.shape[:3]
    if frames.strides[0] == 0:
        frames = frames[:1]  # a still clip: one frame in all its places
    if clip.crop == "random_resized":
        box = resized_box(tries, height, width, clip)
    else:
        short = min(height, width)
        if short != clip.store_px:
            height, width = (round(length * clip.store_px / short) for length in (height, width))
            frames = resize(frames, height, width).numpy()
        top, left = shift_corners(tries, height, width, clip.crop_px).tolist()
        box = Box(top, left, clip.crop_px, clip.crop_px)
    part = frames[:, box.top : box.top + box.height, box.left : box.left + box.width]
    view = resize(part, clip.crop_px, clip.crop_px)
    if view.shape[-1] != clip.channels:
        view = _luma(view)
    view = view.flip(2) if clip.flip and mirror < 0.5 else view
    return view.expand(count, *view.shape[1:])


def resize(frames: NDArray[np.uint8], height: int, width: int) -> torch.Tensor:
    """uint8 [T, h, w, C] -> [T, height, width, C]; within one grey level of the same in real numbers."""
    pictures = torch.from_numpy(frames if frames.flags.writeable else frames.copy())
    if frames.shape[1:3] == (height, width):
        return pictures
    planes = pictures.permute(0, 3, 1, 2)  # seen as channels-last, for which whole numbers are fast
    resized = torch.nn.functional.interpolate(
        planes, size=(height, width), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.permute(0, 2, 3, 1)


def _luma(colours: torch.Tensor) -> torch.Tensor:
    """RGB uint8 [..., 3] -> BT.601 luma, uint8 [..., 1], rounded to nearest."""
    red, green, blue = (colours[..., number, None].float() for number in range(3))
    grey = BT601_LUMA[0] * red + BT601_LUMA[1] * green + BT601_LUMA[2] * blue
    return (grey + 0.5).floor_().clamp_(0, 255).to(torch.uint8)
