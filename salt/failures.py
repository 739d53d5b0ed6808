"""What stopped a run: any exception as a `RunFailed` of the kind that tells causes apart, with a way out."""

from __future__ import annotations

import errno
import re
import signal
from pathlib import Path

from salt.disk import disk_failed
from salt.errors import NoDevice, RunFailed, UserError

#: Errors of the system that speak of the disk or its file system, whoever meets them.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE)
#: How torch says that memory is short, on a device and on the host.
_DEVICE_MEMORY = re.compile(r"OutOfMemoryError|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
_HOST_MEMORY = re.compile(r"DefaultCPUAllocator|can't allocate memory|MemoryError|Cannot allocate memory")
#: How gloo and NCCL say that another process is gone.
_LOST_RANKS = re.compile(
    r"Connection (closed|reset) by (remote )?peer|NCCL (error|communicator)|DistBackendError|DistNetworkError"
    r"|DistStoreError|Timed out waiting \d+ms for (recv|send)|Broken pipe.*gloo"
)


def as_failure(error: Exception) -> RunFailed:
    """The failure that an exception is; a `RunFailed` whose kind is already told apart stays as it is."""
    if isinstance(error, RunFailed) and error.kind != "code":
        return error
    text = str(error) if isinstance(error, RunFailed) else f"{type(error).__name__}: {error}"
    kind = kind_of(error, text)
    if kind == "code" and isinstance(error, RunFailed):
        return error
    if kind == "disk":
        assert isinstance(error, OSError)
        return disk_failed(error, Path(error.filename or "a file"))
    way_out = {
        "oom": _memory_way_out(text),
        "ranks": "one of the processes ended or hangs: its own output says why",
    }.get(kind)
    if kind in ("code", "data"):
        return RunFailed(kind, str(error) if kind == "data" else text)
    said = _first_line(text)
    return RunFailed(kind, f"{said}; {way_out}" if way_out else said)


def kind_of(error: Exception, text: str) -> str:
    """The kind of an exception, by its type, its number, or what it says."""
    from salt.video import VideoError

    if isinstance(error, RunFailed) and error.kind != "code":
        return error.kind
    if isinstance(error, NoDevice):  # nothing of data: its words tell whether the machine is to blame
        return "code"
    if isinstance(error, UserError | VideoError):  # lists and videos: the user's to mend, found inside a run
        return "data"
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return "oom"
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return "disk"
    if _DEVICE_MEMORY.search(text) or _HOST_MEMORY.search(text):
        return "oom"
    return "ranks" if _LOST_RANKS.search(text) else "code"


def speaks_of_device_memory(text: str) -> bool:
    """Whether a message of kind `oom` is about a device's memory, not about the host's."""
    return _DEVICE_MEMORY.search(text) is not None


def _memory_way_out(text: str) -> str:
    if speaks_of_device_memory(text):
        return (
            "the device's memory is full: lower execution: micro_batch_clips, set recompute: true, or take "
            "more processes with sharding"
        )
    return (
        "the machine's memory, or what this job may take of it, is full: lower execution: micro_batch_clips "
        "or decode_workers, run fewer workers, or ask for more memory"
    )


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else text


def ended_how(code: int) -> str:
    """How a process ended, from its exit code as `subprocess` gives it; what SIGKILL is likely to mean."""
    if code >= 0:
        return f"ended with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    if -code == signal.SIGKILL:
        return (
            f"was ended by {name}: likely by the kernel, because memory was short (`dmesg` or the "
            "scheduler's record tells), unless somebody did it; run fewer workers, lower micro_batch_clips "
            "or decode_workers, or ask for more memory"
        )
    return f"was ended by {name}"
