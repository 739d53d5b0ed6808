"""Targets and losses: normalised pixels, and latents of a frozen or averaged teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F

#: Deviation below which a patch is of one colour: one grey level in one of its values gives more.
ONE_COLOUR = 1e-4


def pixel_targets(patches: torch.Tensor, channels: int, norm: str) -> torch.Tensor:
    """What the pixel decoder predicts: patches [B, n, P], channel fastest, normalised as named.

    `patch_channel`: zero mean and unit deviation for each patch and channel (as VideoMAE); `patch`: over all
    values of the patch (as MAE); `none`: the clip's own normalised values. A patch of one colour gives zeros.
    """
    if norm == "none":
        return patches
    batch, n, values = patches.shape
    x = patches.view(batch, n, values // channels, channels)
    axes = (-2,) if norm == "patch_channel" else (-2, -1)
    mean = x.mean(dim=axes, keepdim=True)
    deviation = x.std(dim=axes, keepdim=True)
    # Of one colour only rounding is left, which the division would blow up to about half.
    deviation = torch.where(deviation > ONE_COLOUR, deviation + 1e-6, torch.inf)
    return ((x - mean) / deviation).view(batch, n, values)


def latent_targets(latents: torch.Tensor, layer_norm: bool) -> torch.Tensor:
    """The teacher's output tokens [..., D], float32, by default with an affine-free layer norm over
    features."""
    latents = latents.float()
    return F.layer_norm(latents, latents.shape[-1:]) if layer_norm else latents


def distance(prediction: torch.Tensor, target: torch.Tensor, kind: str) -> torch.Tensor:
    """Mean over clips and target tokens of the distance between [B, M, D] and [B, M, D], in float32.

    `l1` |p - t| and `l2` (p - t)^2 are means over features too; so is `smooth_l1`, (p - t)^2 / 2 below 1 and
    |p - t| - 1/2 above. `cosine` is 1 - cos(p, t).
    """
    prediction, target = prediction.float(), target.float()
    if kind == "l1":
        return F.l1_loss(prediction, target)
    if kind == "l2":
        return F.mse_loss(prediction, target)
    if kind == "smooth_l1":
        return F.smooth_l1_loss(prediction, target)
    if kind == "cosine":
        return 1 - F.cosine_similarity(prediction, target, dim=-1).mean()
    raise ValueError(f"no distance is called {kind!r}")
