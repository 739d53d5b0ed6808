"""Suites, clips and encoders for tests of probes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from salt.artefact import weights_sha256
from salt.clips import Clips
from salt.learner import build_encoder
from salt.probe import run_probes
from salt.result_specs import ProbeResult
from salt.specs import DataSpec, ProbeSpec
from salt.vit import Encoder
from tests.examples import run_spec

COUNTS = {"train": 48, "selection": 24, "report": 32}
RUN = run_spec("pixel", "nano", steps=5)


def suite(**fields: Any) -> ProbeSpec:
    data = {split: DataSpec(name=split, fingerprint=split, clips=count) for split, count in COUNTS.items()}
    counts = {f"{split}_clips": count for split, count in COUNTS.items()}
    fields = {"labels": ("motion",), "kinds": ("linear", "knn", "attentive"), "attentive_epochs": 2} | fields
    return ProbeSpec(**{**data, **counts, "attentive_batch_clips": 16, **fields})


def moving(count: int, seed: int, segments: int = 1, fingerprint: str = "") -> Clips:
    """Blobs that move left or right, `segments` neighbouring clips of each video."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 60, (count * segments, 8, 32, 32, 1), dtype=np.uint8)
    names = []
    for video in range(count):
        for segment in range(segments):
            row, column, speed = rng.integers(0, 24), rng.integers(0, 32), 3 if video % 2 else -3
            for t in range(8):
                place = (np.arange(column, column + 8) + speed * t) % 32
                frames[video * segments + segment, t, row : row + 8, place] = 230
            names.append(f"{video}.mp4")
    labels = tuple("right" if int(name[:-4]) % 2 else "left" for name in names)
    return Clips(
        frames=frames,
        files=tuple(Path(name) for name in names),
        rows=tuple(names),
        columns={"motion": labels},
        skipped=(),
        fingerprint=fingerprint,
        padded_share=0.0,
    )


def clips(segments: int = 1) -> dict[str, Clips]:
    return {split: moving(count, seed, segments) for seed, (split, count) in enumerate(COUNTS.items())}


def encoder(size: str = "nano") -> Encoder:
    run = run_spec("pixel", size)
    return build_encoder(run.model.encoder, run.model, run.clip, seed=0).eval()


def probe(
    spec: ProbeSpec, opened: dict[str, Clips] | None = None, model: Encoder | None = None
) -> ProbeResult:
    model = encoder() if model is None else model
    opened = clips(spec.segments) if opened is None else opened
    digest = weights_sha256(model.state_dict())
    return run_probes(spec, "p", RUN, "r", model, "student", digest, opened, "cpu")
