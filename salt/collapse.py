"""Collapse: whether embeddings still tell clips apart."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    import torch

#: Clips, places of each and tokens of all that are looked at: enough for ranks to 256, cheap beside a step.
MOST_CLIPS = 64
MOST_PLACES = 64
MOST_TOKENS = 256

#: A feature whose deviation is below this share of the values' root mean square says next to nothing.
FLAT_STD = 0.01

# Thresholds by experiment: docs/training.md has the runs.
#: Clips differ by less than this share of the values' root mean square: all get one answer.
LEAST_CLIP_STD = 0.05
#: Targets that move have collapsed when their rank is below this share of the highest that they had.
LEAST_RANK_SHARE = 0.5
#: Log lines in a row that must say so.
PATIENCE = 3

#: Fields of a line of metrics; None where there is no number.
Row: TypeAlias = "dict[str, float | None]"


class Collapse:
    """Whether embeddings still tell clips apart; a loss cannot say so, as it falls when targets collapse.

    `moving` targets are those of an EMA teacher. Only they can lose rank while the run goes on; a frozen
    teacher's are judged by whether they differ between clips at all.
    """

    def __init__(self, *, moving: bool, highest_rank: float = 0.0) -> None:
        self.moving = moving
        self.highest_rank = highest_rank
        self._bad_lines = 0  # in a row
        self._warned = False
        self._message: str | None = None

    def begin(self, targets: torch.Tensor) -> None:
        """The targets of a run's first step, before it learned anything: a collapse can take few steps."""
        self._rank_share(spread(targets)["rank"])

    def observe(
        self, step: int, targets: torch.Tensor | None = None, context: torch.Tensor | None = None
    ) -> Row:
        """Numbers of the embeddings of `step`'s clips: targets [B, N, D] and the encoder's output [B, V, D].

        See `spread` for what they are; names begin with `target_` and `context_`.
        """
        row: Row = {}
        for name, embeddings in (("target", targets), ("context", context)):
            if embeddings is not None:
                row |= {f"{name}_{key}": value for key, value in spread(embeddings).items()}
        self._judge(step, row)
        if self.moving and targets is not None:
            row["target_rank_highest"] = self.highest_rank
        return row

    def warning(self) -> str | None:
        """What is wrong, once an episode: the next call gives None until embeddings were well again."""
        message, self._message = self._message, None
        return message

    def _judge(self, step: int, row: Row) -> None:
        alike = [name for name in ("target", "context") if _is_alike(row, name)]
        share = self._rank_share(row.get("target_rank"))
        if not alike and (share is None or share >= LEAST_RANK_SHARE):
            self._bad_lines, self._warned = 0, False
            return
        self._bad_lines += 1
        if self._warned or self._bad_lines < PATIENCE:
            return
        self._warned = True
        if alike:
            seen = f"{' and '.join(alike)} embeddings hardly differ between clips"
        else:
            seen = f"the targets' effective rank fell to {share:.0%} of the highest so far"
        cure = (
            "lower the learning rate, raise `ema_start`, or train on more clips"
            if self.moving
            else "look at the clips, the teacher and the learning rate"
        )
        self._message = (
            f"collapse at step {step}: {seen} ({_listed(row)}), whatever the loss says; "
            f"stop the run if it does not recover, and {cure}"
        )

    def _rank_share(self, rank: float | None) -> float | None:
        """Rank as a share of the highest so far; None for targets that do not move, or are not finite."""
        if not self.moving or rank is None or not math.isfinite(rank):
            return None
        self.highest_rank = max(self.highest_rank, rank)
        return rank / self.highest_rank if self.highest_rank > 0 else 0.0


def _is_alike(row: Row, name: str) -> bool:
    value = row.get(f"{name}_clip_std")
    return value is not None and value < LEAST_CLIP_STD


def _listed(row: Row) -> str:
    names = ("target_clip_std", "target_rank", "target_cosine", "context_clip_std", "context_rank")
    return ", ".join(f"{name} {row[name]:.3g}" for name in names if row.get(name) is not None)


def spread(embeddings: torch.Tensor) -> Row:
    """How much embeddings [B, N, D] differ, over the first 64 clips at 64 places; NaN each if not finite.

    `std`: mean over features of the standard deviation over clips and places; `flat_share`: share of features
    whose deviation is below 0.01; `clip_std`: root mean square of the deviation between clips at one of the N
    places. All three in units of the root mean square of all values. `rank`: RankMe of 256 tokens drawn from
    them. `cosine`: mean cosine between the mean tokens of two clips. `clip_std` and `cosine` are None for one
    clip.

    Of whole clips, an encoder which only knows the place has a `clip_std` of 0. Tokens of masks lie at
    different places in each clip: there it does not tell such an encoder from a good one.
    """
    import torch

    x = embeddings.detach()[:MOST_CLIPS]
    x = x[:, _drawn(x.shape[1], MOST_PLACES, x.device)].float()
    clips, places, width = x.shape
    scale = x.square().mean().sqrt()
    if not torch.isfinite(scale):
        return dict.fromkeys(("std", "flat_share", "clip_std", "rank", "cosine"), math.nan)
    unit = scale.item() or 1.0  # values that are all 0 differ by 0
    std = x.flatten(0, 1).std(dim=0, correction=0)  # [D]
    between = x.var(dim=0).mean().sqrt().item() / unit if clips > 1 else None
    mean = torch.nn.functional.normalize(x.mean(dim=1), dim=-1)  # [B, D]
    # Sum of all cosines less those of a clip with itself, which are 1, or 0 for a mean token of 0.
    cosines = mean.sum(dim=0).square().sum() - mean.square().sum()
    return {
        "std": std.mean().item() / unit,
        "flat_share": (std <= FLAT_STD * unit).float().mean().item(),
        "clip_std": between,
        "rank": _rank(x.reshape(-1, width)[_drawn(clips * places, MOST_TOKENS, x.device)].cpu()),
        "cosine": cosines.item() / (clips * (clips - 1)) if clips > 1 else None,
    }


def _drawn(count: int, most: int, device: torch.device) -> torch.Tensor:
    """At most `most` of `count` numbers, always the same ones.

    A draw of its own, so that no random state of the run moves, and not a stride: on a token grid that hits
    one column.
    """
    import torch

    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most].to(device)


def _rank(sample: torch.Tensor) -> float:
    """RankMe of [n, D] as `salt.label_free.rankme` defines it, from eigenvalues of the smaller Gram matrix.

    6 ms for 256 x 1024 on one thread, where numpy's singular values take 190 and every core.
    """
    import torch

    from salt.label_free import entropy_rank

    x = sample.double()
    gram = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
    return entropy_rank(torch.linalg.eigvalsh(gram).clamp(min=0).sqrt().numpy())
