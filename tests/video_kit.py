"""Video files for tests, good and bad, made with PyAV. Every frame's grey level tells its number."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

Picture = Callable[[int, int, int], NDArray[np.uint8]]


def pattern(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """A busy RGB picture that differs from frame to frame, uint8 [height, width, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    checks = ((x // 16 + y // 16 + number) % 2) * 200
    return np.stack([(x + 5 * number) % 256, (y + 3 * number) % 256, checks], -1).astype(np.uint8)


def coded(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """A flat grey picture whose level is 16 + the frame number."""
    return np.full((height, width, 3), 16 + number % 200, dtype=np.uint8)


def write_video(
    path: Path,
    frames: int,
    *,
    width: int = 96 + 64,
    height: int = 120,
    rate: int = 30,
    picture: Picture = pattern,
    codec_options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> None:
    with av.open(str(path), "w", format="mp4", options=container_options or {}) as container:
        options = {"threads": "1", "preset": "veryfast", **(codec_options or {})}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture_ = av.VideoFrame.from_ndarray(picture(number, width, height), format="rgb24")
            container.mux(stream.encode(picture_))
        container.mux(stream.encode(None))


def copy_video(
    source: Path, target: Path, *, start_s: float = 0.0, options: dict[str, str] | None = None
) -> None:
    """Copy packets without decoding; those before `start_s` stay in the file, hidden by an edit list."""
    with av.open(str(source)) as old, av.open(str(target), "w", format="mp4", options=options or {}) as new:
        stream = old.streams.video[0]
        copy = new.add_stream_from_template(stream)
        assert stream.time_base is not None
        offset = round(start_s / stream.time_base)
        for packet in old.demux(stream):
            if packet.dts is None or packet.pts is None:
                continue
            packet.pts -= offset
            packet.dts -= offset
            packet.stream = copy
            new.mux(packet)


def write_audio_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=44100)
        for block in range(40):
            wave = np.sin(np.arange(1024) / 20, dtype=np.float32)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, block * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def headers_only(fragmented: Path, target: Path) -> None:
    """The first boxes of a fragmented file: a valid header, and no frame."""
    data, place, kept = fragmented.read_bytes(), 0, b""
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] in (b"ftyp", b"moov"):
            kept += data[place : place + size]
        place += size
    target.write_bytes(kept)


def damage_middle(source: Path, target: Path) -> None:
    """Noise over 30 % of the picture data."""
    data = bytearray(source.read_bytes())
    begin = data.find(b"mdat") + 4
    size = len(data) - begin
    noise = random.Random(0).randbytes(int(0.3 * size))
    place = begin + int(0.4 * size)
    data[place : place + len(noise)] = noise
    target.write_bytes(bytes(data))


def write_kit(folder: Path) -> tuple[set[str], set[str], set[str]]:
    """Make all files; names of the (good, flagged, bad) ones."""
    write_video(folder / "good.mp4", 120)
    write_video(folder / "long.mp4", 200, picture=coded, codec_options={"g": "1000", "bf": "2", "crf": "1"})
    copy_video(folder / "long.mp4", folder / "trimmed.mp4", start_s=2.5)
    copy_video(folder / "good.mp4", folder / "faststart.mp4", options={"movflags": "faststart"})
    for source, target in (("good", "trunc_nomoov"), ("faststart", "trunc_faststart")):
        data = (folder / f"{source}.mp4").read_bytes()
        (folder / f"{target}.mp4").write_bytes(data[: len(data) * 6 // 10])
    (folder / "zero_byte.mp4").touch()
    (folder / "html_error.mp4").write_text("<html><body>404 Not Found</body></html>" * 60)
    write_audio_only(folder / "audio_only.mp4")
    write_video(folder / "frag.mp4", 60, container_options={"movflags": "frag_keyframe+empty_moov"})
    headers_only(folder / "frag.mp4", folder / "zero_frame.mp4")
    damage_middle(folder / "good.mp4", folder / "midcorrupt.mp4")
    write_video(folder / "one_frame.mp4", 1)
    write_video(folder / "nine_frames.mp4", 9)
    write_video(folder / "tiny.mp4", 3, width=32, height=32, rate=5, picture=lambda n, w, h: coded(100, w, h))
    good = {"good", "long", "faststart", "frag", "one_frame", "nine_frames", "tiny"}
    bad = {
        "zero_byte", "trunc_nomoov", "trunc_faststart", "html_error", "audio_only", "zero_frame", "midcorrupt"
    }  # fmt: skip
    return good, {"trimmed"}, bad
