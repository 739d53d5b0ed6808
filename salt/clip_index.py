"""`index.json` of a store of clips: what its rows are, and what its pixels depend on."""

from __future__ import annotations

import msgspec

from salt.specs import ClipSpec, Spec

#: Raised by hand when decoding or resizing changes the stored pixels.
DECODING = 2


class DecodeSpec(Spec, kw_only=True, omit_defaults=True):
    """The part of a ClipSpec that the stored pixels depend on."""

    frames: int
    frame_stride: int | None  # None: by `frame_rate_hz`
    store_px: int
    channels: int
    short_clips: str
    frame_rate_hz: float | None = None
    clips_per_file: int = 1
    decoding: int = DECODING


class Skipped(Spec, kw_only=True):
    """A row that gave no clip."""

    line: int
    path: str
    reason: str


class ClipIndex(Spec, kw_only=True):
    """`index.json`: what the clips of clips.npy are. `rows` and `columns` have one item per file."""

    fingerprint: str
    decode: DecodeSpec
    folder: str  # of the list when the store was built
    rows: tuple[str, ...]
    columns: dict[str, tuple[str, ...]]
    skipped: tuple[Skipped, ...]
    padded_frames: int


def decode_spec(clip: ClipSpec) -> DecodeSpec:
    """What of a clip's settings its stored pixels depend on."""
    by_rate = clip.frame_rate_hz is not None
    return DecodeSpec(
        frames=clip.frames,
        frame_stride=None if by_rate else clip.frame_stride,
        frame_rate_hz=clip.frame_rate_hz,
        clips_per_file=clip.clips_per_file,
        store_px=clip.store_px,
        channels=clip.channels,
        short_clips=clip.short_clips,
    )


def clip_of(decode: DecodeSpec) -> ClipSpec:
    """Clip settings that decode in this way, uncropped."""
    settings = {field: getattr(decode, field) for field in decode.__struct_fields__ if field != "decoding"}
    if decode.frame_stride is None:
        del settings["frame_stride"]
    return msgspec.convert({**settings, "crop_px": decode.store_px}, ClipSpec)
