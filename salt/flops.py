"""FLOPs in closed form: the planner's number, without torch and without a device.

The convention, `matmul` (docs/flops.md derives it; `salt.flops_paper` is the SALT paper's own count):

1. A multiply-add is 2 FLOPs. Counted are matrix products, the patch embedding and attention (scores and
   values); norms, activations, softmax, the optimiser and the EMA update are not (`uncounted_flops`).
   A patch is embedded once for each token that a mask sees, or once for each clip where that is less.
2. A transformer block on N tokens of width d with MLP width m: projections 8 N d^2 (query, key, value: 6,
   output: 2), attention scores 2 N^2 d and values 2 N^2 d, MLP 4 N d m. Tokens are those really processed,
   per mask.
3. Backward is twice forward for trained parts, but once for the patch embedding: its input has no gradient.
4. The frozen or EMA teacher sees the whole clip, once per clip and step for any number of masks; no backward.
   With cached targets it sees a fixed number of views of each clip of the list, once.
5. Recomputation, precision, compilation and gradient accumulation are hardware matters and never counted.
   Probes are outside the budget and counted apart.

`salt.audit` counts the same modules with `torch.utils.flop_counter` on the meta device: equal to the integer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from salt.sizes import embeds_whole_clips, encoder_parameters, patch_values, predictor_parameters, tokens
from salt.specs import DECODES, UNTRAINED, ClipSpec, Convention, Cost, ModelSpec, Part, RunSpec, VitSpec

if TYPE_CHECKING:
    from salt.adapter_spec import AdapterSpec

#: Passes of backward for one of forward. The patch embedding's input has no gradient; teachers learn nothing.
BACKWARD_PASSES = {"patch_embedding": 1, "encoder": 2, "predictor": 2, "decoder": 2, "teacher_forward": 0}


def block_lines(vit: VitSpec, count: int) -> dict[str, int]:
    """Forward FLOPs of one transformer block on `count` tokens of one clip, by kind of product."""
    d = vit.width
    return {
        "projections": 8 * count * d * d,
        "attention scores": 2 * count * count * d,
        "attention values": 2 * count * count * d,
        "mlp": 4 * count * d * vit.mlp_width,
    }


def block_flops(vit: VitSpec, count: int) -> int:
    """Forward FLOPs of one transformer block on `count` tokens of one clip."""
    return sum(block_lines(vit, count).values())


def embedding_flops(vit: VitSpec, model: ModelSpec, clip: ClipSpec, count: int) -> int:
    """Forward FLOPs of the patch embedding of `count` tokens of one clip."""
    return 2 * count * patch_values(model, clip) * vit.width


def encode_flops(vit: VitSpec, model: ModelSpec, clip: ClipSpec, count: int | None = None) -> int:
    """Forward FLOPs of an encoder on `count` tokens of one clip (default: all of them)."""
    count = tokens(model, clip) if count is None else count
    return embedding_flops(vit, model, clip, count) + vit.depth * block_flops(vit, count)


def output_width(spec: RunSpec) -> int:
    """Width of the predictor's output: patch values for pixels, the teacher's width for latents, or both."""
    if spec.arm in DECODES:
        return patch_values(spec.model, spec.clip)
    teacher = target_encoder(spec) or spec.model.encoder
    return teacher.width + (patch_values(spec.model, spec.clip) if spec.objective.pixel_weight else 0)


def target_encoder(spec: RunSpec) -> VitSpec | None:
    """The encoder whose latents are the targets: the frozen teacher's, the EMA's, or none."""
    if spec.arm == "salt":
        return _frozen_teacher(spec)
    return spec.model.encoder if spec.arm == "vjepa" else None


def target_blocks(spec: RunSpec) -> VitSpec | None:
    """The part of that encoder which runs: up to the layer whose tokens are the targets."""
    teacher, layer = target_encoder(spec), spec.objective.teacher_layer
    return teacher if teacher is None or layer is None else msgspec.structs.replace(teacher, depth=layer)


def target_adapter(spec: RunSpec) -> AdapterSpec | None:
    """How a teacher that is a model of transformers is read; None for encoders of ours, and without one."""
    adapter = None if spec.teacher is None else spec.teacher.adapter
    return adapter or None  # UNSET is false


def own_adapter(spec: RunSpec) -> AdapterSpec | None:
    """The same of a run that is itself such a model."""
    adapter = None if spec.external is None else spec.external.adapter
    return adapter or None


def _frozen_teacher(spec: RunSpec) -> VitSpec:
    if spec.teacher is None:
        raise ValueError("a salt run needs a teacher")
    return spec.teacher.encoder


def predictor_flops(spec: RunSpec, visible: int, target: int) -> int:
    """Forward FLOPs of the predictor (or pixel decoder) for one mask of one clip."""
    return sum(predictor_lines(spec, visible, target).values())


def predictor_lines(spec: RunSpec, visible: int, target: int) -> dict[str, int]:
    """The same by kind of product.

    Projection of the visible tokens, blocks over visible and mask tokens, output at the mask tokens only.
    """
    vit = spec.model.predictor
    lines = {"input projection": 2 * visible * spec.model.encoder.width * vit.width}
    lines |= _times(block_lines(vit, visible + target), vit.depth)
    return lines | {"output projection": 2 * target * vit.width * output_width(spec)}


def clip_lines(spec: RunSpec) -> dict[str, dict[str, int]]:
    """Forward FLOPs of one clip in one step, part -> kind of product -> FLOPs, over all of its masks.

    The classifier of the supervised reference is not counted (2 x width x classes a clip).
    """
    if spec.arm in UNTRAINED:
        return {}
    model, clip, vit = spec.model, spec.clip, spec.model.encoder
    masked = spec.arm != "supervised"
    counts = [mask.visible_tokens for mask in spec.masks] if masked else [tokens(model, clip)]
    whole = embeds_whole_clips(counts, tokens(model, clip))
    embedded = tokens(model, clip) if whole else sum(counts)
    parts = {
        "patch_embedding": {"embedding": embedding_flops(vit, model, clip, embedded)},
        "encoder": _summed([_times(block_lines(vit, count), vit.depth) for count in counts]),
    }
    if masked:
        name = "decoder" if spec.arm in DECODES else "predictor"
        parts[name] = _summed([predictor_lines(spec, m.visible_tokens, m.target_tokens) for m in spec.masks])
    teacher = target_blocks(spec)
    if teacher is not None and spec.cached_views is None:
        parts["teacher_forward"] = whole_clip_lines(teacher, model, clip, target_adapter(spec))
    return parts


def whole_clip_lines(
    vit: VitSpec, model: ModelSpec, clip: ClipSpec, adapter: AdapterSpec | None = None
) -> dict[str, int]:
    """Forward FLOPs of an encoder on all tokens of one clip, by kind of product.

    A model of transformers has tokens of its own: patches at its own input size, class and register tokens,
    and a pass for each frame where it reads images. Resizing and normalising are not counted.
    """
    if adapter is not None:
        patches = adapter.patches(clip.frames)
        lines = {"embedding": 2 * patches * adapter.patch_values * vit.width}
        lines |= _times(block_lines(vit, patches + adapter.special_tokens), vit.depth)
        return _times(lines, adapter.passes(clip.frames, model.tubelet_frames))
    count = tokens(model, clip)
    lines = {"embedding": embedding_flops(vit, model, clip, count)}
    return lines | _times(block_lines(vit, count), vit.depth)


def step_cost(spec: RunSpec, convention: Convention = "matmul") -> Cost:
    """FLOPs of one optimiser step of the whole batch, per part, as integers."""
    if convention == "paper":
        from salt.flops_paper import paper_step_cost

        return paper_step_cost(spec)
    clips = spec.optim.batch_clips
    forward = {name: clips * sum(lines.values()) for name, lines in clip_lines(spec).items()}
    parts = {
        name: Part(forward=flops, backward=BACKWARD_PASSES[name] * flops) for name, flops in forward.items()
    }
    return Cost(parts=parts)


def cache_cost(spec: RunSpec, convention: Convention = "matmul") -> Cost:
    """FLOPs that are there once, whatever the steps: encoding the cached targets, views x clips of the lists,
    and what a study states for weights that were trained elsewhere. Else empty.
    """
    if spec.external is not None and spec.external.stated_flops:
        # Not spent here, but a study that states it wants its students charged.
        stated = Part(forward=spec.external.stated_flops)
        return Cost(convention=convention, parts={"trained_elsewhere": stated})
    teacher = target_blocks(spec) if spec.cached_views is not None else None
    if teacher is None or spec.cached_views is None:
        return Cost(convention=convention)
    adapter = target_adapter(spec)
    if convention == "paper":
        from salt.flops_paper import paper_forward_flops

        flops = paper_forward_flops(teacher, spec.model, spec.clip, adapter)
    else:
        flops = sum(whole_clip_lines(teacher, spec.model, spec.clip, adapter).values())
    part = Part(forward=spec.cached_views * spec.data.clips * spec.clip.clips_per_file * flops)
    return Cost(convention=convention, parts={"teacher_cache": part})


def run_cost(spec: RunSpec, convention: Convention = "matmul") -> Cost:
    """FLOPs that this run itself spends: its steps after the trunk's, and its cached targets."""
    own_steps = spec.steps - (spec.trunk.step if spec.trunk is not None else 0)
    return step_cost(spec, convention) * own_steps + cache_cost(spec, convention)


def path_cost(spec: RunSpec, convention: Convention = "matmul") -> Cost:
    """FLOPs of the whole way to this run's weights: the trunk's steps up to the branch included."""
    return step_cost(spec, convention) * spec.steps + cache_cost(spec, convention)


def uncounted_flops(spec: RunSpec) -> dict[str, int]:
    """What the convention leaves out of a step and is easily named, as estimates: elementwise operations.

    AdamW: about 14 a trained parameter (two moments, bias corrections, decay, update). EMA: 3 a parameter of
    the encoder. Neither grows with the batch.
    """
    if spec.arm in UNTRAINED:
        return {}
    model = spec.model
    encoder = encoder_parameters(model.encoder, patch_values(model, spec.clip))
    trained = encoder
    if spec.arm != "supervised":
        tokens_of_masks = len(spec.masks) if model.mask_token == "per_mask" else 1
        trained += predictor_parameters(
            model.predictor, model.encoder.width, output_width(spec), tokens_of_masks
        )
    counts = {"optimizer": 14 * trained}
    return counts | {"ema_update": 3 * encoder} if spec.arm == "vjepa" else counts


def _times(lines: dict[str, int], factor: int) -> dict[str, int]:
    return {name: flops * factor for name, flops in lines.items()}


def _summed(rows: list[dict[str, int]]) -> dict[str, int]:
    return {name: sum(row[name] for row in rows) for name in rows[0]}
