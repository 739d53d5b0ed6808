"""Where a token is: 3-D rotary angles and 3-D sin-cos vectors, computed once for a grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from salt.masks import Grid
from salt.specs import PositionSpec

if TYPE_CHECKING:
    import torch


def _coordinates(grid: Grid) -> torch.Tensor:
    """Coordinates of the tokens in time-major order, float64 [N, 3]."""
    import torch

    axes = [torch.arange(size, dtype=torch.float64) for size in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, 3)


def _angles(grid: Grid, width: int, base: float, scale: float = 1.0) -> torch.Tensor:
    """Angles [N, 3 * (width // 6)]: each axis gets width // 6 frequencies, geometric from 1 to 1 / base."""
    import torch

    per_axis = width // 6
    frequencies = base ** -(torch.arange(per_axis, dtype=torch.float64) / per_axis)
    return (_coordinates(grid)[:, :, None] * scale * frequencies).flatten(1)


def rotary_table(grid: Grid, head_width: int, position: PositionSpec) -> torch.Tensor:
    """Unit complex numbers for `rotate`, complex64 [N, head_width / 2].

    Neighbouring numbers of a head form pairs; the first 3 * (head_width // 6) pairs turn, a third of them
    by the token's time, row and column each; the rest stays (angle 0).
    """
    import torch

    angles = _angles(grid, head_width, position.rope_base)
    still = torch.zeros(len(angles), head_width // 2 - angles.shape[1], dtype=torch.float64)
    angles = torch.cat([angles, still], dim=1)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn queries and keys: x [B, n, 2, heads, head_width], table complex [B or 1, n, 1, 1, head_width / 2].

    One complex product: about twice as fast, forward and backward, as products with cosine and sine tables.
    """
    import torch

    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


def sincos_table(grid: Grid, width: int, position: PositionSpec) -> torch.Tensor:
    """Additive 3-D sin-cos vectors, float32 [N, width]; width - 6 * (width // 6) last numbers are zero."""
    import torch

    angles = _angles(grid, width, position.sincos_base, position.sincos_scale)
    table = torch.zeros(len(angles), width, dtype=torch.float64)
    table[:, : angles.shape[1]] = angles.sin()
    table[:, angles.shape[1] : 2 * angles.shape[1]] = angles.cos()
    return table.float()
