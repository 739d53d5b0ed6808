"""Why no attempt at a run can succeed, found from its spec alone."""

from __future__ import annotations

from salt.flops import target_encoder
from salt.mixture import mixture_problems
from salt.optim import schedule_problems
from salt.specs import RunSpec


def run_problems(spec: RunSpec) -> list[str]:
    """Every reason; empty if an attempt may succeed. Model and masks have checks of their own."""
    return schedule_problems(spec) + objective_problems(spec) + data_problems(spec)


def objective_problems(spec: RunSpec) -> list[str]:
    """What of the objective, the teacher and the cache does not go together."""
    problems, objective = [], spec.objective
    teacher = target_encoder(spec) if spec.arm != "salt" or spec.teacher is not None else None
    if spec.arm == "salt" and spec.teacher is None:
        problems.append("a salt run needs a teacher")
    if (spec.arm == "external") != (spec.external is not None):
        problems.append("weights from elsewhere (`external`) are an arm of their own, which takes no steps")
    if objective.pixel_weight and teacher is None:
        problems.append(
            f"pixel_weight {objective.pixel_weight} adds pixels to latents, and the arm {spec.arm} has none: "
            "set it in the arms salt and vjepa only"
        )
    if objective.teacher_layer is not None:
        if teacher is None:
            problems.append(f"teacher_layer {objective.teacher_layer}: the arm {spec.arm} has no teacher")
        elif objective.teacher_layer > teacher.depth:
            problems.append(
                f"teacher_layer {objective.teacher_layer}: the teacher has {teacher.depth} blocks"
            )
    if spec.cached_views is not None and spec.arm != "salt":
        problems.append(f"cached_views {spec.cached_views}: only a frozen teacher's targets can be kept")
    return problems


def data_problems(spec: RunSpec) -> list[str]:
    """What of lists, clips and batches does not go together."""
    problems, clip = mixture_problems(spec.data), spec.clip
    for low, high, name in (
        (clip.crop_scale_min, clip.crop_scale_max, "crop_scale"),
        (clip.crop_aspect_min, clip.crop_aspect_max, "crop_aspect"),
    ):
        if low > high:
            problems.append(f"clip.{name}_min {low:g} is above clip.{name}_max {high:g}")
    for name in ("mean", "std"):
        if isinstance(getattr(clip, name), tuple) and clip.channels == 1:
            problems.append(f"clip.{name} {list(getattr(clip, name))}: three values for clips of one channel")
    if spec.cached_views is not None and clip.source == "streamed":
        problems.append("cached targets need clips that stay the same: clip.source must be `stored`")
    for index, mask in enumerate(spec.masks):
        if mask.keep == "batch_min" and spec.optim.batch_clips % mask.keep_clips:
            problems.append(
                f"masks[{index}]: keep_clips {mask.keep_clips} does not divide batch_clips "
                f"{spec.optim.batch_clips}"
            )
    if len({mask.keep_clips for mask in spec.masks if mask.keep == "batch_min"}) > 1:
        problems.append("masks with `keep: batch_min` must agree on keep_clips")
    return problems
