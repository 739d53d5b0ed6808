"""What is counted in place of a model of transformers, of which an audit has only the description."""

from __future__ import annotations

import torch
from torch import nn

from salt.adapter_spec import AdapterSpec
from salt.linear import Linear
from salt.specs import ClipSpec, ModelSpec, VitSpec
from salt.vit import Block


def standing_for(
    clips: int, vit: VitSpec, model: ModelSpec, clip: ClipSpec, adapter: AdapterSpec
) -> tuple[nn.Module, torch.Tensor]:
    """Blocks on the tokens of a model of transformers, and its patches [passes, n, P] of whole clips."""

    class Standing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = Linear(adapter.patch_values, vit.width)
            self.blocks = nn.ModuleList(Block(vit) for _ in range(vit.depth))

        def forward(self, patches: torch.Tensor) -> torch.Tensor:
            x: torch.Tensor = self.embed(patches)
            x = torch.cat([x.new_empty(len(x), adapter.special_tokens, vit.width), x], dim=1)
            for block in self.blocks:
                x = block(x)
            return x

    passes = clips * adapter.passes(clip.frames, model.tubelet_frames)
    return Standing(), torch.empty(passes, adapter.patches(clip.frames), adapter.patch_values)
