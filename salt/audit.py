"""The closed form audited: the modules that train, built anew without memory and counted by two other tools.

`salt.flops` derives FLOPs on paper. Here the same spec is built as `salt.vit.Encoder` and
`salt.predictor.Predictor` on torch's meta device, which has shapes and no numbers, so that the largest sizes
cost seconds and neither memory nor an accelerator; no model in use is ever touched. Two counters look at it:

- `torch.utils.flop_counter`, operator by operator, forward and backward apart. Attention is made to run as
  its two matrix products, because what the counter makes of fused attention depends on the device: nothing on
  a CPU, recomputed scores in the backward pass of a GPU's kernels.
- fvcore, on a trace, forward only (`fvcore=True`). It counts multiply-adds, so it is doubled; it does not
  know fused attention, so a handle is added; its norms are left out, as in the convention.

A step's FLOPs are linear in the clips. `COUNTED_CLIPS` are counted and scaled to the batch.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from salt.flops import cache_cost, output_width, step_cost, target_adapter, target_blocks, target_encoder
from salt.sizes import SIZES, embeds_whole_clips, grid, patch_values, tokens
from salt.specs import (
    DECODES,
    UNTRAINED,
    Arm,
    ClipSpec,
    ModelSpec,
    NonNegativeInt,
    Part,
    RunSpec,
    Spec,
    VitSpec,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from salt.adapter_spec import AdapterSpec

Tool = Literal["torch", "fvcore"]

#: Relative disagreement above which a closed form is reported.
AUDIT_TOLERANCE = 0.01
#: Clips that are really counted: above one, so that a product that forgets the batch would show.
COUNTED_CLIPS = 2
#: What fvcore's operators must be to count here: its norms and resamplings are not matrix products.
MATRIX_PRODUCTS = ("linear", "matmul", "mm", "bmm", "addmm", "einsum", "conv", "scaled_dot_product_attention")


class Gap(Spec, kw_only=True):
    """One number of the closed form and one counter's, in FLOPs. `relative` is to the counted number."""

    part: str
    counter: str
    closed: NonNegativeInt
    counted: NonNegativeInt

    @property
    def relative(self) -> float:
        if self.closed == self.counted:
            return 0.0
        return abs(self.closed - self.counted) / self.counted if self.counted else math.inf


class AuditRow(Spec, kw_only=True):
    """FLOPs of one part of a step of the whole batch; `teacher_cache` is of the whole run, once.

    A part that the closed form or the count lacks is 0 there. `fvcore_forward` is None unless asked for.
    """

    part: str
    closed_forward: NonNegativeInt
    closed_backward: NonNegativeInt
    counted_forward: NonNegativeInt
    counted_backward: NonNegativeInt
    fvcore_forward: NonNegativeInt | None = None

    def gaps(self) -> list[Gap]:
        """The closed form against each counter that looked at this part."""
        pairs = [
            ("torch, forward", self.closed_forward, self.counted_forward),
            ("torch, backward", self.closed_backward, self.counted_backward),
        ]
        if self.fvcore_forward is not None:
            pairs.append(("fvcore, forward", self.closed_forward, self.fvcore_forward))
        return [Gap(part=self.part, counter=name, closed=a, counted=b) for name, a, b in pairs]


class Audit(Spec, kw_only=True):
    """All parts of one run, by formula and counted."""

    arm: Arm
    encoder: VitSpec
    teacher: VitSpec | None
    rows: tuple[AuditRow, ...]

    @property
    def worst(self) -> float:
        """The largest relative disagreement of any part, direction and counter."""
        return max((gap.relative for row in self.rows for gap in row.gaps()), default=0.0)

    @property
    def shape(self) -> str:
        """The run in words, for messages."""
        words = f"arm {self.arm}, encoder {_size_words(self.encoder)}"
        return words if self.teacher is None else f"{words}, teacher {_size_words(self.teacher)}"


def audit(spec: RunSpec, *, fvcore: bool = False) -> Audit:
    """Count every part of a run and set it against the closed form; an arm without training has no rows.

    With `fvcore` its forward count is there too, which nearly doubles the time.
    """
    closed = step_cost(spec).parts | cache_cost(spec).parts
    counted = counted_parts(spec, "torch")
    traced = counted_parts(spec, "fvcore") if fvcore else {}
    zero = Part()
    rows = [
        AuditRow(
            part=name,
            closed_forward=closed.get(name, zero).forward,
            closed_backward=closed.get(name, zero).backward,
            counted_forward=counted.get(name, zero).forward,
            counted_backward=counted.get(name, zero).backward,
            fvcore_forward=traced.get(name, zero).forward if fvcore else None,
        )
        for name in dict.fromkeys([*closed, *counted, *traced])
    ]
    teacher = target_encoder(spec) if spec.arm == "salt" else None
    return Audit(arm=spec.arm, encoder=spec.model.encoder, teacher=teacher, rows=tuple(rows))


def audit_problems(specs: Iterable[RunSpec], *, fvcore: bool = False) -> list[str]:
    """Each closed-form number that is off by more than `AUDIT_TOLERANCE`, in words.

    Of runs that differ only in what no shape depends on (seed, steps, batch, rates, data) one is audited.
    """
    runs = {_shape_key(spec): spec for spec in specs}
    problems = []
    for spec in runs.values():
        result = audit(spec, fvcore=fvcore)
        for gap in (gap for row in result.rows for gap in row.gaps()):
            if gap.relative > AUDIT_TOLERANCE:
                problems.append(
                    f"{result.shape}: {gap.part}: {gap.closed:,} FLOPs by formula, {gap.counted:,} counted "
                    f"({gap.counter}), {gap.relative:.1%} apart"
                )
    return problems


def _shape_key(spec: RunSpec) -> tuple[Any, ...]:
    cached = spec.cached_views is not None
    return (
        spec.arm,
        spec.model,
        spec.clip,
        spec.masks,
        target_blocks(spec),
        target_adapter(spec),
        spec.objective.pixel_weight > 0,
        cached,
    )


def _size_words(vit: VitSpec) -> str:
    names = [name for name, size in SIZES.items() if size == vit]
    return " ".join([*names, f"(width {vit.width}, depth {vit.depth})"])


def counted_parts(spec: RunSpec, tool: Tool) -> dict[str, Part]:
    """Parts as `salt.flops` names them, counted by a tool, whole batch; fvcore gives no backward."""
    if spec.arm in UNTRAINED:
        return {}
    batch, vit = spec.optim.batch_clips, spec.model.encoder
    parts: dict[str, Part] = {}
    shapes = _mask_shapes(spec)
    embedding, trunk = count_encoder(tool, vit, spec.model, spec.clip, tuple(v for v, _ in shapes))
    _add(parts, "patch_embedding", embedding, batch)
    _add(parts, "encoder", trunk, batch)
    if spec.arm != "supervised":
        name = "decoder" if spec.arm in DECODES else "predictor"
        _add(parts, name, count_predictor(tool, spec.model, spec.clip, output_width(spec), shapes), batch)
    teacher = target_blocks(spec)
    if teacher is not None:
        name, clips = _teacher_part(spec)
        model = msgspec.structs.replace(spec.model, encoder=teacher)
        _add(parts, name, count_teacher(tool, teacher, model, spec.clip, target_adapter(spec)), clips)
    return parts


def _mask_shapes(spec: RunSpec) -> tuple[tuple[int, int], ...]:
    """Visible and target tokens of each mask; the supervised reference sees the whole clip once."""
    if spec.arm == "supervised":
        return ((tokens(spec.model, spec.clip), 0),)
    return tuple((mask.visible_tokens, mask.target_tokens) for mask in spec.masks)


def _teacher_part(spec: RunSpec) -> tuple[str, int]:
    """Name of the teacher's part and how many clips it encodes there: a batch a step, or the cache once."""
    if spec.cached_views is None:
        return "teacher_forward", spec.optim.batch_clips
    return "teacher_cache", spec.cached_views * spec.data.clips * spec.clip.clips_per_file


def _add(parts: dict[str, Part], name: str, one: Part, clips: int) -> None:
    old = parts.get(name, Part())
    parts[name] = Part(
        forward=old.forward + clips * one.forward, backward=old.backward + clips * one.backward
    )


# Counts are a function of shapes alone, and a study's arms share their encoders: each is counted once.


@functools.cache
def count_encoder(
    tool: Tool, vit: VitSpec, model: ModelSpec, clip: ClipSpec, visible: tuple[int, ...]
) -> tuple[Part, Part]:
    """FLOPs of patch embedding and of trunk in training, on the visible tokens of all masks of one clip."""
    with _meta():
        encoder, patches = _encoder_inputs(vit, model, clip)
        indices = [_places(count) for count in visible]
        masked = _masked(encoder)
        if tool == "fvcore":
            operators = multiply_adds(masked, (patches, *indices))
            return _forward(operators["encoder.embed"]), _forward(operators["encoder.trunk"])
        whole = embeds_whole_clips(list(visible), patches.shape[1])
        embedded = patches.shape[1] if whole else sum(visible)
        embedding = _count(encoder.embed, patches[:, :1].expand(-1, embedded, -1))
        both = _count(masked, patches, *indices)
        return embedding, Part(
            forward=both.forward - embedding.forward, backward=both.backward - embedding.backward
        )


@functools.cache
def count_predictor(
    tool: Tool, model: ModelSpec, clip: ClipSpec, output: int, masks: tuple[tuple[int, int], ...]
) -> Part:
    """FLOPs of the predictor or pixel decoder in training, for all masks (visible, target) of one clip."""
    import torch
    from torch import nn

    from salt.predictor import Predictor

    width = model.encoder.width

    class Flat(nn.Module):
        """Tensors in, tensors out: what a tracer can follow."""

        def __init__(self) -> None:
            super().__init__()
            self.predictor = Predictor(
                model.predictor, grid(model, clip), model.position, input_width=width, output_width=output
            )

        def forward(self, *inputs: torch.Tensor) -> list[torch.Tensor]:
            third = len(inputs) // 3
            found: list[torch.Tensor] = self.predictor(
                list(inputs[:third]), list(inputs[third : 2 * third]), list(inputs[2 * third :])
            )
            return found

    with _meta():
        latents = [torch.empty(COUNTED_CLIPS, visible, width, requires_grad=True) for visible, _ in masks]
        places = [_places(visible) for visible, _ in masks] + [_places(target) for _, target in masks]
        inputs = (*latents, *places)
        if tool == "fvcore":
            return _forward(multiply_adds(Flat(), inputs)[""])
        return _count(Flat(), *inputs)


@functools.cache
def count_teacher(
    tool: Tool, vit: VitSpec, model: ModelSpec, clip: ClipSpec, adapter: AdapterSpec | None = None
) -> Part:
    """FLOPs of a teacher on all tokens of one clip, without gradients.

    Of a model of transformers there is only its description here: blocks of ours of the same shape are
    counted, on its tokens and in its passes. `tests/test_external_model.py` counts the models themselves.
    """
    import torch

    with _meta(), torch.no_grad():
        if adapter is None:
            encoder, patches = _encoder_inputs(vit, model, clip)
        else:
            from salt.audit_external import standing_for

            encoder, patches = standing_for(COUNTED_CLIPS, vit, model, clip, adapter)
        if tool == "fvcore":
            return _forward(multiply_adds(encoder, (patches,))[""])
        return _count(encoder, patches)


@contextmanager
def _meta() -> Iterator[None]:
    """New tensors have no memory and can have gradients, whatever mode the caller is in."""
    import torch

    with torch.device("meta"), torch.inference_mode(False), torch.enable_grad():
        yield


def _encoder_inputs(vit: VitSpec, model: ModelSpec, clip: ClipSpec) -> tuple[Any, Any]:
    """An encoder and whole clips, patches [clips, N, P]."""
    import torch

    from salt.vit import Encoder

    # Not `build_encoder`: initialising would be work without numbers.
    encoder = Encoder(vit, model, grid(model, clip), patch_values(model, clip))
    return encoder, torch.empty(COUNTED_CLIPS, tokens(model, clip), patch_values(model, clip))


def _masked(encoder: Any) -> nn.Module:
    """The encoder on the visible tokens of masks, as a module."""
    from torch import nn

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, patches: torch.Tensor, *visible: torch.Tensor) -> list[torch.Tensor]:
            found: list[torch.Tensor] = self.encoder.forward_visible(patches, list(visible))
            return found

    return Masked()


def _places(count: int) -> torch.Tensor:
    import torch

    return torch.empty(COUNTED_CLIPS, count, dtype=torch.long)


def _count(module: nn.Module, *inputs: torch.Tensor) -> Part:
    """Forward and, where gradients are on, backward FLOPs of a module for one clip, counted by torch."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            output = module(*inputs)
        with FlopCounterMode(display=False) as backward:
            if torch.is_grad_enabled():
                outputs = [output] if isinstance(output, torch.Tensor) else output
                torch.autograd.backward(outputs, [torch.empty_like(x) for x in outputs])
    return Part(forward=_per_clip(forward.get_total_flops()), backward=_per_clip(backward.get_total_flops()))


def _per_clip(flops: int) -> int:
    each, rest = divmod(flops, COUNTED_CLIPS)
    if rest:
        raise ArithmeticError(f"{flops} FLOPs of {COUNTED_CLIPS} clips are not the same for every clip")
    return each


def multiply_adds(
    module: nn.Module, inputs: tuple[torch.Tensor, ...], *, attention: bool = True
) -> dict[str, Counter[str]]:
    """fvcore's forward counts by submodule and operator: multiply-adds, not FLOPs; "" is the whole module.

    Without `attention` fvcore stays as it is delivered: it does not know fused attention and counts it as 0.
    """
    import warnings

    with warnings.catch_warnings():
        # fvcore 0.1.5 scripts a loss of its own when it is imported, which torch 2.13 calls outdated.
        warnings.filterwarnings("ignore", message="`torch.jit", category=DeprecationWarning)
        from fvcore.nn import FlopCountAnalysis

    # What it does not support (norms' neighbours, GELU, rotations) is not part of the convention.
    analysis = FlopCountAnalysis(module, inputs).unsupported_ops_warnings(False)
    if attention:
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention_multiply_adds)
    counts: dict[str, Counter[str]] = analysis.by_module_and_operator()
    return counts


def _attention_multiply_adds(inputs: list[Any], outputs: list[Any]) -> int:
    """Scores and values of q [..., n, d], k [..., m, d], v [..., m, e]; no causal mask is assumed."""
    from fvcore.nn.jit_handles import get_shape

    q, k, v = (get_shape(value) for value in inputs[:3])
    return int(math.prod(q[:-1]) * k[-2] * (q[-1] + v[-1]))


def _forward(operators: Counter[str]) -> Part:
    """FLOPs of one clip from fvcore's multiply-adds by operator, matrix products only."""
    return Part(forward=_per_clip(2 * int(sum(operators[name] for name in MATRIX_PRODUCTS))))
