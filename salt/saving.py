"""How an attempt saves its state: tried out before the first step, and measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from salt import checkpoint
from salt.disk import require_room
from salt.learner import Learner
from salt.metrics import flush_to_disk
from salt.reached import Reached, ReachedFile, read_reached
from salt.resume import Start, gather_state
from salt.signals import grace_warning
from salt.specs import ExecSpec, RunSpec
from salt.store import RunDir
from salt.throughput import Earlier
from salt.world import World


def read_earlier(run: RunDir, start: Start, attempt: int) -> Earlier:
    """What attempts before this one did, from the run's files."""
    return Earlier.read(
        run.metrics, step=start.step, wall_s=start.wall_s, reached=read_reached(run.reached), attempt=attempt
    )


class Saver:
    """Saves one attempt's states. All ranks call it; rank 0 writes.

    `save_s` is what the last save took, from the device to a file that was read back; the trial's before the
    first one. `saved_step` is the step of the run's newest checkpoint, None without one.
    """

    def __init__(
        self,
        spec: RunSpec,
        run: RunDir,
        execution: ExecSpec,
        learner: Learner,
        optimizer: torch.optim.AdamW,
        world: World,
        *,
        attempt: int,
        start: Start,
        warn: Callable[[str], None],
    ) -> None:
        self.spec, self.run, self.execution = spec, run, execution
        self.learner, self.optimizer, self.world = learner, optimizer, world
        self.attempt, self.start, self.warn = attempt, start, warn
        self.saved_step = start.step if start.own else None
        self.save_s: float | None = None
        self.highest_rank = start.highest_rank
        self._warned = False

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after `step` steps. At the end the artefact is."""
        return step % self.execution.checkpoint_every_steps == 0 and step < self.spec.steps

    def try_out(self) -> None:
        """Before the first step: see that all that is to be saved has room, and save once for trial.

        Raises:
            DiskFailed: no room for what is to come, or a save that fails.
        """
        if self.start.step < self.spec.steps:
            self._timed(self.start.step, self.start.wall_s, self._try_out)

    def save(self, step: int, wall_s: float, highest_rank: float | None, *, keeps: bool, saves: bool) -> None:
        """Write the state after `step` steps as a kept state, a checkpoint, or both."""
        self.highest_rank = highest_rank
        store = partial(checkpoint.store, self.run, keeps=keeps, saves=saves, warn=self.warn)
        self._timed(step, wall_s, store)
        if saves:
            self.saved_step = step

    def reached_file(self, earlier: Earlier) -> ReachedFile:
        """Where this attempt notes each step; nowhere on ranks that do not write."""
        first = Reached(
            attempt=self.attempt,
            step=self.start.step,
            wall_s=round(self.start.wall_s, 3),
            saved_step=self.saved_step,
            burnt_steps=earlier.burnt_steps,
            burnt_wall_s=earlier.burnt_wall_s,
        )
        return ReachedFile(self.run.reached if self.world.main else None, first)

    def _timed(
        self, step: int, wall_s: float, store: Callable[[Callable[[], checkpoint.Packed]], None]
    ) -> None:
        began = time.perf_counter()
        state = gather_state(self.learner, self.optimizer, self.world)
        packed = partial(
            checkpoint.pack, self.run, step, state,
            attempt=self.attempt, train_wall_s=wall_s, origin=self.start.origin,
            highest_rank=self.highest_rank,
        )  # fmt: skip

        def write() -> None:
            if self.run.metrics.exists():
                flush_to_disk(self.run.metrics)
            store(packed)

        self.world.on_main(write)
        self.save_s = round(time.perf_counter() - began, 3)
        message = grace_warning(self.save_s, self.execution.checkpoint_every_steps)
        if message is not None and not self._warned:
            self._warned = True
            self.warn(message)

    def _try_out(self, packed: Callable[[], checkpoint.Packed]) -> None:
        state = packed()
        every, first = self.execution.checkpoint_every_steps, self.start.step
        saves = (self.spec.steps - 1) // every - first // every
        encoder = self.learner.probed()
        artefact_bytes = sum(weights.numel() * weights.element_size() for weights in encoder.parameters())
        size = len(state.data)
        needed = checkpoint.room_bytes(self.run, self.spec, size, artefact_bytes, saves=max(1, saves))
        what = (
            f"no room for what run {self.run.run_id} has to write: states of {size:,} bytes, at most "
            f"{checkpoint.KEPT + 1} of them at once, {len(self.run.missing_kept(self.spec))} that stay "
            "(keep_steps), and the encoder"
        )
        require_room(self.run.path, needed, max(size, artefact_bytes), what)
        checkpoint.try_out(self.run, state)
