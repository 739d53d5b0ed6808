"""The training loop of every arm, top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from salt import checkpoint
from salt.artefact import load_teacher, weights_sha256, write_artefact
from salt.batches import Batches
from salt.errors import RunFailed
from salt.flops import step_cost
from salt.learner import Learner
from salt.metrics import Metrics
from salt.optim import build_optimizer, ema_momentum, learning_rate, set_schedule, weight_decay
from salt.randomness import run_seed
from salt.specs import ExecSpec, RunSpec
from salt.store import RunDir

if TYPE_CHECKING:
    from salt.clips import Clips


def train(
    spec: RunSpec, run: RunDir, clips: Clips, execution: ExecSpec, attempt: int, warn: Callable[[str], None]
) -> None:
    """Train a run from its newest checkpoint, or from step 0, to its artefact.

    Everything drawn at random is a function of (seed, step): a run that was killed ends in the same
    weights as one that was not. Raises `RunFailed` (`diverged`, `teacher`, `checkpoint`).
    """
    device = torch.device(execution.device)
    labels = _label_numbers(spec, clips)
    learner = Learner(spec, classes=None if labels is None else int(labels.max()) + 1)
    teacher_sha256 = None
    if spec.arm == "salt":
        assert spec.teacher is not None
        teacher_run = RunDir(run.store, spec.teacher.run_id)
        learner.teacher, teacher_sha256 = load_teacher(teacher_run, spec.teacher, spec.model, spec.clip)
    learner.to(device)
    optimizer = build_optimizer(learner.trained, spec.optim)
    batches = Batches(clips.frames, spec.clip, spec.model, spec.optim.batch_clips, run_seed(spec))
    step_flops = step_cost(spec).total_flops

    start, earlier_wall_s = 0, 0.0
    found = checkpoint.load_newest(run, warn)
    if found is not None:
        seal, tensors = found
        learner.load_tensors({k: v for k, v in tensors.items() if not k.startswith("adam.")})
        load_optimizer(optimizer, tensors, seal.step)
        start, earlier_wall_s = seal.step, seal.train_wall_s

    began = time.perf_counter()
    first_bad = torch.full((), -1, device=device)  # first step whose loss or gradient was not finite
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    limit = math.inf if spec.optim.clip_norm is None else spec.optim.clip_norm

    with Metrics(run.metrics, attempt) as metrics:
        for step in range(start, spec.steps):
            rate = learning_rate(spec.optim, step, spec.steps)
            decay = weight_decay(spec.optim, step, spec.steps)
            set_schedule(optimizer, rate, decay)

            patches = batches(step).to(device)
            targets = None if labels is None else labels[batches.indices(step)].to(device)
            loss = learner.loss(patches, step, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
            optimizer.step()
            momentum = ema_momentum(spec.objective, step, spec.steps)
            learner.update_teacher(momentum)

            finite = torch.isfinite(loss) & torch.isfinite(norm)
            first_bad = torch.where((first_bad < 0) & ~finite, step, first_bad)
            done = step + 1
            logs = done % execution.log_every_steps == 0 or done == spec.steps
            saves = done % execution.checkpoint_every_steps == 0 and done < spec.steps
            if not (logs or saves):
                continue
            wall_s = earlier_wall_s + time.perf_counter() - began
            if logs:
                metrics.write(
                    done,
                    loss=loss.item(),
                    grad_norm=norm.item(),
                    lr=rate,
                    weight_decay=decay,
                    ema_momentum=momentum if spec.arm == "vjepa" else None,
                    flops=done * step_flops,
                    wall_s=round(wall_s, 3),
                )
            if first_bad >= 0:  # before any save: a poisoned checkpoint never replaces a good one
                raise RunFailed(
                    "diverged",
                    f"loss or gradient not finite at step {int(first_bad)} of {spec.steps}; "
                    "the last good checkpoint stays",
                )
            if saves:
                state = {**learner.tensors(), **optimizer_tensors(optimizer)}
                checkpoint.save(run, done, state, attempt, wall_s)

    if spec.arm == "salt":
        assert learner.teacher is not None
        if weights_sha256(learner.teacher.state_dict()) != teacher_sha256:
            raise RunFailed("teacher", "the frozen teacher's weights changed during training")
    branch = "ema" if spec.arm == "vjepa" else "student"
    write_artefact(run, spec, learner.probed(), branch, teacher_sha256)


def optimizer_tensors(optimizer: torch.optim.AdamW) -> dict[str, torch.Tensor]:
    """AdamW's two moments of each parameter, numbered in the order of its groups."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return {
        f"adam.{moment}.{number}": optimizer.state[parameter][moment]
        for number, parameter in enumerate(parameters)
        for moment in ("exp_avg", "exp_avg_sq")
    }


def load_optimizer(optimizer: torch.optim.AdamW, tensors: dict[str, torch.Tensor], step: int) -> None:
    """Restore `optimizer_tensors` after `step` steps."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step), device=parameter.device),
            "exp_avg": tensors[f"adam.exp_avg.{number}"].to(parameter.device),
            "exp_avg_sq": tensors[f"adam.exp_avg_sq.{number}"].to(parameter.device),
        }


def _label_numbers(spec: RunSpec, clips: Clips) -> torch.Tensor | None:
    """Class numbers of the training clips for the supervised reference, int64 [N]."""
    if spec.arm != "supervised":
        return None
    if spec.label is None or spec.label not in clips.columns:
        raise RunFailed(
            "data",
            f"the supervised run wants the label {spec.label!r}; the list has {', '.join(clips.columns)}",
        )
    column = clips.columns[spec.label]
    number = {name: place for place, name in enumerate(sorted(set(column)))}
    return torch.tensor([number[name] for name in column])
