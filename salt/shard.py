"""How modules run on devices: split over processes, recomputed, compiled; and their states as whole tensors.

Nothing here changes a parameter's name or whole shape, so that a state saved by any number of processes can
be loaded by any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

from salt.vit import Block
from salt.world import World

if TYPE_CHECKING:
    from torch.distributed import Work
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule

Sharding = Literal["none", "optimizer", "full"]

#: Gradients are averaged in pieces of about this size, as soon as each is there.
BUCKET_BYTES = 25 << 20

#: Graphs that one block's code may have: one for each set of token counts, with and without gradients.
MOST_GRAPHS = 64


def distribute(
    modules: Mapping[str, nn.Module],
    world: World,
    sharding: Sharding = "none",
    *,
    recompute: bool = False,
    compiled: bool = False,
) -> Distributed:
    """Make modules, already on their devices, train together on all ranks; before the optimiser is built.

    A module is called as a whole, `module(...)`: with sharding its hooks gather what it needs. Modules
    without trained parameters follow: `ema`, V-JEPA's average, is split as the encoder is, so that it can be
    averaged piece by piece; a frozen `teacher` is split only under `full`.

    - `none`: every rank has everything; gradients are averaged while the backward pass still runs.
    - `optimizer`: gradients and AdamW's moments are split (FSDP2), weights too between steps; they are
      gathered once a step. What ZeRO-2 keeps in memory.
    - `full`: weights are gathered block by block and freed after use, in forward and backward (ZeRO-3).

    `recompute` keeps no activations inside the blocks that train; `compiled` compiles all blocks.
    """
    for module in modules.values():
        if compiled:
            compile_blocks(module)
        if recompute and _trains(module):
            recompute_blocks(module)
    if world.size == 1:
        return Distributed(modules=dict(modules))
    _start_alike(modules, world)
    if sharding == "none":
        trained = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        return Distributed(modules=dict(modules), averaging=Averaging(trained, world))
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(world.device.type, (world.size,))
    for name, module in modules.items():
        if name != "teacher" or sharding == "full":
            _split(module, mesh, sharding)
    return Distributed(modules=dict(modules), sharding=sharding)


def _split(module: nn.Module, mesh: DeviceMesh, sharding: Sharding) -> None:
    from torch.distributed.fsdp import fully_shard

    frees = sharding == "full"
    for block in blocks_of(module):
        fully_shard(block, mesh=mesh, reshard_after_forward=frees)
    # What is outside the blocks is needed again at once by the backward pass, but a teacher has none.
    fully_shard(module, mesh=mesh, reshard_after_forward=frees and not _trains(module))


def _start_alike(modules: Mapping[str, nn.Module], world: World) -> None:
    """Rank 0's weights everywhere: equal seeds need not give equal bits on unequal machines."""
    import torch.distributed as dist

    for module in modules.values():
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


@dataclass(frozen=True, kw_only=True)
class Distributed:
    """Modules as `distribute` left them. A step is: for each micro-batch `before(last)`, forward, backward;
    then `finish()`, clipping and the optimiser.
    """

    modules: dict[str, nn.Module]
    sharding: Sharding = "none"
    averaging: Averaging | None = None

    def before(self, last: bool) -> None:
        """Before the forward pass of a micro-batch: is it the step's last?"""
        if self.averaging is not None:
            self.averaging.active = last
        for part in self._split_parts():
            part.set_is_last_backward(last)
            if self.sharding == "optimizer":  # the next micro-batch finds the weights gathered
                part.set_reshard_after_backward(last, recurse=False)

    def finish(self) -> None:
        """After the last backward pass: gradients are averages over ranks, whole or this rank's pieces."""
        if self.averaging is not None:
            self.averaging.finish()
        for part in self._split_parts():
            part.reshard()  # for a teacher, whose weights no backward pass frees

    def _split_parts(self) -> Iterator[FSDPModule]:
        if self.sharding == "none":
            return
        from torch.distributed.fsdp import FSDPModule

        for module in self.modules.values():
            yield from (part for part in module.modules() if isinstance(part, FSDPModule))


class Averaging:
    """Averages of whole gradients over ranks, sent while the backward pass still runs.

    As in DistributedDataParallel, gradients travel in buckets, last layers first. Unlike there, modules keep
    their names and may be called any number of times before one backward pass.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], world: World) -> None:
        self.world = world
        self.active = True  # False for all micro-batches but a step's last
        self._buckets: list[list[nn.Parameter]] = [[]]
        for parameter in reversed(list(parameters)):
            held = sum(p.numel() * p.element_size() for p in self._buckets[-1])
            if held and held + parameter.numel() * parameter.element_size() > BUCKET_BYTES:
                self._buckets.append([])
            self._buckets[-1].append(parameter)
        self._place = {p: place for place, bucket in enumerate(self._buckets) for p in bucket}
        self._arrived = [0] * len(self._buckets)
        self._sent: list[tuple[torch.Tensor, Work]] = []
        self._next = 0
        for parameter in self._place:
            parameter.register_post_accumulate_grad_hook(self._arrive)

    def finish(self) -> None:
        """Send what no hook has sent, wait for all, and make sums averages."""
        self._send(len(self._buckets))
        for flat, work in self._sent:
            work.wait()
            flat.div_(self.world.size)  # gloo knows sums only
        self._sent, self._next, self._arrived = [], 0, [0] * len(self._buckets)

    def _arrive(self, parameter: torch.Tensor) -> None:
        if not self.active:
            return
        self._arrived[self._place[parameter]] += 1  # type: ignore[index]
        ready = self._next
        while ready < len(self._buckets) and self._arrived[ready] == len(self._buckets[ready]):
            ready += 1
        self._send(ready)

    def _send(self, stop: int) -> None:
        """Send the buckets up to `stop`, in order: ranks must not send them in different orders."""
        import torch.distributed as dist

        for bucket in self._buckets[self._next : stop]:
            # A weight outside this run's loss has no gradient on any rank.
            held = [p for p in bucket if p.grad is not None]
            if not held:
                continue
            flat = torch.cat([p.grad.flatten() for p in held if p.grad is not None])
            for parameter, part in zip(held, flat.split([p.numel() for p in held]), strict=True):
                parameter.grad = part.view_as(parameter)  # frees the old one: no second copy of all gradients
            self._sent.append((flat, dist.all_reduce(flat, async_op=True)))
        self._next = max(self._next, stop)


def clip_gradients(parameters: Iterable[torch.Tensor], limit: float) -> torch.Tensor:
    """Scale gradients so that their norm over all parameters is at most `limit`; the norm before, float32 [].

    Gradients may be split: the norm is of the whole ones, the same on every rank.
    """
    return _whole(nn.utils.clip_grad_norm_(list(parameters), limit))


def full_tensors(tensors: Mapping[str, torch.Tensor], world: World) -> dict[str, torch.Tensor]:
    """Whole tensors in host memory on rank 0, nothing elsewhere; all ranks call it with the same names.

    One tensor is gathered at a time, so a device holds no more than its pieces and one whole tensor. Tensors
    that were in host memory and whole are not copied.
    """
    whole = {}
    for name, tensor in tensors.items():
        gathered = _whole(tensor.detach())
        if world.main:
            whole[name] = gathered.cpu()
    return whole


def load_full(
    own: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor] | None, world: World
) -> None:
    """Fill tensors, split or not, from rank 0's whole ones; other ranks give None.

    A missing, unexpected or misshapen name raises on every rank: `ValueError` in a process on its own, else
    `RunFailed`.
    """
    world.on_main(lambda: _check_fit(own, whole))
    with torch.no_grad():
        for name, tensor in own.items():
            source = None if whole is None or not world.main else whole[name]
            _fill(tensor, source, world)


def _check_fit(own: Mapping[str, torch.Tensor], whole: Mapping[str, torch.Tensor] | None) -> None:
    if whole is None:
        raise ValueError("rank 0 gave no tensors")
    wrong = sorted(set(own) ^ set(whole)) + [n for n in own if n in whole and own[n].shape != whole[n].shape]
    if wrong:
        raise ValueError(f"weights do not fit this run: {', '.join(wrong[:5])}")


def _fill(tensor: torch.Tensor, source: torch.Tensor | None, world: World) -> None:
    if world.size == 1:
        assert source is not None
        tensor.copy_(source)
        return
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(tensor, DTensor):
        if source is not None:
            tensor.copy_(source)
        dist.broadcast(tensor, src=0)
        return
    whole = torch.empty(tensor.shape, dtype=tensor.dtype, device=world.device)
    if source is not None:
        whole.copy_(source)
    pieces = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=0)
    tensor.to_local().copy_(pieces.to_local())


def zero_moments(optimizer: torch.optim.AdamW, step: int) -> None:
    """Give AdamW the state it has after `step` steps, with moments 0, split as their weights are.

    `load_full` can then fill the moments.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step), dtype=torch.float32, device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    if type(tensor) in (torch.Tensor, nn.Parameter):
        return tensor
    from torch.distributed.tensor import DTensor

    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def blocks_of(module: nn.Module) -> list[Block]:
    return [part for part in module.modules() if isinstance(part, Block)]


def recompute_blocks(module: nn.Module) -> None:
    """Keep only the inputs of blocks for the backward pass, which computes the inside again.

    Twice the forward pass of the blocks for less memory; gradients are the same to the bit.
    """
    from torch.utils.checkpoint import checkpoint

    for block in blocks_of(module):
        # The instance's `forward`, inside the hooks that gather weights; names of weights stay. Blocks draw
        # no random numbers whose state would have to be kept.
        block.forward = partial(  # type: ignore[method-assign]
            checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False
        )


def compile_blocks(module: nn.Module) -> None:
    """Compile the blocks for exactly the shapes they get, each set of shapes when it first comes.

    Blocks of one shape share their graphs. A block that cannot be one graph is an error, not a slow block.
    Call it before `recompute_blocks`.
    """
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MOST_GRAPHS)
    for block in blocks_of(module):
        compiled = torch.compile(block.forward, dynamic=False, fullgraph=True)
        block.forward = compiled  # type: ignore[method-assign]


def recompilations() -> int:
    """Graphs that were compiled in this process so far. After a run's first step it must not rise."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
