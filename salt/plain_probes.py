"""Probes without training: ridge regression and nearest neighbours, on one vector a video.

What does not depend on labels is worked out once for all of them: one eigendecomposition for every penalty,
one matrix of cosines for every number of neighbours. The answers are those of scikit-learn's
`RidgeClassifier` and `KNeighborsClassifier`, as tests hold.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from salt.specs import ProbeSpec

#: Rows of the matrix of cosines at once.
ROWS = 1024

#: Cosines are compared to this many decimals; products in float64 are good to a few more.
COSINE_DECIMALS = 12

Numbers = Mapping[str, "NDArray[np.int64]"]


class Best(NamedTuple):
    """The one choice of a probe's grid that is best on `selection`, and its accuracy on `report`."""

    accuracy: float
    selection_accuracy: float
    selected: dict[str, float]
    flops: int


class PlainProbes:
    """Both probes on the vectors of one encoder: split -> float32 [n, D].

    Vectors are standardised by the training split, in float64: features of one encoder are nearly collinear.
    """

    def __init__(self, vectors: Mapping[str, NDArray[np.float32]]) -> None:
        # All of it in float64: the float32 mean of a feature that never changes is not that feature.
        train = vectors["train"].astype(np.float64)
        mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-6
        self.scaled = {split: (values - mean) / deviation for split, values in vectors.items()}
        self.clips, self.width = self.scaled["train"].shape
        self._near: dict[tuple[str, int], NDArray[np.int64]] = {}

    def linear(self, spec: ProbeSpec, classes: int, numbers: Numbers) -> Best:
        """Ridge regression with intercept on classes as -1 or 1; the penalty is chosen on `selection`.

        With centred X = U S V^T (or the eigenvectors of its smaller Gram matrix), the scores of new rows Z
        for a penalty p are Z V diag(s / (s^2 + p)) U^T Y: only the diagonal differs.

        FLOPs, as if this label were alone: the Gram matrix of the smaller side, its eigendecomposition (9
        n^3, Golub and Van Loan), the projections, and the scores of every penalty.
        """
        solved = self.solved(classes, numbers["train"])

        def accuracy(split: str, penalty: float) -> float:
            return float((self.ridge_scores(solved, split, penalty).argmax(axis=1) == numbers[split]).mean())

        best, penalty = _first_best(
            [(accuracy("selection", penalty), penalty) for penalty in spec.ridge_penalties]
        )
        rows, small = sum(len(values) for values in self.scaled.values()), min(self.clips, self.width)
        evaluated = len(spec.ridge_penalties) * len(numbers["selection"]) + len(numbers["report"])
        flops = (
            2 * self.clips * self.width * small
            + 9 * small**3
            + 2 * rows * self.width * small
            + 2 * (self.clips + evaluated) * small * classes
        )
        return Best(accuracy("report", penalty), best, {"penalty": penalty}, flops)

    def solved(
        self, classes: int, labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """S U^T Y of the training labels, float64 [r, classes], and the intercept, [classes]."""
        targets = np.where(labels[:, None] == np.arange(classes), 1.0, -1.0)
        intercept = targets.mean(axis=0)
        return self._spectrum[1]["train"].T @ (targets - intercept), intercept

    def ridge_scores(
        self, solved: tuple[NDArray[np.float64], NDArray[np.float64]], split: str, penalty: float
    ) -> NDArray[np.float64]:
        """Class scores of a split under one penalty, float64 [n, classes]."""
        values, project = self._spectrum
        weighted, intercept = solved
        return project[split] @ (weighted / (values + penalty)[:, None]) + intercept

    def neighbours(self, spec: ProbeSpec, classes: int, numbers: Numbers) -> Best:
        """Majority of the k nearest training clips by cosine; k is chosen on `selection`, ties go to the
        class that comes first. A k above the number of training clips is passed over.

        FLOPs, as if this label were alone: the cosines.
        """
        grid = [k for k in spec.neighbours if k <= self.clips]
        most = max(grid)

        def accuracy(split: str, k: int) -> float:
            named = numbers["train"][self._nearest(split, most)[:, :k]]  # [n, k]
            cells = (named + classes * np.arange(len(named))[:, None]).ravel()
            votes = np.bincount(cells, minlength=len(named) * classes).reshape(-1, classes)
            return float((votes.argmax(axis=1) == numbers[split]).mean())

        best, k = _first_best([(accuracy("selection", k), k) for k in grid])
        compared = len(numbers["selection"]) + len(numbers["report"])
        flops = 2 * compared * self.clips * self.width
        return Best(accuracy("report", int(k)), best, {"neighbours": float(k)}, flops)

    @functools.cached_property
    def _spectrum(self) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """Squared singular values of the centred training vectors, [r], and all splits' rows times V, [n,
        r]."""
        mean = self.scaled["train"].mean(axis=0)
        centred = {split: values - mean for split, values in self.scaled.items()}
        x = centred["train"]
        if self.width <= self.clips:
            values, axes = np.linalg.eigh(x.T @ x)
            return values.clip(0), {split: rows @ axes for split, rows in centred.items()}
        values, sides = np.linalg.eigh(x @ x.T)
        kept = values > values[-1] * 1e-13 * self.clips  # directions that only rounding filled carry nothing
        values, sides = values[kept], sides[:, kept]
        axes = x.T @ (sides / np.sqrt(values))
        return values, {split: rows @ axes for split, rows in centred.items()}

    @functools.cached_property
    def _directions(self) -> dict[str, NDArray[np.float64]]:
        """Vectors of length 1; those of length 0 stay."""
        directions = {}
        for split, values in self.scaled.items():
            lengths = np.linalg.norm(values, axis=1, keepdims=True)
            directions[split] = values / np.where(lengths == 0, 1, lengths)
        return directions

    def _nearest(self, split: str, most: int) -> NDArray[np.int64]:
        """Training clips nearest to each clip of a split, nearest first, int64 [n, most].

        Of clips equally near, such as copies of one, the first of the list is the nearer: cosines that differ
        by rounding alone are equal here, so that neither processor nor place decides.
        """
        if (split, most) in self._near:
            return self._near[split, most]
        found = []
        for start in range(0, len(self.scaled[split]), ROWS):
            cosines = self._directions[split][start : start + ROWS] @ self._directions["train"].T
            found.append(nearest_first(cosines.round(COSINE_DECIMALS, out=cosines), most))
        self._near[split, most] = np.concatenate(found)
        return self._near[split, most]


def nearest_first(cosines: NDArray[np.float64], most: int) -> NDArray[np.int64]:
    """Columns of the `most` largest values of each row, largest first, equal ones in the order of columns."""
    far = -cosines
    near = np.argpartition(far, most - 1, axis=1)[:, :most]
    last = np.take_along_axis(far, near[:, -1:], axis=1)
    # More columns than wanted are as near as the last: which of them were taken was a matter of chance.
    tied = np.flatnonzero(np.count_nonzero(far <= last, axis=1) > most)
    near[tied] = np.argsort(far[tied], axis=1, kind="stable")[:, :most]
    near.sort(axis=1)
    ranked = np.argsort(np.take_along_axis(far, near, axis=1), axis=1, kind="stable")
    return np.take_along_axis(near, ranked, axis=1)


def _first_best(scored: list[tuple[float, float]]) -> tuple[float, float]:
    """The highest score and its setting; the first of equals."""
    return max(scored, key=lambda pair: pair[0])
