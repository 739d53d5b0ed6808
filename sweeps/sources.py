"""The lists of a study: where each is, what it counts as, and whether the splits leak into each other.

A list has a key: its split (`train`), a part of the training mixture (`train[0]`), or a suite's own
(`main.train`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from salt.errors import UserError
from salt.lists import VideoList, data_spec
from salt.specs import DECLARED, DataPart, DataSpec, canonical_json
from sweeps.config import SPLITS, DeclaredData, ProbeConfig, StudyFile

if TYPE_CHECKING:
    from sweeps.study import Study

#: Where a list's rows come from: a file, or a declaration to plan with until the file is there.
Source = Path | DeclaredData


def sources_of(file: StudyFile, folder: Path) -> dict[str, Source]:
    """Every list of a study by its key."""

    def place(value: str | DeclaredData) -> Source:
        return (folder / value).absolute() if isinstance(value, str) else value

    sources: dict[str, Source] = {}
    for split in SPLITS:
        value = getattr(file.data, split)
        if isinstance(value, tuple):
            sources |= {f"{split}[{number}]": place(part.list) for number, part in enumerate(value)}
        else:
            sources[split] = place(value)
    for probe in file.probes:
        for split in SPLITS:
            own = getattr(probe.data, split)
            if own is not None:
                sources[f"{probe.name}.{split}"] = place(own)
    return sources


def mixture_keys(study: Study) -> list[str]:
    """Keys of the parts of the training mixture; none where it is one list."""
    parts = study.file.data.train
    return [f"train[{number}]" for number in range(len(parts))] if isinstance(parts, tuple) else []


def list_key(study: Study, probe: ProbeConfig, split: str) -> str:
    """The key of the list that a suite reads for a split."""
    key = f"{probe.name}.{split}"
    return key if key in study.sources else split


def source_name(source: Source) -> str:
    """What to call a list: the name that declares it, or its file's without the ending."""
    return source.name if isinstance(source, DeclaredData) else source.stem


def data_of(study: Study, lists: Mapping[str, VideoList]) -> dict[str, DataSpec]:
    """What each key stands for, and `train` for the whole mixture."""
    data = {}
    for key, source in study.sources.items():
        if isinstance(source, DeclaredData):
            data[key] = DataSpec(name=source.name, fingerprint=DECLARED, clips=source.clips)
        else:
            data[key] = data_spec(lists[key], key.rpartition(".")[2])
    keys = mixture_keys(study)
    if keys:
        data["train"] = _mixture(study, {key: data[key] for key in keys})
    return data


def _mixture(study: Study, lists: Mapping[str, DataSpec]) -> DataSpec:
    """The mixture as one: its fingerprint is that of its parts, names and weights included."""
    configs = study.file.data.train
    assert isinstance(configs, tuple)
    parts = tuple(
        DataPart(
            name=source_name(study.sources[key]),
            fingerprint=spec.fingerprint,
            clips=spec.clips,
            weight=config.weight,
        )
        for (key, spec), config in zip(lists.items(), configs, strict=True)
    )
    declared = any(part.fingerprint == DECLARED for part in parts)
    digest = hashlib.sha256(b"salt mixture 1\n" + canonical_json(parts)).hexdigest()[:20]
    return DataSpec(
        name="train",
        fingerprint=DECLARED if declared else digest,
        clips=sum(part.clips for part in parts),
        parts=parts,
    )


def list_places(study: Study, data: Mapping[str, DataSpec]) -> dict[str, str]:
    """Where each list that is a file lies, by fingerprint."""
    return {
        data[key].fingerprint: str(source)
        for key, source in study.sources.items()
        if isinstance(source, Path)
    }


def check_lists(study: Study, lists: Mapping[str, VideoList]) -> None:
    """Labels must exist, and no clip, nor any source of clips, may be on both sides of a split.

    Raises:
        UserError: all that is wrong, at once.
    """
    problems = []
    for probe in study.file.probes:
        keys = {split: list_key(study, probe, split) for split in SPLITS}
        here = {split: lists[key] for split, key in keys.items() if key in lists}
        for split, video_list in here.items():
            for label in probe.labels:
                if label not in video_list.columns:
                    have = ", ".join(video_list.columns) or "none"
                    place = f"probes.{probe.name}.labels: {study.sources[keys[split]]}"
                    problems.append(f"{place} has no column {label!r} (it has: {have})")
        problems += _leaks(here)
    training = [key for key in mixture_keys(study) or ["train"] if key in lists]
    supervised = study.file.references.supervised
    for key in training if supervised is not None else ():
        assert supervised is not None
        if supervised.label not in lists[key].columns:
            problems.append(
                f"references.supervised.label: {study.sources[key]} has no column {supervised.label!r}"
            )
    # The pretraining lists, too, must not hold what is reported on, nor one clip twice.
    for key in training:
        others = {split: lists[split] for split in ("selection", "report") if split in lists}
        problems += _leaks({"train": lists[key], **others})
    for number, key in enumerate(training):
        for other in training[:number]:
            problems += _shared(other, lists[other], key, lists[key], by_group=False)
    if problems:
        raise UserError("\n".join(f"{study.path}: {problem}" for problem in dict.fromkeys(problems)))


def _leaks(lists: Mapping[str, VideoList]) -> list[str]:
    pairs = (("train", "selection"), ("train", "report"), ("selection", "report"))
    return [
        problem
        for first, second in pairs
        if first in lists and second in lists
        for problem in _shared(first, lists[first], second, lists[second], by_group=True)
    ]


def _shared(first: str, a: VideoList, second: str, b: VideoList, by_group: bool) -> list[str]:
    shared = {str(file) for file in set(a.files) & set(b.files)}
    what = "file"
    if by_group and not shared and "group" in a.columns and "group" in b.columns:
        shared, what = set(a.columns["group"]) & set(b.columns["group"]), "group"
    if not shared:
        return []
    return [f"data: {len(shared)} {what}s are in both {first} and {second}, such as {min(shared)}; part them"]


def check_sample_sizes(study: Study, data: Mapping[str, DataSpec]) -> None:
    """Raise `UserError` where a suite wants more clips than its list has."""
    problems = []
    for probe in study.file.probes:
        for split in SPLITS:
            wanted, key = getattr(probe, f"{split}_clips"), list_key(study, probe, split)
            if wanted > data[key].clips:
                source = study.sources[key]
                name = source.name if isinstance(source, DeclaredData) else source
                problems.append(
                    f"{study.path}: probes.{probe.name}.{split}_clips: {wanted} wanted, but {name} has "
                    f"{data[key].clips} clips"
                )
    if problems:
        raise UserError("\n".join(problems))


def mixture_mistakes(study: Study) -> list[str]:
    """What is wrong with a training mixture that needs no list to see."""
    keys = mixture_keys(study)
    names = [source_name(study.sources[key]) for key in keys]
    problems = [
        f"data.train: two parts are called {name!r}; a part's name, its file's or its own, must be its alone"
        for place, name in enumerate(names)
        if name in names[:place]
    ]
    if keys:
        problems += [
            f"probes.{probe.name}.data.train: the study trains on a mixture; name the suite's own list"
            for probe in study.file.probes
            if probe.data.train is None
        ]
    return problems
