"""What masks look like on average, to be logged once and held against what was meant."""

from __future__ import annotations

from dataclasses import dataclass

from salt.masks import Grid, draw_group, draw_masks
from salt.specs import MaskSpec

#: Clips whose masks are counted.
DRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class MaskStatistics:
    """Shares of the token grid over the masks of `draws` clips.

    Mean, least and most are over clips. `visible_by_time` has the visible share of each time step.
    `ever_visible` and `ever_target` are the shares of all tokens that were so in at least one clip.
    """

    draws: int
    tokens: int
    visible_mean: float
    visible_min: float
    visible_max: float
    target_mean: float
    target_min: float
    target_max: float
    visible_by_time: tuple[float, ...]
    ever_visible: float
    ever_target: float


def mask_statistics(
    mask: MaskSpec, grid: Grid, *, seed: int, index: int, step: int = 0, draws: int = DRAWS
) -> MaskStatistics:
    """Statistics of the masks that the run with `seed` has for the first `draws` clips of a step.

    Under `batch_min` whole groups are drawn, so that `draws` is rounded up to a multiple of `keep_clips`.

    Raises:
        UserError: the blocks cannot meet the counts.
    """
    import numpy as np

    time, height, width = grid
    total = time * height * width
    groups = -(-draws // mask.keep_clips)
    if mask.keep == "fixed":
        parts = [draw_masks(mask, grid, draws, seed=seed, step=step, index=index)]
    else:
        parts = [draw_group(mask, grid, group, seed=seed, step=step, index=index) for group in range(groups)]
    clips = sum(len(visible) for visible, _ in parts)
    seen = np.bincount(np.concatenate([visible.ravel() for visible, _ in parts]), minlength=total)
    predicted = np.bincount(np.concatenate([target.ravel() for _, target in parts]), minlength=total)
    counts = np.array([[visible.shape[1], target.shape[1]] for visible, target in parts]) / total
    visible_share, target_share = counts.T  # of each part, which have as many clips each
    return MaskStatistics(
        draws=clips,
        tokens=total,
        visible_mean=float(visible_share.mean()),
        visible_min=float(visible_share.min()),
        visible_max=float(visible_share.max()),
        target_mean=float(target_share.mean()),
        target_min=float(target_share.min()),
        target_max=float(target_share.max()),
        visible_by_time=tuple((seen.reshape(time, -1).mean(axis=1) / clips).tolist()),
        ever_visible=float((seen > 0).mean()),
        ever_target=float((predicted > 0).mean()),
    )
