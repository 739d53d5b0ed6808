"""What is trained: encoder, predictor, teacher, and the loss of one batch, for every arm."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from salt.flops import output_width
from salt.masks import draw_masks
from salt.objectives import distance, latent_targets, pixel_targets
from salt.predictor import Predictor
from salt.randomness import run_seed, torch_seed
from salt.sizes import grid, patch_values
from salt.specs import ModelSpec, RunSpec, VitSpec
from salt.vit import Encoder, initialise, take_tokens

if TYPE_CHECKING:
    from salt.specs import ClipSpec


def build_encoder(vit: VitSpec, model: ModelSpec, clip: ClipSpec, seed: int) -> Encoder:
    """A freshly initialised encoder; the same seed gives the same weights."""
    encoder = Encoder(vit, model, grid(model, clip), patch_values(model, clip))
    random = torch.Generator().manual_seed(torch_seed(seed, "encoder"))
    initialise(encoder, model.init, random)
    return encoder


class Learner:
    """The modules of one run and `loss(patches, step)`; training state is in `tensors()`."""

    def __init__(self, spec: RunSpec, classes: int | None = None) -> None:
        self.spec = spec
        self.grid = grid(spec.model, spec.clip)
        self.seed = run_seed(spec)
        self.encoder = build_encoder(spec.model.encoder, spec.model, spec.clip, self.seed)
        self.predictor: Predictor | None = None
        self.head: nn.Linear | None = None
        self.teacher: Encoder | None = None
        random = torch.Generator().manual_seed(torch_seed(self.seed, "predictor"))
        if spec.arm == "supervised":
            if classes is None:
                raise ValueError("a supervised run needs its number of classes")
            self.head = nn.Linear(spec.model.encoder.width, classes)
            initialise(self.head, spec.model.init, random)
        else:
            self.predictor = Predictor(
                spec.model.predictor,
                self.grid,
                spec.model.position,
                input_width=spec.model.encoder.width,
                output_width=output_width(spec),
            )
            initialise(self.predictor, spec.model.init, random)
        if spec.arm == "vjepa":
            self.teacher = freeze(copy.deepcopy(self.encoder))

    @property
    def trained(self) -> list[nn.Module]:
        return [module for module in (self.encoder, self.predictor, self.head) if module is not None]

    def to(self, device: torch.device) -> None:
        for module in (*self.trained, self.teacher):
            if module is not None:
                module.to(device)

    def loss(self, patches: torch.Tensor, step: int, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Loss of a batch, patches [B, N, P], at `step`, which draws the masks."""
        if self.spec.arm == "supervised":
            assert self.head is not None
            assert labels is not None
            return F.cross_entropy(self.head(self.encoder(patches).mean(dim=1)), labels)
        targets = self._targets(patches)  # [B, N, output width]
        masks = self._masks(len(patches), step)
        # Every mask has the same weight, however they are stacked.
        losses = [
            self._masked_loss(patches, targets, visible, target) * (len(visible) // len(patches))
            for visible, target in masks
        ]
        return sum(losses[1:], start=losses[0]) / len(self.spec.masks)

    @torch.no_grad()
    def _targets(self, patches: torch.Tensor) -> torch.Tensor:
        objective = self.spec.objective
        if self.spec.arm == "pixel":
            return pixel_targets(patches, self.spec.clip.channels, objective.pixel_norm)
        assert self.teacher is not None
        return latent_targets(self.teacher(patches), objective.target_layer_norm)

    def _masks(self, clips: int, step: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Masks of the step, those of equal shape stacked along the batch: [k * B, V] and [k * B, M]."""
        shapes: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}
        for index, mask in enumerate(self.spec.masks):
            drawn = draw_masks(mask, self.grid, clips, seed=self.seed, step=step, index=index)
            visible, target = torch.from_numpy(drawn[0]), torch.from_numpy(drawn[1])
            shapes.setdefault((visible.shape[1], target.shape[1]), []).append((visible, target))
        return [
            (torch.cat([v for v, _ in same]), torch.cat([t for _, t in same])) for same in shapes.values()
        ]

    def _masked_loss(
        self, patches: torch.Tensor, targets: torch.Tensor, visible: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        assert self.predictor is not None
        objective = self.spec.objective
        visible, target = visible.to(patches.device), target.to(patches.device)
        seen = take_tokens(patches, visible)  # [k B, V, P]
        predictions = self.predictor(self.encoder(seen, visible), visible, target)  # [k B, M, output width]
        wanted = take_tokens(targets, target)
        kind = objective.pixel_loss if self.spec.arm == "pixel" else objective.latent_loss
        return distance(predictions, wanted, kind)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """V-JEPA's average after a step: teacher <- momentum * teacher + (1 - momentum) * encoder."""
        if self.spec.arm == "vjepa":
            assert self.teacher is not None
            torch._foreach_lerp_(
                list(self.teacher.parameters()), list(self.encoder.parameters()), 1 - momentum
            )

    def tensors(self) -> dict[str, torch.Tensor]:
        """All weights that a resumed run needs, by name."""
        modules = {"encoder": self.encoder, "predictor": self.predictor, "head": self.head}
        if self.spec.arm == "vjepa":
            modules["ema"] = self.teacher
        return {
            f"{name}.{key}": tensor
            for name, module in modules.items()
            if module is not None
            for key, tensor in module.state_dict().items()
        }

    def load_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        """Restore `tensors()`, exactly: a missing, unexpected or misshapen name is an error."""
        own = self.tensors()
        wrong = sorted(set(own) ^ set(tensors)) + [
            n for n in own if n in tensors and own[n].shape != tensors[n].shape
        ]
        if wrong:
            raise ValueError(f"weights do not fit this run: {', '.join(wrong[:5])}")
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(tensors[name])

    def probed(self) -> Encoder:
        """The encoder that is kept and probed: V-JEPA's average, else the trained one."""
        if self.spec.arm == "vjepa":
            assert self.teacher is not None
            return self.teacher
        return self.encoder


def freeze(encoder: Encoder) -> Encoder:
    """Evaluation mode, no gradients: what a teacher is."""
    return encoder.eval().requires_grad_(False)
