"""Probes on a frozen encoder: linear, nearest neighbours, attentive; never chosen on what they report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from salt.attentive import Split, attentive_probe
from salt.errors import RunFailed
from salt.features import arrange_frames, encode_clips, pooled, view
from salt.flops import encode_flops
from salt.randomness import generator
from salt.result_specs import ProbeResult, ProbeScore
from salt.specs import ProbeKind, ProbeSpec, RunSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from salt.clips import Clips
    from salt.vit import Encoder

SPLITS = ("train", "selection", "report")


class Crops(NamedTuple):
    """Clips of one split as the probes see them, and their label columns."""

    pixels: NDArray[np.uint8]  # [n, T, H, W, C]
    columns: dict[str, list[str]]


class Best(NamedTuple):
    accuracy: float
    selection_accuracy: float
    selected: dict[str, float]
    flops: int


def chosen_clips(spec: ProbeSpec, split: str, available: int) -> NDArray[np.int64]:
    """Which clips of a split are used: the same ones for every encoder. int64 [n]."""
    wanted = {"train": spec.train_clips, "selection": spec.selection_clips, "report": spec.report_clips}[
        split
    ]
    if wanted > available:
        raise RunFailed("data", f"the probe wants {wanted} {split} clips and the list has {available}")
    return np.sort(generator(spec.seed, f"probe {split}").permutation(available)[:wanted])


def load_crops(spec: ProbeSpec, run: RunSpec, clips: Mapping[str, Clips]) -> dict[str, Crops]:
    """Centre crops of the three splits; `clips` is keyed by fingerprint."""
    crops = {}
    for split in SPLITS:
        source = clips[getattr(spec, split).fingerprint]
        chosen = chosen_clips(spec, split, len(source.frames))
        missing = [label for label in spec.labels if label not in source.columns]
        if missing:
            raise RunFailed(
                "data", f"the {split} list has no column {missing[0]!r}: it has {', '.join(source.columns)}"
            )
        columns = {label: [source.columns[label][i] for i in chosen] for label in spec.labels}
        crops[split] = Crops(view(source.frames, chosen, run.clip), columns)
    return crops


def run_probes(
    spec: ProbeSpec,
    probe_id: str,
    run: RunSpec,
    run_id: str,
    encoder: Encoder | None,
    branch: str,
    encoder_sha256: str,
    clips: Mapping[str, Clips],
    device: str,
) -> ProbeResult:
    """All scores of one suite on one encoder (None: raw pixels); features are computed once per `frames`."""
    began = time.perf_counter()
    crops = load_crops(spec, run, clips)
    if encoder is not None:
        encoder = encoder.to(device).eval()
    scores = []
    for frames in spec.frames:
        tokens = {
            split: encode_clips(
                encoder, arrange_frames(crops[split].pixels, frames, spec.seed), run.clip, run.model, device
            )
            for split in SPLITS
        }
        vectors = {split: pooled(tokens[split], flatten=encoder is None) for split in SPLITS}
        for label in spec.labels:
            numbers, classes = _class_numbers(label, crops)
            for kind in spec.kinds:
                if kind == "attentive" and encoder is None:
                    continue  # raw patches have no heads or width to attend with
                best = _score(kind, spec, run, classes, tokens, vectors, numbers, device)
                counts = np.bincount(numbers["report"], minlength=classes)
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
    clips_encoded = len(spec.frames) * sum(len(crops[split].pixels) for split in SPLITS)
    return ProbeResult(
        probe_id=probe_id,
        run_id=run_id,
        encoder_sha256=encoder_sha256,
        branch="raw" if encoder is None else "ema" if branch == "ema" else "student",
        scores=tuple(scores),
        feature_flops=0
        if encoder is None
        else clips_encoded * encode_flops(run.model.encoder, run.model, run.clip),
        wall_s=round(time.perf_counter() - began, 3),
    )


def _class_numbers(label: str, crops: dict[str, Crops]) -> tuple[dict[str, NDArray[np.int64]], int]:
    """Class numbers of each split; a class that the training split lacks is an error."""
    names = sorted(set(crops["train"].columns[label]))
    number = {name: place for place, name in enumerate(names)}
    for split in SPLITS:
        unknown = sorted(set(crops[split].columns[label]) - set(names))
        if unknown:
            raise RunFailed(
                "data",
                f"label {label}: class {unknown[0]!r} of the {split} clips is not among the training clips",
            )
    return {split: np.array([number[name] for name in crops[split].columns[label]]) for split in SPLITS}, len(
        names
    )


def _score(
    kind: ProbeKind,
    spec: ProbeSpec,
    run: RunSpec,
    classes: int,
    tokens: dict[str, torch.Tensor],
    vectors: dict[str, NDArray[np.float32]],
    numbers: dict[str, NDArray[np.int64]],
    device: str,
) -> Best:
    if kind == "linear":
        return linear_probe(spec, classes, vectors, numbers)
    if kind == "knn":
        return neighbour_probe(spec, vectors, numbers)
    train, selection, report = (Split(tokens[split], torch.from_numpy(numbers[split])) for split in SPLITS)
    score = attentive_probe(spec, run.model.encoder, classes, train, selection, report, device)
    return Best(score.accuracy, score.selection_accuracy, {"lr": score.lr}, score.flops)


def linear_probe(
    spec: ProbeSpec,
    classes: int,
    vectors: Mapping[str, NDArray[np.float32]],
    numbers: Mapping[str, NDArray[np.int64]],
) -> Best:
    """Ridge regression on one-hot classes; the penalty is chosen on the selection split.

    FLOPs: the Gram matrix of the smaller side, its factorisation for each penalty, and the scores.
    """
    from sklearn.linear_model import RidgeClassifier

    scaled = _standardised(vectors)
    best: tuple[float, float, RidgeClassifier] | None = None
    for penalty in spec.ridge_penalties:
        model = RidgeClassifier(alpha=penalty).fit(scaled["train"], numbers["train"])
        score = float(model.score(scaled["selection"], numbers["selection"]))
        if best is None or score > best[0]:
            best = (score, penalty, model)
    assert best is not None
    n, d = scaled["train"].shape
    small = min(n, d)
    evaluated = len(spec.ridge_penalties) * len(numbers["selection"]) + len(numbers["report"])
    flops = (
        2 * n * d * small
        + len(spec.ridge_penalties) * (small**3 // 3 + 2 * small**2 * classes)
        + 2 * evaluated * d * classes
    )
    accuracy = float(best[2].score(scaled["report"], numbers["report"]))
    return Best(accuracy, best[0], {"penalty": best[1]}, flops)


def neighbour_probe(
    spec: ProbeSpec, vectors: Mapping[str, NDArray[np.float32]], numbers: Mapping[str, NDArray[np.int64]]
) -> Best:
    """Majority of the k nearest training clips, cosine of standardised features; k chosen on `selection`."""
    from sklearn.neighbors import KNeighborsClassifier

    scaled = _standardised(vectors)
    best: tuple[float, int, KNeighborsClassifier] | None = None
    for k in spec.neighbours:
        model = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(
            scaled["train"], numbers["train"]
        )
        score = float(model.score(scaled["selection"], numbers["selection"]))
        if best is None or score > best[0]:
            best = (score, k, model)
    assert best is not None
    n, d = scaled["train"].shape
    evaluated = len(spec.neighbours) * len(numbers["selection"]) + len(numbers["report"])
    accuracy = float(best[2].score(scaled["report"], numbers["report"]))
    return Best(accuracy, best[0], {"neighbours": float(best[1])}, 2 * evaluated * n * d)


def _standardised(vectors: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float64]]:
    """Standardised by the training split. float64: the features of one encoder are nearly collinear."""
    mean, deviation = vectors["train"].mean(axis=0), vectors["train"].std(axis=0) + 1e-6
    return {split: ((values - mean) / deviation).astype(np.float64) for split, values in vectors.items()}
