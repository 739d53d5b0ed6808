"""What the training loop needs once, or asks for each step in one word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from salt.batches import Batches, to_patches
from salt.errors import RunFailed
from salt.learner import Learner
from salt.loader import Loader
from salt.mask_statistics import mask_statistics
from salt.randomness import run_seed
from salt.result_specs import ListInput, MaskInput, RunInputs
from salt.sizes import grid
from salt.specs import DataPart, DataSpec, ExecSpec, RunSpec
from salt.store import RunDir, pretty_json, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from salt.clips import Clips
    from salt.lists import VideoList
    from salt.target_cache import StepTargets
    from salt.world import World

#: Clips that a teacher encodes at a time for a cache.
CACHE_CHUNK_CLIPS = 64


def micro_batches(spec: RunSpec, execution: ExecSpec, mine: range) -> list[range]:
    """This rank's places cut into the pieces of one forward and backward pass each.

    Masks with `keep: batch_min` fix the piece: their groups are cut to the shortest together.
    """
    size = min(execution.micro_batch_clips or len(mine), len(mine))
    groups = {mask.keep_clips for mask in spec.masks if mask.keep == "batch_min"}
    if groups:
        size = groups.pop()
        if len(mine) % size:
            raise RunFailed(
                "config",
                f"{len(mine)} clips on each process are not whole groups of keep_clips {size}: "
                "start fewer processes",
            )
    return [range(place, min(place + size, mine.stop)) for place in range(mine.start, mine.stop, size)]


def next_crops(loader: Loader, world: World) -> torch.Tensor:
    """This rank's clips of the next step, uint8 [n, T, side, side, C]; what stops one rank stops all."""
    crops, error = None, None
    try:
        _, crops = next(loader)
    except Exception as caught:  # noqa: BLE001 - raised by `agree`, on all ranks
        error = caught
    world.agree(error)
    assert crops is not None
    return crops


class SkipReport:
    """Streamed files that gave no clip, of all ranks: each is named once, when a line is logged."""

    def __init__(self, loader: Loader, world: World, warn: Callable[[str], None]) -> None:
        self.loader, self.world, self.warn = loader, world, warn
        self.named: set[str] = set()
        self._told = 0

    def count(self) -> int:
        """How many there are so far. All ranks call it."""
        mine = [f"{path}: {reason}" for path, reason in self.loader.skipped]
        if self.world.any(len(mine) > self._told):
            self._told = len(mine)
            everywhere = {line for lines in self.world.gather_objects(mine) for line in lines}
            for line in sorted(everywhere - self.named):
                self.warn(f"skipped {line}; the next file of its list took its place")
            self.named |= everywhere
        return len(self.named)


def check_frozen(learner: Learner, optimizer: torch.optim.AdamW) -> None:
    """Once, before the first step: a teacher's weights are nobody's to train, and it has no training mode.

    V-JEPA's average moves, but by `Learner.update_teacher` alone.
    """
    if learner.teacher is None:
        return
    trained = {id(weights) for group in optimizer.param_groups for weights in group["params"]}
    held = [name for name, weights in learner.teacher.named_parameters() if id(weights) in trained]
    moved = [name for name, weights in learner.teacher.named_parameters() if weights.requires_grad]
    training = [name or "itself" for name, module in learner.teacher.named_modules() if module.training]
    for names, what in (
        (held, "are in the optimizer"),
        (moved, "ask for gradients"),
        (training, "are in training mode"),
    ):
        if names:
            raise RunFailed("teacher", f"the teacher is not frozen: {', '.join(names[:3])} {what}")


def refuse_diverged(first_bad: torch.Tensor, batches: Batches, saved_step: int | None, world: World) -> None:
    """Before any save, on all ranks: a poisoned checkpoint never replaces a good one.

    `first_bad` is the number of the first step whose loss or gradient was not finite, int64 [], or -1.
    """
    if not world.any(bool(first_bad >= 0)):
        return
    step = int(first_bad)
    files = dict.fromkeys(str(batches.file(int(index))) for index in batches.indices(step))
    some = ", ".join(list(files)[:3])
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    kept = "there is no checkpoint" if saved_step is None else f"the checkpoint at step {saved_step} is good"
    raise RunFailed(
        "diverged",
        f"loss or gradient not finite at step {step} of {batches.spec.steps}, "
        f"on clips of {some}{more}; {kept}",
    )


def open_cache(
    spec: RunSpec,
    store: Path,
    learner: Learner,
    batches: Batches,
    sources: Mapping[str, Clips | VideoList],
    teacher_sha256: str | None,
    world: World,
) -> StepTargets | None:
    """The run's cached targets, encoded now where they are missing; the teacher is not needed then."""
    if spec.cached_views is None:
        return None
    from salt.target_cache import StepTargets, open_targets

    assert teacher_sha256 is not None

    def encode(crops: torch.Tensor) -> torch.Tensor:
        latents = learner.latents(to_patches(crops.to(world.device), spec.clip, spec.model))
        assert latents is not None
        return latents

    parts = [part.fingerprint for part in spec.data.parts] or [spec.data.fingerprint]
    rows = [row for fingerprint in parts for row in sources[fingerprint].rows]
    cached = open_targets(
        store / "cache",
        spec,
        teacher_sha256,
        rows,
        batches.view_crops,
        encode,
        chunk_clips=CACHE_CHUNK_CLIPS,
        show=world.main,
    )
    learner.teacher = None
    return StepTargets(cached, batches, world.device)


def label_numbers(spec: RunSpec, batches: Batches) -> torch.Tensor | None:
    """Class numbers of all training clips for the supervised reference, int64 [N]; None for other arms."""
    if spec.arm != "supervised":
        return None
    if spec.label is None:
        raise RunFailed("data", "the supervised run names no label column")
    column = batches.labels(spec.label)
    number = {name: place for place, name in enumerate(sorted(set(column)))}
    return torch.tensor([number[name] for name in column])


def record_inputs(run: RunDir, spec: RunSpec, sources: Mapping[str, Clips | VideoList]) -> None:
    """Write `inputs.json`: the lists as they are, and what each mask shows over a thousand draws."""
    if spec.steps == 0 or run.inputs.exists():
        return
    parts: tuple[DataSpec | DataPart, ...] = spec.data.parts or (spec.data,)
    each = spec.clip.clips_per_file if spec.clip.source == "streamed" else 1
    token_grid, seed = grid(spec.model, spec.clip), run_seed(spec)
    inputs = RunInputs(
        lists=tuple(
            ListInput(
                name=part.name,
                fingerprint=part.fingerprint,
                clips=len(sources[part.fingerprint].rows) * each,
                skipped_files=len(getattr(sources[part.fingerprint], "skipped", ())),
                decoded_files=dict(getattr(sources[part.fingerprint], "decoded_files", {})),
                near_copies=_near_copies(run, spec, sources[part.fingerprint]),
            )
            for part in parts
        ),
        masks=tuple(
            MaskInput(mask=mask, statistics=mask_statistics(mask, token_grid, seed=seed, index=index))
            for index, mask in enumerate(spec.masks if spec.arm != "supervised" else ())
        ),
    )
    write_atomically(run.inputs, pretty_json(inputs))


def _near_copies(run: RunDir, spec: RunSpec, source: Clips | VideoList) -> int | None:
    from salt.clips import Clips
    from salt.near_copies import near_copies

    found = near_copies(run.store / "cache", source, spec.clip) if isinstance(source, Clips) else None
    return None if found is None else found.in_groups


class GraphCheck:
    """Shapes are static: with compiled blocks, no step after the first may compile again."""

    def __init__(self, execution: ExecSpec, warn: Callable[[str], None]) -> None:
        self.compiled, self.warn = execution.compile, warn
        self.graphs: int | None = None

    def after(self, step: int) -> None:
        """Warn, naming the step, when graphs were compiled after this attempt's first step."""
        if not self.compiled:
            return
        from salt.shard import recompilations

        graphs = recompilations()
        if self.graphs is not None and graphs > self.graphs:
            self.warn(
                f"step {step} compiled {graphs - self.graphs} more graphs: shapes changed, and it was slow; "
                "masks with `keep: batch_min` do that"
            )
        self.graphs = graphs
