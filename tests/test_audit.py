"""The closed form of FLOPs against two counters, part by part, and what a counter left alone gets wrong."""

import inspect
import math
from typing import Any, get_args

import msgspec
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import salt.flops
from salt.audit import (
    AUDIT_TOLERANCE,
    MATRIX_PRODUCTS,
    audit,
    audit_problems,
    count_encoder,
    multiply_adds,
)
from salt.flops import block_lines, cache_cost, clip_lines, embedding_flops, encode_flops, run_cost, step_cost
from salt.learner import Learner, build_encoder
from salt.sizes import SIZES, grid, patch_values
from salt.specs import (
    Arm,
    ClipSpec,
    DataSpec,
    ExecSpec,
    MaskSpec,
    ModelSpec,
    PositionSpec,
    RunSpec,
    TeacherRef,
    VitSpec,
)
from salt.vit import Block, Encoder
from tests.examples import MASK, run_spec

ARMS: tuple[Arm, ...] = ("pixel", "salt", "vjepa")
LAST = {
    "pixel": ["decoder"],
    "salt": ["predictor", "teacher_forward"],
    "vjepa": ["predictor", "teacher_forward"],
}
PUBLISHED = [name for name in SIZES if name.startswith("vit_")]
SHORT = MaskSpec(visible_tokens=256, target_tokens=1200)
LONG = MaskSpec(blocks=2, scale=0.7, visible_tokens=144, target_tokens=1408)
SMALL = MaskSpec(blocks=4, scale=0.4, visible_tokens=12, target_tokens=24)


def published(arm: Arm, size: str, masks: tuple[MaskSpec, ...] = (SHORT, LONG), teacher: str = "") -> RunSpec:
    """16 frames of 224 pixels, 1568 tokens, and the predictor of the paper (arXiv 2509.24317, table 4)."""
    reference = TeacherRef(run_id="0" * 16, step=10, encoder=SIZES[teacher or size])
    predictor = VitSpec(width=384, depth=12, heads=12, mlp_width=1536)
    return RunSpec(
        arm=arm,
        seed=0,
        steps=10,
        model=ModelSpec(encoder=SIZES[size], predictor=predictor),
        clip=ClipSpec(),
        data=DataSpec(name="videos", fingerprint="f" * 16, clips=1000),
        masks=masks,
        teacher=reference if arm == "salt" else None,
    )


def miniature(arm: Arm, size: str, **changes: Any) -> RunSpec:
    spec = run_spec(arm, size, teacher="nano" if arm == "salt" else None, batch_clips=3)
    return msgspec.structs.replace(spec, masks=(MASK, SMALL), **changes)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("size", ["vit_ti", "nano", "micro"])
def test_every_part_equals_both_counters(arm: Arm, size: str) -> None:
    spec = published(arm, size, teacher="vit_s") if size == "vit_ti" else miniature(arm, size)
    result = audit(spec, fvcore=True)
    assert [row.part for row in result.rows] == ["patch_embedding", "encoder", *LAST[arm]]
    for row in result.rows:
        assert (row.closed_forward, row.closed_backward) == (row.counted_forward, row.counted_backward)
        assert row.fvcore_forward == pytest.approx(row.counted_forward, rel=0.005)
        assert row.closed_forward > 0
        assert (row.closed_backward > 0) == (row.part != "teacher_forward")
    assert result.worst <= 0.005
    total = sum(row.counted_forward + row.counted_backward for row in result.rows)
    assert step_cost(spec).total_flops == total


def test_golden_step_of_the_published_tiny_model() -> None:
    # By hand, of 3072 clips. Embedding: 400 tokens of 1536 values to 192, forward and backward once each.
    # Encoder: 12 blocks of 24 n 192^2 + 4 n^2 192 at n = 256 and n = 144.
    parts = step_cost(published("pixel", "vit_ti")).parts
    assert parts["patch_embedding"].forward == 3072 * 2 * 400 * 1536 * 192 == 724_775_731_200
    blocks = 24 * 400 * 192**2 + 4 * (256**2 + 144**2) * 192
    assert parts["encoder"].forward == 3072 * 12 * blocks == 15_488_457_375_744
    assert parts["encoder"].backward == 30_976_914_751_488
    rows = {row.part: row for row in audit(published("pixel", "vit_ti")).rows}
    assert rows["encoder"].counted_backward == 30_976_914_751_488
    assert rows["decoder"].fvcore_forward is None


@pytest.mark.parametrize("arm", ARMS)
def test_parts_counted_alone_add_up_to_a_whole_training_step(arm: Arm) -> None:
    spec = msgspec.structs.replace(miniature(arm, "micro"), masks=(MASK, SMALL, MASK))
    assert audit(spec).worst == 0.0
    with torch.device("meta"):
        learner = Learner(spec)
        if arm == "salt":
            learner.teacher = build_encoder(SIZES["nano"], spec.model, spec.clip, 0).requires_grad_(False)
        patches = torch.empty(3, 64, patch_values(spec.model, spec.clip))
    with FlopCounterMode(display=False) as counter:
        learner.loss(patches, 0).backward()
    rows = audit(spec).rows
    assert sum(row.counted_forward + row.counted_backward for row in rows) == counter.get_total_flops()


def test_all_published_sizes() -> None:
    assert len(PUBLISHED) == 7
    specs = [published(arm, size, masks=(SHORT,)) for size in PUBLISHED for arm in ARMS]
    assert audit_problems(specs) == []
    assert max(audit(spec).worst for spec in specs) == 0.0


def test_cached_targets_and_the_supervised_reference_are_audited_too() -> None:
    cached = miniature("salt", "micro", cached_views=2)
    row = audit(cached, fvcore=True).rows[-1]
    teacher = encode_flops(SIZES["nano"], cached.model, cached.clip)
    assert row.part == "teacher_cache"
    assert row.counted_forward == row.fvcore_forward == 2 * 8192 * teacher
    assert cache_cost(cached).total_flops == row.closed_forward == row.counted_forward
    assert "teacher_forward" not in step_cost(cached).parts
    supervised = audit(run_spec("supervised", "micro"), fvcore=True)
    assert [row.part for row in supervised.rows] == ["patch_embedding", "encoder"]
    assert supervised.worst == 0.0
    assert audit(run_spec("random", "micro", steps=0)).rows == ()


def test_fvcore_left_alone_sees_a_fifth_of_the_truth() -> None:
    spec = published("pixel", "vit_ti")
    vit = spec.model.encoder
    with torch.device("meta"):
        encoder = Encoder(vit, spec.model, grid(spec.model, spec.clip), patch_values(spec.model, spec.clip))
        patches = torch.empty(1, 1568, 1536)
    truth = encode_flops(vit, spec.model, spec.clip)
    alone = multiply_adds(encoder, (patches,), attention=False)[""]
    seen = sum(alone[name] for name in MATRIX_PRODUCTS)
    assert alone["scaled_dot_product_attention"] == 0
    attention = 12 * 4 * 1568**2 * 192
    assert 2 * seen == truth - attention
    assert seen / truth == pytest.approx(0.218, abs=0.001)
    with_handle = multiply_adds(encoder, (patches,))[""]
    assert 2 * with_handle["scaled_dot_product_attention"] == attention


def test_a_closed_form_without_attention_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_attention(vit: VitSpec, count: int) -> dict[str, int]:
        return {k: v for k, v in block_lines(vit, count).items() if not k.startswith("attention")}

    spec = published("salt", "vit_ti", teacher="vit_s")
    other_seed = msgspec.structs.replace(spec, seed=1, steps=99)
    monkeypatch.setattr(salt.flops, "block_lines", without_attention)
    problems = audit_problems([spec, other_seed])
    where = "arm salt, encoder vit_ti (width 192, depth 12), teacher vit_s (width 384, depth 12): "
    assert all(problem.startswith(where) for problem in problems)
    counters = [(part, way) for part in ("encoder", "predictor") for way in ("forward", "backward")]
    counters.append(("teacher_forward", "forward"))
    assert len(problems) == len(counters)  # neither the embedding nor the second seed
    for problem, (part, way) in zip(problems, counters, strict=True):
        assert problem.startswith(f"{where}{part}: ")
        assert f"(torch, {way})" in problem
    # 3072 clips x 12 blocks x 24 n d^2 of n = 400 tokens, against the golden count.
    assert "encoder: 13,045,963,161,600 FLOPs by formula, 15,488,457,375,744 counted" in problems[0]
    assert "15.8% apart" in problems[0]
    assert any("(fvcore, forward)" in problem for problem in audit_problems([spec], fvcore=True))


def test_a_forgotten_decoder_is_reported_and_the_tolerance_is_one_percent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forgetful(spec: RunSpec) -> dict[str, dict[str, int]]:
        return {name: lines for name, lines in clip_lines(spec).items() if name != "decoder"}

    spec = miniature("pixel", "micro")
    monkeypatch.setattr(salt.flops, "clip_lines", forgetful)
    problems = audit_problems([spec])
    assert len(problems) == 2
    assert all(": decoder: 0 FLOPs by formula" in problem for problem in problems)
    # Three parts, each with forward, backward and fvcore's forward.
    for factor, reported in ((0.995, 0), (1.005, 0), (0.985, 9), (1.015, 9)):
        monkeypatch.setattr(salt.flops, "clip_lines", lambda spec, factor=factor: scaled(spec, factor))
        assert len(audit_problems([spec], fvcore=True)) == reported
        assert audit(spec).worst == pytest.approx(abs(1 - factor), rel=1e-3)
        assert (audit(spec).worst > AUDIT_TOLERANCE) == (reported > 0)


def scaled(spec: RunSpec, factor: float) -> dict[str, dict[str, int]]:
    return {
        part: {k: round(factor * v) for k, v in lines.items()} for part, lines in clip_lines(spec).items()
    }


def unfused(encoder: Encoder, patches: torch.Tensor) -> torch.Tensor:
    """The encoder without positions, written with plain matrix products."""
    x = F.linear(patches, encoder.embed.weight, encoder.embed.bias)
    batch, n, width = x.shape
    for block in encoder.trunk.blocks:
        assert isinstance(block, Block)
        qkv = block.qkv(block.norm1(x)).view(batch, n, 3, block.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = torch.matmul(q, k.transpose(-2, -1)).div(math.sqrt(width // block.heads)).softmax(dim=-1)
        attended = torch.matmul(weights, v).transpose(1, 2).reshape(batch, n, width)
        x = x + block.proj(attended)
        x = x + block.fc2(F.gelu(block.fc1(block.norm2(x))))
    return encoder.trunk.norm(x)


def test_the_closed_form_equals_a_count_of_unfused_attention_on_a_cpu() -> None:
    vit = VitSpec(width=192, depth=2, heads=3, mlp_width=768)
    model = ModelSpec(encoder=vit, predictor=vit, position=PositionSpec(rope=False))
    clip = ClipSpec()  # 8 x 14 x 14 tokens
    encoder = build_encoder(vit, model, clip, 0)
    patches = torch.randn(1, 1568, 1536, generator=torch.Generator().manual_seed(0))
    truth = encode_flops(vit, model, clip)
    with torch.no_grad():
        with FlopCounterMode(display=False) as reference:
            expected = unfused(encoder, patches)
        with FlopCounterMode(display=False) as fused:
            output = encoder(patches)
    torch.testing.assert_close(output, expected)  # the same model indeed
    # Embedding 2 x 1568 x 1536 x 192; two blocks of 24 n d^2 and 4 n^2 d at n = 1568, d = 192.
    assert reference.get_total_flops() == truth == 924_844_032 + 2 * (1_387_266_048 + 1_888_223_232)
    # What a counter makes of the fused attention of a CPU depends on torch: nothing in 2.13.
    attention = 2 * 4 * 1568**2 * 192
    assert fused.get_total_flops() in (truth - attention, truth)
    twice = msgspec.structs.replace(clip, frames=32)
    assert encode_flops(vit, model, twice) == 2 * truth + 2 * attention


def test_hand_check_of_one_linear_layer() -> None:
    # 10 tokens x 64 values by 64 x 64: 2 x 10 x 64 x 64.
    vit = VitSpec(width=64, depth=1, heads=4, mlp_width=256)
    model = ModelSpec(encoder=vit, predictor=vit, tubelet_frames=1, patch_px=8)
    clip = ClipSpec(frames=16, store_px=16, crop_px=16, channels=1)
    embedding, trunk = count_encoder("torch", vit, model, clip, (10,))
    assert embedding_flops(vit, model, clip, 10) == embedding.forward == embedding.backward == 81_920
    assert trunk.forward == 12 * 81_920 + 4 * 10 * 10 * 64


def test_a_frozen_teacher_adds_one_forward_pass() -> None:
    spec = miniature("salt", "micro")
    teacher = 3 * encode_flops(SIZES["nano"], spec.model, spec.clip)  # 3 clips, whole, once for both masks
    rows = audit(spec).rows
    student = sum(row.counted_forward + row.counted_backward for row in rows if row.part != "teacher_forward")
    assert step_cost(spec).total_flops - student == teacher
    assert step_cost(msgspec.structs.replace(spec, cached_views=1)).total_flops == student
    assert run_cost(spec).total_flops == 10 * (student + teacher)
    # The pixel arm has no teacher, and pays for its decoder in both directions.
    decoder = audit(miniature("pixel", "micro")).rows[-1]
    visible, target = 20, 56  # of both masks; blocks of width 32 on 40 and on 36 tokens
    blocks = 2 * (24 * 76 * 32**2 + 4 * (40**2 + 36**2) * 32)
    forward = 3 * (2 * visible * 48 * 32 + blocks + 2 * target * 32 * 72)
    assert (decoder.part, decoder.counted_forward, decoder.counted_backward) == (
        "decoder",
        forward,
        2 * forward,
    )


def test_costs_depend_on_no_execution_choice() -> None:
    assert set(inspect.signature(step_cost).parameters) == {"spec", "convention"}
    types = [RunSpec]
    reached: set[str] = set()
    while types:  # every field of every spec inside a run's
        for field in msgspec.structs.fields(types.pop()):
            reached.add(field.name)
            types += [
                kind
                for kind in (field.type, *get_args(field.type))
                if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
            ]
    assert {"crop_px", "rope_base", "ema_start", "visible_tokens", "mlp_width"} <= reached
    assert not reached & set(ExecSpec.__struct_fields__)


def test_counting_leaves_a_live_model_alone() -> None:
    spec = miniature("pixel", "micro")
    learner = Learner(spec)
    patches = torch.randn(3, 64, 72, generator=torch.Generator().manual_seed(1))
    learner.loss(patches, 0).backward()
    learner.encoder.eval()

    def state() -> list[Any]:
        module = torch.nn.modules.module
        hooks = [
            module._global_forward_hooks,
            module._global_forward_pre_hooks,
            module._global_backward_hooks,
        ]
        modules = [part for trained in learner.trained for part in trained.modules()]
        return [
            [(p.detach().clone(), p.grad.clone()) for m in learner.trained for p in m.parameters()],
            [(m.training, len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules],
            [len(registered) for registered in hooks],
            torch.get_rng_state(),
            (torch.is_grad_enabled(), torch.get_default_device(), torch.get_default_dtype()),
        ]

    before = state()
    count_encoder.cache_clear()
    with torch.inference_mode():  # in a probe, say
        assert audit(spec, fvcore=True).worst == 0.0
    after = state()
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert torch.equal(after[3], before[3])
    assert after[1:3] + after[4:] == before[1:3] + before[4:]
