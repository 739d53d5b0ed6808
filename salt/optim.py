"""AdamW and its schedules, all functions of the global step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from salt.specs import ObjectiveSpec, OptimSpec, RunSpec

if TYPE_CHECKING:
    import torch
    from torch import nn

#: What a cooldown may have of its own; in all else it is its trunk.
OWN_FIELDS = ("steps", "trunk", "keep_steps")


@dataclass(frozen=True, kw_only=True)
class Rates:
    """What the schedules say of one step."""

    learning_rate: float
    weight_decay: float
    ema_momentum: float


def rates(spec: RunSpec, step: int) -> Rates:
    """Rates of the step that is the (`step` + 1)-th of the whole path, the trunk's steps included."""
    branch_step = None if spec.trunk is None else spec.trunk.step
    return Rates(
        learning_rate=learning_rate(spec.optim, step, spec.steps, branch_step),
        weight_decay=weight_decay(spec.optim, step, spec.steps),
        ema_momentum=ema_momentum(spec.objective, step, spec.steps, constant=spec.optim.schedule != "cosine"),
    )


def warmup_steps(optim: OptimSpec, steps: int) -> int:
    """Steps of linear warmup of a run of `steps` steps. A cooldown has none: its trunk's are behind it."""
    return 0 if optim.schedule == "cooldown" else round(optim.warmup_share * steps)


def learning_rate(optim: OptimSpec, step: int, steps: int, branch_step: int | None = None) -> float:
    """Rate of step 0 <= step < steps: linear warmup over its share of the run, then as scheduled.

    `cosine` falls to `lr_end` along half a wave, `constant` stays at `lr`. `cooldown` begins at
    `branch_step`, past the warmup, and falls along a line; like the cosine it would be at `lr_end` one step
    after its last.
    """
    if optim.schedule == "cooldown":
        if branch_step is None or not branch_step <= step < steps:
            raise ValueError(f"step {step} is not in a cooldown from {branch_step} to {steps}")
        return optim.lr + (optim.lr_end - optim.lr) * (step - branch_step) / (steps - branch_step)
    warmup = warmup_steps(optim, steps)
    if step < warmup:
        return optim.lr_start + (optim.lr - optim.lr_start) * (step + 1) / warmup
    if optim.schedule == "constant":
        return optim.lr
    done = (step - warmup) / max(1, steps - warmup)
    return optim.lr_end + (optim.lr - optim.lr_end) * 0.5 * (1 + math.cos(math.pi * done))


def weight_decay(optim: OptimSpec, step: int, steps: int) -> float:
    """Cosine from `weight_decay_start` to `weight_decay_end` over the run; without it, the start value."""
    if optim.schedule != "cosine":
        return optim.weight_decay_start
    end = optim.weight_decay_end
    return end + (optim.weight_decay_start - end) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def ema_momentum(objective: ObjectiveSpec, step: int, steps: int, constant: bool = False) -> float:
    """Linear from `ema_start` to `ema_end` over the run; if `constant` (trunks, cooldowns), `ema_start`."""
    if constant:
        return objective.ema_start
    return objective.ema_start + (objective.ema_end - objective.ema_start) * step / max(1, steps)


def schedule_problems(spec: RunSpec) -> list[str]:
    """Why the steps of a run do not make sense, from its spec alone; empty if they do."""
    problems = []
    if (spec.trunk is not None) != (spec.optim.schedule == "cooldown"):
        has = "no trunk" if spec.trunk is None else f"the trunk {spec.trunk.run_id}"
        problems.append(
            f"schedule {spec.optim.schedule!r} with {has}: a cooldown has a trunk, other schedules have none"
        )
    if spec.trunk is not None and spec.trunk.step >= spec.steps:
        problems.append(
            f"steps {spec.steps}: they count from the start of the trunk, so there must be more than "
            f"the {spec.trunk.step} after which the run branches off"
        )
    first = 0 if spec.trunk is None else spec.trunk.step
    wrong = [step for step in spec.keep_steps if not first < step <= spec.steps]
    if wrong:
        problems.append(f"keep_steps {wrong}: this run takes steps {first + 1} to {spec.steps}")
    return problems


def branch_problems(spec: RunSpec, trunk: RunSpec) -> list[str]:
    """Why `spec` cannot go on from where `trunk` was at `spec.trunk.step`; empty if it can.

    It can where both would have trained alike up to there: all fields are equal but for `OWN_FIELDS` and the
    schedule, the trunk's rate is constant there, and it keeps that state.
    """
    if spec.trunk is None:
        raise ValueError("this run has no trunk")
    step, problems = spec.trunk.step, []
    if trunk.optim.schedule != "constant":
        problems.append(
            f"its schedule is {trunk.optim.schedule!r}: only a constant one can be left at any step"
        )
    own, other = (_all_else(run) for run in (spec, trunk))
    differ = [name for name in own if own[name] != other[name]]
    if differ:
        problems.append(f"it differs from its branch in {', '.join(differ)}")
    if step not in trunk.keep_steps:
        kept = ", ".join(map(str, trunk.keep_steps)) or "none"
        problems.append(f"it does not keep its state at step {step} (kept: {kept})")
    warmup = warmup_steps(trunk.optim, trunk.steps)
    if step < warmup:
        problems.append(
            f"step {step} is inside its warmup of {warmup} steps: branch off later, or warm up less"
        )
    return problems


def _all_else(spec: RunSpec) -> dict[str, object]:
    """Fields that a trunk and its branch share; those of the optimiser one by one."""
    fields = {name: value for name, value in msgspec.structs.asdict(spec).items() if name not in OWN_FIELDS}
    optim = msgspec.structs.asdict(fields.pop("optim"))
    return fields | {f"optim.{name}": value for name, value in optim.items() if name != "schedule"}


def clip_gradients(modules: list[nn.Module], spec: RunSpec, step: int) -> torch.Tensor:
    """Limit gradient norms as the run asks; the norm of all gradients before that, float32 [].

    With `clip_scope: module` the encoder and the predictor are limited apart. Sharded gradients give their
    norm over all ranks. During warmup nothing is limited unless `clip_in_warmup`.
    """
    import torch

    from salt.shard import clip_gradients as limit_norm

    optim = spec.optim
    clips = optim.clip_norm is not None and (optim.clip_in_warmup or step >= warmup_steps(optim, spec.steps))
    limit = optim.clip_norm if clips and optim.clip_norm is not None else math.inf
    if optim.clip_scope == "all":
        return limit_norm([p for module in modules for p in module.parameters()], limit)
    norms = [limit_norm(module.parameters(), limit) for module in modules]
    return torch.stack(norms).square().sum().sqrt()


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
