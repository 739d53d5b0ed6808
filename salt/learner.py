"""What is trained: encoder, predictor, teacher, and the loss of a batch, for every arm."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from salt.flops import output_width, target_encoder
from salt.linear import Linear
from salt.masks import draw_group, draw_steps
from salt.objectives import distance, latent_targets, pixel_targets
from salt.predictor import Predictor
from salt.randomness import run_seed, torch_seed
from salt.sizes import grid, patch_values
from salt.specs import DECODES, MaskSpec, ModelSpec, RunSpec, VitSpec
from salt.vit import Encoder, initialise, take_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from salt.external_model import ExternalEncoder
    from salt.masks import TokenLists
    from salt.specs import ClipSpec

M = TypeVar("M", bound=nn.Module)

#: Clips whose masks are drawn in one go where a batch has fewer.
WINDOW_CLIPS = 256


def build_encoder(vit: VitSpec, model: ModelSpec, clip: ClipSpec, seed: int) -> Encoder:
    """A freshly initialised encoder; the same seed gives the same weights."""
    encoder = Encoder(vit, model, grid(model, clip), patch_values(model, clip))
    random = torch.Generator().manual_seed(torch_seed(seed, "encoder"))
    initialise(encoder, model.init, random)
    return encoder


class Masks(NamedTuple):
    """Masks of one batch: those of one shape are stacked along the batch, one list item for each shape."""

    visible: list[torch.Tensor]  # int64 [k * B, V]
    target: list[torch.Tensor]  # int64 [k * B, M]
    numbers: list[torch.Tensor] | None  # int64 [k * B], where each mask of a clip has its own mask token

    def to(self, device: torch.device) -> Masks:
        def moved(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
            return [tensor.to(device, non_blocking=True) for tensor in tensors]

        return Masks(
            moved(self.visible), moved(self.target), None if self.numbers is None else moved(self.numbers)
        )


class Outcome(NamedTuple):
    """The loss of one batch and what was computed on the way, for the watchdogs."""

    loss: torch.Tensor  # float32 []
    encoded: torch.Tensor  # the encoder's tokens of the first mask, [B, V, D], without gradient
    targets: torch.Tensor | None  # the teacher's latents [B, N, D]; of a cache the first mask's [B, M, D]


class Objective(nn.Module):
    """All trained modules of a run, and its loss: one forward pass, so that wrappers see one module."""

    def __init__(self, spec: RunSpec, classes: int | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.latents = target_encoder(spec) is not None
        self.pixels = spec.arm in DECODES or spec.objective.pixel_weight > 0
        seed = run_seed(spec)
        self.encoder = build_encoder(spec.model.encoder, spec.model, spec.clip, seed)
        random = torch.Generator().manual_seed(torch_seed(seed, "predictor"))
        if spec.arm == "supervised":
            if classes is None:
                raise ValueError("a supervised run needs its number of classes")
            self.head = Linear(spec.model.encoder.width, classes)
            initialise(self.head, spec.model.init, random)
        else:
            self.predictor = Predictor(
                spec.model.predictor,
                grid(spec.model, spec.clip),
                spec.model.position,
                input_width=spec.model.encoder.width,
                output_width=output_width(spec),
                mask_tokens=len(spec.masks) if spec.model.mask_token == "per_mask" else 1,
            )
            initialise(self.predictor, spec.model.init, random)

    def forward(
        self,
        patches: torch.Tensor,
        masks: Masks | None,
        latents: torch.Tensor | list[torch.Tensor] | None,
        labels: torch.Tensor | None = None,
    ) -> Outcome:
        """Mean loss of a batch, patches [B, N, P]; `latents` are the teacher's, of whole clips or at
        targets."""
        if self.spec.arm == "supervised":
            assert labels is not None
            encoded = self.encoder(patches)
            loss = F.cross_entropy(self.head(encoded.mean(dim=1)).float(), labels)
            return Outcome(loss, encoded.detach(), None)
        assert masks is not None
        encoded_lists = self.encoder.forward_visible(patches, masks.visible)
        predicted = self.predictor(encoded_lists, masks.visible, masks.target, masks.numbers)
        wanted = self._latents(latents, masks) if self.latents else None
        pixels = self._pixels(patches) if self.pixels else None
        total = patches.new_zeros((), dtype=torch.float32)
        for place, (prediction, target) in enumerate(zip(predicted, masks.target, strict=True)):
            # Every mask of a clip has the same weight, however they are stacked.
            share = len(target) / len(patches) / len(self.spec.masks)
            loss = self._distance(
                prediction,
                None if wanted is None else wanted[place],
                None if pixels is None else take_tokens(pixels, target),
            )
            total = total + share * loss
        batch = len(patches)
        seen = latents if latents is None or isinstance(latents, torch.Tensor) else latents[0][:batch]
        return Outcome(total, encoded_lists[0][:batch].detach(), seen)

    def _distance(
        self, prediction: torch.Tensor, latents: torch.Tensor | None, pixels: torch.Tensor | None
    ) -> torch.Tensor:
        """Of one group of masks; a hybrid's prediction is latents and pixels side by side."""
        objective = self.spec.objective
        if latents is None:
            assert pixels is not None
            return distance(prediction, pixels, objective.pixel_loss)
        if pixels is None:
            return distance(prediction, latents, objective.latent_loss)
        of_latents, of_pixels = prediction.split([latents.shape[-1], pixels.shape[-1]], dim=-1)
        of_both = distance(of_latents, latents, objective.latent_loss)
        return of_both + objective.pixel_weight * distance(of_pixels, pixels, objective.pixel_loss)

    @torch.no_grad()
    def _latents(self, latents: torch.Tensor | list[torch.Tensor] | None, masks: Masks) -> list[torch.Tensor]:
        assert latents is not None
        if isinstance(latents, torch.Tensor):
            latents = [take_tokens(latents, target) for target in masks.target]
        return [latent_targets(wanted, self.spec.objective.target_layer_norm) for wanted in latents]

    @torch.no_grad()
    def _pixels(self, patches: torch.Tensor) -> torch.Tensor:
        return pixel_targets(patches, self.spec.clip.channels, self.spec.objective.pixel_norm)


class Learner:
    """The objective of one run with its teacher; all that a resumed run needs is in `tensors()`."""

    def __init__(self, spec: RunSpec, classes: int | None = None) -> None:
        self.spec = spec
        self.grid = grid(spec.model, spec.clip)
        self.seed = run_seed(spec)
        self._windows: dict[tuple[int, range], tuple[int, NDArray[np.int64], NDArray[np.int64]]] = {}
        self.objective = Objective(spec, classes)
        self.teacher: Encoder | ExternalEncoder | None = None
        if spec.arm == "vjepa":
            self.teacher = freeze(copy.deepcopy(self.objective.encoder))

    @property
    def encoder(self) -> Encoder:
        return self.objective.encoder

    @property
    def trained(self) -> list[nn.Module]:
        return list(self.objective.children())

    def to(self, device: torch.device) -> None:
        for module in (self.objective, self.teacher):
            if module is not None:
                module.to(device)

    def outcome(
        self,
        patches: torch.Tensor,
        masks: Masks | None,
        *,
        latents: torch.Tensor | list[torch.Tensor] | None = None,
        labels: torch.Tensor | None = None,
    ) -> Outcome:
        """Loss of some clips, patches [B, N, P], under masks that are on their device (none: supervised).

        `latents` are the teacher's, [B, N, D] or at each list of targets; without them the teacher is asked.
        """
        if latents is None:
            latents = self.latents(patches)
        with self._precision(patches):
            outcome: Outcome = self.objective(patches, masks, latents, labels)
        return outcome

    @torch.no_grad()
    def latents(self, patches: torch.Tensor) -> torch.Tensor | None:
        """What the teacher says of whole clips, [B, N, P] -> [B, N, D]; None where there is no teacher."""
        if self.teacher is None:
            return None
        with self._precision(patches):
            latents: torch.Tensor = self.teacher(patches, self.spec.objective.teacher_layer)
        return latents

    def _precision(self, patches: torch.Tensor) -> AbstractContextManager[object]:
        if self.spec.optim.precision == "bfloat16":
            return torch.autocast(patches.device.type, torch.bfloat16)
        return nullcontext()

    def loss(self, patches: torch.Tensor, step: int, labels: torch.Tensor | None = None) -> torch.Tensor:
        """Loss of a whole batch, patches [B, N, P]."""
        masks = self.masks(step, range(len(patches)))
        return self.outcome(patches, None if masks is None else masks.to(patches.device), labels=labels).loss

    def masks(self, step: int, places: range) -> Masks | None:
        """Masks of the clips at these places of the step's batch, on the CPU; the supervised arm has none."""
        if self.spec.arm == "supervised":
            return None
        shapes: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor, int]]] = {}
        for index, mask in enumerate(self.spec.masks):
            if mask.keep == "batch_min":
                group, rest = divmod(places.start, mask.keep_clips)
                if rest or len(places) != mask.keep_clips:
                    raise ValueError(f"masks[{index}]: clips {places} are not one group of {mask.keep_clips}")
                drawn = draw_group(mask, self.grid, group, seed=self.seed, step=step, index=index)
            else:
                drawn = self._drawn(index, mask, step, places)
            visible, target = torch.from_numpy(drawn[0]), torch.from_numpy(drawn[1])
            shapes.setdefault((visible.shape[1], target.shape[1]), []).append((visible, target, index))
        numbers = None
        if self.spec.model.mask_token == "per_mask":
            numbers = [
                torch.cat([torch.full((len(v),), index) for v, _, index in same]) for same in shapes.values()
            ]
        return Masks(
            [torch.cat([v for v, _, _ in same]) for same in shapes.values()],
            [torch.cat([t for _, t, _ in same]) for same in shapes.values()],
            numbers,
        )

    def _drawn(self, index: int, mask: MaskSpec, step: int, places: range) -> TokenLists:
        """One mask of these clips; small batches draw for a window of steps at once."""
        window = max(1, WINDOW_CLIPS // self.spec.optim.batch_clips)
        first = step - step % window
        if self._windows.get((index, places), (-1,))[0] != first:
            drawn = draw_steps(
                mask, self.grid, places, seed=self.seed, steps=range(first, first + window), index=index
            )
            self._windows[index, places] = (first, *drawn)
        _, visible, target = self._windows[index, places]
        rows = slice((step - first) * len(places), (step - first + 1) * len(places))
        return visible[rows], target[rows]

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """V-JEPA's average after a step: teacher <- momentum * teacher + (1 - momentum) * encoder.

        Both are float32 whatever the compute type: bfloat16 would lose 1 - momentum below 1/256.
        """
        if self.spec.arm == "vjepa":
            assert self.teacher is not None
            torch._foreach_lerp_(
                list(self.teacher.parameters()), list(self.encoder.parameters()), 1 - momentum
            )

    def parts(self) -> dict[str, nn.Module]:
        """The modules that are called, each as a whole: `objective`, and `ema` or `teacher`."""
        found: dict[str, nn.Module] = {"objective": self.objective}
        if self.teacher is not None:
            found["ema" if self.spec.arm == "vjepa" else "teacher"] = self.teacher
        return found

    def modules(self) -> Mapping[str, nn.Module]:
        """What is saved: trained modules, and V-JEPA's average under `ema`."""
        found: dict[str, nn.Module] = dict(self.objective.named_children())
        if self.spec.arm == "vjepa":
            assert self.teacher is not None
            found["ema"] = self.teacher
        return found

    def tensors(self) -> dict[str, torch.Tensor]:
        """All weights that a resumed run needs, by name."""
        return {
            f"{name}.{key}": tensor
            for name, module in self.modules().items()
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
            assert isinstance(self.teacher, Encoder)
            return self.teacher
        return self.encoder


def freeze(encoder: M) -> M:
    """Evaluation mode, no gradients: what a teacher is."""
    return encoder.eval().requires_grad_(False)
