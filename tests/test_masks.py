"""Masks: counts, cells, addresses, the published cut, impossible ones refused at once."""

import hashlib
import time

import msgspec
import numpy as np
import pytest

from salt.errors import UserError
from salt.mask_statistics import mask_statistics
from salt.masks import acceptance, check_masks, draw_group, draw_masks, published_counts
from salt.randomness import distinct31, hash64, stream_key
from salt.specs import MaskSpec

MINIATURE = ((4, 4, 4), MaskSpec(visible_tokens=8, target_tokens=32))
WIDE = (8, 14, 14)  # 16 frames of 224 px
SHORT = MaskSpec(visible_tokens=366, target_tokens=749)
LONG = MaskSpec(blocks=2, scale=0.7, visible_tokens=100, target_tokens=1102)
CAUSAL = MaskSpec(kind="causal", context_frames=3, visible_tokens=130, target_tokens=1200)
TUBE = MaskSpec(kind="tube", visible_tokens=152, target_tokens=1400)


def mask_of(visible: int = 1, target: int = 1, **fields: object) -> MaskSpec:
    return MaskSpec(visible_tokens=visible, target_tokens=target, **fields)  # type: ignore[arg-type]


def cut(mask: MaskSpec, clips: int = 24) -> MaskSpec:
    return msgspec.structs.replace(mask, keep="batch_min", keep_clips=clips)


#: One block of 3 of the 4 cells of a 2 x 2 grid is round(sqrt(3)) = 2 high and wide.
ALL_COVERED = mask_of(blocks=1, scale=0.75, aspect_min=1, aspect_max=1)


@pytest.mark.parametrize(
    ("grid", "mask"), [MINIATURE, (WIDE, SHORT), (WIDE, LONG), (WIDE, CAUSAL), (WIDE, TUBE)]
)
def test_counts_are_fixed_sets_are_disjoint_and_all_cells_serve(
    grid: tuple[int, int, int], mask: MaskSpec
) -> None:
    """10,000 masks in batches of 64."""
    total = int(np.prod(grid))
    seen, predicted = np.zeros(total, dtype=int), np.zeros(total, dtype=int)
    for step in range(157):
        visible, target = draw_masks(mask, grid, 64, seed=3, step=step, index=0)
        assert visible.shape == (64, mask.visible_tokens)
        assert target.shape == (64, mask.target_tokens)
        together = np.sort(np.concatenate([visible, target], axis=1), axis=1)
        assert (np.diff(together, axis=1) > 0).all()  # no token twice, none in both
        assert (np.diff(visible, axis=1) > 0).all()
        assert (np.diff(target, axis=1) > 0).all()
        assert together.min() >= 0
        assert together.max() < total
        seen += np.bincount(visible.ravel(), minlength=total)
        predicted += np.bincount(target.ravel(), minlength=total)
    context = mask.context_frames or grid[0]
    steps = seen.reshape(grid[0], -1)
    # Blocks of 0.7 of the area cover the centre wherever they lie; the edges, at least, must come free.
    by_cell = steps[:context].reshape(context, *grid[1:])
    edge = np.concatenate([by_cell[:, 0], by_cell[:, -1], by_cell[:, :, 0], by_cell[:, :, -1]])
    assert (edge if mask.scale > 0.5 else by_cell).min() > 0, "a cell is never visible"
    assert predicted.min() > 0, "a cell is never predicted"
    # The published sampler cuts token lists at the end of the clip; ours must not prefer any time step.
    assert steps[context:].sum() == 0
    shares = steps[:context].sum(axis=1) / seen.sum()
    assert np.abs(shares * context - 1).max() < 0.1


def test_one_block_lies_everywhere_equally_often() -> None:
    """Shares of visible and predicted draws of each cell, against counting all places of the block."""
    grid = (2, 5, 6)
    mask = mask_of(12, 6, blocks=1, scale=0.2, aspect_min=1, aspect_max=1)
    side = 2  # round(sqrt(0.2 * 30))
    covered = np.zeros(grid[1:])
    for top in range(5 - side + 1):
        for left in range(6 - side + 1):
            covered[top : top + side, left : left + side] += 1 / 20
    visible, target = draw_masks(mask, grid, 40_000, seed=0, step=0, index=0)
    for tokens, wanted in ((visible, (1 - covered) * 12 / 52), (target, covered * 6 / 8)):
        shares = np.bincount(tokens.ravel(), minlength=60).reshape(grid) / 40_000
        assert np.abs(shares - wanted).max() < 4.5 * 0.5 / 200  # 4.5 standard deviations


@pytest.mark.parametrize("mask", [SHORT, TUBE])
def test_a_tube_lasts_the_whole_clip(mask: MaskSpec) -> None:
    """A spatial cell never is visible at one time and predicted at another."""
    visible, target = draw_masks(mask, WIDE, 100, seed=0, step=0, index=0)
    for v, t in zip(visible % 196, target % 196, strict=True):
        assert not set(v) & set(t)
    if mask.kind == "tube":
        assert (visible.reshape(100, 8, 19) % 196 == (visible[:, :19] % 196)[:, None]).all()
        assert (target.reshape(100, 8, 175) // 196 == np.arange(8)[:, None]).all()


def test_causal_masks_predict_what_comes_later() -> None:
    """What the blocks cover in the first steps and all of the others: nothing else, nothing left out."""
    grid = (4, 4, 4)
    mask = MaskSpec(kind="causal", context_frames=1, blocks=1, scale=0.25, aspect_max=1, aspect_min=1,
                    visible_tokens=12, target_tokens=52)  # fmt: skip
    assert check_masks((mask,), grid) == []
    visible, target = draw_masks(mask, grid, 50, seed=0, step=0, index=0)
    assert (visible < 16).all()
    assert (np.sort(np.concatenate([visible, target], axis=1)) == np.arange(64)).all()
    assert (target[:, 4:] == np.arange(16, 64)).all()
    assert len(np.unique(target[:, 0])) == 9  # 3 x 3 places of a block of 2 x 2 cells


@pytest.mark.parametrize("mask", [SHORT, CAUSAL, TUBE])
def test_any_slice_of_a_batch_can_be_drawn_alone(mask: MaskSpec) -> None:
    whole = draw_masks(mask, WIDE, 150, seed=1, step=5, index=0)
    slices = [range(150), range(1), range(7, 9), range(60, 150), range(1, 150, 8), range(149, -1, -2)]
    for places in slices:
        part = draw_masks(mask, WIDE, places, seed=1, step=5, index=0)
        assert all((a == b[list(places)]).all() for a, b in zip(part, whole, strict=True))
    assert draw_masks(mask, WIDE, range(0), seed=1, step=5, index=0)[0].shape == (0, mask.visible_tokens)


@pytest.mark.parametrize("mask", [SHORT, TUBE])
def test_masks_of_other_seeds_steps_places_and_clips_have_nothing_in_common(mask: MaskSpec) -> None:
    """Tokens that two masks share, on average, against draws from far apart."""
    address = {"seed": 1, "step": 5, "index": 0}

    def shown(**change: int) -> np.ndarray:
        visible, _ = draw_masks(mask, WIDE, 2000, **{**address, **change})
        bits = np.zeros((2000, 1568), dtype=bool)
        np.put_along_axis(bits, visible, True, axis=1)
        return bits

    first = shown()
    others = [shown(seed=2), shown(step=6), shown(index=1), shown(seed=1 + (1 << 31)), np.roll(first, 1, 0)]
    share = first.mean(axis=0)
    expected = float((share * share).sum())
    spread = [(first & shown(seed=99)).sum(axis=1).std() / 2000**0.5]
    for other in others:
        common = (first & other).sum(axis=1)
        assert common.max() < mask.visible_tokens
        assert abs(common.mean() - expected) < 5 * spread[0]


@pytest.mark.parametrize(
    ("mask", "digest", "first"),
    [
        (SHORT, "9ae1d2c37e3538f6", [0, 1, 2, 3, 5, 11]),
        (LONG, "8fafd3bd5e5c737b", [0, 3, 5, 6, 9, 11]),
        (CAUSAL, "d777e2d75074e028", [0, 1, 2, 3, 5, 11]),
        (TUBE, "e49bcf69d0993436", [3, 20, 23, 24, 38, 55]),
    ],
)
def test_masks_are_the_same_on_every_machine(mask: MaskSpec, digest: str, first: list[int]) -> None:
    """When these change, so do the numbers of every run: raise `NUMERICS` in salt/specs.py."""
    visible, target = draw_masks(mask, WIDE, range(40, 44), seed=7, step=3, index=1)
    assert visible[0, :6].tolist() == first
    drawn = visible.astype("<i8").tobytes() + target.astype("<i8").tobytes()
    assert hashlib.sha256(drawn).hexdigest()[:16] == digest


def test_hashed_numbers() -> None:
    """splitmix64 as published (its first numbers for the seeds 0 and 1234567), and orders without ties."""
    first = hash64(np.uint64(0), np.arange(3, dtype=np.uint64))
    assert first.tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    seeds = np.array([0, 1234567], dtype=np.uint64)
    assert hash64(seeds, np.uint64(0)).tolist() == [0xE220A8397B1DCDAF, 6457827717110365317]
    keys = hash64(np.uint64(stream_key(0, "test")), np.arange(20_000, dtype=np.uint64))
    order = distinct31(keys, 12)
    assert order.max() < 1 << 31
    assert (np.diff(np.sort(order, axis=1), axis=1) > 0).all()
    ranks = order.argsort(axis=1).argsort(axis=1)
    places = np.array([np.bincount(column, minlength=12) for column in ranks.T])
    surprise = ((places - 20_000 / 12) ** 2 / (20_000 / 12)).sum()  # chi-squared, 11 x 11 degrees of freedom
    assert 121 - 4 * 242**0.5 < surprise < 121 + 4 * 242**0.5
    pairs = np.corrcoef(order.astype(float).T)[np.triu_indices(12, 1)]
    assert np.abs(pairs).max() < 4.5 / 20_000**0.5
    assert stream_key(1, "test", 23) != stream_key(1, "test", 2, 3) != stream_key(12, "test", 3)


@pytest.mark.parametrize(("mask", "kept", "predicted"), [(SHORT, 0.227, 0.48), (LONG, 0.064, 0.70)])
def test_groups_are_cut_as_by_the_published_sampler(mask: MaskSpec, kept: float, predicted: float) -> None:
    """Shares of tokens at 24 clips a group, simulated before (0.227 and 0.064) and by `published_counts`."""
    drawn = [draw_group(cut(mask), WIDE, group, seed=0, step=0, index=0) for group in range(600)]
    visible, target = (np.mean([part[which].shape[1] for part in drawn]) for which in (0, 1))
    assert visible / 1568 == pytest.approx(kept, abs=0.01)
    assert target / 1568 == pytest.approx(predicted, abs=0.01)
    counted = published_counts(mask.blocks, mask.scale, 0.75, 1.5, WIDE)
    assert (visible, target) == pytest.approx(counted, rel=0.03)
    found = mask_statistics(cut(mask), WIDE, seed=0, index=0)
    assert found.draws == 1008
    assert found.visible_by_time[0] > 10 * found.visible_by_time[-1]  # late time steps are eaten
    assert found.visible_min < found.visible_mean < found.visible_max


@pytest.mark.parametrize("mask", [SHORT, LONG, CAUSAL])
def test_a_group_keeps_the_beginning_of_every_list(mask: MaskSpec) -> None:
    """Whole lists, rebuilt from the first time step, cut to the shortest."""
    context = mask.context_frames or 8
    sizes = set()
    for group in range(20):
        visible, target = draw_group(cut(mask, 6), WIDE, group, seed=4, step=1, index=1)
        lists = []
        for row in target:
            blocks = np.bincount(row[row < 196], minlength=196)
            whole = np.stack([blocks] * context + [np.ones(196, dtype=int)] * (8 - context)).ravel() > 0
            lists.append((np.flatnonzero(~whole), np.flatnonzero(whole)))
        assert visible.shape == (6, min(len(v) for v, _ in lists))
        assert target.shape == (6, min(len(t) for _, t in lists))
        for v, t, (all_v, all_t) in zip(visible, target, lists, strict=True):
            assert (v == all_v[: len(v)]).all()
            assert (t == all_t[: len(t)]).all()
        sizes.add(visible.shape)
    assert len(sizes) > 5  # the counts are the group's own


def test_a_group_has_one_block_size() -> None:
    """One block a mask: a rectangle as large in all clips, of a shape that differs between groups."""
    shapes = set()
    for group in range(40):
        mask = cut(mask_of(blocks=1, scale=0.2), 3)
        _, target = draw_group(mask, (1, 14, 14), group, seed=0, step=0, index=0)
        y, x = np.divmod(target, 14)
        tall, wide = np.ptp(y, axis=1) + 1, np.ptp(x, axis=1) + 1
        assert (tall * wide == target.shape[1]).all()
        assert len(set(tall)) == len(set(wide)) == 1
        shapes.add((int(tall[0]), int(wide[0])))
    # round(sqrt(39 * aspect)) x round(sqrt(39 / aspect)) for aspects of 0.75 to 1.5
    assert shapes <= {(5, 7), (6, 7), (6, 6), (7, 6), (7, 5), (8, 5)}
    assert len(shapes) >= 4


def test_published_counts_of_causal_masks() -> None:
    """Half of the time steps leave half of the visible tokens; all others are predicted."""
    assert published_counts(8, 0.15, 0.75, 1.5, WIDE) == (366, 749)
    assert published_counts(2, 0.7, 0.75, 1.5, WIDE) == (100, 1102)
    visible, target = published_counts(8, 0.15, 0.75, 1.5, WIDE, context_frames=4)
    assert visible == 183
    assert target == pytest.approx(749 / 2 + 784, abs=1)


def test_statistics_are_those_of_the_run() -> None:
    grid, mask = MINIATURE
    found = mask_statistics(mask, grid, seed=5, index=1, step=2, draws=200)
    visible, _ = draw_masks(mask, grid, 200, seed=5, step=2, index=1)
    assert found.visible_min == found.visible_mean == found.visible_max == 8 / 64
    assert found.target_mean == 32 / 64
    assert found.visible_by_time == pytest.approx([(visible // 16 == t).sum() / 200 / 16 for t in range(4)])
    assert found.ever_visible == len(np.unique(visible)) / 64
    assert (found.draws, found.tokens, found.ever_target) == (200, 64, 1.0)
    # Two blocks of 0.7 always cover the centre; together with the short-range mask every token is seen.
    assert mask_statistics(LONG, WIDE, seed=0, index=0).ever_visible < 0.9
    assert mask_statistics(SHORT, WIDE, seed=0, index=0).ever_visible == 1


@pytest.mark.parametrize(
    ("grid", "mask", "words"),
    [
        ((1, 2, 2), ALL_COVERED, "leave 0 to 0 visible and 4 to 4 target tokens on the 1x2x2 grid"),
        ((1, 2, 2), cut(ALL_COVERED), "a visible token is left"),
        ((4, 4, 4), mask_of(40, 32), "do not fit"),
        ((4, 4, 4), mask_of(60, 4, blocks=2, scale=0.7), "0.0%"),
        ((4, 4, 4), mask_of(aspect_min=2.0, aspect_max=1.0), "above"),
        # Of blocks of 14 cells, those of 4 x 4 leave nothing: a group with that size would never end.
        ((1, 4, 4), cut(mask_of(blocks=1, scale=0.9)), "worst block size, in only 0.0%"),
        ((4, 4, 4), mask_of(kind="causal"), "context_frames is None"),
        ((4, 4, 4), mask_of(kind="causal", context_frames=4), "the first 1 to 3 of the 4"),
        ((1, 4, 4), mask_of(kind="causal", context_frames=1), "single time step"),
        ((4, 4, 4), mask_of(context_frames=2), "no meaning for kind blocks"),
        ((4, 4, 4), mask_of(17, 9, kind="causal", context_frames=1), "the 16 of the first 1 time steps"),
        ((4, 4, 4), mask_of(16, 9, kind="causal", context_frames=1), "and 1 context frames leave"),
        ((4, 4, 4), mask_of(blocks=10**9, scale=0.01), "1000 at most"),
        ((4, 4, 4), mask_of(6, 8, kind="tube"), "as 4 or 8"),
        ((4, 4, 4), cut(mask_of(4, 8, kind="tube")), "equal counts"),
    ],
)
def test_impossible_masks_are_refused_in_under_a_second(
    grid: tuple[int, int, int], mask: MaskSpec, words: str
) -> None:
    began = time.perf_counter()
    fine = mask_of(grid[0], grid[0], kind="tube")
    problems = check_masks((fine, mask), grid)
    assert time.perf_counter() - began < 1
    assert len(problems) == 1
    assert words in problems[0]
    assert "masks[1]" in problems[0]


def test_groups_fill_the_batch() -> None:
    assert check_masks((cut(SHORT), LONG), WIDE, 48) == []
    [problem] = check_masks((cut(SHORT), LONG), WIDE, 50)
    assert "masks[0]: keep_clips 24 does not divide optim.batch_clips 50" in problem


def test_drawing_an_impossible_mask_ends() -> None:
    mask = mask_of(60, 4, blocks=2, scale=0.7)
    with pytest.raises(UserError, match=r"masks\[0\].*visible.*4x4x4 grid"):
        draw_masks(mask, (4, 4, 4), 4, seed=0, step=0, index=0)
    with pytest.raises(UserError, match=r"masks\[2\].*1x2x2 grid"):
        draw_group(cut(ALL_COVERED), (1, 2, 2), 0, seed=0, step=0, index=2)


def test_each_way_of_keeping_has_its_function() -> None:
    with pytest.raises(ValueError, match="draw_group"):
        draw_masks(cut(SHORT), WIDE, 24, seed=0, step=0, index=0)
    with pytest.raises(ValueError, match="draw_masks"):
        draw_group(SHORT, WIDE, 0, seed=0, step=0, index=0)
    assert acceptance(TUBE, WIDE) == 1
