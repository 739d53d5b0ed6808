"""The training loop of every arm, top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from salt import checkpoint
from salt.artefact import load_teacher, weights_sha256, write_weights
from salt.batches import Batches, to_patches
from salt.disk import require_folder
from salt.errors import Interrupted, RunFailed
from salt.flops import step_cost
from salt.learner import Learner
from salt.loader import Loader
from salt.optim import build_optimizer, clip_gradients, rates, set_schedule
from salt.prepare import (
    GraphCheck,
    SkipReport,
    check_frozen,
    label_numbers,
    micro_batches,
    next_crops,
    open_cache,
    record_inputs,
    refuse_diverged,
)
from salt.quarantine import Quarantine
from salt.resume import begin
from salt.saving import Saver, read_earlier
from salt.shard import distribute, full_tensors
from salt.signals import STOP
from salt.sinks import Sinks, open_sinks
from salt.specs import ExecSpec, RunSpec
from salt.store import RunDir
from salt.watch import Watch

if TYPE_CHECKING:
    from salt.clips import Clips
    from salt.lists import VideoList
    from salt.world import World


def train(
    spec: RunSpec,
    run: RunDir,
    sources: Mapping[str, Clips | VideoList],
    execution: ExecSpec,
    attempt: int,
    warn: Callable[[str], None],
    world: World,
    *,
    from_start: bool = False,
) -> None:
    """Train a run from its newest checkpoint, its trunk's kept state or step 0, to its artefact.

    Everything drawn at random is a function of (seed, step, place in the batch): a run that was killed ends
    in the same weights as one that was not, and any number of ranks comes to the same numbers but for
    rounding. All ranks call it; rank 0 writes.

    With `from_start` a run whose states are lost or damaged begins again. A request to stop
    (`salt.signals.STOP`, on any rank) is heeded between two steps.

    Raises:
        RunFailed: `diverged`, `teacher`, `trunk`, `checkpoint`, `data`, `disk`, `ranks`.
        Interrupted: asked to stop; the state is saved, unless nothing was trained yet.
    """
    device, mine = world.device, world.places(spec.optim.batch_clips)
    with world.alike():
        batches = Batches(spec, sources)
        labels = label_numbers(spec, batches)
        learner = Learner(spec, classes=None if labels is None else int(labels.max()) + 1)
        teacher_sha256 = None
        if spec.arm == "salt":
            assert spec.teacher is not None
            teacher_run = RunDir(run.store, spec.teacher.run_id)
            learner.teacher, teacher_sha256 = load_teacher(teacher_run, spec.teacher, spec.model, spec.clip)
        learner.to(device)
        targets = open_cache(spec, run.store, learner, batches, sources, teacher_sha256, world)
    parts = distribute(
        learner.parts(), world, execution.sharding, recompute=execution.recompute, compiled=execution.compile
    )
    optimizer = build_optimizer(learner.trained, spec.optim)
    check_frozen(learner, optimizer)
    start = begin(
        spec, run, learner, optimizer, teacher_sha256, warn, world,
        checkpoint_every_steps=execution.checkpoint_every_steps, from_start=from_start,
    )  # fmt: skip
    saver = Saver(spec, run, execution, learner, optimizer, world, attempt=attempt, start=start, warn=warn)
    saver.try_out()
    if world.any(STOP.requested):  # a trial of a large state takes long, and so do decoders to start
        raise Interrupted(step=start.step, saved=saver.saved_step == start.step)

    pieces = micro_batches(spec, execution, mine)
    earlier = world.share(world.on_main(lambda: read_earlier(run, start, attempt)))
    opened = world.on_main(lambda: open_sinks(run, spec, execution, warn, attempt=attempt, start=start.step))
    world.on_main(lambda: record_inputs(run, spec, sources))
    pinned = device.type == "cuda"
    loader = Loader(
        batches,
        range(start.step, spec.steps),
        mine,
        workers=execution.decode_workers,
        pin_memory=pinned,
        quarantine=Quarantine(run.quarantine, world.rank),
    )
    graphs, skips = GraphCheck(execution, warn), SkipReport(loader, world, warn)
    first_bad = torch.full((), -1, device=device)  # first step whose loss or gradient was not finite

    with world.alike():
        reached_file = saver.reached_file(earlier)
    with opened or Sinks(None, [], warn) as sinks, reached_file as reached, loader:
        watch = Watch(
            spec,
            execution,
            warn,
            step_flops=step_cost(spec).total_flops,
            start=start.step,
            earlier=earlier,
            highest_rank=start.highest_rank if start.own else 0.0,
            devices=world.size,
        )
        for step in range(start.step, spec.steps):
            if world.any(STOP.requested):
                world.on_main(STOP.refuse_lost)
                if step not in (start.step, saver.saved_step):
                    refuse_diverged(first_bad, batches, saver.saved_step, world)
                    saver.save(step, watch.wall_s, watch.highest_rank, keeps=False, saves=True)
                    reached.note(step, watch.wall_s, saver.saved_step)
                raise Interrupted(step=step, saved=saver.saved_step == step)
            now = rates(spec, step)
            set_schedule(optimizer, now.learning_rate, now.weight_decay)

            with watch.waiting():
                crops = next_crops(loader, world)
            optimizer.zero_grad(set_to_none=True)
            loss = torch.zeros((), device=device)
            for piece in pieces:
                parts.before(last=piece is pieces[-1])
                rows = slice(piece.start - mine.start, piece.stop - mine.start)
                patches = to_patches(crops[rows].to(device, non_blocking=True), spec.clip, spec.model)
                masks = learner.masks(step, piece)
                outcome = learner.outcome(
                    patches,
                    None if masks is None else masks.to(device),
                    latents=None if targets is None or masks is None else targets.read(step, piece, masks),
                    labels=None if labels is None else labels[loader.indices[rows]].to(device),
                )
                share = len(piece) / len(mine)
                (outcome.loss * share).backward()
                loss += outcome.loss.detach() * share
            parts.finish()
            norm = clip_gradients(learner.trained, spec, step)
            optimizer.step()
            learner.update_teacher(now.ema_momentum)

            finite = torch.isfinite(loss) & torch.isfinite(norm)
            first_bad = torch.where((first_bad < 0) & ~finite, step, first_bad)
            graphs.after(step)
            if step == start.step and not start.own:
                watch.begin(outcome.targets)
            done = step + 1
            logs = done % execution.log_every_steps == 0 or done == spec.steps
            saves, keeps = saver.due(done), done in spec.keep_steps
            reached.note(done, watch.wall_s, saver.saved_step)
            if not (logs or saves or keeps):
                continue
            if logs:
                mean_loss = world.mean(loss).item()
                skipped = skips.count()
                if world.main:
                    sinks.write(
                        done,
                        loss=mean_loss,
                        grad_norm=norm.item(),
                        lr=now.learning_rate,
                        weight_decay=now.weight_decay,
                        ema_momentum=now.ema_momentum if spec.arm == "vjepa" else None,
                        skipped_files=skipped,
                        save_s=saver.save_s,
                        burnt_flops=watch.throughput.burnt_flops,
                        **watch.row(done, targets=outcome.targets, context=outcome.encoded),
                    )
            refuse_diverged(first_bad, batches, saver.saved_step, world)
            if saves or keeps:
                saver.save(done, watch.wall_s, watch.highest_rank, keeps=keeps, saves=saves)
                reached.note(done, watch.wall_s, saver.saved_step)

    if learner.teacher is not None and spec.arm == "salt":
        weights = full_tensors(learner.teacher.state_dict(), world)

        def compare() -> None:
            if weights_sha256(weights) != teacher_sha256:
                raise RunFailed("teacher", "the frozen teacher's weights changed during training")

        world.on_main(compare)  # all ranks fail with it
    weights = full_tensors(learner.probed().state_dict(), world)
    branch = "ema" if spec.arm == "vjepa" else "student"

    def finish() -> None:
        require_folder(run.path)
        if saver.saved_step is not None:
            checkpoint.prune(run, saver.saved_step)
        write_weights(run, spec, weights, branch, start.origin)

    world.on_main(finish)
