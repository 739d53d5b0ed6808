"""FLOPs as the SALT paper counts them (arXiv 2509.24317, appendix on compute), for reproducing its tables.

6 N D for trained parts and 2 N D for the teacher's forward pass, N with the patch embedding, D in tokens. A
tenth of a clip's tokens are visible per mask whatever the real masks leave; the predictor and the pixel
decoder see the whole clip per mask; the teacher sees it once. Attention products are left out. N are the
paper's own rounded counts where it gives them, so that its printed figures come out; else the exact ones.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from salt.sizes import SIZES, encoder_parameters, patch_values, predictor_parameters, tokens
from salt.specs import DECODES, UNTRAINED, ClipSpec, Cost, ModelSpec, Part, RunSpec, VitSpec

if TYPE_CHECKING:
    from salt.adapter_spec import AdapterSpec

#: Parameters as printed in table 4 (L and G cut, the others rounded to the million).
PRINTED_PARAMETERS = {
    SIZES["vit_b"]: 86_000_000,
    SIZES["vit_l"]: 303_000_000,
    SIZES["vit_h"]: 632_000_000,
    SIZES["vit_g"]: 1_012_000_000,
    SIZES["vit_gg"]: 1_843_000_000,
}
#: Predictor of every size and, for the table's sums to come out, the pixel decoder too.
PRINTED_PREDICTOR_PARAMETERS = 22_000_000
PUBLISHED_PREDICTOR = (384, 12, 1536)  # width, depth, MLP width


def encoder_count(vit: VitSpec, model: ModelSpec, clip: ClipSpec) -> int:
    """Parameters of an encoder as this convention counts them."""
    return PRINTED_PARAMETERS.get(vit) or encoder_parameters(vit, patch_values(model, clip))


def predictor_count(spec: RunSpec) -> int:
    """Parameters of the predictor or pixel decoder as this convention counts them."""
    from salt.flops import output_width

    vit = spec.model.predictor
    if (vit.width, vit.depth, vit.mlp_width) == PUBLISHED_PREDICTOR:
        return PRINTED_PREDICTOR_PARAMETERS
    return predictor_parameters(vit, spec.model.encoder.width, output_width(spec))


def paper_forward_flops(
    vit: VitSpec, model: ModelSpec, clip: ClipSpec, adapter: AdapterSpec | None = None
) -> int:
    """2 N D of one whole clip; of a model of transformers D are its own tokens, over all of its passes."""
    if adapter is not None:
        count = adapter.patches(clip.frames) + adapter.special_tokens
        passes = adapter.passes(clip.frames, model.tubelet_frames)
        return 2 * encoder_parameters(vit, adapter.patch_values) * count * passes
    return 2 * encoder_count(vit, model, clip) * tokens(model, clip)


def paper_step_cost(spec: RunSpec) -> Cost:
    """FLOPs of one step of the whole batch; the patch embedding is inside the encoder's N."""
    from salt.flops import target_adapter, target_blocks

    if spec.arm in UNTRAINED:
        return Cost(convention="paper")
    clip_tokens = tokens(spec.model, spec.clip) * spec.optim.batch_clips
    encoder = encoder_count(spec.model.encoder, spec.model, spec.clip)
    if spec.arm == "supervised":
        return Cost(convention="paper", parts={"encoder": _trained(encoder, clip_tokens, 1)})
    masks = len(spec.masks)
    parts = {
        "encoder": _trained(encoder, masks * clip_tokens, 10),
        "decoder" if spec.arm in DECODES else "predictor": _trained(
            predictor_count(spec), masks * clip_tokens, 1
        ),
    }
    teacher = target_blocks(spec)
    if teacher is not None and spec.cached_views is None:
        flops = spec.optim.batch_clips * paper_forward_flops(
            teacher, spec.model, spec.clip, target_adapter(spec)
        )
        parts["teacher_forward"] = Part(forward=flops)
    return Cost(convention="paper", parts=parts)


def _trained(parameters: int, count: int, divisor: int) -> Part:
    """6 N D with D = count / divisor tokens, cut to a whole number."""
    return Part(forward=2 * parameters * count // divisor, backward=4 * parameters * count // divisor)
