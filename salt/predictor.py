"""The narrow predictor, which is also the pixel decoder."""

from __future__ import annotations

import torch
from torch import nn

from salt.masks import Grid
from salt.specs import PositionSpec, VitSpec
from salt.vit import Trunk


class Predictor(nn.Module):
    """From the visible tokens' latents to one vector at each target place.

    Projection to a narrow width, blocks over visible and mask tokens together, output at the mask
    tokens only. One learnable mask token, zero at the start, serves all masks.
    """

    def __init__(
        self, vit: VitSpec, grid: Grid, position: PositionSpec, *, input_width: int, output_width: int
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(input_width, vit.width)
        self.mask_token = nn.Parameter(torch.zeros(vit.width))
        self.trunk = Trunk(vit, grid, position)
        self.out = nn.Linear(vit.width, output_width)

    def forward(self, latents: torch.Tensor, visible: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """latents [B, V, D] at `visible` [B, V] -> predictions [B, M, output width] at `target` [B, M]."""
        batch, count = target.shape
        hidden = torch.cat([self.embed(latents), self.mask_token.expand(batch, count, -1)], dim=1)
        hidden = self.trunk(hidden, torch.cat([visible, target], dim=1))
        predictions: torch.Tensor = self.out(hidden[:, visible.shape[1] :])
        return predictions
