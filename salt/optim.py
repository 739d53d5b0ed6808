"""AdamW and its schedules, all functions of the global step."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from salt.specs import ObjectiveSpec, OptimSpec

if TYPE_CHECKING:
    import torch
    from torch import nn


def learning_rate(optim: OptimSpec, step: int, steps: int) -> float:
    """Rate of step 0 <= step < steps: linear warmup over its share of the run, then a cosine to `lr_end`."""
    warmup = round(optim.warmup_share * steps)
    if step < warmup:
        return optim.lr_start + (optim.lr - optim.lr_start) * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return optim.lr_end + (optim.lr - optim.lr_end) * 0.5 * (1 + math.cos(math.pi * done))


def weight_decay(optim: OptimSpec, step: int, steps: int) -> float:
    """Cosine from `weight_decay_start` to `weight_decay_end` over the run."""
    end = optim.weight_decay_end
    return end + (optim.weight_decay_start - end) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def ema_momentum(objective: ObjectiveSpec, step: int, steps: int) -> float:
    """Linear from `ema_start` to `ema_end` over the run."""
    return objective.ema_start + (objective.ema_end - objective.ema_start) * step / max(1, steps)


def build_optimizer(modules: list[nn.Module], optim: OptimSpec) -> torch.optim.AdamW:
    """AdamW in two groups: matrices decay; biases, norms and other vectors do not."""
    import torch

    parameters = [p for module in modules for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "decays": True},
        {"params": [p for p in parameters if p.ndim < 2], "decays": False, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=(optim.beta1, optim.beta2), eps=optim.eps, fused=True)


def set_schedule(optimizer: torch.optim.AdamW, rate: float, decay: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
        if group["decays"]:
            group["weight_decay"] = decay
