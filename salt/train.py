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
from salt.checkpoint import Origin
from salt.errors import RunFailed
from salt.flops import step_cost
from salt.learner import Learner
from salt.metrics import Metrics
from salt.optim import branch_problems, build_optimizer, rates, set_schedule
from salt.randomness import run_seed
from salt.specs import ExecSpec, RunSpec
from salt.store import RunDir

if TYPE_CHECKING:
    from pathlib import Path

    from salt.clips import Clips


def train(
    spec: RunSpec, run: RunDir, clips: Clips, execution: ExecSpec, attempt: int, warn: Callable[[str], None]
) -> None:
    """Train a run from its newest checkpoint, its trunk's kept state or step 0, to its artefact.

    Everything drawn at random is a function of (seed, step): a run that was killed ends in the same
    weights as one that was not. Raises `RunFailed` (`diverged`, `teacher`, `trunk`, `checkpoint`).
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
    start, earlier_wall_s, origin = _begin(spec, run, learner, optimizer, teacher_sha256, warn)

    batches = Batches(clips.frames, spec.clip, spec.model, spec.optim.batch_clips, run_seed(spec))
    step_flops = step_cost(spec).total_flops
    first = 0 if spec.trunk is None else spec.trunk.step
    began = time.perf_counter()
    first_bad = torch.full((), -1, device=device)  # first step whose loss or gradient was not finite
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    limit = math.inf if spec.optim.clip_norm is None else spec.optim.clip_norm

    with Metrics(run.metrics, attempt) as metrics:
        for step in range(start, spec.steps):
            now = rates(spec, step)
            set_schedule(optimizer, now.learning_rate, now.weight_decay)

            patches = batches(step).to(device)
            targets = None if labels is None else labels[batches.indices(step)].to(device)
            loss = learner.loss(patches, step, targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
            optimizer.step()
            learner.update_teacher(now.ema_momentum)

            finite = torch.isfinite(loss) & torch.isfinite(norm)
            first_bad = torch.where((first_bad < 0) & ~finite, step, first_bad)
            done = step + 1
            logs = done % execution.log_every_steps == 0 or done == spec.steps
            saves = done % execution.checkpoint_every_steps == 0 and done < spec.steps
            keeps = done in spec.keep_steps
            if not (logs or saves or keeps):
                continue
            wall_s = earlier_wall_s + time.perf_counter() - began
            if logs:
                metrics.write(
                    done,
                    loss=loss.item(),
                    grad_norm=norm.item(),
                    lr=now.learning_rate,
                    weight_decay=now.weight_decay,
                    ema_momentum=now.ema_momentum if spec.arm == "vjepa" else None,
                    flops=(done - first) * step_flops,
                    wall_s=round(wall_s, 3),
                )
            if first_bad >= 0:  # before any save: a poisoned checkpoint never replaces a good one
                raise RunFailed(
                    "diverged",
                    f"loss or gradient not finite at step {int(first_bad)} of {spec.steps}; "
                    "the last good checkpoint stays",
                )
            if saves or keeps:
                state = {**learner.tensors(), **optimizer_tensors(optimizer)}
                packed = checkpoint.pack(
                    run, done, state, attempt=attempt, train_wall_s=wall_s, origin=origin
                )
                if keeps:  # before the checkpoint: a run that goes on from there has kept it
                    checkpoint.keep(run, packed, warn)
                if saves:
                    checkpoint.save(run, packed)

    if spec.arm == "salt":
        assert learner.teacher is not None
        if weights_sha256(learner.teacher.state_dict()) != teacher_sha256:
            raise RunFailed("teacher", "the frozen teacher's weights changed during training")
    write_artefact(run, spec, learner.probed(), "ema" if spec.arm == "vjepa" else "student", origin)


def _begin(
    spec: RunSpec,
    run: RunDir,
    learner: Learner,
    optimizer: torch.optim.AdamW,
    teacher_sha256: str | None,
    warn: Callable[[str], None],
) -> tuple[int, float, Origin]:
    """Restore what was trained before, here or in the trunk: step to go on from, wall seconds, origin."""
    found = checkpoint.load_newest(run, warn)
    if found is not None:
        seal, tensors = found
        origin, wall_s = seal.origin, seal.train_wall_s
        lost = [step for step in run.missing_kept(spec) if step <= seal.step]
        if lost:
            raise RunFailed(
                "checkpoint",
                f"the state at steps {lost} is gone from {run.kept}, and training is past it: "
                "move the run's folder away to train it again",
            )
    elif spec.trunk is not None:
        seal, tensors = load_trunk(run.store, spec)
        origin, wall_s = Origin(teacher_sha256=seal.origin.teacher_sha256, trunk_sha256=seal.sha256), 0.0
    else:
        return 0, 0.0, Origin(teacher_sha256=teacher_sha256)
    if origin.teacher_sha256 != teacher_sha256:
        raise RunFailed(
            "teacher",
            f"run {seal.run_id} was trained to step {seal.step} with a teacher of weights "
            f"{origin.teacher_sha256}, which now are {teacher_sha256}: train run {seal.run_id} again",
        )
    learner.load_tensors({k: v for k, v in tensors.items() if not k.startswith("adam.")})
    load_optimizer(optimizer, tensors, seal.step)
    return seal.step, wall_s, origin


def load_trunk(store: Path, spec: RunSpec) -> tuple[checkpoint.Seal, dict[str, torch.Tensor]]:
    """The state that a cooldown begins from, with its seal; `RunFailed("trunk")` if it does not fit."""
    assert spec.trunk is not None
    trunk = RunDir(store, spec.trunk.run_id)
    if not trunk.spec.exists():
        raise RunFailed("trunk", f"trunk {trunk.run_id} is not in the store {store}")
    problems = branch_problems(spec, trunk.read_spec())
    if problems:
        raise RunFailed(
            "trunk",
            f"no run can branch off from trunk {trunk.run_id} at step {spec.trunk.step} like this: "
            + "; ".join(problems),
        )
    return checkpoint.load_kept(trunk, spec.trunk.step, "trunk")


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
