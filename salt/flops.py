"""FLOPs in closed form: the planner's number, without torch and without a device.

The convention, `matmul`:

1. A multiply-add is 2 FLOPs. Counted are matrix products, the patch embedding and attention (scores and
   values); norms, activations, softmax, the optimiser and the EMA update are not.
2. A transformer block on N tokens of width d with MLP width m: projections 8 N d^2 (query, key, value: 6,
   output: 2), attention 4 N^2 d, MLP 4 N d m. Tokens are those really processed, per mask.
3. Backward is twice forward for trained parts, but once for the patch embedding: its input has no gradient.
4. The frozen or EMA teacher sees the whole clip, once per clip and step for any number of masks; no backward.
5. Recomputation is hardware cost and never counted. Probes are outside the budget and counted apart.

`tests/test_flops.py` holds it equal, to the integer, to `torch.utils.flop_counter` on the meta device.
"""

from __future__ import annotations

from salt.sizes import patch_values, tokens
from salt.specs import ClipSpec, Cost, ModelSpec, Part, RunSpec, VitSpec


def block_flops(vit: VitSpec, count: int) -> int:
    """Forward FLOPs of one transformer block on `count` tokens of one clip."""
    d = vit.width
    return 8 * count * d * d + 4 * count * count * d + 4 * count * d * vit.mlp_width


def embedding_flops(vit: VitSpec, model: ModelSpec, clip: ClipSpec, count: int) -> int:
    """Forward FLOPs of the patch embedding of `count` tokens of one clip."""
    return 2 * count * patch_values(model, clip) * vit.width


def encode_flops(vit: VitSpec, model: ModelSpec, clip: ClipSpec, count: int | None = None) -> int:
    """Forward FLOPs of an encoder on `count` tokens of one clip (default: all of them)."""
    count = tokens(model, clip) if count is None else count
    return embedding_flops(vit, model, clip, count) + vit.depth * block_flops(vit, count)


def output_width(spec: RunSpec) -> int:
    """Width of the predictor's output: patch values for pixels, the teacher's width for latents."""
    if spec.arm == "pixel":
        return patch_values(spec.model, spec.clip)
    if spec.arm == "salt":
        if spec.teacher is None:
            raise ValueError("a salt run needs a teacher")
        return spec.teacher.encoder.width
    return spec.model.encoder.width


def predictor_flops(spec: RunSpec, visible: int, target: int) -> int:
    """Forward FLOPs of the predictor (or pixel decoder) for one mask of one clip.

    Projection of the visible tokens, blocks over visible and mask tokens, output at the mask tokens only.
    """
    d_encoder, vit = spec.model.encoder.width, spec.model.predictor
    blocks = vit.depth * block_flops(vit, visible + target)
    return 2 * visible * d_encoder * vit.width + blocks + 2 * target * vit.width * output_width(spec)


def step_cost(spec: RunSpec) -> Cost:
    """FLOPs of one optimiser step of the whole batch, per part, as integers.

    The classifier of the supervised reference is not counted (2 x width x classes a clip).
    """
    clips, model, clip = spec.optim.batch_clips, spec.model, spec.clip
    if spec.arm in ("random", "raw"):
        return Cost()
    if spec.arm == "supervised":
        counts = [tokens(model, clip)]
    else:
        counts = [mask.visible_tokens for mask in spec.masks]
    embedding = clips * sum(embedding_flops(model.encoder, model, clip, count) for count in counts)
    encoder = clips * sum(model.encoder.depth * block_flops(model.encoder, count) for count in counts)
    parts = {
        "patch_embedding": Part(forward=embedding, backward=embedding),
        "encoder": Part(forward=encoder, backward=2 * encoder),
    }
    if spec.arm != "supervised":
        predictor = clips * sum(predictor_flops(spec, m.visible_tokens, m.target_tokens) for m in spec.masks)
        name = "decoder" if spec.arm == "pixel" else "predictor"
        parts[name] = Part(forward=predictor, backward=2 * predictor)
    if spec.arm == "salt" and spec.teacher is not None:
        parts["teacher_forward"] = Part(forward=clips * encode_flops(spec.teacher.encoder, model, clip))
    if spec.arm == "vjepa":
        parts["teacher_forward"] = Part(forward=clips * encode_flops(model.encoder, model, clip))
    return Cost(parts=parts)


def run_cost(spec: RunSpec) -> Cost:
    """FLOPs of the whole run: `step_cost` times `spec.steps`."""
    return step_cost(spec) * spec.steps
