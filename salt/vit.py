"""The video vision transformer: blocks, positions and the encoder."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import nn

from salt.linear import Linear
from salt.masks import Grid
from salt.positions import rotary_table, rotate, sincos_table
from salt.sizes import embeds_whole_clips
from salt.specs import ModelSpec, PositionSpec, VitSpec

NORM_EPS = 1e-6


class Block(nn.Module):
    """Pre-norm transformer block with fused attention.

    Token lists of several lengths go through at once: norms and matrix products see all tokens as one long
    list, only attention keeps the lists apart.
    """

    def __init__(self, vit: VitSpec) -> None:
        super().__init__()
        self.heads = vit.heads
        self.norm1 = nn.LayerNorm(vit.width, eps=NORM_EPS)
        self.qkv = Linear(vit.width, 3 * vit.width)
        self.proj = Linear(vit.width, vit.width)
        self.norm2 = nn.LayerNorm(vit.width, eps=NORM_EPS)
        self.fc1 = Linear(vit.width, vit.mlp_width)
        self.fc2 = Linear(vit.mlp_width, vit.width)

    def forward(
        self,
        x: torch.Tensor,
        rotary: list[torch.Tensor] | None = None,
        shapes: list[tuple[int, int]] | None = None,
    ) -> torch.Tensor:
        """x [B, n, D], or lists of `shapes` (B, n) as one list [sum of B * n, D] -> the same shape.

        `rotary` has one table for each list, [B or 1, n, 1, 1, ...] as `salt.positions.rotate` wants it.
        """
        width = x.shape[-1]
        shapes = [(x.shape[0], x.shape[1])] if shapes is None else shapes
        qkv = self.qkv(self.norm1(x)).view(-1, 3 * width)
        attended = []
        parts = qkv.split([batch * n for batch, n in shapes])
        for place, (part, (batch, n)) in enumerate(zip(parts, shapes, strict=True)):
            heads = part.view(batch, n, 3, self.heads, width // self.heads)
            queries_keys = heads[:, :, :2]
            if rotary is not None:
                queries_keys = rotate(queries_keys, rotary[place])
            q, k = queries_keys.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, n, head width]
            mixed = F.scaled_dot_product_attention(q, k, heads[:, :, 2].transpose(1, 2))
            attended.append(mixed.transpose(1, 2).reshape(batch * n, width))
        together = attended[0] if len(attended) == 1 else torch.cat(attended)
        x = x + self.proj(together.view(x.shape))
        # The exact GELU, as V-JEPA; on a CPU it is also 2.7 times faster than the tanh form.
        output: torch.Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return output


class Trunk(nn.Module):
    """Blocks and a final norm, with the position tables of one grid."""

    rotary: torch.Tensor | None
    sincos: torch.Tensor | None

    def __init__(self, vit: VitSpec, grid: Grid, position: PositionSpec) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(vit) for _ in range(vit.depth))
        self.norm = nn.LayerNorm(vit.width, eps=NORM_EPS)
        # Tables are derived from the spec: they move with the module but are not saved.
        rotary = rotary_table(grid, vit.width // vit.heads, position) if position.rope else None
        sincos = sincos_table(grid, vit.width, position) if position.sincos else None
        self.register_buffer("rotary", rotary, persistent=False)
        self.register_buffer("sincos", sincos, persistent=False)

    def forward(
        self,
        lists: list[torch.Tensor],
        indices: list[torch.Tensor | None],
        layers: tuple[int, ...] | None = None,
    ) -> list[torch.Tensor]:
        """Tokens x [B, n, D] at grid places `index` [B, n] (None: the whole grid in order) -> [B, n, D] each.

        With `layers` only as many blocks run as they name, and each list comes out once for every layer,
        lists of the first layer first: its tokens after that many blocks, through the final norm.
        """
        shapes = [(x.shape[0], x.shape[1]) for x in lists]
        if self.sincos is not None:
            sincos = self.sincos
            lists = [
                x + (sincos if index is None else sincos[index])
                for x, index in zip(lists, indices, strict=True)
            ]
        rotary = None
        if self.rotary is not None:
            table = self.rotary
            # Looked up once for all layers, with a place for (query or key) and for heads.
            rotary = [(table[None] if index is None else table[index])[:, :, None, None] for index in indices]
        x = joined(lists)
        if layers is None:
            for block in self.blocks:
                x = block(x, rotary, shapes)
            return separated(self.norm(x), shapes)
        found = {}
        for number, block in enumerate(self.blocks[: max(layers)], start=1):
            x = block(x, rotary, shapes)
            if number in layers:
                found[number] = self.norm(x)
        return [part for layer in layers for part in separated(found[layer], shapes)]


def joined(lists: list[torch.Tensor]) -> torch.Tensor:
    """Lists of tokens [B, n, D] as one list [sum of B * n, D]."""
    flat = [x.flatten(0, 1) for x in lists]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def separated(x: torch.Tensor, shapes: list[tuple[int, int]]) -> list[torch.Tensor]:
    """The inverse of `joined`."""
    parts = x.split([batch * n for batch, n in shapes])
    return [part.view(*shape, -1) for part, shape in zip(parts, shapes, strict=True)]


class Encoder(nn.Module):
    """Patch embedding and trunk. It sees only the tokens it is given."""

    def __init__(self, vit: VitSpec, model: ModelSpec, grid: Grid, patch_values: int) -> None:
        super().__init__()
        self.embed = Linear(patch_values, vit.width)
        self.trunk = Trunk(vit, grid, model.position)

    def forward(self, patches: torch.Tensor, layer: int | None = None) -> torch.Tensor:
        """All tokens of whole clips: patches [B, N, P] -> [B, N, D], of the last layer or after `layer`
        blocks."""
        layers = None if layer is None else (layer,)
        encoded: list[torch.Tensor] = self.trunk([self.embed(patches)], [None], layers)
        return encoded[0]

    def forward_layers(self, patches: torch.Tensor, layers: tuple[int, ...]) -> list[torch.Tensor]:
        """Tokens [B, N, D] after each of these numbers of blocks, through the final norm."""
        encoded: list[torch.Tensor] = self.trunk([self.embed(patches)], [None], layers)
        return encoded

    def forward_visible(self, patches: torch.Tensor, visible: list[torch.Tensor]) -> list[torch.Tensor]:
        """Visible tokens only: patches [B, N, P] and masks' indices [k * B, V], each -> [k * B, V, D].

        A patch is embedded once for each clip where masks together see more tokens than the clip has, else
        once for each token that is seen.
        """
        batch, n, _ = patches.shape
        if embeds_whole_clips([index.shape[0] // batch * index.shape[1] for index in visible], n):
            embedded = self.embed(patches)
            lists = [take_tokens(embedded, index) for index in visible]
        else:
            seen = joined([take_tokens(patches, index) for index in visible])
            lists = separated(self.embed(seen), [(index.shape[0], index.shape[1]) for index in visible])
        encoded: list[torch.Tensor] = self.trunk(lists, visible)
        return encoded


def initialise(module: nn.Module, kind: str, random: torch.Generator) -> None:
    """Weights of linear layers by `kind`, biases 0; residual outputs divided by sqrt(2 * layer).

    `trunc_normal` (std 0.02) is V-JEPA's; `xavier` is safer at widths below 100.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            if kind == "xavier":
                nn.init.xavier_uniform_(part.weight, generator=random)
            else:
                nn.init.trunc_normal_(part.weight, std=0.02, generator=random)
            nn.init.zeros_(part.bias)
    trunks = [part for part in module.modules() if isinstance(part, Trunk)]
    for trunk in trunks:
        for layer, block in enumerate(trunk.blocks, start=1):
            assert isinstance(block, Block)
            with torch.no_grad():
                block.proj.weight.div_(math.sqrt(2 * layer))
                block.fc2.weight.div_(math.sqrt(2 * layer))


@functools.lru_cache(maxsize=64)
def _offsets(rows: int, batch: int, tokens: int, device: torch.device) -> torch.Tensor:
    """Number of the first token of each row's clip, int64 [rows, 1]."""
    return (torch.arange(rows, device=device) % batch * tokens)[:, None]


def take_tokens(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Tokens of each clip: x [B, N, D], index [k * B, n] (k masks stacked) -> [k * B, n, D].

    One `index_select` over all tokens: three times faster than `gather` with an expanded index.
    """
    batch, tokens, width = x.shape
    flat = (index + _offsets(len(index), batch, tokens, x.device)).flatten()
    return x.reshape(-1, width).index_select(0, flat).view(*index.shape, width)
