"""From clips to batches: which clips a step trains on, their crops, and patches of them.

Everything is a pure function of the run and of (step, place in the batch): any step, and any part of it, can
be asked for at any time by any process. `salt.mixture` says in which order, `salt.augment` which part of a
clip. `salt.loader` calls this ahead of time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch

from salt import decoders, video
from salt.augment import Chances, crop, shift_corners, step_chances, view_chances
from salt.clips import Clips
from salt.errors import RunFailed, UserError
from salt.lists import VideoList
from salt.mixture import Order
from salt.randomness import run_seed
from salt.specs import ClipSpec, ModelSpec, RunSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from salt.quarantine import Lost

#: Whole frames of a file, uint8 [frames, H, W, 3], from a place in [0, 1) on; raises VideoError. Where a scan
#: counted the file's frames, their number is a fourth argument.
Reader: TypeAlias = "Callable[..., NDArray[np.uint8]]"
#: What is known of clip `index` as row `row` of a take: its file is bad, or needs another decoder.
Known: TypeAlias = "Callable[[int, int], Lost | None]"

#: Files that are tried in a bad one's place before the run stops.
MAX_REPLACEMENTS = 16
#: Bad draws that are never too many, so that a share can be told at all.
FEW_BAD = 10
#: Share of all draws that may be bad.
MAX_BAD_SHARE = 0.05


@dataclass(frozen=True)
class Task:
    """A clip to be decoded: everything that a worker needs to know of it."""

    path: Path
    clip: ClipSpec
    start: float
    mirror: float
    tries: NDArray[np.float64]  # [TRIES, 4]
    decodable_frames: int | None = None
    decoder: str | None = None  # to begin with, where those before it are out of the question

    def run(self, read: Reader) -> torch.Tensor:
        """uint8 [T, side, side, C]. Raises VideoError for a file that does not give this clip.

        `decoders.take_served` then says who decoded it.
        """
        if self.decoder is not None:
            decoders.prefer(self.path, self.decoder)
        counted = () if self.decodable_frames is None else (self.decodable_frames,)
        return crop(read(self.path, self.clip, self.start, *counted), self.clip, self.tries, self.mirror)


@dataclass
class Skips:
    """Files that gave no clip while training, with the count of all draws, and of clips by decoder."""

    drawn: int = 0
    bad: int = 0
    reasons: dict[Path, str] = field(default_factory=dict)
    decoders: Counter[str] = field(default_factory=Counter)

    def note_served(self, decoder: str | None) -> None:
        """Count a clip; None is a reader that does not say who decoded it."""
        if decoder is not None:
            self.decoders[decoder] += 1

    def add(self, path: Path, reason: str, tried: int) -> None:
        """Note a bad file. Raises RunFailed if there are too many, or `tried` in a row for one clip."""
        self.bad += 1
        self.reasons.setdefault(path, reason)
        many = self.bad > max(FEW_BAD, MAX_BAD_SHARE * self.drawn)
        if many or tried >= MAX_REPLACEMENTS:
            raise RunFailed(
                "data",
                f"{self.bad} tries, for {self.drawn} clips drawn, met files that give none "
                f"({100 * MAX_BAD_SHARE:g} % are allowed), last {path}: {reason}; "
                "`salt-data scan` finds such files and writes a list without them",
            )


@dataclass(frozen=True)
class _Part:
    """One list: its clips in memory, or its files."""

    name: str
    source: Clips | VideoList
    clips_per_file: int

    def __len__(self) -> int:
        return len(self.source.rows) * (self.clips_per_file if isinstance(self.source, VideoList) else 1)


class Batches:
    """Training batches of one run. `sources` are its lists by fingerprint: stored clips, or files to stream.

    Clips are numbered through all lists of a mixture, in the order of its parts. A list of n files has
    n * clips_per_file clips; those of one file are neighbours.

    A streamed file that gives no clip is replaced by the next file of its list with the same random numbers,
    whoever asks; `skips` counts them.
    """

    def __init__(
        self, spec: RunSpec, sources: Mapping[str, Clips | VideoList], read: Reader | None = None
    ) -> None:
        self.spec, self.clip, self.seed = spec, spec.clip, run_seed(spec)
        self.read = video.read_clip if read is None else read
        named = [(part.name, part.fingerprint) for part in spec.data.parts]
        self._parts = [
            _Part(name, sources[fingerprint], spec.clip.clips_per_file)
            for name, fingerprint in named or [(spec.data.name, spec.data.fingerprint)]
        ]
        wanted = Clips if spec.clip.source == "stored" else VideoList
        if any(not isinstance(part.source, wanted) for part in self._parts):
            raise TypeError(f"clips are {spec.clip.source}, so each source must be {wanted.__name__}")
        self.order = Order(spec.data, [len(part) for part in self._parts], self.seed)
        self.skips = Skips()

    def __len__(self) -> int:
        """Clips of all lists together."""
        return self.order.clips

    @property
    def streamed(self) -> bool:
        return self.clip.source == "streamed"

    def places(self, places: range | None) -> range:
        """The places of a batch that are asked for; all of them by default."""
        whole = range(self.spec.optim.batch_clips)
        chosen = whole if places is None else places
        if chosen.step != 1 or (chosen and not (chosen[0] in whole and chosen[-1] in whole)):
            raise ValueError(f"places {chosen} are not neighbours within a batch of {len(whole)}")
        return chosen

    def indices(self, step: int, places: range | None = None) -> NDArray[np.int64]:
        """Numbers of the clips at these places of a step's batch, int64 [n]."""
        return self.order.draw(self._stream(step, places)).indices

    def views(self, step: int, places: range | None = None) -> NDArray[np.int64]:
        """Which of the run's `cached_views` a step sees of each clip: all of them in turn, int64 [n]."""
        if self.spec.cached_views is None:
            raise ValueError("the run has no cached views")
        return self.order.draw(self._stream(step, places)).epochs % self.spec.cached_views

    def crops(self, step: int, places: range | None = None) -> torch.Tensor:
        """What a step sees, uint8 [n, T, side, side, C]. Streamed clips are decoded here and now."""
        return self.take(self.indices(step, places), self.chances(step, places))[0]

    def view_crops(self, clip_indices: NDArray[np.int64], view: int) -> torch.Tensor:
        """A fixed view of each clip, the same in every run: uint8 [n, T, side, side, C]."""
        return self.take(clip_indices, view_chances(clip_indices, np.full_like(clip_indices, view)))[0]

    def chances(self, step: int, places: range | None = None) -> Chances:
        """The random numbers of a step's crops."""
        chosen = self.places(places)
        if self.spec.cached_views is None:
            return step_chances(self.seed, step, chosen, self.clip, self.spec.optim.batch_clips)
        drawn = self.order.draw(self._stream(step, chosen))
        return view_chances(drawn.indices, drawn.epochs % self.spec.cached_views)

    def take(
        self, indices: NDArray[np.int64], chances: Chances, known: Known | None = None
    ) -> tuple[torch.Tensor, NDArray[np.int64]]:
        """Crops of these clips, uint8 [n, T, side, side, C], and their numbers after replacements, int64 [n].

        `known` files are not tried, or by another decoder. Raises RunFailed (`data`) if too many files give
        no clip.
        """
        crops = np.empty((len(indices), *self.crop_shape), dtype=np.uint8)
        taken = indices.copy()
        if not self.streamed:
            self._crop_stored(crops, indices, chances)
            return torch.from_numpy(crops), taken
        for row, index in enumerate(indices.tolist()):
            self.skips.drawn += 1
            for tried in range(MAX_REPLACEMENTS + 1):
                taken[row] = self.replacement(index, tried)
                lost = None if known is None else known(int(taken[row]), row)
                if lost is not None and lost.decoder is None:
                    self.skips.add(self.file(int(taken[row])), lost.reason, tried)
                    continue
                task = self.task(int(taken[row]), chances, row, None if lost is None else lost.decoder)
                try:
                    crops[row] = task.run(self.read).numpy()
                    self.skips.note_served(decoders.take_served())
                    break
                except video.VideoError as error:
                    self.skips.add(error.path, error.reason, tried)
        return torch.from_numpy(crops), taken

    @property
    def crop_shape(self) -> tuple[int, int, int, int]:
        """Frames, height, width and channels of a crop."""
        clip = self.clip
        return (clip.frames, clip.crop_px, clip.crop_px, clip.channels)

    def task(self, index: int, chances: Chances, row: int, decoder: str | None = None) -> Task:
        """How to make row `row` of `chances` from streamed clip `index`, with this decoder if one is
        named."""
        source, place = self._file(index)
        counts = source.decodable_frames if isinstance(source, VideoList) else None
        return Task(
            path=self.file(index),
            clip=self.clip,
            start=float(chances.start[row]),
            mirror=float(chances.mirror[row]),
            tries=chances.tries[row],
            decodable_frames=None if counts is None else counts[place],
            decoder=decoder,
        )

    def replacement(self, index: int, tried: int) -> int:
        """The clip to take after `tried` files from clip `index` on were bad: same list, next files."""
        part, inside = self._locate(index)
        size = len(self._parts[part])
        return self.order.offsets[part] + (inside + tried * self.clip.clips_per_file) % size

    def first_clip(self, index: int) -> int:
        """The number of the first clip of the file that streamed clip `index` is of."""
        part, inside = self._locate(index)
        return self.order.offsets[part] + inside - inside % self.clip.clips_per_file

    def file(self, index: int) -> Path:
        """The file of a clip."""
        source, place = self._file(index)
        return source.files[place]

    def _file(self, index: int) -> tuple[Clips | VideoList, int]:
        """The list of a clip, and the place of its file in there."""
        part, inside = self._locate(index)
        source = self._parts[part].source
        return source, inside // self.clip.clips_per_file if isinstance(source, VideoList) else inside

    def labels(self, column: str) -> tuple[str, ...]:
        """A label column of all clips, in their order. Raises UserError if a list has none of that name."""
        labels: list[str] = []
        for part in self._parts:
            columns = part.source.columns
            if column not in columns:
                have = ", ".join(columns) or "none"
                raise UserError(f"no label column {column!r} in the list {part.name!r}; it has {have}")
            repeats = len(part) // len(columns[column])
            labels.extend(label for label in columns[column] for _ in range(repeats))
        return tuple(labels)

    def _stream(self, step: int, places: range | None) -> range:
        first, chosen = step * self.spec.optim.batch_clips, self.places(places)
        return range(first + chosen.start, first + chosen.stop)

    def _locate(self, index: int) -> tuple[int, int]:
        """The list of a clip, and its number in there."""
        part = int(np.searchsorted(self.order.offsets, index, side="right")) - 1
        return part, index - self.order.offsets[part]

    def _crop_stored(self, crops: NDArray[np.uint8], indices: NDArray[np.int64], chances: Chances) -> None:
        """Fill `crops` from the stores."""
        offsets = np.array(self.order.offsets)
        parts = np.searchsorted(offsets, indices, side="right") - 1
        stores = [part.source.frames for part in self._parts if isinstance(part.source, Clips)]
        places = list(zip(parts.tolist(), (indices - offsets[parts]).tolist(), strict=True))
        side, px = self.clip.crop_px, self.clip.store_px
        if self.clip.crop == "random_resized":
            for row, (part, inside) in enumerate(places):
                view = crop(stores[part][inside], self.clip, chances.tries[row], chances.mirror[row])
                crops[row] = view.numpy()
            return
        # The same as `crop`, of which nothing is left here but a slice and the mirror.
        corners = shift_corners(chances.tries, px, px, side).tolist()
        for row, ((part, inside), (top, left)) in enumerate(zip(places, corners, strict=True)):
            crops[row] = stores[part][inside, :, top : top + side, left : left + side]
        if self.clip.flip:
            view = torch.from_numpy(crops)
            mirrored = torch.from_numpy(chances.mirror < 0.5)
            view[mirrored] = view[mirrored].flip(3)


def centre_crop(frames: NDArray[np.uint8], clip: ClipSpec) -> NDArray[Any]:
    """The view used by probes: uint8 [..., S, S, C] -> [..., crop_px, crop_px, C]."""
    start = (clip.store_px - clip.crop_px) // 2
    stop = start + clip.crop_px
    return frames[..., start:stop, start:stop, :]


def to_patches(crops: torch.Tensor, clip: ClipSpec, model: ModelSpec) -> torch.Tensor:
    """uint8 [B, T, side, side, C] -> normalised patches, float32 [B, N, P], time-major, channel fastest.

    Bytes are put in order first, a quarter of the traffic of floats; then two passes in place.
    """
    batch, frames, side, _, channels = crops.shape
    t, p = model.tubelet_frames, model.patch_px
    x = crops.view(batch, frames // t, t, side // p, p, side // p, p * channels)
    patches = x.permute(0, 1, 3, 5, 2, 4, 6).reshape(batch, -1, t * p * p * channels).float()
    factor, offset = _normalisation(clip.mean, clip.std)
    if isinstance(factor, tuple):  # one for each channel, which is the fastest dimension
        factors, offsets = (torch.tensor(values, device=crops.device) for values in (factor, offset))
        patches.view(-1, channels).mul_(factors).sub_(offsets)
        return patches
    return patches.mul_(factor).sub_(offset)


def from_patches(patches: torch.Tensor, clip: ClipSpec, model: ModelSpec) -> torch.Tensor:
    """The inverse of `to_patches`: patches [B, N, P] -> pixels 0 to 255, float32 [B, T, side, side, C].

    Pixels were bytes, so that rounding takes away all that normalising has left.
    """
    t, p, channels = model.tubelet_frames, model.patch_px, clip.channels
    steps, side = clip.frames // t, clip.crop_px // p
    factor, offset = _normalisation(clip.mean, clip.std)
    x = patches.float().unflatten(-1, (-1, channels))
    factors, offsets = (torch.tensor(value, device=x.device) for value in (factor, offset))
    x = ((x + offsets) / factors).round_().view(-1, steps, side, side, t, p, p, channels)
    crops: torch.Tensor = x.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(
        -1, clip.frames, side * p, side * p, channels
    )
    return crops


def _normalisation(mean: Any, std: Any) -> tuple[Any, Any]:
    """Factor and offset of (pixel / 255 - mean) / std; tuples if either has a value for each channel."""
    if not isinstance(mean, tuple) and not isinstance(std, tuple):
        return 1 / (255 * std), mean / std
    count = len(mean) if isinstance(mean, tuple) else len(std)
    means, stds = (value if isinstance(value, tuple) else (value,) * count for value in (mean, std))
    return tuple(1 / (255 * s) for s in stds), tuple(m / s for m, s in zip(means, stds, strict=True))
