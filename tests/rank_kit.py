"""A small training loop with fixed data, for any number of processes: `python -m tests.rank_kit MODE
FOLDER`."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor

from salt import shard
from salt.errors import RunFailed
from salt.optim import build_optimizer
from salt.predictor import Predictor
from salt.shard import Sharding
from salt.sizes import SIZES, patch_values
from salt.specs import ExecSpec, OptimSpec
from salt.video import VideoError, decode_clip
from salt.vit import Encoder, initialise, take_tokens
from salt.world import World, join
from tests.examples import CLIP, model_spec

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
SHARDINGS: tuple[Sharding, ...] = ("none", "optimizer", "full")
CLIPS, STEPS, BRANCH = 8, 4, 2
GRID = (4, 4, 4)
shard.BUCKET_BYTES = 20_000  # the model's 222 kB of gradients go in many buckets


class Model(nn.Module):
    """Encoder and predictor in one forward pass, two masks of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        model = model_spec("nano")
        self.encoder = Encoder(model.encoder, model, GRID, patch_values(model, CLIP))
        self.predictor = Predictor(
            SIZES["nano"], GRID, model.position, input_width=32, output_width=32, mask_tokens=2
        )
        initialise(self, "xavier", torch.Generator().manual_seed(0))

    def forward(
        self, patches: torch.Tensor, wanted: torch.Tensor, masks: list[tuple[torch.Tensor, torch.Tensor]]
    ) -> torch.Tensor:
        visible, target = [v for v, _ in masks], [t for _, t in masks]
        latents = self.encoder.forward_visible(patches, visible)
        numbers = [torch.full((len(v),), place) for place, v in enumerate(visible)]
        predictions = self.predictor(latents, visible, target, numbers)
        losses = [F.l1_loss(p, take_tokens(wanted, t)) for p, t in zip(predictions, target, strict=True)]
        return sum(losses[1:], start=losses[0]) / len(losses)


def batch(step: int) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
    """Patches [clips, 64, 72] of a step, and (visible, target) of both masks."""
    random = torch.Generator().manual_seed(100 + step)
    patches = torch.randn(CLIPS, 64, 72, generator=random)
    order = torch.stack([torch.randperm(64, generator=random) for _ in range(CLIPS)])
    return patches, [(order[:, :9], order[:, 20:40]), (order[:, 30:45], order[:, :12])]


class Trainer:
    """Model, its average and AdamW on one rank."""

    def __init__(
        self, world: World, sharding: Sharding = "none", *, recompute: bool = False, compiled: bool = False
    ) -> None:
        self.world = world
        self.model = Model()
        self.ema = copy.deepcopy(self.model.encoder).eval().requires_grad_(False)
        if world.rank > 0:  # `distribute` has to make ranks alike
            nn.init.zeros_(self.model.encoder.embed.weight)
        modules = {"objective": self.model, "ema": self.ema}
        self.spread = shard.distribute(modules, world, sharding, recompute=recompute, compiled=compiled)
        self.optimizer = build_optimizer([self.model], OptimSpec(lr=1e-3, eps=1e-6))

    def step(self, number: int) -> tuple[float, float]:
        """Two micro-batches and an update; loss over all ranks and norm of the gradient."""
        patches, masks = batch(number)
        mine = self.world.places(CLIPS)
        half = len(mine) // 2
        total = torch.zeros(())
        self.optimizer.zero_grad(set_to_none=True)
        for part in (mine[:half], mine[half:]):
            self.spread.before(last=part.stop == mine.stop)
            clips = slice(part.start, part.stop)
            with torch.no_grad():
                wanted = F.layer_norm(self.ema(patches[clips]), (32,))
            own = [(visible[clips], target[clips]) for visible, target in masks]
            loss = self.model(patches[clips], wanted, own) / 2
            loss.backward()
            total += loss.detach()
        self.spread.finish()
        norm = shard.clip_gradients(self.model.parameters(), 0.7)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.encoder.parameters()), 0.1)
        return self.world.mean(total).item(), norm.item()

    def tensors(self) -> dict[str, torch.Tensor]:
        """Weights, the average's weights and AdamW's moments, split or not."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        return {
            **{f"model.{name}": tensor for name, tensor in self.model.state_dict().items()},
            **{f"ema.{name}": tensor for name, tensor in self.ema.state_dict().items()},
            **{
                f"adam.{moment}.{place}": self.optimizer.state[parameter][moment]
                for place, parameter in enumerate(parameters)
                for moment in ("exp_avg", "exp_avg_sq")
            },
        }

    def state(self) -> dict[str, torch.Tensor]:
        return {n: t.clone() for n, t in shard.full_tensors(self.tensors(), self.world).items()}

    def resume(self, state: dict[str, torch.Tensor] | None, step: int) -> None:
        shard.zero_moments(self.optimizer, step)
        shard.load_full(self.tensors(), state, self.world)


def train(trainer: Trainer, first: int, stop: int) -> torch.Tensor:
    """Losses and norms of the steps, float64 [steps, 2]."""
    return torch.tensor([trainer.step(step) for step in range(first, stop)], dtype=torch.float64)


def start_to_end(world: World, folder: Path) -> None:
    """Train with every sharding and write curves and states, on the way and at the end."""
    for sharding in SHARDINGS:
        trainer = Trainer(world, sharding)
        curve = train(trainer, 0, BRANCH)
        branch = trainer.state()
        curve = torch.cat([curve, train(trainer, BRANCH, STEPS)])
        _write(world, folder / f"{sharding}-branch.safetensors", branch)
        held = torch.tensor(sum(local(tensor).numel() for tensor in trainer.tensors().values()))
        end = {**trainer.state(), "curve": curve, "held": held}
        _write(world, folder / f"{sharding}-end.safetensors", end)


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's piece."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def go_on(world: World, folder: Path) -> None:
    """From each sharding's state on the way to the end with another sharding, blocks recomputed."""
    for before, sharding in zip(SHARDINGS, (*SHARDINGS[1:], SHARDINGS[0]), strict=True):
        trainer = Trainer(world, sharding, recompute=True)
        trainer.resume(load_file(folder / f"{before}-branch.safetensors") if world.main else None, BRANCH)
        curve = train(trainer, BRANCH, STEPS)
        _write(world, folder / f"{sharding}-resumed.safetensors", {**trainer.state(), "curve": curve})


def say(world: World, folder: Path) -> None:
    """All that ranks can tell each other, as one file per rank."""
    rows = torch.full((world.rank + 1, 2), float(world.rank))
    own = torch.arange(3.0) + world.rank
    said = {
        "places": torch.tensor(list(world.places(12))),
        "mean": world.mean(own),
        "own": own,
        "gather": world.gather(rows),
        "equal": world.gather(torch.tensor([[world.rank > 0]])),
        "any": torch.tensor([world.any(False), world.any(world.rank == world.size - 1)]),
        "share": torch.tensor(world.share([5, 7] if world.main else None)),
        "on_main": torch.tensor(-1 if (found := world.on_main(lambda: 3)) is None else found),
    }
    save_file(said, folder / f"said-{world.rank}.safetensors")
    try:
        world.on_main(lambda: Path(folder / "absent").read_bytes())
    except RunFailed as error:
        (folder / f"raised-{world.rank}").write_text(f"{error.kind}: {error}")


def read_clips(world: World, folder: Path) -> None:
    """Each rank reads its own list before each step, as a loader would; rank 1's third file is no video."""
    for step in range(4):
        problem: VideoError | None = None
        try:
            decode_clip(folder / ("bad.mp4" if (world.rank, step) == (1, 2) else "good.mp4"), CLIP)
        except VideoError as error:
            problem = error
        world.agree(problem)
        (folder / f"steps-{world.rank}").write_text(str(step + 1))


def vanish(world: World, folder: Path) -> None:
    """Rank 1 ends without a word."""
    world.agree(None)
    if world.rank == 1:
        os._exit(3)
    world.agree(None)


def _write(world: World, path: Path, tensors: dict[str, torch.Tensor]) -> None:
    if world.main:
        save_file(tensors, path)


MODES = {work.__name__: work for work in (start_to_end, go_on, say, read_clips, vanish)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        with join(ExecSpec(), timeout_s=120) as ours:
            for mode in sys.argv[2:]:
                MODES[mode](ours, Path(sys.argv[1]))
    except RunFailed as failure:
        sys.exit(f"error: the run failed ({failure.kind}): {failure}")
