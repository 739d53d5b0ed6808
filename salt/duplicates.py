"""Near-duplicate files within a list, or across two: the same footage encoded, scaled or named otherwise.

Each file gets 192 bits: a difference hash, of 8 x 8 bits, of the frames at 1/6, 3/6 and 5/6 of its length. A
bit says whether a cell of a grey 8 x 9 thumbnail is clearly darker than its right neighbour. Files whose bits
differ in at most `distance` places are alike; files that are alike are joined into groups. Other scalings and
encodings are found; cuts, mirrored and cropped copies are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.clips import Clips, find_packs
from salt.container import VideoError
from salt.errors import UserError
from salt.images import is_image, read_image
from salt.isolate import run_isolated
from salt.lists import VideoList, data_spec, read_list
from salt.progress import progress
from salt.resize import BT601_LUMA
from salt.seeking import read_chosen

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Frames per file, and cells of a thumbnail: rows, and columns of which each but the last gives a bit.
PLACES, ROWS, COLUMNS = 3, 8, 9
BITS = PLACES * ROWS * (COLUMNS - 1)
#: Grey levels by which a cell must be darker than its neighbour, and below whose spread a file is flat.
MARGIN, FLAT = 1.0, 2.0
#: Most bits in which two files of one group's chain may differ, unless told otherwise.
DISTANCE = 16


@dataclass(frozen=True)
class DuplicateFile:
    """A file of a group. `distance` counts the bits in which it differs from the group's first file."""

    list: str
    line: int
    path: str
    distance: int


@dataclass(frozen=True)
class Duplicates:
    """What was found. `across` numbers the groups with files of both lists.

    `flat` files show too little to be told apart and are in no group; `skipped` ones give no frames.
    """

    files: int
    groups: tuple[tuple[DuplicateFile, ...], ...]
    across: tuple[int, ...]
    flat: int
    skipped: tuple[tuple[str, str], ...]
    packed: bool


def find_duplicates(
    paths: Sequence[Path],
    *,
    distance: int = DISTANCE,
    cache: Path | None = None,
    workers: int = 2,
    limit_s: float = 60.0,
    show_progress: bool = False,
) -> Duplicates:
    """Groups of files that are alike, in one list or in two.

    Where `cache` holds clips of all lists, decoded alike, their frames are taken; else the files are decoded.
    Raises UserError for a list that cannot be read, or a distance at which all files would be alike.
    """
    import numpy as np

    if not 0 <= distance < BITS // 4:
        raise UserError(
            f"--distance {distance}: give 0 to {BITS // 4 - 1} of {BITS} bits; {DISTANCE} is usual"
        )
    lists = [read_list(path) for path in paths]
    packs = _common_packs(lists, cache)
    owners = [(number, row) for number, videos in enumerate(lists) for row in range(len(videos.rows))]
    if packs is not None:
        found = _packed_hashes(lists, packs)
    else:
        found = _file_hashes(lists, workers, limit_s, show_progress)
    usable = [place for place, item in enumerate(found) if not isinstance(item, str) and not item[1]]
    hashes = np.array([found[place][0] for place in usable], dtype=np.uint64).reshape(-1, PLACES)
    groups = []
    for members in alike_groups(hashes, distance):
        bits = np.bitwise_count(hashes[members] ^ hashes[members[0]]).sum(axis=1)
        places = [owners[usable[member]] for member in members]
        groups.append(
            tuple(
                DuplicateFile(
                    str(lists[at].path), lists[at].line_numbers[row], lists[at].rows[row], int(count)
                )
                for (at, row), count in zip(places, bits, strict=True)
            )
        )
    across = tuple(n for n, group in enumerate(groups) if len({item.list for item in group}) > 1)
    skipped = tuple(
        (str(lists[at].files[row]), item)
        for (at, row), item in zip(owners, found, strict=True)
        if isinstance(item, str)
    )
    return Duplicates(
        files=len(owners),
        groups=tuple(groups),
        across=across,
        flat=len(found) - len(usable) - len(skipped),
        skipped=skipped,
        packed=packs is not None,
    )


def hash_frames(frames: NDArray[np.uint8]) -> tuple[tuple[int, ...], bool]:
    """The 64-bit difference hash of each frame of uint8 [PLACES, H, W, 1 or 3], and whether all are flat."""
    import numpy as np

    grey: Any = frames[..., 0]
    if frames.shape[-1] == 3:
        grey = frames.astype(np.float32) @ np.array(BT601_LUMA, dtype=np.float32)
    if grey.shape[1] < ROWS or grey.shape[2] < COLUMNS:
        grey = grey.repeat(COLUMNS, axis=1).repeat(COLUMNS, axis=2)
    rows = np.arange(ROWS) * grey.shape[1] // ROWS
    columns = np.arange(COLUMNS) * grey.shape[2] // COLUMNS
    sums = np.add.reduceat(np.add.reduceat(grey.astype(np.float64), rows, axis=1), columns, axis=2)
    heights = np.diff([*rows, grey.shape[1]])
    widths = np.diff([*columns, grey.shape[2]])
    thumbnails = sums / (heights[:, None] * widths)
    bits = thumbnails[:, :, 1:] > thumbnails[:, :, :-1] + MARGIN
    words = np.packbits(bits.reshape(len(frames), -1), axis=1).view(">u8")[:, 0]
    return tuple(words.tolist()), bool((thumbnails.std(axis=(1, 2)) < FLAT).all())


def hash_file(path: Path) -> tuple[tuple[int, ...], bool] | str:
    """In a worker: the hashes of a file as `hash_frames` gives them, or why there are none."""
    import numpy as np

    try:
        if is_image(path):
            return hash_frames(np.repeat(read_image(path, 16 * COLUMNS)[None], PLACES, axis=0))
        return hash_frames(read_chosen(path, lambda table: _places(table.frames), 16 * COLUMNS)[0])
    except VideoError as error:
        return error.reason


def _places(frames: int) -> list[int]:
    return [(2 * place + 1) * frames // (2 * PLACES) for place in range(PLACES)]


def _file_hashes(lists: Sequence[VideoList], workers: int, limit_s: float, show: bool) -> list[Any]:
    files = [file for videos in lists for file in videos.files]
    found: list[Any] = [None] * len(files)
    with progress("hash " + ", ".join(videos.path.name for videos in lists), len(files), show) as advance:
        for outcome in run_isolated(hash_file, files, workers=workers, limit_s=limit_s):
            lost = f"the decoder: {outcome.lost}"
            found[outcome.index] = lost if outcome.value is None else outcome.value
            advance(1)
    return found


def _common_packs(lists: Sequence[VideoList], cache: Path | None) -> list[Clips] | None:
    """Decoded clips of every list, all decoded in one way; None if there are none."""
    if cache is None:
        return None
    choices = [dict(find_packs(cache, data_spec(videos, "list").fingerprint)) for videos in lists]
    common = [decode for decode in choices[0] if all(decode in choice for choice in choices)]
    return [choice[common[0]] for choice in choices] if common else None


def _packed_hashes(lists: Sequence[VideoList], packs: Sequence[Clips]) -> list[Any]:
    found: list[Any] = []
    for videos, pack in zip(lists, packs, strict=True):
        first = {row: number for number, row in reversed(list(enumerate(pack.rows)))}
        per_file = pack.clips_per_file * pack.frames.shape[1]
        for row in videos.rows:
            if row not in first:
                found.append("gave no clip when it was decoded")
                continue
            at = [(first[row] + place // pack.frames.shape[1], place % pack.frames.shape[1])
                  for place in _places(per_file)]  # fmt: skip
            clips, frames = zip(*at, strict=True)
            found.append(hash_frames(pack.frames[list(clips), list(frames)]))
    return found


def alike_groups(hashes: NDArray[np.uint64], distance: int) -> list[NDArray[np.int64]]:
    """Groups of two or more rows of uint64 [n, words] that chains of pairs within `distance` bits join.

    Each group is ascending, and so are the groups by their first row.
    """
    import numpy as np
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    if not len(hashes):
        return []
    unique, inverse = np.unique(hashes, axis=0, return_inverse=True)
    pairs = near_pairs(unique, distance)
    ones = np.ones(len(pairs), dtype=bool)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(len(unique), len(unique)))
    label = connected_components(graph, directed=False)[1][inverse.reshape(-1)]
    order = np.argsort(label, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(label[order])) + 1)
    return sorted((part for part in parts if len(part) > 1), key=lambda part: int(part[0]))


def near_pairs(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """All pairs of rows of uint64 [n, words] that differ in at most `distance` bits, int64 [pairs, 2].

    The bits are dealt into distance + 1 bands: two rows within the distance are equal in one band at least,
    so only rows with an equal band are compared, and none is missed.
    """
    import numpy as np

    bits = np.unpackbits(hashes.astype(">u8").view(np.uint8).reshape(len(hashes), -1), axis=1)
    found = [np.empty((0, 2), np.int64)]
    for band in range(distance + 1):
        columns = np.packbits(bits[:, band :: distance + 1], axis=1)
        keys = np.ascontiguousarray(columns).view(f"V{columns.shape[1]}")[:, 0]
        order = np.argsort(keys)
        ranked = keys[order]
        first = np.arange(len(order))
        for offset in range(1, len(order)):
            first = first[first + offset < len(order)]
            first = first[ranked[first] == ranked[first + offset]]
            if not len(first):
                break
            one, other = order[first], order[first + offset]
            apart = np.bitwise_count(hashes[one] ^ hashes[other]).sum(axis=1)
            near = apart <= distance
            found.append(np.stack([one[near], other[near]], axis=1))
    pairs = np.sort(np.concatenate(found), axis=1)
    return np.unique(pairs, axis=0)
