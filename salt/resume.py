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
from salt.metrics import read_metrics
from salt.optim import branch_problems
from salt.reached import read_reached
from salt.shard import full_tensors, load_full, zero_moments
from salt.specs import RunSpec
from salt.store import RunDir

if TYPE_CHECKING:
    from pathlib import Path

    from salt.world import World

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, kw_only=True)
class Start:
    """Steps and wall seconds behind a run when an attempt begins, and what it was made from.

    `own` says whether that state is the run's own; else it is the trunk's, or nothing was trained yet.
    `highest_rank` is that of the targets so far, None where nobody noted it.
    """

    step: int
    wall_s: float
    origin: Origin
    own: bool = False
    highest_rank: float | None = None


def begin(
    spec: RunSpec,
    run: RunDir,
    learner: Learner,
    optimizer: torch.optim.AdamW,
    teacher_sha256: str | None,
    warn: Callable[[str], None],
    world: World,
    *,
    checkpoint_every_steps: int,
    from_start: bool = False,
) -> Start:
    """Restore what was trained before, here or in the trunk. Rank 0 reads; all ranks call it.

    With `from_start` a run of which no state can be used begins again; else that is an error wherever there
    is a sign that it had one.
    """
    found = world.on_main(
        lambda: _find(spec, run, teacher_sha256, warn, checkpoint_every_steps, from_start=from_start)
    )
    start, state = found if found is not None else (None, None)
    start = world.share(start)
    zero_moments(optimizer, start.step)  # as AdamW itself begins: the state has its whole size from here on
    if start.step:
        load_full({**learner.tensors(), **optimizer_tensors(optimizer)}, state, world)
    return start


def gather_state(learner: Learner, optimizer: torch.optim.AdamW, world: World) -> dict[str, torch.Tensor]:
    """All that a resumed run needs, as whole tensors in host memory of rank 0; all ranks call it."""
    return full_tensors({**learner.tensors(), **optimizer_tensors(optimizer)}, world)


def _find(
    spec: RunSpec,
    run: RunDir,
    teacher_sha256: str | None,
    warn: Callable[[str], None],
    checkpoint_every_steps: int,
    *,
    from_start: bool,
) -> tuple[Start, dict[str, torch.Tensor]]:
    found = _own_state(run, warn, from_start=from_start)
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
    else:
        _refuse_silent_start(spec, run, warn, checkpoint_every_steps, from_start=from_start)
        if spec.trunk is None:
            return Start(step=0, wall_s=0.0, origin=Origin(teacher_sha256=teacher_sha256)), {}
        seal, tensors = load_trunk(run.store, spec)
        origin, wall_s = Origin(teacher_sha256=seal.origin.teacher_sha256, trunk_sha256=seal.sha256), 0.0
    if origin.teacher_sha256 != teacher_sha256:
        raise RunFailed(
            "teacher",
            f"run {seal.run_id} was trained to step {seal.step} with a teacher of weights "
            f"{origin.teacher_sha256}, which now are {teacher_sha256}: train run {seal.run_id} again",
        )
    own = found is not None
    highest = seal.highest_rank if own else None
    return Start(step=seal.step, wall_s=wall_s, origin=origin, own=own, highest_rank=highest), tensors


def _own_state(
    run: RunDir, warn: Callable[[str], None], *, from_start: bool
) -> tuple[Seal, dict[str, torch.Tensor]] | None:
    """The newest valid checkpoint, else the newest valid kept state, else None."""
    try:
        found, none_good = checkpoint.load_newest(run, warn), None
    except RunFailed as failure:
        found, none_good = None, failure
    if found is not None:
        return found
    found = checkpoint.load_newest_kept(run, warn)
    if found is not None:
        warn(f"no checkpoint of run {run.run_id}; going on from its kept state at step {found[0].step}")
    elif none_good is not None and not from_start:
        raise none_good
    return found


def _refuse_silent_start(
    spec: RunSpec,
    run: RunDir,
    warn: Callable[[str], None],
    checkpoint_every_steps: int,
    *,
    from_start: bool,
) -> None:
    """A folder without a usable state, but with signs that there was one, is not trained from its start."""
    signs = signs_of_work(spec, run, checkpoint_every_steps)
    if not signs:
        return
    there = f"run {run.run_id} has no checkpoint in {run.checkpoints}, but {', and '.join(signs)}"
    if not from_start:
        raise RunFailed(
            "checkpoint",
            f"{there}: bring the checkpoints back, or start over with {checkpoint.FROM_START}",
        )
    warn(f"{there}; starting over, as asked")


def signs_of_work(spec: RunSpec, run: RunDir, checkpoint_every_steps: int) -> list[str]:
    """What in a run's folder says that it was further than its start and had a state; empty for a run that
    was killed before its first checkpoint."""
    first = 0 if spec.trunk is None else spec.trunk.step
    signs = []
    reached = read_reached(run.reached)
    if reached is not None:
        if reached.saved_step is not None:
            signs.append(f"{run.reached.name} tells of one at step {reached.saved_step}")
    else:
        due = (first // checkpoint_every_steps + 1) * checkpoint_every_steps
        rows = read_metrics(run.metrics)
        # A line of that very step is written before its checkpoint, so it says nothing.
        if rows and rows[-1]["step"] > due:
            signs.append(f"{run.metrics.name} has lines up to step {rows[-1]['step']}, past the one at {due}")
    kept = sorted(path.name for path in run.kept.glob("step-*.json"))
    if kept:
        signs.append(f"{run.kept.name}/ has {', '.join(kept[:3])}")
    signs += [f"{path.name} is there" for path in (run.artefact, run.result) if path.exists()]
    return signs


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
