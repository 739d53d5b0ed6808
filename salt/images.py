"""Image files as still clips: one upright RGB frame, told by the file's content and not by its name.

Pillow reads them: it turns and mirrors a picture as its Exif orientation says, which the video decoders do
only in part. Of an animation the first frame counts; transparency is dropped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from salt.container import VideoError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def is_image(path: Path) -> bool:
    """Whether the file begins as a JPEG, PNG, WebP or BMP does. False for what cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(18)
    except OSError:
        return False  # whoever reads the file says why
    bmp_header = head[:2] == b"BM" and head[14:18] in (
        b"\x0c\0\0\0",
        b"\x28\0\0\0",
        b"\x6c\0\0\0",
        b"\x7c\0\0\0",
    )
    webp = head[:4] == b"RIFF" and head[8:12] == b"WEBP"
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")) or webp or bmp_header


def read_image(path: Path, short_px: int | None = None) -> NDArray[np.uint8]:
    """The picture, uint8 [height, width, 3]; a short side above `short_px` is scaled down to it.

    Raises VideoError for a file that does not decode whole.
    """
    import numpy as np
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            if short_px is not None:
                # A JPEG is decoded at a half, a quarter or an eighth where that is still large enough.
                opened.draft("RGB", (short_px, short_px))
            upright = ImageOps.exif_transpose(opened)
            if upright.mode.startswith("I;16"):
                # Pillow would cut 16 bits off at 255: the upper byte is what it takes of 16-bit colours.
                upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
            upright = upright.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(path, f"not a readable image: {error}") from error
    scale = 1.0 if short_px is None else short_px / min(upright.size)
    if scale < 1.0:
        width, height = (max(1, round(side * scale)) for side in upright.size)
        upright = upright.resize((width, height), Image.Resampling.BILINEAR)
    return np.array(upright, dtype=np.uint8)
