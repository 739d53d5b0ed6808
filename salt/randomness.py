"""Random numbers addressed by what they are for, so that a run can start at any step."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from salt.specs import RunSpec

#: Added to the seed of `salt` runs, which share their teacher's seed, once for each stage behind them.
STUDENT_STREAM = 1 << 31


def generator(seed: int, purpose: str, *index: int) -> np.random.Generator:
    """A numpy generator for (seed, purpose, index...): the same arguments give the same stream.

    There is no hidden state: the numbers of step 1000 depend on no step before it, nor on workers or ranks.
    """
    import numpy as np

    words = [seed, zlib.crc32(purpose.encode()), *index]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(words)))


def torch_seed(seed: int, purpose: str) -> int:
    """A 63-bit seed for `torch.Generator`, keyed like `generator`."""
    return int(generator(seed, purpose).integers(0, 2**63 - 1))


def run_seed(spec: RunSpec) -> int:
    """Seed of a run's weights, data order, crops and masks.

    Runs of one seed share them over arms, so that arms can be compared in pairs; but a student must not start
    at its own teacher's initial weights, nor see the same masks in the same order.
    """
    return (
        spec.seed
        if spec.arm != "salt" or spec.teacher is None
        else spec.seed + spec.teacher.stage * STUDENT_STREAM
    )
