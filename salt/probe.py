"""Probes on a frozen encoder: linear, nearest neighbours, attentive; never chosen on what they report."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, NamedTuple

import msgspec
import numpy as np
import torch

from salt.artefact import weights_sha256
from salt.attentive import Scaling, Split, attentive_probe
from salt.errors import RunFailed
from salt.features import Features, Reading, read_features, shuffled_orders
from salt.flops import own_adapter, whole_clip_lines
from salt.label_free import alpha_req, lidar, rankme
from salt.plain_probes import Best, PlainProbes
from salt.probe_views import (
    LIDAR_CLIPS,
    LIDAR_CROPS,
    probe_problems,
    random_corners,
    view_corners,
)
from salt.randomness import generator
from salt.result_specs import ProbeResult, ProbeScore
from salt.signals import STOP
from salt.specs import Frames, ProbeKind, ProbeSpec, RunSpec, VitSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from salt.artefact import AnyEncoder
    from salt.clips import Clips

SPLITS = ("train", "selection", "report")

log = logging.getLogger(__name__)


class Chosen(NamedTuple):
    """The videos of one split that a suite reads, and their label columns."""

    frames: NDArray[np.uint8]  # [all videos * segments, T, S, S, C]
    videos: NDArray[np.int64]  # [n]
    columns: dict[str, list[str]]


class ClassNumbers(NamedTuple):
    """A label as numbers."""

    numbers: dict[str, NDArray[np.int64]]  # of each split, [n]
    classes: int


class Suite(NamedTuple):
    """What all steps of probing one encoder share."""

    spec: ProbeSpec
    run: RunSpec
    encoder: AnyEncoder | None
    chosen: dict[str, Chosen]
    device: str


def chosen_videos(spec: ProbeSpec, split: str, available: int) -> NDArray[np.int64]:
    """Which videos of a split are used: the same ones for every encoder. int64 [n]."""
    wanted = {"train": spec.train_clips, "selection": spec.selection_clips, "report": spec.report_clips}[
        split
    ]
    if wanted > available:
        raise RunFailed("data", f"the probe wants {wanted} {split} clips and the list has {available}")
    return np.sort(generator(spec.seed, f"probe {split}").permutation(available)[:wanted])


def run_probes(
    spec: ProbeSpec,
    probe_id: str,
    run: RunSpec,
    run_id: str,
    encoder: AnyEncoder | None,
    branch: str,
    encoder_sha256: str,
    clips: Mapping[str, Clips],
    device: str,
) -> ProbeResult:
    """All scores of one suite on one encoder (None: raw pixels); features are computed once per `frames`.

    `clips` are those of `probe_clip_spec`, by fingerprint of their list.

    Raises:
        RunFailed: too few clips, a label that is not there, a suite that does not fit the encoder, features
            that are not finite, or weights that are not the same afterwards.
    """
    began = time.perf_counter()
    problems = probe_problems(spec, run)
    if problems:
        raise RunFailed("config", "; ".join(problems))
    chosen = {split: _chosen(spec, split, clips) for split in SPLITS}
    numbers = {label: _class_numbers(label, chosen) for label in spec.labels}  # first: it can go wrong
    before = ""
    if encoder is not None:
        before = weights_sha256(encoder.state_dict())
        encoder = encoder.to(device).eval()
    suite = Suite(spec, run, encoder, chosen, device)
    scores: list[ProbeScore] = []
    label_free: dict[str, float] = {}
    for frames in spec.frames:
        features = _features(suite, frames)
        scores += _scores(suite, frames, features, numbers)
        if frames == "ordered":
            label_free = _label_free(suite, features["report"])
        del features  # before the next ones are made: they can be large
    if "ordered" not in spec.frames and spec.label_free and encoder is not None:
        label_free = _label_free(suite, _read(suite, "report", "ordered", keep_tokens=False))
    if encoder is not None and weights_sha256(encoder.state_dict()) != before:
        raise RunFailed("code", "probing changed the encoder's weights; nothing of it is kept")
    return ProbeResult(
        probe_id=probe_id,
        run_id=run_id,
        encoder_sha256=encoder_sha256,
        branch=_branch(encoder, branch),
        scores=tuple(scores),
        label_free=label_free,
        feature_flops=feature_flops(spec, run),
        wall_s=round(time.perf_counter() - began, 3),
    )


def feature_flops(spec: ProbeSpec, run: RunSpec) -> int:
    """FLOPs of encoding all clips of a suite: videos x segments x views, for every order of frames.

    Blocks above the last of `layers` are not run. LiDAR's random crops and a pass for label-free metrics
    where `frames` lacks `ordered` are counted as they are done.
    """
    if run.arm == "raw":
        return 0
    videos = spec.train_clips + spec.selection_clips + spec.report_clips
    read = len(spec.frames) * videos * spec.views
    if spec.label_free and "ordered" not in spec.frames:
        read += spec.report_clips * spec.views
    if "lidar" in spec.label_free and spec.views == 1:
        read += min(spec.report_clips, LIDAR_CLIPS) * LIDAR_CROPS
    lines = whole_clip_lines(_read_part(spec, run), run.model, run.clip, own_adapter(run))
    return read * spec.segments * sum(lines.values())


def _read_part(spec: ProbeSpec, run: RunSpec) -> VitSpec:
    """The encoder as far as its blocks are run."""
    vit = run.model.encoder
    return msgspec.structs.replace(vit, depth=max(spec.layers)) if spec.layers else vit


def _branch(encoder: AnyEncoder | None, branch: str) -> Literal["student", "ema", "raw"]:
    if encoder is None:
        return "raw"
    return "ema" if branch == "ema" else "student"


def _chosen(spec: ProbeSpec, split: str, clips: Mapping[str, Clips]) -> Chosen:
    source = clips[getattr(spec, split).fingerprint]
    if len(source.frames) % spec.segments:
        raise RunFailed(
            "data", f"the {split} list has {len(source.frames)} clips, not {spec.segments} of each video"
        )
    videos = chosen_videos(spec, split, len(source.frames) // spec.segments)
    missing = [label for label in spec.labels if label not in source.columns]
    if missing:
        raise RunFailed(
            "data", f"the {split} list has no column {missing[0]!r}: it has {', '.join(source.columns)}"
        )
    # Clips of one video are neighbours and repeat its labels.
    columns = {label: [source.columns[label][i * spec.segments] for i in videos] for label in spec.labels}
    return Chosen(source.frames, videos, columns)


def _features(suite: Suite, frames: Frames) -> dict[str, Features]:
    # Raw patches have no heads or width to attend with.
    keep_tokens = "attentive" in suite.spec.kinds and suite.encoder is not None
    return {split: _read(suite, split, frames, keep_tokens) for split in SPLITS}


def _read(
    suite: Suite,
    split: str,
    frames: Frames,
    keep_tokens: bool,
    corners: NDArray[np.int64] | None = None,
) -> Features:
    """Features of a split; `corners` [n, views, 2] are crops of its first n videos in place of the views."""
    spec, (source, videos, _) = suite.spec, suite.chosen[split]
    if corners is None:
        corners = np.array([view_corners(suite.run.clip, spec.views)])
    else:
        videos = videos[: len(corners)]
    orders = None
    if frames == "shuffled":
        orders = shuffled_orders(spec.seed, split, len(videos) * spec.segments, source.shape[1])
    reading = Reading(
        frames=source, videos=videos, segments=spec.segments, corners=corners, order=frames, orders=orders
    )
    layers = spec.layers if suite.encoder is not None else ()
    return read_features(
        suite.encoder, reading, suite.run.clip, suite.run.model, layers, suite.device, keep_tokens
    )


def _scores(
    suite: Suite, frames: Frames, features: dict[str, Features], labels: Mapping[str, ClassNumbers]
) -> list[ProbeScore]:
    """Scores of every label and kind on the features of one order of frames."""
    plain = PlainProbes({split: found.pooled() for split, found in features.items()})
    scores = []
    for label, (numbers, classes) in labels.items():
        counts = np.bincount(numbers["report"], minlength=classes)
        for kind in suite.spec.kinds:
            STOP.check()
            if kind == "attentive" and suite.encoder is None:
                continue
            best = _best(kind, suite, classes, plain, features, numbers)
            scores.append(
                ProbeScore(
                    kind=kind,
                    label=label,
                    frames=frames,
                    n_train=len(numbers["train"]),
                    n_selection=len(numbers["selection"]),
                    n_report=len(numbers["report"]),
                    classes=classes,
                    chance=float(counts.max() / counts.sum()),
                    **best._asdict(),
                )
            )
    return scores


def _class_numbers(label: str, chosen: dict[str, Chosen]) -> ClassNumbers:
    """Class numbers of each split; a class that the training split lacks is an error, and so is a single one.

    A class of the training split that others lack is none: their clips can still be taken for it.
    """
    names = sorted(set(chosen["train"].columns[label]))
    if len(names) < 2:
        raise RunFailed(
            "data",
            f"label {label}: all {len(chosen['train'].videos)} training clips are {names[0]!r}; there is "
            "nothing to tell apart",
        )
    number = {name: place for place, name in enumerate(names)}
    for split in SPLITS:
        unknown = sorted(set(chosen[split].columns[label]) - set(names))
        if unknown:
            raise RunFailed(
                "data",
                f"label {label}: class {unknown[0]!r} of the {split} clips is not among the training clips",
            )
    columns = {split: chosen[split].columns[label] for split in SPLITS}
    numbers = {split: np.array([number[name] for name in column]) for split, column in columns.items()}
    return ClassNumbers(numbers, len(names))


def _best(
    kind: ProbeKind,
    suite: Suite,
    classes: int,
    plain: PlainProbes,
    features: dict[str, Features],
    numbers: dict[str, NDArray[np.int64]],
) -> Best:
    if kind == "linear":
        return plain.linear(suite.spec, classes, numbers)
    if kind == "knn":
        return plain.neighbours(suite.spec, classes, numbers)
    splits = {}
    for split in SPLITS:
        tokens = features[split].tokens
        assert tokens is not None
        splits[split] = Split(tokens, numbers[split])
    mean, deviation = features["train"].mean, features["train"].deviation
    assert mean is not None
    assert deviation is not None
    scaling = Scaling(torch.from_numpy(mean), torch.from_numpy(1 / (deviation + 1e-6)))
    found = attentive_probe(
        suite.spec,
        suite.run.model.encoder,
        classes,
        splits["train"],
        splits["selection"],
        splits["report"],
        scaling,
        suite.device,
    )
    selected = {"lr": found.lr, "weight_decay": found.weight_decay}
    return Best(found.accuracy, found.selection_accuracy, selected, found.flops)


def _label_free(suite: Suite, report: Features) -> dict[str, float]:
    """Label-free metrics of the report clips' mean tokens; of raw pixels there are none.

    LiDAR takes the views of a clip as its class, or `LIDAR_CROPS` random crops where there is a single view.
    One that is not defined (a spectrum with fewer than two values above 0) is left out, with a warning.
    """
    found: dict[str, float] = {}
    if suite.encoder is None:
        return found
    for name in suite.spec.label_free:
        try:
            if name == "rankme":
                found[name] = rankme(report.pooled())
            elif name == "alpha_req":
                found[name] = alpha_req(report.pooled())
            else:
                found[name] = lidar(_lidar_views(suite, report))
        except ValueError as error:
            log.warning("%s is left out: %s", name, error)
    return found


def _lidar_views(suite: Suite, report: Features) -> NDArray[np.float32]:
    """Embeddings [n, q, D] of q crops of each of the first clips."""
    if suite.spec.views > 1:
        return report.vectors[:LIDAR_CLIPS]
    count = min(len(report.vectors), LIDAR_CLIPS)
    corners = random_corners(suite.run.clip, count, suite.spec.seed)
    return _read(suite, "report", "ordered", keep_tokens=False, corners=corners).vectors
