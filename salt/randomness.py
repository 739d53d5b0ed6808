"""Random numbers addressed by what they are for, so that a run can start at any step."""

from __future__ import annotations

import functools
import hashlib
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from salt.specs import RunSpec

#: Added to the seed of `salt` runs, which share their teacher's seed, once for each stage behind them.
STUDENT_STREAM = 1 << 31
#: The bits of `distinct31`.
BITS31 = (1 << 31) - 1


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


def stream_key(seed: int, purpose: str, *index: int) -> int:
    """A 64-bit key for (seed, purpose, index...), from which `hash64` and `distinct31` make numbers.

    Other than `generator` it costs nothing per number's place: any part of a long list of numbers can be made
    alone, all at once, by any process.
    """
    words = "/".join([purpose, str(seed), *map(str, index)])
    return int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest(), "little")


def hash64(
    keys: NDArray[np.uint64] | np.uint64, counters: NDArray[np.uint64] | np.uint64
) -> NDArray[np.uint64]:
    """Random 64-bit numbers, uint64 of the arguments' common shape (one of them is an array).

    `hash64(key, n)` is number n, from 0, of splitmix64 (Steele, Lea and Flood 2014) seeded with `key`.
    """
    import numpy as np

    mixed = np.atleast_1d(counters + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + keys
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    numbers: NDArray[np.uint64] = mixed
    return numbers


def distinct31(keys: NDArray[np.uint64], count: int) -> NDArray[np.uint32]:
    """`count` random numbers below 2^31 for each of `keys` [n], no two alike in a row: uint32 [n, count].

    Each key picks a permutation of the 31-bit numbers, so that the order of a row's numbers is a random order
    without ties.
    """
    import numpy as np

    low, high = keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32)
    return _permuted31(_scattered31(count), (low & np.uint32(BITS31))[:, None], high[:, None])


@functools.lru_cache(maxsize=64)
def _scattered31(count: int) -> NDArray[np.uint32]:
    """0 to `count` under one fixed permutation: neighbours must not enter the keyed one as neighbours."""
    import numpy as np

    first, second = np.array([0x243F6A88], dtype=np.uint32), np.array([0x85A308D3], dtype=np.uint32)
    numbers = _permuted31(np.arange(count, dtype=np.uint32), first, second)
    numbers.flags.writeable = False
    return numbers


def _permuted31(
    numbers: NDArray[np.uint32], first: NDArray[np.uint32], second: NDArray[np.uint32]
) -> NDArray[np.uint32]:
    """Numbers below 2^31 permuted: adding, multiplying by odd numbers and xor of shifts can be undone."""
    import numpy as np

    below = np.uint32(BITS31)
    mixed = numbers ^ first
    shifted = np.empty_like(mixed)
    for factor, shift in ((0x7FEB352D, 15), (0x846CA68B, 16)):
        mixed *= np.uint32(factor)
        mixed &= below
        np.right_shift(mixed, np.uint32(shift), out=shifted)
        mixed ^= shifted
        if shift == 15:
            mixed += second
    mixed *= np.uint32(0x9E3779B1)
    mixed &= below
    return mixed
