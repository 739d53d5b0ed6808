"""How much memory of one GPU a run needs, and on how many GPUs it should go.

Closed forms, in bytes, of what PyTorch keeps: the weights' state, what autograd saves for the backward pass,
and the largest transient beside it. `tests/test_site.py` holds them against tensors that really live, in
float32 and bfloat16 on a CPU; docs/hardware.md derives them. How a run is laid out never touches its budget.
"""

from __future__ import annotations

import math

from salt.flops import output_width, target_adapter, target_encoder
from salt.sizes import encoder_parameters, patch_values, tokens
from salt.specs import DECODES, ExecSpec, NonNegativeInt, PositiveInt, RunSpec, Spec, VitSpec
from sweeps.machine_time import run_gpu_hours, trained_parameters
from sweeps.site import GIB, Precision, SiteSpec, run_precision

#: A run should end within this, where the site sets no limit on a job.
TARGET_HOURS = 7 * 24.0
#: Ways to lay a run out, as (recompute, sharded), the fastest first.
LAYOUTS = ((False, False), (True, False), (False, True), (True, True))


class MemoryParts(Spec, kw_only=True):
    """Bytes on one GPU. The teacher's pass comes before anything is saved, so its transient is a maximum."""

    parameters: NonNegativeInt = 0  # trained weights, and their bfloat16 copies
    gradients: NonNegativeInt = 0
    moments: NonNegativeInt = 0  # AdamW's two
    teacher: NonNegativeInt = 0  # frozen or averaged weights
    batch: NonNegativeInt = 0  # patches and targets of the micro-batch
    activations: NonNegativeInt = 0  # saved for the backward pass
    working: NonNegativeInt = 0  # largest transient beside them
    teacher_working: NonNegativeInt = 0  # largest transient of the teacher's forward pass

    @property
    def state_bytes(self) -> int:
        """What does not grow with the micro-batch, gathered weights of a sharded run aside."""
        return self.parameters + self.gradients + self.moments + self.teacher

    @property
    def peak_bytes(self) -> int:
        return self.state_bytes + self.batch + max(self.activations + self.working, self.teacher_working)


class Fit(Spec, kw_only=True):
    """A layout of one run: GPUs, clips a GPU holds at once, and how its memory is saved.

    With a `problem`, no layout fits and the fields describe the one that needs least. `hours` are those of
    the run's own steps on these GPUs, perfectly divided; they may exceed what one job may take.
    """

    gpus: PositiveInt
    micro_batch: PositiveInt
    accumulation_steps: PositiveInt
    recompute: bool
    sharded: bool
    peak_bytes: NonNegativeInt
    hours: float
    problem: str | None = None


def teacher_parameters(spec: RunSpec) -> int:
    """Numbers of the teacher that sits beside the student; none where its latents are cached."""
    teacher = target_encoder(spec)
    if teacher is None or spec.cached_views is not None:
        return 0
    adapter = target_adapter(spec)
    values = patch_values(spec.model, spec.clip) if adapter is None else adapter.patch_values
    return encoder_parameters(teacher, values)


def block_bytes(vit: VitSpec, rope: bool, precision: Precision) -> int:
    """Bytes that autograd saves for one token in one transformer block, with fused attention.

    Korthikanti et al. 2022 (arXiv 2205.05198) count 34 d bytes in 16 bits for an MLP of width m = 4 d,
    without the attention map. Without dropout masks 16 d numbers remain: inputs and outputs of both norms
    (4 d), query, key and value (3 d), the attention's output (d), and the MLP's hidden layer before and after
    GELU (2 m).
    Here turned queries and keys (2 d) come on top, the log-sum-exp of each head (4 bytes) and both norms'
    statistics (16 bytes). Under autocast the norms' inputs stay in float32 and all else is bfloat16.
    """
    d, m = vit.width, vit.mlp_width
    turned = 2 * d if rope else 0
    if precision == "fp32":
        saved = 4 * (8 * d + 2 * m + turned)
    else:
        saved = 4 * 2 * d + 2 * (6 * d + 2 * m + turned)
    return saved + 4 * vit.heads + 16


def memory(
    spec: RunSpec,
    micro_batch: int,
    recompute: bool,
    shards: int = 1,
    sharded: bool = False,
    precision: Precision | None = None,
) -> MemoryParts:
    """Memory of one GPU for a micro-batch of that many clips; zeros for arms that train nothing.

    The precision is the run's own unless one is given.
    With `recompute` each block keeps its input alone and is run again in the backward pass. `sharded` divides
    weights, gradients, moments and teacher over `shards` GPUs (FSDP, ZeRO-3) and gathers one block ahead.
    """
    trained, frozen = trained_parameters(spec), teacher_parameters(spec)
    if not trained:
        return MemoryParts()
    precision = precision or run_precision(spec)
    copy = 0 if precision == "fp32" else 2
    ways = shards if sharded else 1
    # A sharded run has bfloat16 copies of gathered blocks only.
    weight_bytes = 4 if sharded else 4 + copy
    clip = _clip_parts(spec, recompute, precision)
    gathered = _gathered_bytes(spec, copy or 4) if sharded else (0, 0)
    return MemoryParts(
        parameters=math.ceil(weight_bytes * trained / ways),
        gradients=math.ceil(4 * trained / ways),
        moments=math.ceil(8 * trained / ways),
        teacher=math.ceil(4 * frozen / ways),
        batch=micro_batch * clip.batch,
        activations=micro_batch * clip.activations,
        working=micro_batch * clip.working + gathered[0],
        teacher_working=micro_batch * clip.teacher_working + gathered[1] if frozen else 0,
    )


def propose(spec: RunSpec, site: SiteSpec, execution: ExecSpec | None = None) -> Fit:
    """The fewest GPUs on which a run fits and ends within the site's job limit, else `TARGET_HOURS`.

    What `execution` settles is taken as it is: a bound on the micro-batch, recomputation, weights sharded
    over all GPUs. Sharding of the optimiser alone is forecast as none.

    A GPU count divides the batch and fills whole nodes above one. Where no count is quick enough the largest
    is taken: the run then takes several jobs. A GPU's share of the batch is cut into equal micro-batches, as
    large as fit; blocks are recomputed, and the state sharded, only where one clip does not fit without.
    """
    target = site.max_hours_per_job or TARGET_HOURS
    counts = gpu_counts(spec.optim.batch_clips, site)
    execution = execution or ExecSpec()
    layouts = [
        (recompute, sharded)
        for recompute, sharded in LAYOUTS
        if (recompute or not execution.recompute) and (sharded or execution.sharding != "full")
    ]
    hours = {recompute: run_gpu_hours(spec, site, recompute=recompute) for recompute in (False, True)}
    found: Fit | None = None
    for gpus in counts:
        # On one GPU there is nothing to shard over.
        for recompute, sharded in dict.fromkeys((r, s and gpus > 1) for r, s in layouts):
            most = execution.micro_batch_clips
            micro_batch, peak_bytes = _largest(spec, site, gpus, recompute, sharded, most)
            if micro_batch is not None:
                found = Fit(
                    gpus=gpus,
                    micro_batch=micro_batch,
                    accumulation_steps=spec.optim.batch_clips // gpus // micro_batch,
                    recompute=recompute,
                    sharded=sharded,
                    peak_bytes=peak_bytes,
                    hours=hours[recompute] / gpus,
                )
                break
        if found is not None and found.gpus == gpus and found.hours <= target:
            return found
    return found or _too_large(spec, site, counts[-1], hours[True])


def gpu_counts(batch_clips: int, site: SiteSpec) -> list[int]:
    """Ascending numbers of GPUs that divide a batch and the nodes: within one node, or whole nodes."""
    cap = min(site.gpu_cap, batch_clips)
    return [
        count
        for count in range(1, cap + 1)
        if batch_clips % count == 0 and (count <= site.gpus_per_node or count % site.gpus_per_node == 0)
    ]


def _largest(
    spec: RunSpec, site: SiteSpec, gpus: int, recompute: bool, sharded: bool, most: int | None
) -> tuple[int | None, int]:
    """The largest equal share of a GPU's clips that fits, of at most `most` clips, with its peak; None and
    one clip's peak if none.
    """

    def peak(clips: int) -> int:
        return memory(spec, clips, recompute, shards=gpus, sharded=sharded).peak_bytes

    share = spec.optim.batch_clips // gpus
    for pieces in range(1, share + 1):
        if share % pieces == 0 and (most is None or share // pieces <= most):
            peak_bytes = peak(share // pieces)
            if peak_bytes <= site.usable_bytes:
                return share // pieces, peak_bytes
    return None, peak(1)


def _too_large(spec: RunSpec, site: SiteSpec, gpus: int, gpu_hours: float) -> Fit:
    """The layout that needs least, with what it lacks in words."""
    layouts = {
        sharded: memory(spec, 1, True, shards=gpus, sharded=sharded)
        for sharded in ((False, True) if gpus > 1 else (False,))
    }
    sharded, parts = min(layouts.items(), key=lambda item: item[1].peak_bytes)
    vit = spec.model.encoder
    over = parts.peak_bytes - site.usable_bytes
    how = f"recomputation and {gpus}-way sharding" if sharded else "recomputation"
    problem = (
        f"one clip of the {spec.arm} arm (width {vit.width}, depth {vit.depth}) needs "
        f"{_gib(parts.peak_bytes)} with {how}, {_gib(parts.state_bytes)} of it weights and their state; "
        f"site {site.name} offers {_gib(site.usable_bytes)} a GPU "
        f"({site.memory_gib:g} GiB less {site.reserve_gib:g} in reserve), "
        f"{_gib(over)} too little: a smaller encoder or clip, or GPUs with more memory"
    )
    return Fit(
        gpus=gpus,
        micro_batch=1,
        accumulation_steps=spec.optim.batch_clips // gpus,
        recompute=True,
        sharded=sharded,
        peak_bytes=parts.peak_bytes,
        hours=gpu_hours / gpus,
        problem=problem,
    )


def _gib(count: int) -> str:
    return f"{count / GIB:.3g} GiB"


# --- one clip -------------------------------------------------------------------------------------


def _clip_parts(spec: RunSpec, recompute: bool, precision: Precision) -> MemoryParts:
    """What one clip of a micro-batch adds, over all of its masks."""
    model, rope = spec.model, spec.model.position.rope
    values, count, wide = patch_values(model, spec.clip), tokens(model, spec.clip), output_width(spec)
    number = 4 if precision == "fp32" else 2
    passes = _passes(spec)
    # The residual stream is float32 once a float32 position vector or mask token has been added to it.
    encoder_residual = 4 if model.position.sincos else number
    saved = 0
    for visible, target in passes:
        saved += visible * values * number  # input of the patch embedding
        saved += visible * _trunk_bytes(model.encoder, rope, precision, encoder_residual, recompute)
        if spec.arm == "supervised":
            continue
        saved += visible * model.encoder.width * number  # input of the predictor
        saved += (visible + target) * _trunk_bytes(model.predictor, rope, precision, 4, recompute)
        saved += target * (model.predictor.width * number + _loss_bytes(spec, wide))  # output layer and loss
    working = max(4 * target * wide for _, target in passes)
    if recompute:
        working = max(working, *(_again(spec, visible, target, precision) for visible, target in passes))
    teacher = target_encoder(spec) if spec.cached_views is None else None
    return MemoryParts(
        batch=4 * count * (values + (0 if spec.arm == "supervised" else wide)),
        activations=saved,
        working=working,
        teacher_working=0 if teacher is None else _teacher_bytes(spec, teacher, precision),
    )


def _teacher_bytes(spec: RunSpec, teacher: VitSpec, precision: Precision) -> int:
    """Largest transient of the teacher on one clip; a model of transformers has tokens of its own."""
    adapter = target_adapter(spec)
    if adapter is None:
        count = tokens(spec.model, spec.clip)
        return count * _inference_bytes(teacher, spec.model.position.rope, precision)
    passes = adapter.passes(spec.clip.frames, spec.model.tubelet_frames)
    count = passes * (adapter.patches(spec.clip.frames) + adapter.special_tokens)
    return count * _inference_bytes(teacher, adapter.family == "vjepa2", precision)


def _passes(spec: RunSpec) -> list[tuple[int, int]]:
    """Visible and target tokens of a clip in each pass: masks of equal shape go through in one."""
    if spec.arm == "supervised":
        return [(tokens(spec.model, spec.clip), 0)]
    shapes: dict[tuple[int, int], int] = {}
    for mask in spec.masks:
        shape = (mask.visible_tokens, mask.target_tokens)
        shapes[shape] = shapes.get(shape, 0) + 1
    return [(times * visible, times * target) for (visible, target), times in shapes.items()]


def _loss_bytes(spec: RunSpec, wide: int) -> int:
    """Saved by the losses for one target token in float32.

    L1 keeps the difference; L2, smooth L1 and the cosine the target and the prediction, which is one storage
    for latents and pixels; the cosine the lengths of both as well.
    """
    objective = spec.objective
    if spec.arm in DECODES:
        kinds: tuple[str, ...] = (objective.pixel_loss,)
    elif objective.pixel_weight:
        kinds = (objective.latent_loss, objective.pixel_loss)
    else:
        kinds = (objective.latent_loss,)
    prediction = 0 if set(kinds) == {"l1"} else wide
    return 4 * (wide + prediction) + 8 * kinds.count("cosine")


def _trunk_bytes(vit: VitSpec, rope: bool, precision: Precision, residual: int, recompute: bool) -> int:
    """Saved for one token: every block, the final norm's input and statistics, and the rotary angles."""
    block = residual * vit.width if recompute else block_bytes(vit, rope, precision)
    return vit.depth * block + 4 * vit.width + 8 + (4 * (vit.width // vit.heads) if rope else 0)


def _again(spec: RunSpec, visible: int, target: int, precision: Precision) -> int:
    """One block run again in the backward pass: what it saves, gradients of its input and hidden layers."""
    model, number = spec.model, 4 if precision == "fp32" else 2
    trunks = [(model.encoder, visible)]
    if spec.arm != "supervised":
        trunks.append((model.predictor, visible + target))
    return max(
        count
        * (block_bytes(vit, model.position.rope, precision) + number * (2 * vit.mlp_width) + 4 * vit.width)
        for vit, count in trunks
    )


def _inference_bytes(vit: VitSpec, rope: bool, precision: Precision) -> int:
    """Largest transient of one token in a block without gradients.

    In the MLP: the hidden layer before and after GELU (2 m), the block's input and the MLP's (2 d), and what
    the block still holds of its attention: query, key and value (3 d), turned (2 d), and the output (d).
    Queries and keys turn in float32, which is more where the MLP is narrow.
    """
    d, m = vit.width, vit.mlp_width
    mlp = (8 if rope else 6) * d + 2 * m
    if precision == "fp32":
        return 4 * mlp
    return max(2 * mlp, 24 * d if rope else 0)


def _gathered_bytes(spec: RunSpec, number: int) -> tuple[int, int]:
    """Whole weights in a sharded run: two blocks and a float32 gradient of one; the teacher's two blocks."""
    blocks = [_block_parameters(spec.model.encoder)]
    if spec.arm != "supervised":
        blocks.append(_block_parameters(spec.model.predictor))
    teacher = target_encoder(spec)
    frozen = 0 if teacher is None else _block_parameters(teacher)
    return max(blocks) * (2 * number + 4), 2 * number * frozen


def _block_parameters(vit: VitSpec) -> int:
    """Numbers of one block: what one more of depth adds."""
    if not vit.depth:
        return 0
    return (encoder_parameters(vit, 0) - 3 * vit.width) // vit.depth
