"""The narrow predictor, which is also the pixel decoder."""

from __future__ import annotations

import torch
from torch import nn

from salt.linear import Linear
from salt.masks import Grid
from salt.specs import PositionSpec, VitSpec
from salt.vit import Trunk, joined, separated


class Predictor(nn.Module):
    """From the visible tokens' latents to one vector at each target place.

    Projection to a narrow width, blocks over visible and mask tokens together, output at the mask tokens
    only. A learnable mask token, zero at the start, serves all masks, or each mask of a clip has its own.
    """

    def __init__(
        self,
        vit: VitSpec,
        grid: Grid,
        position: PositionSpec,
        *,
        input_width: int,
        output_width: int,
        mask_tokens: int = 1,
    ) -> None:
        super().__init__()
        self.embed = Linear(input_width, vit.width)
        self.mask_token = nn.Parameter(torch.zeros(mask_tokens, vit.width))
        self.trunk = Trunk(vit, grid, position)
        self.out = Linear(vit.width, output_width)

    def forward(
        self,
        latents: list[torch.Tensor],
        visible: list[torch.Tensor],
        target: list[torch.Tensor],
        mask_numbers: list[torch.Tensor] | None = None,
    ) -> list[torch.Tensor]:
        """latents [B, V, D] at `visible` [B, V] -> predictions [B, M, output width] at `target` [B, M], for
        each.

        `mask_numbers` [B] say which mask token a row takes (default: the first). Lists may differ in lengths.
        """
        shapes = [(x.shape[0], x.shape[1]) for x in latents]
        narrow = separated(self.embed(joined(latents)), shapes)
        hidden, indices = [], []
        for place, (seen, known, wanted) in enumerate(zip(narrow, visible, target, strict=True)):
            batch, count = wanted.shape
            tokens = self.mask_token[:1] if mask_numbers is None else self.mask_token[mask_numbers[place]]
            hidden.append(torch.cat([seen, tokens[:, None].expand(batch, count, -1)], dim=1))
            indices.append(torch.cat([known, wanted], dim=1))
        hidden = self.trunk(hidden, indices)
        asked = [x[:, known.shape[1] :] for x, known in zip(hidden, visible, strict=True)]
        predictions = self.out(joined(asked))
        return separated(predictions, [(wanted.shape[0], wanted.shape[1]) for wanted in target])
