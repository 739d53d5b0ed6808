"""Where a run goes on: its newest checkpoint, its trunk's kept state, or step 0."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from salt import checkpoint
from salt.checkpoint import Origin, Seal
from salt.errors import RunFailed
from salt.learner import Learner
from salt.optim import branch_problems
from salt.shard import full_tensors, load_full, zero_moments
from salt.specs import RunSpec
from salt.store import RunDir

if TYPE_CHECKING:
    from pathlib import Path

    from salt.world import World

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Start:
    """Steps and wall seconds behind a run when an attempt begins, and what it was made from."""

    step: int
    wall_s: float
    origin: Origin


def begin(
    spec: RunSpec,
    run: RunDir,
    learner: Learner,
    optimizer: torch.optim.AdamW,
    teacher_sha256: str | None,
    warn: Callable[[str], None],
    world: World,
) -> Start:
    """Restore what was trained before, here or in the trunk. Rank 0 reads; all ranks call it."""
    found = world.on_main(lambda: _find(spec, run, teacher_sha256, warn))
    start, state = found if found is not None else (None, None)
    start = world.share(start)
    if start.step:
        zero_moments(optimizer, start.step)
        load_full({**learner.tensors(), **optimizer_tensors(optimizer)}, state, world)
    return start


def gather_state(learner: Learner, optimizer: torch.optim.AdamW, world: World) -> dict[str, torch.Tensor]:
    """All that a resumed run needs, as whole tensors in host memory of rank 0; all ranks call it."""
    return full_tensors({**learner.tensors(), **optimizer_tensors(optimizer)}, world)


def _find(
    spec: RunSpec, run: RunDir, teacher_sha256: str | None, warn: Callable[[str], None]
) -> tuple[Start, dict[str, torch.Tensor]]:
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
        return Start(step=0, wall_s=0.0, origin=Origin(teacher_sha256=teacher_sha256)), {}
    if origin.teacher_sha256 != teacher_sha256:
        raise RunFailed(
            "teacher",
            f"run {seal.run_id} was trained to step {seal.step} with a teacher of weights "
            f"{origin.teacher_sha256}, which now are {teacher_sha256}: train run {seal.run_id} again",
        )
    return Start(step=seal.step, wall_s=wall_s, origin=origin), tensors


def load_trunk(store: Path, spec: RunSpec) -> tuple[Seal, dict[str, torch.Tensor]]:
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
        for moment in MOMENTS
    }
