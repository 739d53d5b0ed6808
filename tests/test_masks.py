"""Masks: fixed counts, every cell used, addressed by step, impossible ones refused at once."""

import time

import numpy as np
import pytest

from salt.errors import UserError
from salt.masks import check_masks, draw_masks
from salt.specs import MaskSpec

GRIDS = {
    "miniature": ((4, 4, 4), MaskSpec(visible_tokens=8, target_tokens=32)),
    "short range, 224 px": ((8, 14, 14), MaskSpec(visible_tokens=356, target_tokens=752)),
    "long range, 224 px": (
        (8, 14, 14),
        MaskSpec(blocks=2, scale=0.7, visible_tokens=100, target_tokens=1097),
    ),
}


@pytest.mark.parametrize("name", list(GRIDS))
def test_counts_are_fixed_sets_are_disjoint_and_all_cells_serve(name: str) -> None:
    grid, mask = GRIDS[name]
    total = int(np.prod(grid))
    seen, predicted = np.zeros(total, dtype=int), np.zeros(total, dtype=int)
    draws = 0
    for step in range(20):
        visible, target = draw_masks(mask, grid, 100, seed=3, step=step, index=0)
        assert visible.shape == (100, mask.visible_tokens)
        assert target.shape == (100, mask.target_tokens)
        together = np.sort(np.concatenate([visible, target], axis=1), axis=1)
        assert (np.diff(together, axis=1) > 0).all()  # no token twice, none in both
        assert together.min() >= 0
        assert together.max() < total
        seen += np.bincount(visible.ravel(), minlength=total)
        predicted += np.bincount(target.ravel(), minlength=total)
        draws += 100
    # Blocks of 0.7 of the area cover the centre wherever they lie; the edges, at least, must come free.
    spatial = seen.reshape(grid).sum(axis=0)
    edge = np.concatenate([spatial[0], spatial[-1], spatial[:, 0], spatial[:, -1]])
    assert (edge if mask.scale > 0.5 else seen).min() > 0, "a cell is never visible"
    assert predicted.min() > 0, "a cell is never predicted"
    # The published sampler cuts token lists at the end of the clip; ours must not prefer any time step.
    shares = seen.reshape(grid[0], -1).sum(axis=1) / (draws * mask.visible_tokens)
    assert np.abs(shares * grid[0] - 1).max() < 0.1


def test_a_tube_lasts_the_whole_clip() -> None:
    """A spatial cell never is visible at one time and predicted at another."""
    grid, mask = GRIDS["miniature"]
    visible, target = draw_masks(mask, grid, 200, seed=0, step=0, index=0)
    for v, t in zip(visible % 16, target % 16, strict=True):
        assert not set(v) & set(t)


def test_masks_are_addressed_by_seed_step_and_place() -> None:
    grid, mask = GRIDS["miniature"]
    first = draw_masks(mask, grid, 16, seed=1, step=5, index=0)
    again = draw_masks(mask, grid, 16, seed=1, step=5, index=0)
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    for other in ({"seed": 2}, {"step": 6}, {"index": 1}):
        changed = draw_masks(mask, grid, 16, **{"seed": 1, "step": 5, "index": 0, **other})
        assert (changed[0] != first[0]).any()


@pytest.mark.parametrize(
    ("grid", "mask", "words"),
    [
        ((1, 2, 2), MaskSpec(blocks=1, scale=0.75, aspect_max=1, visible_tokens=1, target_tokens=2), "0.0%"),
        ((4, 4, 4), MaskSpec(visible_tokens=40, target_tokens=32), "do not fit"),
        ((4, 4, 4), MaskSpec(blocks=2, scale=0.7, visible_tokens=60, target_tokens=4), "0.0%"),
        ((4, 4, 4), MaskSpec(aspect_min=2.0, aspect_max=1.0, visible_tokens=1, target_tokens=1), "above"),
    ],
)  # fmt: skip
def test_impossible_masks_are_refused_in_under_a_second(
    grid: tuple[int, int, int], mask: MaskSpec, words: str
) -> None:
    began = time.perf_counter()
    problems = check_masks((mask,), grid)
    assert time.perf_counter() - began < 1
    assert len(problems) == 1
    assert words in problems[0]
    assert "masks[0]" in problems[0]


def test_drawing_an_impossible_mask_ends() -> None:
    with pytest.raises(UserError, match="visible"):
        draw_masks(
            MaskSpec(blocks=2, scale=0.7, visible_tokens=60, target_tokens=4),
            (4, 4, 4),
            4,
            seed=0,
            step=0,
            index=0,
        )
