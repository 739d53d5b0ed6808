"""Which clips, in which order, and which part of them."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from salt.augment import TRIES, Box, crop, resized_box, step_chances, view_chances
from salt.batches import Batches, to_patches
from salt.errors import UserError
from salt.lists import VideoList
from salt.mixture import BLOCK, Order
from salt.randomness import generator
from salt.seen import seen
from salt.specs import ClipSpec, DataSpec
from tests.batch_kit import mixed, one_list, run, stored

CLIP = ClipSpec(frames=4, store_px=32, crop_px=24, channels=1)
RESIZED = ClipSpec(
    frames=2, store_px=32, crop_px=24, channels=3, crop="random_resized", crop_scale_min=0.2, flip=True
)


def test_one_list_is_a_fresh_permutation_each_epoch() -> None:
    order = Order(one_list(10), [10], seed=5)
    drawn = order.draw(range(30))
    for epoch in range(3):
        mine = drawn.indices[10 * epoch : 10 * epoch + 10]
        assert mine.tolist() == generator(5, "order", epoch).permutation(10).tolist()
        assert sorted(mine) == list(range(10))
    assert drawn.epochs.tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert drawn.indices[:10].tolist() == [9, 8, 5, 4, 7, 1, 3, 0, 6, 2]  # golden
    assert Order(one_list(10), [10], seed=5).draw(range(17, 23)).indices.tolist() == (
        drawn.indices[17:23].tolist()
    )


def test_a_mixture_draws_by_weight_and_each_list_by_epochs() -> None:
    sizes, weights = [7, 50, 1200], [0.056, 0.188, 0.756]
    data = mixed(sizes, weights)
    drawn = Order(data, sizes, seed=3).draw(range(9 * BLOCK + 100))
    parts = np.searchsorted([0, 7, 57], drawn.indices, side="right") - 1
    for block in range(10):  # at a block's border a list is within one draw of its weight
        counts = np.bincount(parts[: block * BLOCK], minlength=3)
        assert np.abs(counts - np.array(weights) * block * BLOCK).max() <= 1
    for part, (size, offset) in enumerate(zip(sizes, [0, 7, 57], strict=True)):
        mine = drawn.indices[parts == part] - offset
        assert (drawn.epochs[parts == part] == np.arange(len(mine)) // size).all()
        whole = mine[: len(mine) // size * size].reshape(-1, size)
        assert (np.sort(whole, axis=1) == np.arange(size)).all()  # every clip once an epoch
        assert len(whole) < 2 or (whole[0] != whole[1]).any()
    assert np.bincount(parts[:64], minlength=3).tolist() == [4, 9, 51]  # mixed within blocks; golden


def test_any_place_of_a_mixture_can_be_asked_for() -> None:
    data = mixed([7, 50, 1200], [1.0, 3.0, 12.0])
    whole = Order(data, [7, 50, 1200], seed=3).draw(range(4 * BLOCK))
    parts = np.searchsorted([0, 7, 57], whole.indices, side="right") - 1
    asked = random.Random(0)
    for _ in range(20):
        start, stop = sorted(asked.sample(range(4 * BLOCK), 2))
        fresh = Order(data, [7, 50, 1200], seed=3)
        some = fresh.draw(range(start, stop))
        assert (some.indices == whole.indices[start:stop]).all()
        assert (some.epochs == whole.epochs[start:stop]).all()
        assert fresh.drawn_before(start) == tuple(np.bincount(parts[:start], minlength=3))
    far = Order(data, [7, 50, 1200], seed=3)
    assert far.drawn_before(16 * 10**12) == (10**12, 3 * 10**12, 12 * 10**12)
    assert len(far.draw(range(10**12, 10**12 + 5)).indices) == 5


def test_weights_too_small_to_draw_by_are_refused() -> None:
    Order(mixed([5, 5], [1.0, BLOCK - 1.0]), [5, 5], seed=0).draw(range(3 * BLOCK))
    with pytest.raises(UserError, match="'list 0' has the share 0.00089 of 'mixed'; at least 1/1024"):
        Order(mixed([5, 5], [1.0, BLOCK + 100.0]), [5, 5], seed=0)


def _brute(spec_data: DataSpec, sizes: list[int], first: int, drawn: int) -> list[tuple[int, int, int]]:
    """Draws, different clips and most repeats of each list, by looking at every draw."""
    indices = Order(spec_data, sizes, seed=5).draw(range(first, first + drawn)).indices
    found, offset = [], 0
    for size in sizes:
        counts = Counter(indices[(indices >= offset) & (indices < offset + size)].tolist())
        found.append((sum(counts.values()), len(counts), max(counts.values(), default=0)))
        offset += size
    return found


@pytest.mark.parametrize("weights", [[1.0], [1.0, 4.0], [5.0, 1.0, 1.0]])
def test_what_was_seen_is_counted_right_for_any_stretch(weights: list[float]) -> None:
    files = [6, 11, 40][: len(weights)]
    data = mixed(files, weights) if len(weights) > 1 else one_list(6)
    spec = run(ClipSpec(clips_per_file=2), data, batch=4)
    asked = random.Random(1)
    for _ in range(60):
        first, drawn = asked.randrange(200), asked.randrange(90)
        found = seen(spec, first, drawn)
        each = [(part.clips_seen, part.unique_clips, part.max_repeats) for part in found.lists]
        assert each == _brute(data, [2 * count for count in files], first, drawn), (first, drawn)
        assert found.unique_clips == sum(unique for _, unique, _ in each)
        assert found.epochs == pytest.approx(drawn / (2 * sum(files)))
    fewer = seen(spec, 5, 64, sizes=[3] * len(files)).lists  # files that gave no clip are not counted
    assert [part.unique_clips for part in fewer] == [3] * len(files)


def test_shifts_are_the_slices_they_always_were() -> None:
    clips = stored(CLIP, 10)
    batches = Batches(run(CLIP, one_list(10), batch=6), {"one": clips})
    for step in (0, 3):
        corners = generator(5, "crop", step).integers(0, 9, (6, 2))
        order = np.concatenate([generator(5, "order", epoch).permutation(10) for epoch in range(3)])
        for row, index in enumerate(order[6 * step : 6 * step + 6]):
            top, left = corners[row]
            wanted = clips.frames[index, :, top : top + 24, left : left + 24]
            assert np.array_equal(batches.crops(step)[row].numpy(), wanted)


@pytest.mark.parametrize("clip", [CLIP, RESIZED])
def test_a_part_of_a_batch_is_that_part_of_the_whole(clip: ClipSpec) -> None:
    data = mixed([5, 9], [1.0, 2.0])
    sources = {"print 0": stored(clip, 5), "print 1": stored(clip, 9, seed=1)}
    whole = Batches(run(clip, data, batch=8), sources)
    for step in (7, 2):
        parts = [
            Batches(run(clip, data, batch=8), sources).crops(step, range(start, start + 2))
            for start in (0, 2, 4, 6)
        ]
        assert torch.equal(torch.cat(parts), whole.crops(step))
    kinds = whole.labels("kind")
    assert [kinds[index] for index in (0, 4, 5, 13)] == ["0-0", "0-1", "1-0", "1-2"]
    with pytest.raises(UserError, match=r"no label column 'age' in the list 'list 0'; it has kind"):
        whole.labels("age")
    with pytest.raises(ValueError, match="not neighbours within a batch of 8"):
        whole.crops(0, range(7, 9))


def test_half_of_all_clips_are_mirrored() -> None:
    plain = ClipSpec(frames=2, store_px=32, crop_px=24, channels=3)
    flipped = ClipSpec(frames=2, store_px=32, crop_px=24, channels=3, flip=True)
    clips = {"one": stored(plain, 40)}
    straight = Batches(run(plain, one_list(40), batch=400), clips).crops(1)
    mirrored = Batches(run(flipped, one_list(40), batch=400), clips).crops(1)
    turned = [torch.equal(a, b.flip(2)) for a, b in zip(straight, mirrored, strict=True)]
    same = [torch.equal(a, b) for a, b in zip(straight, mirrored, strict=True)]
    assert all(a != b for a, b in zip(turned, same, strict=True))
    assert abs(sum(turned) - 200) < 4 * math.sqrt(400 / 4)


def _slow_box(numbers: list[list[float]], height: int, width: int, clip: ClipSpec) -> Box:
    """RandomResizedCrop as its documentation tells it."""
    for area, aspect, top, left in numbers:
        target = height * width * (clip.crop_scale_min * (1 - area) + clip.crop_scale_max * area)
        ratio = clip.crop_aspect_min ** (1 - aspect) * clip.crop_aspect_max**aspect
        w, h = round((target * ratio) ** 0.5), round((target / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return Box(math.floor(top * (height - h + 1)), math.floor(left * (width - w + 1)), h, w)
    if width / height < clip.crop_aspect_min:
        w, h = width, round(width / clip.crop_aspect_min)
    elif width / height > clip.crop_aspect_max:
        w, h = round(height * clip.crop_aspect_max), height
    else:
        w, h = width, height
    return Box((height - h) // 2, (width - w) // 2, h, w)


def test_resized_boxes_are_those_of_the_slow_loop() -> None:
    clip = ClipSpec(crop="random_resized", crop_scale_min=0.3)
    tries = step_chances(2, 9, range(3000), clip, 3000).tries
    shares, ratios, fell_back = [], [], 0
    for height, width in ((256, 340), (64, 64), (40, 400)):
        for row in range(3000):
            box = resized_box(tries[row], height, width, clip)
            assert box == _slow_box(tries[row].tolist(), height, width, clip)
            assert box.top >= 0
            assert box.left >= 0
            assert box.top + box.height <= height
            assert box.left + box.width <= width
            fell_back += box == Box(0, 173, 40, 54)
            if width == 340:
                shares.append(box.height * box.width / (height * width))
                ratios.append(box.width / box.height)
    assert min(shares) > 0.298
    assert max(shares) <= 1.0
    assert min(ratios) > 0.74
    assert max(ratios) < 1.37
    assert fell_back == 3000  # no box of 30 % of a ribbon fits into it: the middle of it
    assert abs(np.mean(tries[..., 0]) - 0.5) < 0.01


def _slow_resize(picture: NDArray[np.uint8], side: int) -> NDArray[np.float64]:
    """Bilinear, antialiased: each new pixel is a mean of old ones under a triangle, in real numbers."""

    def weights(length: int) -> NDArray[np.float64]:
        scale = length / side
        centres = (np.arange(side) + 0.5) * scale
        distance = (np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1.0)
        triangle = np.clip(1 - np.abs(distance), 0, None)
        return triangle / triangle.sum(axis=1, keepdims=True)

    rows, columns = weights(picture.shape[0]), weights(picture.shape[1])
    return np.einsum("yh,xw,hwc->yxc", rows, columns, picture.astype(np.float64))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_resized_crop_shows_its_box_in_every_frame(channels: int) -> None:
    clip = ClipSpec(frames=3, crop_px=24, channels=channels, crop="random_resized", flip=True)
    y, x = np.mgrid[0:60, 0:90]
    frames = np.stack([np.stack([2 * x, 3 * y, x + y + 20 * t], -1) for t in range(3)]).astype(np.uint8)
    tries = step_chances(0, 0, range(8), clip, 8).tries
    for row in range(8):
        mirror = row % 2
        view = crop(frames, clip, tries[row], float(mirror)).numpy()
        box = resized_box(tries[row], 60, 90, clip)
        for time in range(3):
            part = frames[time, box.top : box.top + box.height, box.left : box.left + box.width]
            wanted = _slow_resize(part, 24)
            wanted = wanted if channels == 3 else wanted @ np.array([[0.299], [0.587], [0.114]])
            wanted = wanted if mirror else wanted[:, ::-1]
            assert view[time].shape == (24, 24, channels)
            assert np.abs(view[time] - wanted).max() <= 1.51  # two roundings of rows and columns, one of luma


def test_a_shift_of_whole_frames_scales_the_short_side_first() -> None:
    clip = ClipSpec(source="streamed", frames=1, store_px=32, crop_px=24, channels=3)
    frames = np.broadcast_to(np.arange(128, dtype=np.uint8)[None, None, :, None], (1, 64, 128, 3)).copy()
    tries = np.zeros((TRIES, 4))
    tries[0, 2:] = 0.999
    view = crop(frames, clip, tries, 1.0).numpy()
    assert view.shape == (1, 24, 24, 3)
    # 64 x 128 becomes 32 x 64, whose last 24 columns are the old ones from 80 on, two by two.
    assert np.abs(view[0, 0, :-1, 0] - (80.5 + 2 * np.arange(23))).max() <= 1


def test_cached_views_come_in_turn_and_are_the_same_in_every_run() -> None:
    clips = {"one": stored(RESIZED, 6)}
    first = Batches(run(RESIZED, one_list(6), batch=4, seed=1, cached_views=3), clips)
    other = Batches(run(RESIZED, one_list(6), batch=4, seed=2, cached_views=3), clips)
    for step in range(12):
        epochs = np.arange(4 * step, 4 * step + 4) // 6
        assert first.views(step).tolist() == (epochs % 3).tolist()
        crops = first.crops(step)
        for row, (index, view) in enumerate(zip(first.indices(step), first.views(step), strict=True)):
            assert torch.equal(crops[row], other.view_crops(np.array([index]), int(view))[0])
    different = {other.view_crops(np.array([2]), view).numpy().tobytes() for view in range(3)}
    assert len(different) == 3
    with pytest.raises(ValueError, match="no cached views"):
        Batches(run(RESIZED, one_list(6), batch=4), clips).views(0)


def test_numbers_of_clips_and_steps_are_uniform_and_unlike() -> None:
    numbers = np.stack([step_chances(0, step, range(200), RESIZED, 200).start for step in range(50)])
    assert len(np.unique(numbers)) == numbers.size
    histogram = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert ((histogram - 500) ** 2 / 500).sum() < 43.8  # chi-squared, 19 degrees, 1 in 1000
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.04
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.04
    views = view_chances(np.arange(5), np.array([0, 0, 1, 1, 2]))
    assert len(np.unique(views.tries)) == views.tries.size
    alone = view_chances(np.array([3]), np.array([1]))
    assert (alone.tries[0] == views.tries[3]).all()


def test_streamed_lists_have_several_clips_a_file() -> None:
    files = tuple(Path(f"{name}.mp4") for name in "abc")
    videos = VideoList(
        path=Path("list.csv"),
        files=files,
        rows=tuple(map(str, files)),
        columns={"kind": ("x", "y", "z")},
        line_numbers=(2, 3, 4),
        sizes_bytes=(1, 1, 1),
    )
    clip = ClipSpec(source="streamed", clips_per_file=2)
    batches = Batches(run(clip, one_list(3), batch=6), {"one": videos})
    assert len(batches) == 6
    assert sorted(batches.indices(4)) == list(range(6))
    assert batches.labels("kind") == ("x", "x", "y", "y", "z", "z")
    assert [str(batches.file(index)) for index in (0, 1, 4, 5)] == ["a.mp4", "a.mp4", "c.mp4", "c.mp4"]
    assert [batches.replacement(3, tried) for tried in range(4)] == [3, 5, 1, 3]
    with pytest.raises(TypeError, match="each source must be Clips"):
        Batches(run(CLIP, one_list(3), batch=6), {"one": videos})


def test_patches_are_normalised_for_each_channel() -> None:
    crops = torch.randint(0, 256, (2, 4, 24, 24, 3), dtype=torch.uint8)
    model = run(RESIZED, one_list(1), 1).model
    means, stds = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    apart = to_patches(crops, ClipSpec(mean=means, std=stds), model)  # type: ignore[arg-type]
    wanted = (crops.double() / 255 - torch.tensor(means).double()) / torch.tensor(stds).double()
    cut = wanted[1, 2:4, 6:12, 18:24].reshape(-1)
    assert (apart[1, 16 + 4 + 3].double() - cut).abs().max() < 1e-5
    together = to_patches(crops, ClipSpec(mean=0.4, std=0.2), model)
    three = ClipSpec(mean=(0.4,) * 3, std=0.2)  # type: ignore[arg-type]
    assert torch.equal(together, to_patches(crops, three, model))
