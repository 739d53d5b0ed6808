"""The kind of device that a process computes on, and the most memory that it has taken there."""

from __future__ import annotations

import resource
import sys


def hardware(device: str) -> str | None:
    """What memory a run has before it: a GPU's name and size, or `cpu`; None where a GPU does not answer.

    Asking gives this process a context on the GPU.
    """
    if not device.startswith("cuda"):
        return device
    import torch

    try:
        about = torch.cuda.get_device_properties(torch.device(device))
    except (RuntimeError, AssertionError):  # `salt.world.join` says why, and what to do
        return None
    return f"{about.name}, {about.total_memory / 2**30:.0f} GiB"


def forget_peak(device: str) -> None:
    """Have `peak_memory_bytes` count from here on. What a process has resident cannot be forgotten."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.empty_cache()  # what an earlier run of this process has left reserved
        torch.cuda.reset_peak_memory_stats(torch.device(device))


def peak_memory_bytes(device: str) -> int | None:
    """The most memory taken so far; None where it is not known.

    On a GPU what torch had reserved there since `forget_peak`; the context (some hundred MiB) is not in it.
    On a CPU the resident set of the whole process since it began, so that of its largest run, without
    decoding processes.
    """
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_reserved(torch.device(device))
    if device != "cpu":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
