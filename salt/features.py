"""What a frozen encoder says of a list of clips, computed once for all probes."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from salt.batches import to_patches
from salt.errors import RunFailed
from salt.randomness import generator
from salt.signals import STOP
from salt.specs import ClipSpec, Frames, ModelSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from salt.artefact import AnyEncoder

#: Clips encoded at once, which changes speed only: on a CPU a small pass stays in its caches.
CHUNK_CPU, CHUNK = 32, 128

#: Tokens of one split larger than this lie in a temporary file (in $TMPDIR), mapped into memory.
FEATURE_BYTES = 4 << 30


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The clips of one split and how they are looked at. All videos have `segments` neighbouring clips."""

    frames: NDArray[np.uint8]  # [n * segments, T, S, S, C] of all videos of the list, on disk
    videos: NDArray[np.int64]  # [n], which of them
    segments: int
    corners: NDArray[np.int64]  # [n or 1, views, 2], (top, left) of each view's crop
    order: Frames
    orders: NDArray[np.int64] | None  # [n * segments, T], for shuffled frames


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of one split: a vector of each view, and the tokens where a probe reads them."""

    vectors: NDArray[np.float32]  # [n, views, D], mean tokens; of raw pixels all values
    tokens: NDArray[np.float32] | None  # [n, views, layers * segments * N, D]
    mean: NDArray[np.float32] | None  # [tokens, D], of each layer's features
    deviation: NDArray[np.float32] | None

    def pooled(self) -> NDArray[np.float32]:
        """One vector a video, the mean over its views, float32 [n, D]."""
        return self.vectors[:, 0] if self.vectors.shape[1] == 1 else self.vectors.mean(axis=1)


def clips_at_once(device: str) -> int:
    """Clips of one pass without gradients."""
    return CHUNK_CPU if device == "cpu" else CHUNK


def arrange_frames(
    crops: NDArray[np.uint8], order: Frames, orders: NDArray[np.int64] | None
) -> NDArray[np.uint8]:
    """The clip's frames as a probe sees them, uint8 [n, T, H, W, C].

    `shuffled` gives each clip its own random order; `first` and `middle` repeat one frame: controls that
    hold everything but order, or but motion.
    """
    count, time = crops.shape[:2]
    if order == "ordered":
        return crops
    if order == "shuffled":
        assert orders is not None
        return crops[np.arange(count)[:, None], orders]
    place = 0 if order == "first" else time // 2
    return np.repeat(crops[:, place : place + 1], time, axis=1)


def shuffled_orders(seed: int, split: str, count: int, time: int) -> NDArray[np.int64]:
    """A random order of the frames of each clip, int64 [count, time]; the same for all encoders.

    Every split has its own: were the n-th clips of two lists shuffled alike, lists in the same order of
    labels would tell labels by the order of frames.
    """
    return generator(seed, f"shuffled frames {split}").random((count, time)).argsort(axis=1)


@torch.no_grad()
def read_features(
    encoder: AnyEncoder | None,
    reading: Reading,
    clip: ClipSpec,
    model: ModelSpec,
    layers: tuple[int, ...],
    device: str,
    keep_tokens: bool,
) -> Features:
    """Encode every view of every clip once; without an encoder, normalised patches.

    Raises:
        RunFailed: features that are not finite, or no room for them on disk.
    """
    count, segments, views = len(reading.videos), reading.segments, reading.corners.shape[1]
    vectors: NDArray[np.float32] | None = None
    tokens: NDArray[np.float32] | None = None
    sums = Sums()
    at_once = max(1, clips_at_once(device) // segments)
    for start in range(0, count, at_once):
        STOP.check()
        part = slice(start, min(start + at_once, count))
        for view in range(views):
            crops = _crops(reading, part, view, clip)
            encoded = _encode(encoder, crops, clip, model, layers, device)  # [layers, n * segments, N, D]
            # [n, layers, segments * N, D]: the tokens of a video side by side, layer by layer
            encoded = encoded.unflatten(1, (-1, segments)).transpose(0, 1).flatten(2, 3)
            pooled = encoded.flatten(1) if encoder is None else encoded.mean(dim=(1, 2))
            if vectors is None:
                vectors = np.empty((count, views, pooled.shape[1]), dtype=np.float32)
            vectors[part, view] = pooled.numpy()
            if keep_tokens:
                if tokens is None:
                    tokens = room_for((count, views, encoded.shape[1] * encoded.shape[2], encoded.shape[3]))
                tokens[part, view] = encoded.flatten(1, 2).numpy()
                sums.add(encoded)
    assert vectors is not None
    if not np.isfinite(vectors).all():
        raise RunFailed("diverged", "the encoder's features are not finite: its weights are of no use")
    mean, deviation = sums.moments() if keep_tokens else (None, None)
    return Features(vectors=vectors, tokens=tokens, mean=mean, deviation=deviation)


def _crops(reading: Reading, part: slice, view: int, clip: ClipSpec) -> NDArray[np.uint8]:
    """One view of some videos' clips, uint8 [n * segments, T, side, side, C]."""
    rows = (reading.videos[part, None] * reading.segments + np.arange(reading.segments)).ravel()
    side = clip.crop_px
    if len(reading.corners) == 1:
        top, left = reading.corners[0, view]
        # Cut from the map first, so that only the crop is read and copied.
        crops = reading.frames[:, :, top : top + side, left : left + side][rows]
    else:
        corners = np.repeat(reading.corners[part, view], reading.segments, axis=0)
        cut = [
            reading.frames[row, :, top : top + side, left : left + side]
            for row, (top, left) in zip(rows, corners, strict=True)
        ]
        crops = np.stack(cut)
    orders = reading.orders
    if orders is not None:
        orders = orders[part.start * reading.segments : part.stop * reading.segments]
    return arrange_frames(crops, reading.order, orders)


def _encode(
    encoder: AnyEncoder | None,
    crops: NDArray[np.uint8],
    clip: ClipSpec,
    model: ModelSpec,
    layers: tuple[int, ...],
    device: str,
) -> torch.Tensor:
    """Tokens of each layer, float32 [layers, n, N, D] on the CPU."""
    found: list[Sequence[torch.Tensor]] = []
    at_once = clips_at_once(device)
    for start in range(0, len(crops), at_once):
        pixels = torch.from_numpy(np.ascontiguousarray(crops[start : start + at_once])).to(device)
        patches = to_patches(pixels, clip, model)
        if encoder is None:
            found.append([patches.cpu()])
        elif layers:
            found.append([tokens.float().cpu() for tokens in encoder.forward_layers(patches, layers)])
        else:
            found.append([encoder(patches).float().cpu()])
    return torch.stack([torch.cat(parts) for parts in zip(*found, strict=True)])


class Sums:
    """Running sums of features, for the mean and deviation of each feature of each layer, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.tokens = 0
        self.total: torch.Tensor | None = None
        self.squares: torch.Tensor | None = None

    def add(self, encoded: torch.Tensor) -> None:
        """encoded [n, layers, tokens, D]"""
        for clip in encoded:  # one at a time, squared in float64 too: rounded squares hide small deviations
            wide = clip.double()
            total, squares = wide.sum(dim=1), wide.square().sum(dim=1)
            self.total = total if self.total is None else self.total + total
            self.squares = squares if self.squares is None else self.squares + squares
        self.count += encoded.shape[0] * encoded.shape[2]
        self.tokens = encoded.shape[2]

    def moments(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and unbiased deviation at each token place, float32 [layers * tokens, D] both."""
        assert self.total is not None
        assert self.squares is not None
        mean = self.total / self.count
        variance = (self.squares - self.count * mean.square()).clamp_min_(0) / max(self.count - 1, 1)
        both = (mean, variance.sqrt())
        mean, deviation = (part.float().repeat_interleave(self.tokens, dim=0) for part in both)
        return mean.numpy(), deviation.numpy()


def _reserve(file: int, size: int) -> None:
    """Take `size` bytes of disk for an open file; `OSError` if they are not there."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
        return
    if shutil.disk_usage(tempfile.gettempdir()).free < size:  # macOS has no such call
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    os.ftruncate(file, size)


def room_for(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """An array of float32 to be filled, in memory up to `FEATURE_BYTES`, else in a file that goes with it.

    Raises `RunFailed("disk")` where there is no room for the file.
    """
    size = 4 * int(np.prod(shape, dtype=np.int64))
    if size <= FEATURE_BYTES:
        return np.empty(shape, dtype=np.float32)
    with tempfile.TemporaryFile(prefix="salt-features-") as file:
        try:  # now: a map that meets a full disk later kills the process without a word
            _reserve(file.fileno(), size)
        except OSError as error:
            raise RunFailed(
                "disk",
                f"no room for {size / 1e9:.1f} GB of features in {tempfile.gettempdir()} ({error.strerror}): "
                "point TMPDIR to a larger disk, or probe fewer clips, views or layers",
            ) from error
        return np.memmap(file, dtype=np.float32, mode="r+", shape=shape)
