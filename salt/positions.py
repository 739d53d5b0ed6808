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
    """What `rotate` multiplies by, float32 [N, head_width] (`interleaved`) or [N, 2 * head_width] (`tiled`).

    Neighbouring numbers of a head form pairs; the first 3 * (head_width // 6) pairs turn, a third of them
    by the token's time, row and column each; the rest stays (angle 0).

    `interleaved`: a cosine and a sine for each pair, side by side. `tiled`: all cosines, then all sines; a
    number's angle is that of its place among its axis' numbers, modulo the axis' count of frequencies, as in
    the published V-JEPA 2 code.
    """
    import torch

    angles = _angles(grid, head_width, position.rope_base)
    if position.rope_frequencies == "interleaved":
        still = torch.zeros(len(angles), head_width // 2 - angles.shape[1], dtype=torch.float64)
        angles = torch.cat([angles, still], dim=1)
        return torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1).float()
    per_axis = angles.unflatten(1, (3, -1))  # [N, 3, head_width // 6]
    tiled = torch.cat([per_axis, per_axis], dim=-1).flatten(1)
    still = torch.zeros(len(angles), head_width - tiled.shape[1], dtype=torch.float64)
    tiled = torch.cat([tiled, still], dim=1)
    return torch.cat([tiled.cos(), tiled.sin()], dim=1).float()


def rotate(x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Turn queries and keys: x [B, n, 2, heads, head_width], table [B or 1, n, 1, 1, ...] of `rotary_table`.

    The arithmetic is float32; the result has the type of x. Pairs are taken as complex numbers, forward and
    backward two to four times as fast on a CPU as real products with swapped neighbours. The compiler fuses
    real products and knows no complex ones, so it gets those.
    """
    import torch

    interleaved = table.shape[-1] == x.shape[-1]
    pairs = x.float().unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        first, second = pairs.unbind(-1)
        if interleaved:
            cosine, sine = table.unflatten(-1, (-1, 2)).unbind(-1)
            turned = [first * cosine - second * sine, second * cosine + first * sine]
        else:
            cosines, sines = table.unflatten(-1, (2, -1, 2)).unbind(-3)
            turned = [
                first * cosines[..., 0] - second * sines[..., 0],
                second * cosines[..., 1] + first * sines[..., 1],
            ]
        return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)
    numbers = torch.view_as_complex(pairs)
    if interleaved:
        factors = torch.view_as_complex(table.unflatten(-1, (-1, 2)))
        return torch.view_as_real(numbers * factors).flatten(-2).to(x.dtype)
    # The two numbers of a pair have angles of their own: x cos + (a quarter turn of each pair) sin.
    cosines, sines = table.chunk(2, dim=-1)
    quarter = torch.view_as_real(numbers * 1j).flatten(-2)
    return (x.float() * cosines).addcmul_(quarter, sines).to(x.dtype)


def sincos_table(grid: Grid, width: int, position: PositionSpec) -> torch.Tensor:
    """Additive 3-D sin-cos vectors, float32 [N, width]; width - 6 * (width // 6) last numbers are zero."""
    import torch

    angles = _angles(grid, width, position.sincos_base, position.sincos_scale)
    table = torch.zeros(len(angles), width, dtype=torch.float64)
    table[:, : angles.shape[1]] = angles.sin()
    table[:, angles.shape[1] : 2 * angles.shape[1]] = angles.cos()
    return table.float()
