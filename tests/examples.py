"""Specs of the miniature's shape, for tests."""

from typing import Any

from salt.sizes import SIZES
from salt.specs import (
    Arm,
    ClipSpec,
    DataSpec,
    MaskSpec,
    ModelSpec,
    ObjectiveSpec,
    OptimSpec,
    PositionSpec,
    RunSpec,
    TeacherRef,
    VitSpec,
)

CLIP = ClipSpec(
    frames=8, frame_stride=1, store_px=32, crop_px=24, channels=1, mean=0.41666667, std=0.07142857
)
MASK = MaskSpec(visible_tokens=8, target_tokens=32)


def model_spec(size: str) -> ModelSpec:
    return ModelSpec(
        encoder=SIZES[size],
        predictor=VitSpec(width=32, depth=2, heads=2, mlp_width=128),
        tubelet_frames=2,
        patch_px=6,
        position=PositionSpec(rope_base=100.0, sincos=True, sincos_base=1000.0, sincos_scale=1.5),
        init="xavier",
    )


def run_spec(
    arm: Arm,
    size: str = "micro",
    *,
    teacher: str | None = None,
    teacher_run: str = "0" * 16,
    teacher_steps: int = 10,
    batch_clips: int = 16,
    steps: int = 10,
    seed: int = 0,
    data: DataSpec | None = None,
    label: str | None = None,
    lr: float = 1e-3,
    **objective: Any,
) -> RunSpec:
    """A run like the miniature's; `teacher` is a size."""
    reference = None
    if teacher is not None:
        reference = TeacherRef(run_id=teacher_run, step=teacher_steps, encoder=SIZES[teacher])
    return RunSpec(
        arm=arm,
        seed=seed,
        steps=steps,
        model=model_spec(size),
        clip=CLIP,
        data=data or DataSpec(name="train", fingerprint="f" * 16, clips=8192),
        masks=(MASK, MASK),
        objective=ObjectiveSpec(**{"pixel_norm": "none", "ema_start": 0.9, **objective}),
        optim=OptimSpec(
            batch_clips=batch_clips,
            lr_start=0.0,
            lr=lr,
            lr_end=0.0,
            warmup_share=0.1,
            weight_decay_start=0.05,
            weight_decay_end=0.05,
            clip_norm=1.0,
        ),
        teacher=reference,
        label=label,
    )
