"""How many files of a list of stored clips are near copies of another: counted once, kept beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from salt.clips import Clips, clips_path
from salt.specs import ClipSpec, NonNegativeInt, Spec
from salt.store import pretty_json, read_json, write_atomically

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Lists above this are left to `salt-data duplicates`: pairs take minutes there.
MOST_FILES = 200_000


class NearCopies(Spec, kw_only=True):
    """`near-copies.json` in a folder of stored clips. `flat` files show too little to be told apart."""

    distance: NonNegativeInt
    files: NonNegativeInt
    in_groups: NonNegativeInt  # files that are alike to another of the list
    flat: NonNegativeInt


def near_copies(cache: Path, clips: Clips, clip: ClipSpec) -> NearCopies | None:
    """The count for a list's stored clips, by the first clip of each file; None for very long lists."""
    import numpy as np

    from salt.duplicates import DISTANCE, alike_groups, hash_frames

    path = clips_path(cache, clips.fingerprint, clip) / "near-copies.json"
    if path.exists():
        known = read_json(path, NearCopies)
        if known.distance == DISTANCE:
            return known
    first = range(0, len(clips.rows), clips.clips_per_file)
    if len(first) > MOST_FILES:
        return None
    hashed = [hash_frames(clips.frames[row]) for row in first]
    hashes: NDArray[np.uint64] = np.array([bits for bits, flat in hashed if not flat], dtype=np.uint64)
    groups = alike_groups(hashes, DISTANCE) if len(hashes) else []
    counted = NearCopies(
        distance=DISTANCE,
        files=len(hashed),
        in_groups=sum(len(group) for group in groups),
        flat=sum(flat for _, flat in hashed),
    )
    if path.parent.is_dir():  # clips that lie in memory have no folder
        write_atomically(path, pretty_json(counted))
    return counted
