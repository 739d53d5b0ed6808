"""A run's training step on clips of noise, without a store: what benchmarks time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from salt.batches import to_patches
from salt.learner import Learner, build_encoder, freeze
from salt.optim import build_optimizer, clip_gradients, rates, set_schedule
from salt.shard import compile_blocks
from salt.specs import RunSpec


class Rehearsal:
    """Takes one step of `spec` a call, as `salt.train` does, on the same batch every time.

    `lap(name)` is called after each part: `patches`, `masks`, `target pass`, `forward`, `backward`,
    `optimiser`.
    """

    def __init__(self, spec: RunSpec, device: torch.device, *, compiled: bool = False) -> None:
        self.spec, self.device, self.step = spec, device, 0
        self.learner = Learner(spec)
        if spec.teacher is not None:
            encoder = build_encoder(spec.teacher.encoder, spec.model, spec.clip, seed=1)
            self.learner.teacher = freeze(encoder)
        self.learner.to(device)
        if compiled:
            for module in self.learner.parts().values():
                compile_blocks(module)
        self.optimizer = build_optimizer(self.learner.trained, spec.optim)
        clip, clips = spec.clip, spec.optim.batch_clips
        shape = (clips, clip.frames, clip.crop_px, clip.crop_px, clip.channels)
        random = torch.Generator().manual_seed(0)
        self.crops = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)

    def __call__(self, lap: Callable[[str], None] = lambda _: None) -> None:
        spec, learner = self.spec, self.learner
        now = rates(spec, self.step % max(1, spec.steps))
        set_schedule(self.optimizer, now.learning_rate, now.weight_decay)
        patches = to_patches(self.crops.to(self.device), spec.clip, spec.model)
        lap("patches")
        masks = learner.masks(self.step, range(len(patches)))
        masks = None if masks is None else masks.to(self.device)
        lap("masks")
        latents = learner.latents(patches)
        lap("target pass")
        loss = learner.outcome(patches, masks, latents=latents).loss
        lap("forward")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        lap("backward")
        clip_gradients(learner.trained, spec, self.step)
        self.optimizer.step()
        learner.update_teacher(now.ema_momentum)
        lap("optimiser")
        self.step += 1
