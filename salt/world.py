"""The processes that train one run together: who they are, which clips are whose, what they tell each other.

One process is the ordinary case: then there is no process group, and every collective returns at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from salt.errors import NoDevice, RunFailed, UserError
from salt.specs import ExecSpec
from salt.video import VideoError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")

#: How long a process waits for the others before it gives up.
TIMEOUT_S = 600.0

#: What torchrun sets for each process that it starts.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

#: What srun sets for each task of a step (srun's manual, "output environment variables").
SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")

#: Ports for steps of srun: above the reserved ones, below the range that Linux hands out by itself.
FIRST_PORT, PORTS = 12000, 20000


@dataclass(frozen=True, kw_only=True)
class Launch:
    """Place of this process among those started with it, and where they meet (`init_method` of torch)."""

    rank: int
    size: int
    local_rank: int
    meet_at: str


@dataclass(frozen=True, kw_only=True)
class World:
    """The processes of one run, seen from one of them.

    Collectives must be called by all ranks, in the same order. Leave the world at the end, best by `with`.
    """

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which alone writes files."""
        return self.rank == 0

    def places(self, batch: int) -> range:
        """This rank's places in the global batch, contiguous and as many as every other rank's.

        Raises `RunFailed` (`config`) if `batch` clips cannot be split evenly.
        """
        if batch % self.size:
            fits = [size for size in range(1, batch + 1) if batch % size == 0]
            near = [n for n in fits if n < self.size][-3:] + [n for n in fits if n > self.size][:3]
            raise RunFailed(
                "config",
                f"batch_clips {batch} cannot be split evenly over {self.size} processes: "
                f"start {', '.join(map(str, near))} of them, or choose another batch",
            )
        share = batch // self.size
        return range(self.rank * share, (self.rank + 1) * share)

    def mean(self, tensor: torch.Tensor) -> torch.Tensor:
        """The mean over ranks, of the same shape and on the same device; the same bits on every rank."""
        if self.size == 1:
            return tensor.detach()
        import torch.distributed as dist

        total = tensor.detach().clone()
        dist.all_reduce(total)  # a sum: gloo knows no mean
        return total.div_(self.size)

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Rows of all ranks in rank order: [n, ...] -> [sum of n, ...]. Ranks may have different n."""
        if self.size == 1:
            return tensor.detach()
        import torch
        import torch.distributed as dist

        mine = tensor.detach().contiguous()
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(mine)]))
        rows = [int(count) for count in counts]
        if len(mine) < max(rows):  # only blocks of one size can be gathered
            mine = torch.cat([mine, mine.new_zeros(max(rows) - len(mine), *mine.shape[1:])])
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine)
        return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])

    def any(self, flag: bool) -> bool:
        """Whether any rank's flag is set."""
        return self._greatest(int(flag)) > 0

    def gather_objects(self, value: T) -> list[T]:
        """Every rank's value, a small object that can be pickled, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def share(self, value: T | None) -> T:
        """Rank 0's value, a small object that can be pickled, on every rank."""
        if self.size == 1:
            return value  # type: ignore[return-value]
        return self._from(0, value)  # type: ignore[no-any-return]

    def agree(self, error: Exception | None) -> None:
        """Stop all ranks if one has an error: called before each step with this rank's error or None.

        Costs one collective of one number in host memory, and no wait for the device. Every rank raises
        `RunFailed` with the message of the lowest rank that failed, and that rank's number; a process on its
        own raises its error as it is.
        """
        if self.size == 1:
            if error is not None:
                raise error
            return
        worst = self._greatest(0 if error is None else self.size - self.rank)
        if worst == 0:
            return
        first = self.size - worst
        kind, message = self._from(first, None if error is None else (_kind(error), _text(error)))
        raise RunFailed(kind, f"rank {first} of {self.size}: {message}") from error

    @contextmanager
    def alike(self) -> Iterator[None]:
        """What a rank raises inside, all ranks raise, as by `agree`. Nothing in here may be a collective."""
        caught: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 - raised by `agree`, on all ranks
            caught = error
        self.agree(caught)

    def on_main(self, work: Callable[[], T]) -> T | None:
        """Do something on rank 0 only; its result there, None elsewhere. What it raises, every rank
        raises."""
        result, error = None, None
        if self.main:
            try:
                result = work()
            except Exception as caught:  # noqa: BLE001 - raised by `agree`, on all ranks
                error = caught
        self.agree(error)
        return result

    def leave(self) -> None:
        """End the process group; nothing to do for a process on its own."""
        if self.size > 1:
            import torch.distributed as dist

            if dist.is_initialized():
                dist.destroy_process_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.device.type == "cuda":
            return  # others may be gone: to end NCCL in order would wait for them. The process is to end now.
        self.leave()

    def _greatest(self, number: int) -> int:
        """The greatest number of all ranks, by way of host memory."""
        if self.size == 1:
            return number
        import torch
        import torch.distributed as dist

        message = torch.tensor([number])
        try:
            dist.all_reduce(message, op=dist.ReduceOp.MAX)
        except RuntimeError as error:  # a connection that broke, or nobody there within the time limit
            raise RunFailed(
                "ranks",
                f"rank {self.rank} of {self.size} lost the others: one of them ended or hangs; "
                f"its own output says why ({_reason(error)})",
            ) from error
        return int(message)

    def _from(self, rank: int, value: Any) -> Any:
        """The value of one rank on all of them."""
        import torch.distributed as dist

        values = [value if self.rank == rank else None]
        dist.broadcast_object_list(values, src=rank)
        return values[0]


def join(execution: ExecSpec, *, processes: int | None = None, timeout_s: float = TIMEOUT_S) -> World:
    """Meet the processes started with this one: nccl on CUDA devices, gloo on CPUs and for small messages.

    `processes` is how many the run was asked to have. None takes torchrun's word for it, and never that of
    srun, whose tasks may as well be workers with runs of their own; 1 joins nobody. To be called once in a
    process. A process that waits `timeout_s` for the others fails. Raises `UserError` if the processes
    asked for are not there, or a device is not.
    """
    import torch

    launch = find_launch(os.environ, processes)
    if launch is None:
        return World(rank=0, size=1, local_rank=0, device=_device_there(execution.device))
    import torch.distributed as dist

    device = _own_device(execution.device, launch)
    limit = timedelta(seconds=timeout_s)
    meet: dict[str, Any] = {"init_method": launch.meet_at, "rank": launch.rank, "world_size": launch.size}
    if device.type == "cuda":
        torch.cuda.set_device(device)
        dist.init_process_group("cpu:gloo,cuda:nccl", timeout=limit, device_id=device, **meet)
    else:
        dist.init_process_group("gloo", timeout=limit, **meet)
    return World(rank=launch.rank, size=launch.size, local_rank=launch.local_rank, device=device)


def find_launch(environment: Mapping[str, str], processes: int | None = None) -> Launch | None:
    """How this process was started, from its environment; None if it is on its own.

    torchrun's variables go before srun's, since torchrun itself may have been started by srun.
    """
    if processes == 1:
        return None
    found = None
    if int(environment.get("WORLD_SIZE", "1")) > 1:
        found = _by_torchrun(environment)
    elif processes is not None and all(name in environment for name in SRUN):
        found = _by_srun(environment)
    if processes is not None and (found is None or found.size != processes):
        there = "this one is on its own" if found is None else f"there are {found.size}"
        raise UserError(
            f"the run was asked to have {processes} processes, but {there}: start it with "
            f"`torchrun --nproc-per-node {processes} --no-python salt-train ...` "
            f"or `srun --ntasks {processes} salt-train ...`"
        )
    return found


def _by_torchrun(environment: Mapping[str, str]) -> Launch:
    missing = [name for name in TORCHRUN if name not in environment]
    if missing:
        raise UserError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {', '.join(missing)} not set: "
            "start the processes with torchrun, or unset WORLD_SIZE for a process on its own"
        )
    rank, size, local_rank = (int(environment[name]) for name in TORCHRUN[:3])
    return Launch(rank=rank, size=size, local_rank=local_rank, meet_at="env://")


def _by_srun(environment: Mapping[str, str]) -> Launch | None:
    """A task of a step. The number of tasks is the step's: that of the allocation may be larger."""
    size = int(environment["SLURM_STEP_NUM_TASKS"])
    if size == 1:
        return None
    host = environment.get("MASTER_ADDR") or first_host(environment["SLURM_STEP_NODELIST"])
    job, step = int(environment["SLURM_JOB_ID"]), int(environment.get("SLURM_STEP_ID", "0"))
    # All tasks of a step know this number, and two jobs on a node hardly ever have the same.
    port = environment.get("MASTER_PORT") or str(FIRST_PORT + (64 * job + step) % PORTS)
    return Launch(
        rank=int(environment["SLURM_PROCID"]),
        size=size,
        local_rank=int(environment["SLURM_LOCALID"]),
        meet_at=f"tcp://{host}:{port}",
    )


def first_host(nodes: str) -> str:
    """First name of a list of hosts as Slurm writes it: `gpu[003-010,12],login` -> `gpu003`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    if first is None:
        raise UserError(f"SLURM_STEP_NODELIST {nodes!r}: no host in it; set MASTER_ADDR to the first one")
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0])


def _device_there(name: str) -> torch.device:
    """The device of that name; `UserError` if there is none."""
    import torch

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # NotImplementedError is a RuntimeError
        reason = str(error).splitlines()[0]
        raise NoDevice(f"execution.device {name!r}: {reason}; take cpu, or one that is there") from error
    return device


def _own_device(device: str, launch: Launch) -> torch.device:
    """One GPU for each process of a host: its local rank's, or the one that it can see."""
    import torch

    named = torch.device(device)
    if named.type != "cuda":
        return named
    if named.index is not None:
        raise UserError(
            f"device {device!r} with {launch.size} processes: write cuda, each takes one of its own"
        )
    there = torch.cuda.device_count()
    if there > 1 and launch.local_rank >= there or there == 0:
        raise UserError(
            f"process {launch.local_rank} of this host has no GPU, {there} can be seen: "
            "start as many processes a host as it has GPUs"
        )
    return torch.device("cuda", launch.local_rank if there > 1 else 0)


def _kind(error: Exception) -> str:
    """The kind of `RunFailed` that an error of a rank becomes."""
    from salt.failures import kind_of

    kind = kind_of(error, _text(error))
    return "data" if kind == "code" and isinstance(error, OSError) else kind


def _text(error: Exception) -> str:
    spoken = isinstance(error, RunFailed | UserError | VideoError)
    return str(error) if spoken else f"{type(error).__name__}: {error}"


def _reason(error: Exception) -> str:
    """What gloo says, without the place in its source and its advice."""
    return re.sub(r"^\[\S+\] ", "", str(error).strip().partition("\n")[0]).partition(". ")[0]
