"""What cached targets save and what half precision costs: `python benchmarks/cached_targets.py`.

Times: a student's step with its teacher online and with cached targets, at two sizes, in one process, taking
turns; each step draws its masks, gets its targets (a pass of the teacher, or a read of the cache), and goes
through encoder, predictor, backward, clipping and AdamW. Seconds of the clock, and of the processor, which
other work on the machine disturbs less. Beside the measured ratios stands the ledger's, which counts matrix
products alone. Clips are noise, which makes no difference to time.

Disk: milliseconds of reading a step's targets from files that are not in memory, as they are wanted, and with
the step before having told the system of them (`CachedTargets.ahead`).

Precision: the error of targets, loss and gradient of a student when the cache holds 16 bits instead of 32,
beside that of a teacher that computes in bfloat16 (autocast), at the miniature's size. The teacher is trained
on moving squares first, for its latents to be those of a trained encoder.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).parent.parent))

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.environment import environment
from salt.artefact import weights_sha256
from salt.batches import to_patches
from salt.flops import step_cost
from salt.learner import Learner, build_encoder, freeze
from salt.masks import published_counts
from salt.optim import build_optimizer, clip_gradients, rates, set_schedule
from salt.sizes import SIZES, grid
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
from salt.target_cache import CachedTargets, open_targets
from salt.target_files import Storage, target_identity, target_index, write_shard
from salt.vit import Encoder

#: Clips of the list, and views; few, as encoding them is not what is measured.
CLIPS, VIEWS = 16, 2
#: Steps that are not counted, of each kind.
WARM_UP = 2
#: Steps of the teacher whose latents are stored in 16 bits, and of the student that is asked for its loss.
TEACHER_STEPS, STUDENT_STEPS = 200, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15, help="steps of each kind, in turns")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(environment(), f"{arguments.threads} threads", sep=", ", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        times = {
            name: step_times(spec, Path(folder), arguments.rounds * repeats)
            for name, spec, repeats in (("vit_ti", vit_ti("salt"), 1), ("miniature", miniature("salt"), 10))
        }
        errors = storage_errors(Path(folder))
        disk = disk_reads(vit_ti("salt"), Path(folder))
    if arguments.json:
        print(json.dumps({"steps": times, "storage": errors, "disk": disk}))
        return
    for name, found in times.items():
        print(
            f"{name}: online {found['online_ms']:.1f} ms a step, cached {found['cached_ms']:.1f} ms, of it "
            f"{found['read_ms']:.2f} ms reading; {found['ratio']:.2f} times as fast by the clock, "
            f"{found['processor_ratio']:.2f} by processor time, {found['ledger_ratio']:.2f} by the ledger; "
            f"largest difference of a target {found['difference']:.1e}"
        )
    print("disk: " + ", ".join(f"{name} {ms:.2f} ms a step" for name, ms in disk.items()))
    for name, error in errors.items():
        shown = ", ".join(f"{what} {value:.1e}" for what, value in error.items())
        print(f"{name}: relative error of {shown}")


def vit_ti(arm: Arm) -> RunSpec:
    """ViT-Ti student and teacher, predictor 4 x 96, 16 frames of 112 px, batch 4, V-JEPA's two masks."""
    predictor = VitSpec(width=96, depth=4, heads=3, mlp_width=384)
    model = ModelSpec(encoder=SIZES["vit_ti"], predictor=predictor)
    clip = ClipSpec(frames=16, store_px=128, crop_px=112)
    masks = []
    for blocks, scale in ((8, 0.15), (2, 0.7)):
        visible, target = published_counts(blocks, scale, 0.75, 1.5, grid(model, clip))
        masks.append(MaskSpec(blocks=blocks, scale=scale, visible_tokens=visible, target_tokens=target))
    return _run(arm, "vit_ti", model, clip, tuple(masks), 4, ObjectiveSpec())


def miniature(arm: Arm) -> RunSpec:
    """The shipped miniature study: micro student and teacher, 8 frames of 24 px, batch 16."""
    model = ModelSpec(
        encoder=SIZES["micro"],
        predictor=VitSpec(width=32, depth=2, heads=2, mlp_width=128),
        patch_px=6,
        position=PositionSpec(rope_base=100.0, sincos=True, sincos_base=1000.0, sincos_scale=1.5),
        init="xavier",
    )
    clip = ClipSpec(frames=8, frame_stride=1, store_px=32, crop_px=24, channels=1, mean=0.417, std=0.0714)
    mask = MaskSpec(visible_tokens=8, target_tokens=32)
    return _run(arm, "micro", model, clip, (mask, mask), 16, ObjectiveSpec(pixel_norm="none"))


def _run(
    arm: Arm,
    teacher: str,
    model: ModelSpec,
    clip: ClipSpec,
    masks: tuple[MaskSpec, ...],
    batch_clips: int,
    objective: ObjectiveSpec,
) -> RunSpec:
    student = arm == "salt"
    return RunSpec(
        arm=arm,
        seed=0,
        steps=1000,
        model=model,
        clip=clip,
        data=DataSpec(name="none", fingerprint="none", clips=CLIPS),
        masks=masks,
        objective=objective,
        optim=OptimSpec(batch_clips=batch_clips, lr_start=0.0, lr=1e-3, clip_norm=1.0),
        teacher=TeacherRef(run_id="0" * 16, step=1, encoder=SIZES[teacher]) if student else None,
        cached_views=VIEWS if student else None,
    )


class Material:
    """Clips in memory, their fixed views, and a teacher."""

    def __init__(self, spec: RunSpec, frames: NDArray[np.uint8], teacher: Encoder) -> None:
        self.spec, self.frames, self.teacher = spec, frames, teacher

    def view_crops(self, clips: NDArray[np.int64], view: int) -> NDArray[np.uint8]:
        side, room = self.spec.clip.crop_px, self.spec.clip.store_px - self.spec.clip.crop_px
        corners = [(3 * clip + view) % (room + 1) for clip in clips.tolist()]
        crops = [
            self.frames[clip, :, at : at + side, at : at + side]
            for clip, at in zip(clips, corners, strict=True)
        ]
        return np.stack(crops)

    def patches(self, clips: NDArray[np.int64], views: NDArray[np.int64]) -> torch.Tensor:
        crops = [self.view_crops(clips[n : n + 1], int(views[n])) for n in range(len(clips))]
        return to_patches(torch.from_numpy(np.concatenate(crops)), self.spec.clip, self.spec.model)

    def encode(self, crops: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.teacher(to_patches(crops, self.spec.clip, self.spec.model))
        return latents

    def open(self, cache: Path, storage: Storage) -> CachedTargets:
        sha256 = weights_sha256(self.teacher.state_dict())
        rows = [str(clip) for clip in range(len(self.frames))]
        return open_targets(
            cache, self.spec, sha256, rows, self.view_crops, self.encode, storage=storage, show=False
        )


def step_times(spec: RunSpec, folder: Path, rounds: int) -> dict[str, float]:
    """Medians of both kinds of step and of reading the cache; medians over pairs of steps of their ratios."""
    shape = (CLIPS, spec.clip.frames, spec.clip.store_px, spec.clip.store_px, spec.clip.channels)
    frames = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    assert spec.teacher is not None
    teacher = freeze(build_encoder(spec.teacher.encoder, spec.model, spec.clip, 0))
    material = Material(spec, frames, teacher)
    targets = material.open(folder, "float32")
    steps = {name: Stepper(spec, teacher) for name in ("online", "cached")}
    times: dict[str, list[float]] = {"online": [], "cached": [], "read": []}
    processor: dict[str, list[float]] = {"online": [], "cached": []}
    difference = 0.0
    for step in range(rounds + WARM_UP):
        clips = np.random.default_rng(step).integers(0, CLIPS, spec.optim.batch_clips)
        views = (clips + step) % VIEWS
        patches = material.patches(clips, views)

        def read(groups: list[torch.Tensor], clips=clips, views=views) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
            began = time.perf_counter()
            latents = [targets.read(clips, views, target) for target in groups]
            times["read"].append(time.perf_counter() - began)
            return latents

        for name, source in (("online", None), ("cached", read)):
            began, began_processor = time.perf_counter(), time.process_time()
            steps[name].step(patches, step, source)
            times[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - began_processor)
        with torch.no_grad():
            online = teacher(patches)
        difference = max(difference, float((online - targets.read(clips, views)).abs().max()))
    medians = {name: statistics.median(values[WARM_UP:]) for name, values in times.items()}
    ratios = [
        statistics.median([a / b for a, b in zip(kind["online"], kind["cached"], strict=True)][WARM_UP:])
        for kind in (times, processor)
    ]
    flops = [step_cost(msgspec.structs.replace(spec, cached_views=v)).total_flops for v in (None, VIEWS)]
    return {
        **{f"{name}_ms": 1e3 * seconds for name, seconds in medians.items()},
        "ratio": ratios[0],
        "processor_ratio": ratios[1],
        "ledger_ratio": flops[0] / flops[1],
        "difference": difference,
    }


class Stepper:
    """A run's training step."""

    def __init__(self, spec: RunSpec, teacher: Encoder | None) -> None:
        self.spec = spec
        self.learner = Learner(spec)
        self.learner.teacher = teacher
        self.optimizer = build_optimizer(self.learner.trained, spec.optim)

    def step(
        self,
        patches: torch.Tensor,
        step: int,
        read: Callable[[list[torch.Tensor]], list[torch.Tensor]] | None = None,
    ) -> None:
        now = rates(self.spec, step)
        set_schedule(self.optimizer, now.learning_rate, now.weight_decay)
        self.loss(patches, step, read).backward()
        clip_gradients(self.learner.trained, self.spec, step)
        self.optimizer.step()

    def loss(
        self,
        patches: torch.Tensor,
        step: int,
        read: Callable[[list[torch.Tensor]], list[torch.Tensor]] | None = None,
    ) -> torch.Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        masks = self.learner.masks(step, range(len(patches)))
        assert masks is not None
        latents = None if read is None else read(masks.target)
        return self.learner.outcome(patches, masks, latents=latents).loss

    def gradient(self) -> torch.Tensor:
        parts = [p.grad.flatten() for module in self.learner.trained for p in module.parameters()
                 if p.grad is not None]  # fmt: skip
        return torch.cat(parts)


def storage_errors(folder: Path) -> dict[str, dict[str, float]]:
    """Relative errors (norm of the difference by norm) of targets, loss and gradient, worst of all steps."""
    clips = 64
    data = DataSpec(name="none", fingerprint="squares", clips=clips)
    frames = moving_squares(clips)
    pixel = msgspec.structs.replace(miniature("pixel"), data=data)
    spec = msgspec.structs.replace(miniature("salt"), data=data)
    trainer = Stepper(pixel, None)
    material = Material(spec, frames, trainer.learner.encoder)
    for step in range(TEACHER_STEPS):
        trainer.step(material.patches(*_batch(step, clips)), step)
    freeze(material.teacher)
    caches = {storage: material.open(folder, storage) for storage in get_args(Storage)}
    student = Stepper(spec, material.teacher)
    errors: dict[str, dict[str, float]] = {}
    for step in range(STUDENT_STEPS):
        chosen, views = _batch(step, clips)
        patches = material.patches(chosen, views)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            computed = material.teacher(patches)
        latents = {f"stored in {storage}": cache.read(chosen, views) for storage, cache in caches.items()}
        latents["computed in bfloat16"] = computed
        results = {}
        for name, values in latents.items():
            student.optimizer.zero_grad(set_to_none=True)
            masks = student.learner.masks(step, range(len(patches)))
            loss = student.learner.outcome(patches, masks, latents=values).loss
            loss.backward()
            results[name] = (values.detach().float(), loss.detach(), student.gradient())
        exact = results.pop("stored in float32")
        for name, result in results.items():
            worst = errors.setdefault(name, {"targets": 0.0, "loss": 0.0, "gradient": 0.0})
            for what, value, wanted in zip(worst, result, exact, strict=True):
                worst[what] = max(worst[what], float((value - wanted).norm() / wanted.norm()))
        student.step(patches, step)
    return errors


def disk_reads(spec: RunSpec, folder: Path) -> dict[str, float]:
    """Median milliseconds of reading a step's targets: from disk, told ahead, and from memory."""
    batch, steps, work_s = 8, 12, 0.03
    # Many more clips than are read: systems read ahead by themselves, here and there by megabytes.
    rows = [str(clip) for clip in range(5 * batch * steps)]
    index = target_index(spec, target_identity(spec, "0" * 64, rows))
    cache, views = folder / "disk", np.zeros(batch, dtype=np.int64)
    cache.mkdir()
    values = np.random.default_rng(0).random((index.shard_rows, index.tokens, index.width), dtype=np.float32)
    for shard in range(index.shards):
        write_shard(cache, index, shard, [values[: len(index.shard_range(shard))]])
    target = torch.stack([torch.arange(index.tokens * 3 // 4)] * 2 * batch)
    order = np.random.default_rng(0).permutation(len(rows))[: steps * batch].reshape(steps, batch)
    found: dict[str, list[float]] = {"from disk": [], "told ahead": [], "from memory": []}
    for name in list(found) * 3:
        if name != "from memory":
            _forget(cache)
        targets = CachedTargets(cache, index)
        for step in range(steps):
            began = time.perf_counter()
            targets.read(order[step], views, target)
            if step:
                found[name].append(1e3 * (time.perf_counter() - began))
            if name == "told ahead" and step + 1 < steps:
                targets.ahead(order[step + 1], views)
            end = time.process_time() + work_s  # stands for the step's computation
            while time.process_time() < end:
                pass
        del targets
    return {name: statistics.median(values) for name, values in found.items()}


def _forget(folder: Path) -> None:
    """Have the system drop what it holds of these files in memory."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _batch(step: int, clips: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    chosen = np.random.default_rng(step).integers(0, clips, 16)
    return chosen, (chosen + step) % VIEWS


def moving_squares(clips: int) -> NDArray[np.uint8]:
    """Bright squares that move left or right over dark noise: uint8 [clips, 8, 32, 32, 1]."""
    random = np.random.default_rng(0)
    frames = random.integers(0, 60, (clips, 8, 32, 32, 1), dtype=np.uint8)
    for number in range(clips):
        row, column, speed = random.integers(0, 24), random.integers(0, 32), 3 if number % 2 else -3
        for t in range(8):
            frames[number, t, row : row + 8, (np.arange(column, column + 8) + speed * t) % 32] = 230
    return frames


if __name__ == "__main__":
    main()
