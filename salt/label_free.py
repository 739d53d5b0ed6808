"""What embeddings say of themselves, without labels: RankMe, LiDAR and alpha-ReQ.

All three are pure functions of embeddings, float [n, D], computed in float64. None of them is an accuracy:
a high rank tells a collapsed encoder from another, and nothing of what it is good for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Added to each probability of an entropy, as both rank papers do: it bounds log 0.
EPSILON = 1e-7

#: LiDAR's ridge on the within-class covariance (Thilak et al. 2023), which whitening inverts.
LIDAR_RIDGE = 1e-4

#: Eigenvalues below this share of the largest are rounding, not spectrum, and alpha-ReQ leaves them out.
SPECTRUM_FLOOR = 1e-10


def rankme(embeddings: NDArray[Any]) -> float:
    """RankMe, a smooth rank of embeddings [n, D], from 1 to min(n, D) (to 1e-6 each); 0 if every value is 0.

    exp(-sum_k p_k log p_k) with p_k = s_k / sum(s) + 1e-7 over the singular values s of the embeddings, not
    centred (Garrido et al. 2023, arXiv 2210.02885).

    Raises ValueError for an array that is not 2-D, is empty or holds values that are not finite.
    """
    import numpy as np

    return entropy_rank(np.linalg.svd(_matrix(embeddings, 2), compute_uv=False))


def lidar(embeddings: NDArray[Any], ridge: float = LIDAR_RIDGE) -> float:
    """LiDAR of embeddings [n, q, D]: q augmented views of each of n clips, each clip a class of its own.

    The entropy rank (as in RankMe) of the eigenvalues of W^-1/2 B W^-1/2, where B is the covariance of the n
    class means and W the mean covariance of views around their class mean, plus `ridge` times identity
    (Thilak et al. 2023, arXiv 2312.04000). At most min(n - 1, D); 0 if all class means are equal.

    Raises ValueError for an array that is not 3-D, for fewer than 2 clips or 2 views, or values not finite.
    """
    import numpy as np

    values = _matrix(embeddings, 3)
    clips, views, width = values.shape
    if clips < 2 or views < 2:
        raise ValueError(f"LiDAR needs at least 2 clips with 2 views each, not {clips} with {views}")
    means = values.mean(axis=1)
    around = (values - means[:, None]).reshape(clips * views, width)
    centred = means - means.mean(axis=0)
    # Unbiased inside a class (q - 1), so that few views do not shrink W.
    within = around.T @ around / (clips * (views - 1)) + ridge * np.eye(width)
    # The eigenvalues of W^-1/2 B W^-1/2 are those of L^-1 B L^-T with W = L L^T, hence squared singular
    # values of the whitened class means: neither B nor a matrix root is formed.
    whitened = np.linalg.solve(np.linalg.cholesky(within), centred.T)
    singular = np.linalg.svd(whitened, compute_uv=False)
    return entropy_rank(singular * singular / (clips - 1))


def alpha_req(embeddings: NDArray[Any], first: int = 1, last: int | None = None) -> float:
    """alpha-ReQ: the exponent alpha of eigenvalues ~ i^-alpha of the covariance of embeddings [n, D].

    Least squares of log(eigenvalue) on log(i), each point weighted by 1 / i so that every octave of the
    spectrum counts alike, over ranks `first` to `last` (default: all eigenvalues above 1e-10 of the largest).
    Source: Agrawal et al. 2022 (NeurIPS), after Stringer et al. 2019. Near 1 is held to be good; large means
    that few directions carry all, 0 that the spectrum is flat.

    Raises ValueError for an array that is not 2-D, or if fewer than 2 eigenvalues are left to fit.
    """
    import numpy as np

    values = _matrix(embeddings, 2)
    singular = np.linalg.svd(values - values.mean(axis=0), compute_uv=False)
    spectrum = singular * singular / max(len(values) - 1, 1)
    ranks = np.arange(1, len(spectrum) + 1)
    fitted = (spectrum > SPECTRUM_FLOOR * spectrum[0]) & (ranks >= first)
    if last is not None:
        fitted &= ranks <= last
    if fitted.sum() < 2:
        raise ValueError(f"alpha-ReQ needs at least 2 eigenvalues above 0, and has {int(fitted.sum())}")
    x, y, weights = np.log(ranks[fitted]), np.log(spectrum[fitted]), 1 / ranks[fitted]
    x_mean, y_mean = np.average(x, weights=weights), np.average(y, weights=weights)
    slope = np.sum(weights * (x - x_mean) * (y - y_mean)) / np.sum(weights * (x - x_mean) ** 2)
    return float(-slope)


def entropy_rank(weights: NDArray[Any]) -> float:
    """exp of the entropy of non-negative weights [k], normalised to sum 1, 1e-7 added to each; 0 if all 0."""
    import numpy as np

    total = float(weights.sum())
    if total == 0:
        return 0.0
    shares = weights / total + EPSILON
    return float(np.exp(-np.sum(shares * np.log(shares))))


def _matrix(embeddings: NDArray[Any], dimensions: int) -> NDArray[np.float64]:
    """Checked and in float64."""
    import numpy as np

    values = np.asarray(embeddings, dtype=np.float64)
    if values.ndim != dimensions or 0 in values.shape:
        raise ValueError(
            f"embeddings of shape {values.shape}: {dimensions} dimensions are needed, none empty"
        )
    if not np.isfinite(values).all():
        raise ValueError("embeddings hold values that are not finite")
    return values
