"""The attentive probe: self-attention blocks, one cross-attention block with a learnt query, a classifier.

A head is one such probe with a learning rate and a weight decay of its own. All heads train in one pass: a
batch of frozen tokens is read, standardised and moved to the device once for all of them. On the device they
take turns: stacked into batched products they were slower on a CPU (benchmarks/probe_speed.py), and then the
activations of all heads are in memory at once.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from salt.features import clips_at_once
from salt.flops import block_flops
from salt.randomness import generator, torch_seed
from salt.signals import STOP
from salt.vit import NORM_EPS, Block, initialise

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from salt.specs import ProbeSpec, VitSpec

#: Bound on the activations of one forward and backward pass; larger batches are cut and gradients added up.
ACTIVATION_BYTES = 2 << 30


class AttentiveProbe(nn.Module):
    """`blocks - 1` self-attention blocks on the frozen tokens, a query that attends to them, a classifier.

    The layout is that of V-JEPA 2 (arXiv 2506.09985): residual to the query, layer norm, MLP with GELU, no
    projection after the cross-attention. There is one query for all clips, so keys and values of the tokens
    are never made: a score is `token . (W_k^T q)`, and values are mixed before they are projected. That is
    the same function: the bias of the keys, which this never reads, adds the same to all scores, and softmax
    cancels it.
    """

    def __init__(self, vit: VitSpec, blocks: int, classes: int) -> None:
        super().__init__()
        self.heads = vit.heads
        self.blocks = nn.ModuleList(Block(vit) for _ in range(blocks - 1))
        self.query = nn.Parameter(torch.zeros(vit.width))
        self.norm1 = nn.LayerNorm(vit.width, eps=NORM_EPS)
        self.q = nn.Linear(vit.width, vit.width)
        self.kv = nn.Linear(vit.width, 2 * vit.width)
        self.norm2 = nn.LayerNorm(vit.width, eps=NORM_EPS)
        self.fc1 = nn.Linear(vit.width, vit.mlp_width)
        self.fc2 = nn.Linear(vit.mlp_width, vit.width)
        self.classify = nn.Linear(vit.width, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens [B, N, D] -> class scores [B, classes]."""
        for block in self.blocks:
            tokens = block(tokens)
        x = self.query + self._gathered(self.norm1(tokens))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        scores: torch.Tensor = self.classify(x)
        return scores

    def _gathered(self, tokens: torch.Tensor) -> torch.Tensor:
        """What the query gathers, [B, N, D] -> [B, D]."""
        batch, _, width = tokens.shape
        keys, values = self.kv.weight.view(2, self.heads, width // self.heads, width).unbind(0)
        query = self.q(self.query).view(self.heads, 1, -1) / math.sqrt(width // self.heads)
        asked = torch.bmm(query, keys).squeeze(1)  # [heads, D]
        attention = torch.matmul(tokens, asked.T).softmax(dim=1)  # [B, N, heads]
        mixed = torch.bmm(attention.transpose(1, 2), tokens)  # [B, heads, D]
        gathered = torch.bmm(mixed.transpose(0, 1), values.transpose(1, 2))  # [heads, B, head width]
        return gathered.transpose(0, 1).reshape(batch, width) + self.kv.bias[width:]


class Split(NamedTuple):
    """Frozen tokens of one split, float32 [n, views, N, D], possibly on disk, and class numbers, int64
    [n]."""

    tokens: NDArray[np.float32]
    labels: NDArray[np.int64]


class Scaling(NamedTuple):
    """Mean and reciprocal deviation of each feature at each token place, float32 [N, D] each."""

    mean: torch.Tensor
    factor: torch.Tensor


class AttentiveScore(NamedTuple):
    accuracy: float
    selection_accuracy: float
    lr: float
    weight_decay: float
    flops: int


class Head(NamedTuple):
    """A probe with its rate, weight decay and optimiser."""

    lr: float
    weight_decay: float
    probe: AttentiveProbe
    optimizer: torch.optim.AdamW


def attentive_probe(
    spec: ProbeSpec,
    vit: VitSpec,
    classes: int,
    train: Split,
    selection: Split,
    report: Split,
    scaling: Scaling,
    device: str,
) -> AttentiveScore:
    """Train one head for each rate x weight decay, keep the best on `selection`, score it once on `report`.

    Tokens are standardised with the training split's mean and deviation of each feature, so that one grid of
    rates serves encoders of any scale and width. Ties go to the first of the grid.
    """
    vit = probe_vit(spec, vit)
    scaling = Scaling(scaling.mean.to(device), scaling.factor.to(device))
    heads = train_heads(spec, vit, classes, train, scaling, device)
    right = _accuracies([head.probe for head in heads], selection, scaling, vit, device)
    best = max(range(len(heads)), key=lambda place: right[place])
    accuracy = _accuracies([heads[best].probe], report, scaling, vit, device)[0]
    flops = attentive_flops(spec, vit, classes, train.tokens.shape, len(selection.labels), len(report.labels))
    return AttentiveScore(accuracy, right[best], heads[best].lr, heads[best].weight_decay, flops)


def probe_vit(spec: ProbeSpec, vit: VitSpec) -> VitSpec:
    """The shape of the probe's blocks: the encoder's, with the suite's own number of attention heads."""
    return vit if spec.attentive_heads is None else msgspec.structs.replace(vit, heads=spec.attentive_heads)


def grid_of(spec: ProbeSpec) -> list[tuple[float, float]]:
    """(learning rate, weight decay) of all heads: the same for every encoder."""
    return [(lr, decay) for lr in spec.attentive_lrs for decay in spec.attentive_weight_decays]


def train_heads(
    spec: ProbeSpec, vit: VitSpec, classes: int, train: Split, scaling: Scaling, device: str
) -> list[Head]:
    """All heads after training: AdamW, cosine to 0, no warmup (arXiv 2509.24317, appendix).

    Every head begins at the same weights and sees the same batches. A clip's view is drawn afresh each epoch.
    """
    heads = [_head(spec, vit, classes, lr, decay, device) for lr, decay in grid_of(spec)]
    count, batch = len(train.labels), min(spec.attentive_batch_clips, len(train.labels))
    batches = count // batch
    steps = spec.attentive_epochs * batches
    piece = _clips_that_fit(vit, spec.attentive_blocks, train.tokens.shape[2])
    for step in range(steps):
        STOP.check()
        epoch, number = divmod(step, batches)
        if number == 0:
            order, views = _epoch(spec, epoch, train.tokens.shape[:2])
        chosen = order[number * batch : (number + 1) * batch]
        pieces = list(_batch(train, chosen, views[chosen], scaling, piece, device))
        for head in heads:
            for group in head.optimizer.param_groups:
                group["lr"] = head.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            head.optimizer.zero_grad(set_to_none=True)
            for tokens, labels in pieces:
                loss = F.cross_entropy(head.probe(tokens), labels, reduction="sum") / batch
                loss.backward()
            head.optimizer.step()
    return heads


def _head(spec: ProbeSpec, vit: VitSpec, classes: int, lr: float, decay: float, device: str) -> Head:
    """A head before training. Only matrices have weight decay."""
    probe = AttentiveProbe(vit, spec.attentive_blocks, classes)
    random = torch.Generator().manual_seed(torch_seed(spec.seed, "attentive probe"))
    initialise(probe, "xavier", random)
    nn.init.trunc_normal_(probe.query, std=0.02, generator=random)
    probe.to(device)
    matrices = [p for p in probe.parameters() if p.ndim >= 2]
    vectors = [p for p in probe.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    return Head(lr, decay, probe, torch.optim.AdamW(groups, lr=lr, fused=True))


def _epoch(
    spec: ProbeSpec, epoch: int, shape: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Order of the clips in an epoch and the view of each, int64 [n] both."""
    count, views = shape
    order = generator(spec.seed, "attentive order", epoch).permutation(count)
    drawn = generator(spec.seed, "attentive views", epoch).integers(0, views, count)
    return order, drawn


def _batch(
    split: Split,
    chosen: NDArray[np.int64],
    views: NDArray[np.int64],
    scaling: Scaling,
    piece: int,
    device: str,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Standardised tokens [b, N, D] of one view of each chosen clip and labels [b], in pieces."""
    for start in range(0, len(chosen), piece):
        some = chosen[start : start + piece]
        tokens = torch.from_numpy(np.asarray(split.tokens[some, views[start : start + piece]])).to(device)
        labels = torch.from_numpy(split.labels[some]).to(device)
        yield tokens.sub_(scaling.mean).mul_(scaling.factor), labels


@torch.no_grad()
def _accuracies(
    probes: list[AttentiveProbe], split: Split, scaling: Scaling, vit: VitSpec, device: str
) -> list[float]:
    """Share of clips that each probe gets right; the probabilities of a clip's views are averaged.

    A clip whose probabilities are not numbers, as after a rate that was too high, is not got right: `argmax`
    would name the first class.
    """
    right = [0] * len(probes)
    count, views = split.tokens.shape[:2]
    piece = min(clips_at_once(device), _clips_that_fit(vit, len(probes[0].blocks) + 1, split.tokens.shape[2]))
    for start in range(0, count, piece):
        STOP.check()
        chosen = np.arange(start, min(start + piece, count))
        totals: list[torch.Tensor | None] = [None] * len(probes)
        for view in range(views):
            ((tokens, labels),) = _batch(split, chosen, np.full(len(chosen), view), scaling, piece, device)
            for place, probe in enumerate(probes):
                likely = probe(tokens).softmax(dim=1)
                before = totals[place]
                totals[place] = likely if before is None else before + likely
        for place, total in enumerate(totals):
            assert total is not None
            right[place] += int((total.isfinite().all(dim=1) & (total.argmax(dim=1) == labels)).sum())
    return [number / count for number in right]


def _clips_that_fit(vit: VitSpec, blocks: int, count: int) -> int:
    """Clips of `count` tokens whose activations stay within `ACTIVATION_BYTES`, at least 1.

    Estimate: 12 widths and 2 MLP widths of float32 for each token and block, kept for the backward pass.
    """
    bytes_per_clip = 4 * count * blocks * (12 * vit.width + 2 * vit.mlp_width)
    return max(1, ACTIVATION_BYTES // bytes_per_clip)


def attentive_flops(
    spec: ProbeSpec, vit: VitSpec, classes: int, shape: tuple[int, ...], selection: int, report: int
) -> int:
    """FLOPs of all heads: training (3 x forward) on `shape` [n, views, N, D], selection, and the best's
    report.

    `matmul` convention of `salt.flops`; N counts the tokens of all segments and layers. The cross-attention
    block on N tokens of width d with h heads: 4 N h d for scores and mixing, 2 d^2 for values, and once a
    batch 4 d^2 for the query, which is left out.
    """
    count, views, n, d = shape
    cross = 4 * n * vit.heads * d + 2 * d * d + 4 * d * vit.mlp_width + 2 * d * classes
    forward = (spec.attentive_blocks - 1) * block_flops(vit, n) + cross
    batch = min(spec.attentive_batch_clips, count)
    trained = spec.attentive_epochs * (count // batch) * batch
    return forward * (len(grid_of(spec)) * (3 * trained + views * selection) + views * report)
