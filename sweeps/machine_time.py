"""From counted FLOPs to GPU-hours, calendar days, money and disk at a site.

Time is what a budget costs on given machines, never part of the budget: recomputation makes a run longer, not
dearer in FLOPs.
"""

from __future__ import annotations

from collections.abc import Sequence

from salt.flops import cache_cost, output_width, step_cost, target_encoder
from salt.sizes import encoder_parameters, patch_values, predictor_parameters, tokens
from salt.specs import UNTRAINED, RunSpec
from sweeps.site import SiteSpec, run_precision

#: Parts whose blocks are run again in the backward pass under recomputation. The patch embedding is not.
RECOMPUTED = ("encoder", "predictor", "decoder")


def hardware_flops_per_step(spec: RunSpec, *, recompute: bool = False) -> int:
    """FLOPs that the machine does in one step: the ledger's, and those of blocks run again.

    With `recompute` that is one more forward pass of the encoder and the predictor or decoder.
    """
    cost = step_cost(spec)
    again = sum(cost.parts[name].forward for name in RECOMPUTED if name in cost.parts) if recompute else 0
    return cost.total_flops + again


def gpu_seconds_per_step(spec: RunSpec, site: SiteSpec, *, recompute: bool = False) -> float:
    """Seconds of one step of the whole batch, summed over all GPUs: hardware FLOPs / (peak x utilisation)."""
    flops = hardware_flops_per_step(spec, recompute=recompute)
    return flops / site.sustained_flops(spec.model.encoder, run_precision(spec))


def cache_gpu_seconds(spec: RunSpec, site: SiteSpec) -> float:
    """Seconds of encoding the cached targets once, summed over GPUs; 0 for targets made online."""
    encoder = target_encoder(spec) or spec.model.encoder
    return cache_cost(spec).total_flops / site.sustained_flops(encoder, run_precision(spec))


def run_gpu_hours(spec: RunSpec, site: SiteSpec, *, recompute: bool = False) -> float:
    """GPU-hours of what a run itself spends: its steps after its trunk's, and its cached targets."""
    own_steps = spec.steps - (spec.trunk.step if spec.trunk is not None else 0)
    seconds = own_steps * gpu_seconds_per_step(spec, site, recompute=recompute)
    return (seconds + cache_gpu_seconds(spec, site)) / 3600


def calendar_days(runs: Sequence[tuple[float, int, int | None]], site: SiteSpec) -> float:
    """Days that a plan takes at the least, on the GPUs that it may use at once.

    Each run is (GPU-hours, GPUs, place of the run that it needs, or None), in an order in which each can
    be made. No schedule is shorter than all GPU-hours over all GPUs, nor than the longest chain of runs that
    wait for each other; queues, failures and data loading come on top.

    Raises:
        ValueError: a run needs one that does not come before it, or more GPUs than may be used at once.
    """
    ends: list[float] = []
    for place, (gpu_hours, gpus, needs) in enumerate(runs):
        if not 1 <= gpus <= site.gpu_cap:
            raise ValueError(f"run {place} wants {gpus} GPUs; site {site.name} lends 1 to {site.gpu_cap}")
        if needs is not None and not 0 <= needs < place:
            raise ValueError(f"run {place} needs run {needs}, which does not come before it")
        ends.append(gpu_hours / gpus + (0.0 if needs is None else ends[needs]))
    crowded = sum(gpu_hours for gpu_hours, _, _ in runs) / site.gpu_cap
    return max(crowded, max(ends, default=0.0)) / 24


def price(gpu_hours: float, site: SiteSpec) -> float | None:
    """What GPU-hours cost in the site's currency; None where the site names no price."""
    return None if site.price_per_gpu_hour is None else gpu_hours * site.price_per_gpu_hour


def checkpoint_bytes(spec: RunSpec) -> int:
    """Bytes of one checkpoint: trained weights, AdamW's moments and the EMA teacher, all in float32.

    A running run keeps two (`salt.checkpoint.KEPT`), a third while it writes one, and one for each of
    `keep_steps`. The classifier of the supervised reference is left out.
    """
    if spec.arm in UNTRAINED:
        return 0
    return 4 * (3 * trained_parameters(spec) + (_encoder_parameters(spec) if spec.arm == "vjepa" else 0))


def artefact_bytes(spec: RunSpec) -> int:
    """Bytes of the encoder that a run leaves behind, in float32; 0 for raw pixels."""
    return 0 if spec.arm == "raw" else 4 * _encoder_parameters(spec)


def cached_target_bytes(spec: RunSpec) -> int:
    """Bytes of cached targets: views x clips x tokens x teacher's width x 4, or x 2 in bfloat16 runs (stored
    as float16); 0 without a cache.
    """
    teacher = target_encoder(spec)
    if spec.cached_views is None or teacher is None:
        return 0
    number = 4 if spec.optim.precision == "float32" else 2
    clips = spec.data.clips * spec.clip.clips_per_file
    return number * spec.cached_views * clips * tokens(spec.model, spec.clip) * teacher.width


def trained_parameters(spec: RunSpec) -> int:
    """Numbers that the optimiser moves; the classifier of the supervised reference is left out."""
    if spec.arm in UNTRAINED:
        return 0
    encoder = _encoder_parameters(spec)
    if spec.arm == "supervised":
        return encoder
    model = spec.model
    mask_tokens = len(spec.masks) if model.mask_token == "per_mask" else 1
    widths = (model.encoder.width, output_width(spec))
    return encoder + predictor_parameters(model.predictor, *widths, mask_tokens)


def _encoder_parameters(spec: RunSpec) -> int:
    return encoder_parameters(spec.model.encoder, patch_values(spec.model, spec.clip))
