"""Teacher shares that no run has yet: between the best one and its better neighbour."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from analysis.suggest_points import LEAST_RATIO, Point, PointKey, between_shares
from analysis.suggest_questions import Prior, SeedNoise


def bridge_priors(
    groups: Sequence[Sequence[Point]], noise: SeedNoise, charge: str
) -> tuple[list[Point], dict[PointKey, Prior]]:
    """For each group of shares a point between the best one and its better neighbour, and what to expect.

    Between them accuracy is taken as a Brownian bridge in log2(share) (Kushner 1964): its mean is that of
    both ends, its variance a quarter of theirs plus what accuracy wanders over the gap, by the squared steps
    between all neighbouring shares beyond the noise.
    """
    wander = _wander(groups, noise)
    points, priors = [], {}
    for group in groups:
        known = sorted((point for point in group if point.values and point.share), key=lambda p: p.share or 0)
        if len(known) < 2:
            continue
        means = [point.mean for point in known]
        best = int(np.argmax(means))
        beside = max((i for i in (best - 1, best + 1) if 0 <= i < len(known)), key=lambda i: means[i])
        low, high = sorted((best, beside))
        first, last = known[low], known[high]
        gap = math.log2((last.share or 0) / (first.share or 1))
        if gap < math.log2(LEAST_RATIO):
            continue
        share = float(f"{math.sqrt((first.share or 0) * (last.share or 0)):.3g}")
        point = between_shares(first, last, share, charge)
        ends = sum(noise.residual_sd**2 / len(each.values) for each in (first, last))
        variance = ends / 4 + wander * gap / 4
        points.append(point)
        priors[point.key] = Prior(mean=(means[low] + means[high]) / 2, variance=variance)
    return points, priors


def _wander(groups: Sequence[Sequence[Point]], noise: SeedNoise) -> float:
    """Variance of accuracy per doubling of the share, beyond the seeds' noise; 0 if there is no more."""
    steps = []
    for group in groups:
        known = sorted((point for point in group if point.values and point.share), key=lambda p: p.share or 0)
        for a, b in zip(known, known[1:], strict=False):
            step = b.mean - a.mean
            error = noise.residual_sd**2 * (1 / len(a.values) + 1 / len(b.values))
            steps.append((step**2 - error) / math.log2((b.share or 1) / (a.share or 1)))
    return max(0.0, float(np.mean(steps))) if steps else 0.0
