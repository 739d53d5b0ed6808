"""The lists of a run, opened: decoded clips, or files to be decoded as they are drawn."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from salt.errors import RunFailed
from salt.specs import ClipSpec, DataPart, DataSpec, ExecSpec, RunSpec

if TYPE_CHECKING:
    from salt.clips import Clips
    from salt.lists import VideoList


def open_sources(store: Path, spec: RunSpec, execution: ExecSpec) -> dict[str, Clips | VideoList]:
    """What a run trains on, by fingerprint. Raises `RunFailed("data")`, or `UserError` for a changed list."""
    parts: tuple[DataSpec | DataPart, ...] = spec.data.parts or (spec.data,)
    opened: dict[str, Clips | VideoList] = {}
    for part in parts:
        if spec.clip.source == "streamed":
            opened[part.fingerprint] = _listed(part.fingerprint, execution)
        else:
            opened[part.fingerprint] = open_stored(store, spec.clip, part.fingerprint, execution)
    return opened


def open_stored(store: Path, clip: ClipSpec, fingerprint: str, execution: ExecSpec) -> Clips:
    """The decoded clips of a list, decoded now if they never were."""
    from salt.clips import planned_clips

    path = _path(fingerprint, execution)
    return planned_clips(path, fingerprint, clip, store / "cache", workers=max(1, execution.decode_workers))


def _listed(fingerprint: str, execution: ExecSpec) -> VideoList:
    from salt.lists import data_spec, read_list

    path = _path(fingerprint, execution)
    videos = read_list(path)
    found = data_spec(videos, "list").fingerprint
    if found != fingerprint:
        raise RunFailed(
            "data",
            f"{path}: the list has changed since the plan was made (content {found}, planned {fingerprint}): "
            "plan again, or bring the planned list back",
        )
    return videos


def _path(fingerprint: str, execution: ExecSpec) -> Path:
    if fingerprint not in execution.lists:
        raise RunFailed(
            "data",
            f"no list with the fingerprint {fingerprint} is known here: plan again where the lists are",
        )
    return Path(execution.lists[fingerprint])
