"""How fast probes are: `python benchmarks/probe_speed.py`.

Ridge and nearest neighbours against scikit-learn's, fitted once for each setting and label; heads of the
attentive probe in turn on one batch against the same heads stacked by `torch.func.vmap`. One thread, both
sides alternating in one process, medians of CPU seconds, and their ratio. About a minute.
"""

from __future__ import annotations

import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.environment import environment
from salt.attentive import AttentiveProbe
from salt.plain_probes import PlainProbes
from salt.sizes import SIZES
from salt.specs import DataSpec, ProbeSpec
from salt.vit import initialise

COUNTS = {"train": 1024, "selection": 1024, "report": 2048}
LABELS, CLASSES, REPEATS = 2, 8, 5


def suite() -> ProbeSpec:
    data = {split: DataSpec(name=split, fingerprint=split, clips=count) for split, count in COUNTS.items()}
    counts = {f"{split}_clips": count for split, count in COUNTS.items()}
    return ProbeSpec(labels=("a", "b"), kinds=("linear", "knn"), **data, **counts)


def medians(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """CPU seconds of both, taken in turn after one run of each that does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(REPEATS + 1):
        for place, work in enumerate((first, second)):
            began = time.process_time()
            work()
            if repeat:
                seconds[place].append(time.process_time() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def plain(width: int) -> None:
    """Two labels on vectors of this width, as a suite of the miniature has."""
    rng, spec = np.random.default_rng(0), suite()
    numbers = {split: rng.integers(0, CLASSES, count) for split, count in COUNTS.items()}
    vectors = {split: rng.normal(size=(count, width)).astype(np.float32) for split, count in COUNTS.items()}

    def ours(kind: str) -> Callable[[], object]:
        def work() -> None:
            probes = PlainProbes(vectors)
            for _ in range(LABELS):
                getattr(probes, kind)(spec, CLASSES, numbers)

        return work

    def theirs(models: list[RidgeClassifier | KNeighborsClassifier]) -> Callable[[], object]:
        def work() -> None:
            for _ in range(LABELS):
                scaled = PlainProbes(vectors).scaled
                for model in models:
                    model.fit(scaled["train"], numbers["train"])
                    model.score(scaled["selection"], numbers["selection"])
                model.score(scaled["report"], numbers["report"])

        return work

    ridge = [RidgeClassifier(alpha=penalty) for penalty in spec.ridge_penalties]
    judges = [KNeighborsClassifier(k, metric="cosine", algorithm="brute") for k in spec.neighbours]
    for kind, models in (("linear", ridge), ("neighbours", judges)):
        show(f"{kind}, width {width}, {LABELS} labels", "scikit-learn", *medians(theirs(models), ours(kind)))


def heads(size: str, count: int, batch: int) -> None:
    """One forward and backward pass of `count` heads on `batch` clips of 64 tokens."""
    vit = SIZES[size]
    probes = []
    for _ in range(count):
        probe = AttentiveProbe(vit, 4, CLASSES)
        initialise(probe, "xavier", torch.Generator().manual_seed(0))
        probes.append(probe)
    tokens, labels = torch.randn(batch, 64, vit.width), torch.randint(0, CLASSES, (batch,))

    def in_turn() -> None:
        for probe in probes:
            F.cross_entropy(probe(tokens), labels).backward()

    stacked, _ = torch.func.stack_module_state(probes)
    frame = copy.deepcopy(probes[0]).to("meta")

    def one(weights: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(torch.func.functional_call(frame, weights, (tokens,)), labels)

    def together() -> None:
        torch.func.vmap(one)(stacked).sum().backward()

    show(f"{count} heads of {size}, batch {batch}", "stacked", *medians(together, in_turn))


def show(what: str, other: str, theirs_s: float, ours_s: float) -> None:
    print(
        f"{what}: {other} {theirs_s * 1e3:.1f} ms, salt {ours_s * 1e3:.1f} ms, ratio {theirs_s / ours_s:.2f}"
    )


def main() -> None:
    print(environment())
    torch.set_num_threads(1)
    with threadpool_limits(1):
        for width in (48, 4608):
            plain(width)
    for size, count, batch in (("nano", 2, 16), ("micro", 2, 16), ("micro", 8, 64)):
        heads(size, count, batch)


if __name__ == "__main__":
    main()
