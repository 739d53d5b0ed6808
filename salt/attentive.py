"""The attentive probe: self-attention blocks, one cross-attention block with a learnt query, a classifier."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from salt.flops import block_flops
from salt.randomness import generator, torch_seed
from salt.specs import ProbeSpec, VitSpec
from salt.vit import NORM_EPS, Block, initialise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class AttentiveProbe(nn.Module):
    """`blocks - 1` self-attention blocks on the frozen tokens, a query that attends to them, a classifier.

    The layout is that of V-JEPA 2 (arXiv 2506.09985): residual to the query, layer norm, MLP with GELU.
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
            tokens = block(tokens, None)
        batch, n, width = tokens.shape
        split = (batch, n, 2, self.heads, width // self.heads)
        k, v = (
            self.kv(self.norm1(tokens)).view(split).permute(2, 0, 3, 1, 4).unbind(0)
        )  # [B, heads, N, head width]
        q = self.q(self.query).view(1, self.heads, 1, -1).expand(batch, -1, -1, -1)
        attended = F.scaled_dot_product_attention(q, k, v).reshape(batch, width)
        x = self.query + attended
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        scores: torch.Tensor = self.classify(x)
        return scores


class Split(NamedTuple):
    """Frozen tokens [n, N, D] of one split and its class numbers [n]."""

    tokens: torch.Tensor
    labels: torch.Tensor


class AttentiveScore(NamedTuple):
    accuracy: float
    selection_accuracy: float
    lr: float
    flops: int


def attentive_probe(
    spec: ProbeSpec, vit: VitSpec, classes: int, train: Split, selection: Split, report: Split, device: str
) -> AttentiveScore:
    """Train one probe for each rate, keep the best on `selection`, and score it once on `report`.

    Tokens are standardised with the training split's mean and deviation of each feature, so that one grid of
    rates serves encoders of any scale. AdamW, cosine to 0, no warmup (arXiv 2509.24317, appendix).
    """
    mean, deviation = train.tokens.mean(dim=(0, 1)), train.tokens.std(dim=(0, 1)) + 1e-6
    splits = [Split((s.tokens - mean) / deviation, s.labels) for s in (train, selection, report)]
    best: tuple[float, float, AttentiveProbe] | None = None
    for lr in spec.attentive_lrs:
        probe = _fit(spec, vit, classes, splits[0], lr, device)
        score = _accuracy(probe, splits[1], device)
        if best is None or score > best[0]:
            best = (score, lr, probe)
    assert best is not None
    accuracy = _accuracy(best[2], splits[2], device)
    return AttentiveScore(accuracy, best[0], best[1], _flops(spec, vit, classes, splits))


def _fit(spec: ProbeSpec, vit: VitSpec, classes: int, train: Split, lr: float, device: str) -> AttentiveProbe:
    probe = AttentiveProbe(vit, spec.attentive_blocks, classes)
    random = torch.Generator().manual_seed(torch_seed(spec.seed, "attentive probe"))
    initialise(probe, "xavier", random)
    nn.init.trunc_normal_(probe.query, std=0.02, generator=random)
    probe.to(device)
    matrices = [p for p in probe.parameters() if p.ndim >= 2]
    vectors = [p for p in probe.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": spec.attentive_weight_decays[0]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=lr, fused=True)
    count, batch = len(train.labels), min(spec.attentive_batch_clips, len(train.labels))
    batches = count // batch
    steps = spec.attentive_epochs * batches
    for epoch in range(spec.attentive_epochs):
        order = torch.from_numpy(_order(spec, epoch, count))
        for number in range(batches):
            step = epoch * batches + number
            for group in optimizer.param_groups:
                group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            chosen = order[number * batch : (number + 1) * batch]
            scores = probe(train.tokens[chosen].to(device))
            loss = F.cross_entropy(scores, train.labels[chosen].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
    return probe.eval()


def _order(spec: ProbeSpec, epoch: int, count: int) -> NDArray[np.int64]:
    return generator(spec.seed, "attentive order", epoch).permutation(count)


@torch.no_grad()
def _accuracy(probe: AttentiveProbe, split: Split, device: str, chunk: int = 256) -> float:
    right = 0
    for start in range(0, len(split.labels), chunk):
        scores = probe(split.tokens[start : start + chunk].to(device)).cpu()
        right += int((scores.argmax(dim=1) == split.labels[start : start + chunk]).sum())
    return right / len(split.labels)


def _flops(spec: ProbeSpec, vit: VitSpec, classes: int, splits: list[Split]) -> int:
    """Training on all rates (3 x forward) and evaluating on selection and report; `matmul` convention."""
    n, d = splits[0].tokens.shape[1], vit.width
    cross = 4 * n * d * d + 2 * d * d + 4 * n * d + 4 * d * vit.mlp_width + 2 * d * classes
    forward = (spec.attentive_blocks - 1) * block_flops(vit, n) + cross
    batch = min(spec.attentive_batch_clips, len(splits[0].labels))
    trained = spec.attentive_epochs * (len(splits[0].labels) // batch) * batch
    rates = len(spec.attentive_lrs)
    return forward * (rates * (3 * trained + len(splits[1].labels)) + len(splits[2].labels))
