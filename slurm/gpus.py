"""Which GPUs of this machine each worker process may see. Nothing here loads torch or starts a GPU."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from salt.errors import UserError
from salt.specs import Spec

ASK_S = 10.0
VARIABLE = "CUDA_VISIBLE_DEVICES"


class Gpu(Spec, kw_only=True):
    """A line of nvidia-smi."""

    index: str
    uuid: str
    memory_bytes: int | None


def machine_gpus() -> list[Gpu]:
    """All GPUs of this machine; none where nvidia-smi is missing, fails, or takes longer than `ASK_S`."""
    query = ["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            query, capture_output=True, text=True, errors="replace", timeout=ASK_S, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return []
    return _read(done.stdout) if done.returncode == 0 else []


def _read(text: str) -> list[Gpu]:
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[0].isdigit():
            number, _, unit = fields[2].partition(" ")
            known = number.isdigit() and unit == "MiB"
            found.append(
                Gpu(index=fields[0], uuid=fields[1], memory_bytes=int(number) * 2**20 if known else None)
            )
    return found


def visible_gpus() -> list[str]:
    """Names of the GPUs that this process may use, as `CUDA_VISIBLE_DEVICES` takes them.

    What that variable says, if it is set; else all of the machine, by UUID: CUDA and nvidia-smi do not number
    them alike.
    """
    chosen = os.environ.get(VARIABLE)
    if chosen is None:
        return [gpu.uuid for gpu in machine_gpus()]
    names = []
    for name in (part.strip() for part in chosen.split(",")):
        if not name or name.startswith("-") or name == "NoDevFiles":
            break  # CUDA, too, sees only what comes before a name that is none
        names.append(name)
    return names


def least_memory_bytes(names: Sequence[str]) -> int | None:
    """Memory of the smallest of these GPUs; None where nvidia-smi does not tell it of each."""
    known = {name: gpu.memory_bytes for gpu in machine_gpus() for name in (gpu.index, gpu.uuid)}
    sizes = [known.get(name) for name in names]
    return min((size for size in sizes if size is not None), default=None) if None not in sizes else None


def groups(gpus: Sequence[str], per_worker: int, workers: int, *, share: bool = False) -> list[str]:
    """`CUDA_VISIBLE_DEVICES` of each of `workers` processes, which take `per_worker` GPUs each.

    With `share` several workers get the same GPUs, in turn, where there are too few.

    Raises:
        UserError: too few GPUs.
    """
    have, wanted = len(gpus), per_worker * workers
    fit = have // per_worker
    if wanted > have and not (share and fit):
        where = f"{VARIABLE}={os.environ[VARIABLE]!r}" if VARIABLE in os.environ else "nvidia-smi"
        if fit:
            way_out = f"start at most {fit} worker{'s' if fit > 1 else ''}"
        elif have:
            way_out = f"lower execution: processes to {have}"
        else:
            way_out = "set execution: device to cpu, or submit to a machine with GPUs"
        raise UserError(
            f"{workers} worker{'s' if workers > 1 else ''} with "
            f"{per_worker} GPU{'s' if per_worker > 1 else ''} each need {wanted}, "
            f"and {where} gives {have}: {way_out}"
        )
    blocks = [",".join(gpus[place * per_worker : (place + 1) * per_worker]) for place in range(fit)]
    return [blocks[worker % fit] for worker in range(workers)]
