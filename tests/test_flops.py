"""The closed form against an independent count of the very modules that train."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from salt.flops import encode_flops, run_cost, step_cost
from salt.learner import Learner, build_encoder
from salt.sizes import SIZES, encoder_parameters, patch_values
from salt.specs import Cost, Part
from tests.examples import run_spec

# arXiv 2509.24317, table 4 prints 86M, 303M, 632M, 1.012B and 1.843B; the integers follow from the layers.
PARAMETERS = {
    "vit_ti": 5_633_856,
    "vit_s": 21_884_544,
    "vit_b": 86_236_416,
    "vit_l": 303_885_312,
    "vit_h": 631_648_000,
    "vit_g": 1_012_173_952,
    "vit_gg": 1_843_923_840,
}


@pytest.mark.parametrize("arm", ["pixel", "salt", "vjepa", "supervised"])
@pytest.mark.parametrize(("student", "teacher"), [("nano", "micro"), ("micro", "nano"), ("vit_ti", "vit_s")])
def test_closed_form_equals_the_counter_to_the_integer(arm: str, student: str, teacher: str) -> None:
    spec = run_spec(arm, student, teacher=teacher if arm == "salt" else None, batch_clips=2)
    clips, n, values = 2, 64, patch_values(spec.model, spec.clip)
    with torch.device("meta"):
        learner = Learner(spec, classes=6)
        if arm == "salt":
            learner.teacher = build_encoder(SIZES[teacher], spec.model, spec.clip, 0).requires_grad_(False)
        patches = torch.empty(clips, n, values)
        labels = torch.zeros(clips, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        loss = learner.loss(patches, 0, labels)
        loss.backward()
    counted = counter.get_total_flops()
    if arm == "supervised":  # the classifier is left out of the closed form, and said to be
        counted -= 3 * 2 * clips * SIZES[student].width * 6
    assert step_cost(spec).total_flops == counted


def test_parts_add_up_and_scale() -> None:
    spec = run_spec("salt", "micro", teacher="tiny", steps=7)
    cost = step_cost(spec)
    assert cost.total_flops == sum(part.forward + part.backward for part in cost.parts.values())
    assert run_cost(spec) == cost * 7 == cost + cost * 6
    assert cost.parts["teacher_forward"].backward == 0
    teacher = encode_flops(SIZES["tiny"], spec.model, spec.clip)
    assert (
        cost.parts["teacher_forward"].forward == spec.optim.batch_clips * teacher
    )  # once, though there are two masks
    assert cost.parts["patch_embedding"].backward == cost.parts["patch_embedding"].forward
    assert cost.parts["predictor"].backward == 2 * cost.parts["predictor"].forward
    assert run_cost(run_spec("random", "micro", steps=0)) == Cost()


def test_hand_count() -> None:
    # One linear layer of 10 tokens by 64 x 64 is 81,920 FLOPs; a block has 12 of its area and the attention.
    from salt.flops import block_flops
    from salt.specs import VitSpec

    vit = VitSpec(width=64, depth=1, heads=4, mlp_width=256)
    assert block_flops(vit, 10) == 12 * 81_920 + 4 * 10 * 10 * 64
    assert block_flops(vit, 20) > 2 * block_flops(vit, 10)


@pytest.mark.parametrize("size", list(PARAMETERS))
def test_parameter_counts_of_the_published_sizes(size: str) -> None:
    assert encoder_parameters(SIZES[size], 2 * 16 * 16 * 3) == PARAMETERS[size]


@pytest.mark.parametrize("size", ["nano", "micro", "vit_g", "vit_gg"])
def test_built_encoders_have_the_counted_parameters(size: str) -> None:
    spec = run_spec("pixel", size)
    with torch.device("meta"):
        encoder = build_encoder(SIZES[size], spec.model, spec.clip, 0)
    values = patch_values(spec.model, spec.clip)
    assert sum(p.numel() for p in encoder.parameters()) == encoder_parameters(SIZES[size], values)


def test_costs_of_other_conventions_do_not_add() -> None:
    with pytest.raises(TypeError, match="whole numbers"):
        Cost(parts={"encoder": Part(forward=1)}) * 0.5  # type: ignore[operator]
