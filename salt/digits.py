"""The miniature's clips: real handwritten digits (scikit-learn's) that drift over a torus, as H.264 files.

Two labels on the same clips. *Motion* is a signed speed that the order of frames alone carries: the torus
has 9 phases, a clip of 8 frames steps by k phases (k a unit modulo 9), so it visits all phases but one, and
which one is uniform whatever k. Neither a single frame nor the set of frames says anything about k; see
`tests/test_digits.py`. *Appearance* is the digit. Size, rotation, contrast, the slope of the path and a
plane of light over the picture are nuisances.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from salt.errors import UserError
from salt.randomness import generator
from salt.specs import NonNegativeInt, PositiveInt, Spec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FRAMES = 8
PHASES = 9  # FRAMES + 1
PHASE_PX = 3
TORUS_PX = PHASES * PHASE_PX
SPEEDS = (-4, -2, -1, 1, 2, 4)  # phases a frame; units modulo 9
SLOPES = (-1, 0, 1)
VIEW_PX = 32  # the stored view: the torus and 5 px of it again
WINDOW_PX = 24  # the crop that training and probes see
SPRITE_PX = 20
FILE_PX = 64  # the view doubled: decoders go wrong at narrow widths

SPLITS = ("train", "selection", "report")
#: scikit-learn's 1797 digits, permuted and cut into the three splits.
SPLIT_DIGITS = {"train": 1077, "selection": 360, "report": 360}
DIGIT_ORDER_SEED = 1234

#: Stored grey is `(x + GREY_OFFSET) / GREY_RANGE`: ink is 0..1 in x, light comes on top.
#: `ClipSpec(mean=GREY_OFFSET / GREY_RANGE, std=1 / GREY_RANGE)` gives x back.
GREY_OFFSET = 1.6
GREY_RANGE = 4.2


class DigitSettings(Spec, kw_only=True):
    """What `salt-data digits` makes: clips per list, and the seed of everything drawn."""

    clips: PositiveInt = 8192
    selection: PositiveInt = 1024
    report: PositiveInt = 2048
    seed: NonNegativeInt = 0
    version: int = 2

    def count(self, split: str) -> int:
        return {"train": self.clips, "selection": self.selection, "report": self.report}[split]


@dataclass(frozen=True)
class Labels:
    """What a clip shows: `source` is the digit's number in scikit-learn's set, `speed` in phases a frame."""

    source: int
    digit: int
    speed: int

    @property
    def motion(self) -> str:
        return f"speed{self.speed:+d}"

    @property
    def appearance(self) -> str:
        return f"digit-{self.digit}"

    @property
    def group(self) -> str:
        return f"source-{self.source:04d}"


@dataclass(frozen=True)
class ClipDraw:
    """Labels and nuisances of one clip."""

    labels: Labels
    slope: int
    top_px: int  # place of the sprite in the first frame, on the torus
    left_px: int
    size_px: float
    angle_rad: float
    contrast: float
    light: tuple[float, float, float]  # level, slope down, slope right


@functools.cache
def _digits() -> tuple[NDArray[np.float32], NDArray[np.int64], dict[str, NDArray[np.int64]]]:
    """Images [1797, 8, 8] in 0..1, digits [1797], and the source numbers of each split."""
    import numpy as np
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(DIGIT_ORDER_SEED).permutation(len(data.images))
    bounds = np.cumsum([0, *(SPLIT_DIGITS[split] for split in SPLITS)])
    parts = {split: order[bounds[i] : bounds[i + 1]] for i, split in enumerate(SPLITS)}
    return (data.images / 16).astype(np.float32), data.target.astype(np.int64), parts


@functools.cache
def split_sources(split: str) -> tuple[int, ...]:
    """Numbers of the source digits of a split; no number is in two splits."""
    return tuple(int(number) for number in _digits()[2][split])


def draw_labels(split: str, seed: int, number: int) -> Labels:
    """Source digit and speed of clip `number`; they depend on (split, seed, number) alone.

    Speeds are balanced in every block of six clips, source digits in every pass over the split's digits.
    """
    sources = split_sources(split)
    lap, place = divmod(number, len(sources))
    source = sources[_shuffled(seed, f"digits {split} sources", lap, len(sources))[place]]
    block, place = divmod(number, len(SPEEDS))
    speed = SPEEDS[_shuffled(seed, f"digits {split} speeds", block, len(SPEEDS))[place]]
    return Labels(source, int(_digits()[1][source]), speed)


def draw_clip(split: str, seed: int, number: int) -> ClipDraw:
    """Everything about clip `number` of a split; it depends on (split, seed, number) alone."""
    rng = generator(seed, f"digits {split} clip", number)
    return ClipDraw(
        labels=draw_labels(split, seed, number),
        slope=SLOPES[int(rng.integers(len(SLOPES)))],
        top_px=int(rng.integers(TORUS_PX)),
        left_px=int(rng.integers(TORUS_PX)),
        size_px=float(rng.uniform(12, 16)),
        angle_rad=float(rng.uniform(-0.25, 0.25)),
        contrast=float(rng.uniform(0.7, 1.0)),
        light=(float(rng.normal(0, 0.25)), float(rng.normal(0, 0.25)), float(rng.normal(0, 0.25))),
    )


@functools.lru_cache(maxsize=8)
def _shuffled(seed: int, purpose: str, index: int, count: int) -> tuple[int, ...]:
    return tuple(int(number) for number in generator(seed, purpose, index).permutation(count))


def render_clips(draws: Sequence[ClipDraw]) -> NDArray[np.uint8]:
    """The clips as stored, grey uint8 [N, 8, 32, 32, 1]."""
    import numpy as np

    clips = np.empty((len(draws), FRAMES, VIEW_PX, VIEW_PX, 1), dtype=np.uint8)
    for index, draw in enumerate(draws):
        grey = (_values(draw) + GREY_OFFSET) / GREY_RANGE
        clips[index, ..., 0] = np.clip(np.rint(grey * 255), 0, 255)
    return clips


def _values(draw: ClipDraw) -> NDArray[np.float32]:
    """Ink and light of one clip, float32 [8, 32, 32]."""
    import numpy as np

    torus = np.zeros((TORUS_PX, TORUS_PX), dtype=np.float32)
    torus[:SPRITE_PX, :SPRITE_PX] = _sprite(draw) * np.float32(draw.contrast)
    pixels = np.arange(VIEW_PX)
    steps = np.arange(FRAMES)[:, None] * draw.labels.speed * PHASE_PX
    rows = (pixels - draw.top_px - steps * draw.slope) % TORUS_PX  # [8, 32]
    columns = (pixels - draw.left_px - steps) % TORUS_PX  # [8, 32]
    ink = torus[rows[:, :, None], columns[:, None, :]]
    # One unit is the standard deviation of the pixel numbers of a window, so that the middle window spans
    # -1.66..1.66.
    unit_px = ((WINDOW_PX**2 - 1) / 12) ** 0.5
    across = ((pixels - (VIEW_PX - 1) / 2) / unit_px).astype(np.float32)
    level, down, right = draw.light
    light = level + down * across[:, None] + right * across[None, :]
    values: NDArray[np.float32] = ink + light.astype(np.float32)
    return values


def _sprite(draw: ClipDraw) -> NDArray[np.float32]:
    """The digit scaled to `size_px` and turned, bilinear, dark outside, float32 [20, 20]."""
    import numpy as np

    image = np.pad(_digits()[0][draw.labels.source], 1)  # a dark rim to interpolate into
    centred = np.arange(SPRITE_PX) - (SPRITE_PX - 1) / 2
    y, x = centred[:, None], centred[None, :]
    cos, sin = np.cos(draw.angle_rad), np.sin(draw.angle_rad)
    scale = 8 / draw.size_px
    row = np.clip((cos * y - sin * x) * scale + 4.5, 0, 8.999)
    column = np.clip((sin * y + cos * x) * scale + 4.5, 0, 8.999)
    top, left = row.astype(np.int64), column.astype(np.int64)
    below, beside = row - top, column - left
    upper = image[top, left] * (1 - beside) + image[top, left + 1] * beside
    lower = image[top + 1, left] * (1 - beside) + image[top + 1, left + 1] * beside
    sprite: NDArray[np.float32] = (upper * (1 - below) + lower * below).astype(np.float32)
    return sprite


def check_settings(settings: DigitSettings) -> None:
    """Raises UserError for settings that cannot be made: numbers of more than five digits."""
    for split in SPLITS:
        if settings.count(split) > 100_000:
            raise UserError(
                f"{settings.count(split)} {split} clips: file names have five digits, 100000 is the most"
            )
