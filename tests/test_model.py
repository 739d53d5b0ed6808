"""The transformer, its positions and its targets, against independent arithmetic."""

import math

import numpy as np
import pytest
import torch

from salt.batches import to_patches
from salt.learner import Learner, build_encoder
from salt.objectives import latent_targets, pixel_targets
from salt.optim import ema_momentum, learning_rate, weight_decay
from salt.positions import rotary_table, rotate
from salt.sizes import SIZES, check_model, grid
from salt.specs import ClipSpec, ObjectiveSpec, OptimSpec, PositionSpec
from salt.vit import take_tokens
from tests.examples import CLIP, model_spec, run_spec


def test_rotary_products_depend_on_differences_of_position_only() -> None:
    table = rotary_table((4, 4, 4), 16, PositionSpec(rope_base=100.0))  # [64, 8]
    q, k = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    place = torch.arange(64).view(4, 4, 4)

    def product(a: int, b: int) -> float:
        x = torch.stack([q, k])[None, None, :, None]  # [1, 1, 2, 1, 16]
        turned_q = rotate(x, table[a].view(1, 1, 1, 1, -1))[0, 0, 0, 0]
        turned_k = rotate(x, table[b].view(1, 1, 1, 1, -1))[0, 0, 1, 0]
        return float(turned_q @ turned_k)

    shift = (int(place[0, 1, 2]), int(place[2, 2, 0])), (int(place[1, 2, 3]), int(place[3, 3, 1]))
    assert product(*shift[0]) == pytest.approx(product(*shift[1]), abs=1e-5)
    for axis in range(3):
        moved = [0, 0, 0]
        moved[axis] = 1
        other = int(place[tuple(moved)])
        assert abs(product(0, other) - product(0, 0)) > 1e-4, f"axis {axis} does not turn"
    assert product(5, 5) == pytest.approx(float(q @ k), abs=1e-5)


def test_visible_tokens_alone_equal_the_whole_grid_when_all_are_visible() -> None:
    """Positions are looked up, not counted: any order of all tokens gives the same latents."""
    spec = run_spec("pixel")
    encoder = build_encoder(SIZES["micro"], spec.model, spec.clip, 0).eval()
    patches = torch.randn(3, 64, 72, generator=torch.Generator().manual_seed(1))
    order = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(s)) for s in range(3)])
    whole = encoder(patches)
    shuffled = encoder.forward_visible(patches, [order])[0]
    torch.testing.assert_close(shuffled, take_tokens(whole, order), atol=1e-5, rtol=1e-5)


def test_take_tokens_of_stacked_masks_equals_a_loop() -> None:
    x = torch.randn(4, 64, 5)
    index = torch.randint(0, 64, (8, 7))  # two masks a clip
    wanted = torch.stack([x[row % 4][index[row]] for row in range(8)])
    assert torch.equal(take_tokens(x, index), wanted)


def test_patches_are_the_pixels_they_name() -> None:
    crops = np.random.default_rng(0).integers(0, 256, (2, 8, 24, 24, 1), dtype=np.uint8)
    patches = to_patches(torch.from_numpy(crops), CLIP, model_spec("micro"))
    assert patches.shape == (2, 64, 72)
    t, y, x = 2, 1, 3
    cut = crops[1, 2 * t : 2 * t + 2, 6 * y : 6 * y + 6, 6 * x : 6 * x + 6, 0]
    expected = (cut.astype(np.float64) / 255 - CLIP.mean) / CLIP.std
    np.testing.assert_allclose(patches[1, (t * 4 + y) * 4 + x].numpy(), expected.ravel(), atol=1e-5)


@pytest.mark.parametrize("norm", ["patch_channel", "patch", "none"])
def test_pixel_targets(norm: str) -> None:
    patches = torch.randn(2, 3, 4 * 3, generator=torch.Generator().manual_seed(0)) * 5 + 2
    patches[0, 0] = 0.7  # one colour: no division by zero
    target = pixel_targets(patches, 3, norm)
    assert torch.isfinite(target).all()
    values = patches[1, 2].view(4, 3).double().numpy()
    axis = {"patch_channel": 0, "patch": None}.get(norm)
    if norm != "none":
        assert target[0, 0].abs().max() < 0.5  # rounding of the mean, over a deviation of 1e-6
        values = (values - values.mean(axis=axis)) / (values.std(axis=axis, ddof=1) + 1e-6)
    np.testing.assert_allclose(target[1, 2].view(4, 3).numpy(), values, atol=1e-5)


def test_latent_targets_have_zero_mean_and_unit_deviation() -> None:
    latents = torch.randn(2, 5, 48) * 3 + 1
    target = latent_targets(latents, layer_norm=True)
    torch.testing.assert_close(target.mean(dim=-1), torch.zeros(2, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(target.std(dim=-1, correction=0), torch.ones(2, 5), atol=1e-3, rtol=0)
    assert torch.equal(latent_targets(latents, layer_norm=False), latents)


def test_schedules() -> None:
    optim = OptimSpec(
        lr_start=1e-4, lr=1e-3, lr_end=1e-5, warmup_share=0.1, weight_decay_start=0.04, weight_decay_end=0.4
    )
    rates = [learning_rate(optim, step, 100) for step in range(100)]
    assert rates[9] == pytest.approx(1e-3)
    assert rates[0] == pytest.approx(1e-4 + 9e-5)
    assert rates[10] == pytest.approx(1e-3)
    assert rates[55] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[99] == pytest.approx(1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * 89 / 90)))
    assert all(a >= b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert weight_decay(optim, 0, 100) == pytest.approx(0.04)
    assert weight_decay(optim, 50, 100) == pytest.approx(0.22)
    objective = ObjectiveSpec(ema_start=0.9, ema_end=1.0)
    assert [ema_momentum(objective, s, 100) for s in (0, 50)] == pytest.approx([0.9, 0.95])


def test_a_student_does_not_start_at_its_teacher_s_weights() -> None:
    """Teacher and student share the cell's seed; equal sizes must still start apart."""
    teacher = Learner(run_spec("pixel", seed=4))
    student = Learner(run_spec("salt", teacher="micro", seed=4))
    ema = Learner(run_spec("vjepa", seed=4))
    assert not torch.equal(teacher.encoder.embed.weight, student.encoder.embed.weight)
    assert torch.equal(teacher.encoder.embed.weight, ema.encoder.embed.weight)  # arms pair by seed
    assert not any(parameter.requires_grad for parameter in ema.probed().parameters())


def test_models_that_cannot_be_built_say_why() -> None:
    model, clip = model_spec("micro"), CLIP
    assert check_model(model, clip, ()) == []
    assert grid(model, clip) == (4, 4, 4)
    from msgspec.structs import replace

    bad = replace(model, encoder=replace(model.encoder, heads=7), patch_px=7, tubelet_frames=3)
    problems = check_model(bad, ClipSpec(frames=8, crop_px=24, store_px=20), ())
    assert len(problems) == 4
    for words in ("7 heads", "crop_px 24", "frames 8", "store_px 20"):
        assert any(words in problem for problem in problems)
