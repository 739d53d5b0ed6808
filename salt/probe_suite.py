"""A suite of probes from its file: its fields, the lists it names, and whether they can say anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from salt.errors import UserError
from salt.probe_views import suite_problems
from salt.specs import NUMERICS, ProbeSpec, canonical_json

if TYPE_CHECKING:
    from salt.lists import VideoList

SPLITS = ("train", "selection", "report")


def read_suite(path: Path) -> tuple[ProbeSpec, dict[str, Path]]:
    """A suite from its file, and its lists by fingerprint. Fingerprints and counts of lists are worked out.

    The lists are named by their splits, as in a plan, so that equal suites have equal ids.

    Raises:
        UserError: the file or a list cannot be read, a field is wrong, empty or repeated, a list lacks a
            label, or two lists share a video or a source.
    """
    from salt.lists import data_spec, read_list

    fields = _fields(path)
    lists: dict[str, Path] = {}
    videos: dict[str, VideoList] = {}
    for split in SPLITS:
        named = fields.get(split)
        if not isinstance(named, str) or "\0" in named:
            raise UserError(f"{path}: {split}: must be the path of a list (CSV), it is {named!r}")
        place = path.parent / named
        videos[split] = read_list(place)
        data = data_spec(videos[split], split)
        if data.fingerprint in lists:
            raise UserError(
                f"{path}: {split}: {named} holds the same videos as {lists[data.fingerprint]}; train, "
                "selection and report must be different lists, or the accuracy says nothing"
            )
        lists[data.fingerprint] = place
        fields[split] = msgspec.to_builtins(data)
    suite = _suite(path, fields)
    _refuse_lists(path, suite, videos)
    return suite, lists


def _suite(path: Path, fields: Mapping[str, Any]) -> ProbeSpec:
    try:
        # Not strict: a number may be quoted. Unknown fields are refused all the same.
        suite = msgspec.convert(fields, ProbeSpec, strict=False)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}; see `salt-train probe --help` for an example") from error
    try:
        canonical_json(suite)
    except ValueError as error:  # infinity, which is a float and above 0
        raise UserError(f"{path}: {error}") from error
    problems = suite_problems(suite)
    controls = [frames for frames in suite.frames if frames != "ordered"]
    if suite.segments > 1 and controls:
        problems.append(
            f"segments {suite.segments} with frames {', '.join(controls)}: clips of several times of a video "
            "keep an order that these are to take away; give them a suite of one segment"
        )
    if suite.numerics != NUMERICS:
        problems.append(f"numerics {suite.numerics}: this version computes {NUMERICS}; leave it out")
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    return suite


def _refuse_lists(path: Path, suite: ProbeSpec, videos: Mapping[str, VideoList]) -> None:
    """Videos and labels that a list lacks, and videos or sources that two lists share."""
    seen: dict[str, str] = {}
    for split, found in videos.items():
        wanted = getattr(suite, f"{split}_clips")
        if wanted > len(found.rows):
            raise UserError(f"{path}: {split}_clips {wanted}: {found.path} has {len(found.rows)} videos")
        missing = [label for label in suite.labels if label not in found.columns]
        if missing:
            have = ", ".join(found.columns) or "none"
            raise UserError(f"{path}: labels: {found.path} has no column {missing[0]!r}; it has {have}")
        # Sources are compared by name, files by place: two lists may lie in different folders.
        sources = {f"file {os.path.abspath(file)}" for file in found.files}
        sources |= {f"source (group) {group}" for group in found.columns.get("group", ())}
        shared = sorted(sources & seen.keys())
        if shared:
            raise UserError(
                f"{path}: {split}: {found.path} shares {shared[0]} with {videos[seen[shared[0]]].path} "
                f"({len(shared)} such); an accuracy on videos that are known already says nothing"
            )
        seen |= dict.fromkeys(sources, split)


def _fields(path: Path) -> dict[str, Any]:
    from salt.plain_yaml import parse_yaml

    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if path.suffix != ".json":
        return parse_yaml(data, path, keys="`labels:` and `kinds:`")
    try:
        found = msgspec.json.decode(data.decode("utf-8-sig"))
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a valid suite: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: must be a mapping of the fields of a suite")
    return found
