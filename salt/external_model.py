"""A model of transformers as a frozen encoder of ours: patches in, latents on the student's grid out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from salt.adapter_spec import AdapterSpec, Family
from salt.batches import from_patches
from salt.errors import RunFailed
from salt.hf_transformers import LOCAL, transformers
from salt.sizes import grid
from salt.specs import ClipSpec, ModelSpec, RunSpec
from salt.store import RunDir
from salt.tensor_names import misfits, shapes

#: Folder of a run with the model's own configuration.
MODEL_FOLDER = "model"
#: Family -> where a model keeps its blocks (module, list), and its last norm.
_BLOCKS: dict[Family, tuple[str, str, str | None]] = {
    "vjepa2": ("", "layer", "layernorm"),
    "videomae": ("encoder", "layer", "layernorm"),
    "dinov2": ("encoder", "layer", "layernorm"),
    "dinov2_with_registers": ("encoder", "layer", "layernorm"),
    "clip": ("encoder", "layers", None),  # its last norm is for the class token alone
    "siglip": ("encoder", "layers", "post_layernorm"),
}


def backbone_of(model: Any, family: Family) -> Any:
    """The part of a whole model that gives latents: no text tower, predictor or pooling head."""
    if family == "vjepa2":
        return getattr(model, "encoder", model)
    seeing = getattr(model, "vision_model", model)
    if family == "siglip" and getattr(seeing, "use_head", False):
        seeing.use_head = False
        del seeing.head
    return seeing


class ExternalEncoder(nn.Module):
    """A frozen model behind its adapter. It is called like `salt.vit.Encoder`, with whole clips only.

    A clip's own normalisation is undone, pixels are resized to the model's input and normalised as its
    processor does; grey becomes three equal channels. Class and register tokens are dropped. Of a model that
    reads frames, a tubelet's latents are their mean, or those of one frame; where a video model's tubelets
    are shorter than the student's, neighbouring steps are averaged.
    """

    def __init__(self, backbone: nn.Module, adapter: AdapterSpec, model: ModelSpec, clip: ClipSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.adapter, self.model, self.clip = adapter, model, clip
        self.grid = grid(model, clip)

    def forward(self, patches: torch.Tensor, layer: int | None = None) -> torch.Tensor:
        """Patches of whole clips [B, N, P] -> latents [B, N, D], the output or those after `layer` blocks."""
        if layer is not None:
            return self.forward_layers(patches, (layer,))[0]
        found: torch.Tensor = self._run(self.pixels(patches)).last_hidden_state
        return self._on_grid(found, len(patches))

    def forward_layers(self, patches: torch.Tensor, layers: tuple[int, ...]) -> list[torch.Tensor]:
        """Latents [B, N, D] after each of these numbers of blocks, through the final norm where there is one.

        Blocks above the last of them are not run.
        """
        place, name, norm_name = _BLOCKS[self.adapter.family]
        owner = self.backbone.get_submodule(place)
        blocks = owner.get_submodule(name)
        assert isinstance(blocks, nn.ModuleList)
        norm = None if norm_name is None else getattr(self.backbone, norm_name)
        found: dict[int, torch.Tensor] = {}

        def keep(number: int) -> Callable[..., None]:
            def hook(module: nn.Module, inputs: Any, output: Any) -> None:
                found[number] = output[0] if isinstance(output, tuple) else output

            return hook

        hooks = [blocks[number - 1].register_forward_hook(keep(number)) for number in set(layers)]
        setattr(owner, name, blocks[: max(layers)])
        try:
            self._run(self.pixels(patches))
        finally:
            setattr(owner, name, blocks)
            for hook in hooks:
                hook.remove()
        return [
            self._on_grid(found[number] if norm is None else norm(found[number]), len(patches))
            for number in layers
        ]

    def pixels(self, patches: torch.Tensor) -> torch.Tensor:
        """What the model reads of clips [B, N, P]: float32 [B, F, 3, side, side], of the frames it needs."""
        adapter, tubelet = self.adapter, self.model.tubelet_frames
        crops = from_patches(patches, self.clip, self.model)
        if adapter.tubelet_frames is None and adapter.per_tubelet != "mean":
            crops = crops[:, (0 if adapter.per_tubelet == "first" else tubelet // 2) :: tubelet]
        images = crops.permute(0, 1, 4, 2, 3).flatten(0, 1)
        if images.shape[1] == 1:
            images = images.expand(-1, 3, -1, -1)
        if images.shape[-1] != adapter.input_px:
            size = (adapter.input_px, adapter.input_px)
            images = F.interpolate(images, size, mode=adapter.resample, antialias=True).clamp(0, 255)
        mean, std = (
            torch.tensor(v, device=images.device)[:, None, None] for v in (adapter.mean, adapter.std)
        )
        read: torch.Tensor = (images * adapter.rescale - mean) / std
        return read.view(*crops.shape[:2], *read.shape[1:])

    def _run(self, pixels: torch.Tensor) -> Any:
        if self.adapter.family == "vjepa2":
            return self.backbone(pixel_values_videos=pixels)
        if self.adapter.family == "videomae":
            return self.backbone(pixel_values=pixels)
        options = {"interpolate_pos_encoding": True} if self._interpolates else {}
        return self.backbone(pixel_values=pixels.flatten(0, 1), **options)

    @property
    def _interpolates(self) -> bool:
        """DINOv2 interpolates its positions unasked."""
        return self.adapter.interpolated and self.adapter.family in ("clip", "siglip")

    def _on_grid(self, latents: torch.Tensor, clips: int) -> torch.Tensor:
        """Tokens of all passes [passes, n, D] -> the student's grid [B, N, D]."""
        adapter, (time, side, _) = self.adapter, self.grid
        own = adapter.side
        latents = latents[:, adapter.special_tokens :].reshape(clips, -1, own * own, latents.shape[-1])
        if latents.shape[1] != time:
            latents = latents.unflatten(1, (time, -1)).float().mean(dim=2)
        if own != side:
            square = latents.float().flatten(0, 1).transpose(1, 2).unflatten(2, (own, own))
            square = F.interpolate(square, (side, side), mode="bilinear", antialias=own > side)
            latents = square.flatten(2).transpose(1, 2).unflatten(0, (clips, time))
        return latents.flatten(1, 2)


def load_external(run: RunDir, spec: RunSpec, weights: dict[str, torch.Tensor]) -> ExternalEncoder:
    """The encoder of a run of the arm external from its weights, by the names of `ExternalEncoder`.

    Raises:
        RunFailed: its configuration is gone, or is not that of the weights.
        UserError: transformers is not installed.
    """
    assert spec.external is not None
    adapter = spec.external.adapter
    assert adapter
    folder = run.path / MODEL_FOLDER
    with transformers(f"external teacher {run.run_id} ({spec.external.model})") as package:
        try:
            config = package.AutoConfig.from_pretrained(folder, **LOCAL)
            model = package.AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunFailed(
                "teacher",
                f"{folder}: the model's configuration cannot be read: {error}; move the run's folder away "
                "and plan again",
            ) from error
    encoder = ExternalEncoder(backbone_of(model, adapter.family), adapter, spec.model, spec.clip)
    problem = misfits(shapes(weights), shapes(encoder.state_dict()))
    if problem is not None:
        raise RunFailed("teacher", f"{run.artefact}: weights do not fit {folder}: {problem}")
    encoder.load_state_dict(weights, strict=True)
    return encoder.eval().requires_grad_(False)
