"""Our encoder and predictor against Hugging Face's `VJEPA2Model` with the same weights, and maps of weights.

Their model is written apart from ours: a convolution embeds patches, angles are computed in every layer, the
predictor sorts its tokens. It knows no encoder of visible tokens only, so that test drives its layers.
"""

import pytest
import torch
from msgspec.structs import replace
from transformers import VJEPA2Config, VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import apply_masks

from salt.batches import to_patches
from salt.hf_weights import (
    HfConfig,
    config_of,
    encoder_from_hf,
    encoder_to_hf,
    hf_shapes,
    model_spec,
    predictor_from_hf,
    predictor_to_hf,
)
from salt.positions import rotary_table, rotate
from salt.predictor import Predictor
from salt.sizes import SIZES, grid, patch_values
from salt.specs import ClipSpec, ModelSpec, PositionSpec, VitSpec
from salt.tensor_names import shapes
from salt.vit import Encoder

TILED = PositionSpec(rope_frequencies="tiled")
#: Width, depth, heads, MLP: head widths 16, 32, 64, 88 (of ViT-g, whose MLP is 48 / 11 as wide).
VITS = {
    "16": VitSpec(width=48, depth=3, heads=3, mlp_width=192),
    "32": VitSpec(width=64, depth=2, heads=2, mlp_width=256),
    "64": replace(SIZES["vit_b"], depth=2),
    "88": VitSpec(width=176, depth=2, heads=2, mlp_width=768),
}
#: Frames, side and patch in pixels: grids of 2 x 2 x 2, 4 x 6 x 6 and 5 x 3 x 3.
CLIPS = {"2x2x2": (4, 32, 16), "4x6x6": (8, 48, 8), "5x3x3": (10, 48, 16)}


def specs(vit: str, clip: str, predictor: str = "32") -> tuple[ModelSpec, ClipSpec]:
    frames, px, patch = CLIPS[clip]
    model = ModelSpec(encoder=VITS[vit], predictor=VITS[predictor], patch_px=patch, position=TILED)
    return model, ClipSpec(frames=frames, crop_px=px, store_px=px)


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    """Every weight at random, biases, norms and mask tokens too, so that none may be forgotten."""
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.normal_(std=0.3 if weight.ndim == 1 else 0.05, generator=random)
            if "norm" in name and name.endswith("weight"):
                weight.add_(1)
    return module.eval()


def pair(model: ModelSpec, clip: ClipSpec, mask_tokens: int = 1) -> tuple[Encoder, Predictor, VJEPA2Model]:
    """Our modules and their model, with the same weights."""
    encoder = shaken(Encoder(model.encoder, model, grid(model, clip), patch_values(model, clip)))
    predictor = shaken(
        Predictor(
            model.predictor,
            grid(model, clip),
            model.position,
            input_width=model.encoder.width,
            output_width=model.encoder.width,
            mask_tokens=mask_tokens,
        )
    )
    assert isinstance(encoder, Encoder)
    assert isinstance(predictor, Predictor)
    theirs = VJEPA2Model(VJEPA2Config(**config_of(model, clip, mask_tokens))).eval()
    weights = encoder_to_hf(encoder.state_dict(), model, clip.channels)
    weights |= predictor_to_hf(predictor.state_dict(), model)
    theirs.load_state_dict(weights, strict=True)
    return encoder, predictor, theirs


def videos(model: ModelSpec, clip: ClipSpec, clips: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """The same random clips as our patches and as their [B, T, C, H, W]."""
    shape = (clips, clip.frames, clip.crop_px, clip.crop_px, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    frames = (pixels.float() / 255 - clip.mean) / clip.std
    return to_patches(pixels, clip, model), frames.permute(0, 1, 4, 2, 3)


def masks(tokens: int, clips: int, visible: int, target: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    order = torch.stack([torch.randperm(tokens, generator=random) for _ in range(clips)])
    return order[:, :visible], order[:, visible : visible + target]


def assert_close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert theirs.abs().mean() > 0.1, "outputs are to be of order one for the bound to mean something"
    assert (ours - theirs).abs().max() <= 1e-5


@torch.no_grad()
@pytest.mark.parametrize("clip_name", CLIPS)
@pytest.mark.parametrize("vit", VITS)
def test_encoder_and_predictor_equal_those_of_transformers(vit: str, clip_name: str) -> None:
    model, clip = specs(vit, clip_name, predictor="16" if vit == "64" else "32")
    encoder, predictor, theirs = pair(model, clip, mask_tokens=3)
    patches, frames = videos(model, clip)
    ours = encoder(patches)
    assert_close(ours, theirs(frames, skip_predictor=True).last_hidden_state)

    tokens = ours.shape[1]
    for seed, (visible, target) in enumerate([(tokens // 4, tokens // 2), (tokens // 2, 2), (1, tokens - 1)]):
        seen, wanted = masks(tokens, len(patches), visible, target, seed)
        # Visible tokens only: their layers on the tokens that are left after embedding, at their places.
        x = apply_masks(theirs.encoder.embeddings(frames), [seen])
        for layer in theirs.encoder.layer:
            x, _ = layer(x, seen)
        latents = encoder.forward_visible(patches, [seen])
        assert_close(latents[0], theirs.encoder.layernorm(x))

        # Their predictor always takes mask token 1 (modulo their number), one mask a call.
        expected = theirs(frames, context_mask=[seen], target_mask=[wanted]).predictor_output
        first = torch.ones(len(seen), dtype=torch.int64)
        context = [torch.stack([row[places] for row, places in zip(ours, seen, strict=True)])]
        predicted = predictor(context, [seen], [wanted], [first])
        assert_close(predicted[0], expected.last_hidden_state)


@torch.no_grad()
def test_two_masks_of_a_clip_equal_two_calls_of_their_predictor() -> None:
    model, clip = specs("32", "4x6x6")
    _, predictor, theirs = pair(model, clip)
    latents = torch.randn(2, 144, 64, generator=torch.Generator().manual_seed(1))
    two = [masks(144, 2, 30, 60, seed=5), masks(144, 2, 30, 60, seed=6)]
    seen, wanted = (torch.cat([mask[side] for mask in two]) for side in (0, 1))
    context = torch.stack([latents[row % 2][places] for row, places in enumerate(seen)])
    ours = predictor([context], [seen], [wanted])[0]
    expected = [theirs.predictor(latents, [mask[0]], [mask[1]]).last_hidden_state for mask in two]
    assert_close(ours, torch.cat(expected))


@torch.no_grad()
def test_interleaved_frequencies_are_not_theirs() -> None:
    """What the tiled option is for: with the other one the same weights give other tokens."""
    model, clip = specs("64", "2x2x2")
    _, _, theirs = pair(model, clip)
    plain = replace(model, position=PositionSpec())
    encoder = shaken(Encoder(plain.encoder, plain, grid(plain, clip), patch_values(plain, clip)))
    patches, frames = videos(model, clip)
    assert (encoder(patches) - theirs(frames, skip_predictor=True).last_hidden_state).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["interleaved", "tiled"])
@pytest.mark.parametrize("head_width", [6, 16, 64, 88])
def test_rotation_by_its_definition(kind: str, head_width: int) -> None:
    """One number at a time: x cos - partner sin, in a pair's second x cos + partner sin."""
    position = PositionSpec(rope_base=100.0, rope_frequencies=kind)
    table = rotary_table((2, 3, 4), head_width, position)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, 24, 2, 2, head_width, generator=random, dtype=torch.float64)
    turned = rotate(x.float(), table[None, :, None, None]).double()
    axis_width, count = 2 * (head_width // 6), head_width // 6
    for token in (0, 5, 23):
        place = (token // 12, token // 4 % 3, token % 4)
        for number in range(head_width):
            axis, inside = divmod(number, axis_width)
            which = inside // 2 if kind == "interleaved" else inside % count
            angle = place[axis] * 100.0 ** -(which / count) if axis < 3 else 0.0
            cosine, sine = torch.tensor(angle).cos(), torch.tensor(angle).sin()
            partner = (
                x[..., token, :, :, number + 1] * -1 if number % 2 == 0 else x[..., token, :, :, number - 1]
            )
            expected = x[..., token, :, :, number] * cosine + partner * sine
            assert (turned[..., token, :, :, number] - expected).abs().max() < 2e-6


@pytest.mark.parametrize("kind", ["interleaved", "tiled"])
def test_the_compiler_s_real_products_are_the_eager_ones(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    table = rotary_table((2, 3, 4), 40, PositionSpec(rope_frequencies=kind))[None, :, None, None]
    random = torch.Generator().manual_seed(0)
    eager = torch.randn(2, 24, 2, 3, 40, generator=random).requires_grad_()
    fused = eager.detach().clone().requires_grad_()
    half = eager.detach().bfloat16()
    weights = torch.randn(2, 24, 2, 3, 40, generator=random)
    one, one_half = rotate(eager, table), rotate(half, table)
    (one * weights).sum().backward()
    with monkeypatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        other, other_half = rotate(fused, table), rotate(half, table)
    (other * weights).sum().backward()
    torch.testing.assert_close(other, one, atol=1e-6, rtol=0)
    torch.testing.assert_close(fused.grad, eager.grad, atol=1e-6, rtol=0)
    assert one_half.dtype == other_half.dtype == torch.bfloat16
    assert torch.equal(one_half, rotate(half.float(), table).bfloat16())
    torch.testing.assert_close(other_half, one_half)


@pytest.mark.parametrize("mask_tokens", [1, 10])
def test_weights_go_there_and_back_bit_for_bit(mask_tokens: int) -> None:
    model, clip = specs("88", "5x3x3")
    encoder, predictor, theirs = pair(model, clip, mask_tokens)
    state = theirs.state_dict()
    back = encoder_from_hf(state, model), predictor_from_hf(state, model)
    for ours, returned in zip((encoder.state_dict(), predictor.state_dict()), back, strict=True):
        assert ours.keys() == returned.keys()
        assert all(torch.equal(ours[name], returned[name]) for name in ours)
    again = encoder_to_hf(back[0], model, 3) | predictor_to_hf(back[1], model)
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)


@pytest.mark.parametrize("size", SIZES)
def test_every_named_size_has_a_configuration_that_means_it(size: str) -> None:
    """Names and shapes that we ask for are those that transformers builds; MLP ratios come out exactly."""
    model = ModelSpec(encoder=SIZES[size], predictor=VITS["88"], position=TILED, mask_token="per_mask")
    fields = config_of(model, ClipSpec(), 10)
    with torch.device("meta"):
        theirs = VJEPA2Model(VJEPA2Config(**fields))
    config = HfConfig(**{name: fields[name] for name in HfConfig.__struct_fields__})
    assert hf_shapes(config, predictor=True) == shapes(theirs.state_dict())
    assert model_spec(config) == model


def test_defaults_of_a_configuration_are_those_of_transformers() -> None:
    theirs, ours = VJEPA2Config(), HfConfig(model_type="vjepa2")
    for name in HfConfig.__struct_fields__:
        assert getattr(ours, name) == getattr(theirs, name), name
