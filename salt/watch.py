"""What a run says of itself while it trains: collapse, starvation for data, and what it gets done.

Nothing here changes a number of the run: what is measured goes to the metrics, what is wrong to `warn`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from salt.collapse import Collapse, Row
from salt.specs import ExecSpec, RunSpec
from salt.throughput import Earlier, Throughput

if TYPE_CHECKING:
    import torch

#: Pauses of a GPU that are kept before they are added up.
MOST_PAUSES = 1024

#: Share of the time between two log lines above which the device is starved of data.
MOST_WAIT_SHARE = 0.2
#: Seconds over which that is judged: in a moment the share says nothing.
LEAST_JUDGED_S = 9.0


class Starvation:
    """Share of the time that the device waited for the next batch, between two log lines.

    On a GPU the host runs ahead: while it waits, queued steps may still run. There the wait of a step is
    the smaller of the host's wait and the device's pause between the step before and this one.
    The first batch of an attempt is left out: decoders start with it.
    """

    def __init__(self, *, cuda: bool = False, clock: Callable[[], float] = time.perf_counter) -> None:
        self._cuda, self._clock = cuda, clock
        self._began: float | None = None  # of the interval; None until the first batch is there
        self._waited_s = 0.0
        self._judged = (0.0, 0.0)  # seconds waited and elapsed since the last judgement
        self._pauses: list[tuple[Any, Any, float]] = []  # CUDA events around each pause, and the host's wait
        self._warned = False
        self._message: str | None = None

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Around whatever gives the next batch, without its copy to the device."""
        start = self._clock()
        idle = self._event()
        yield
        now = self._clock()
        if self._began is None:
            self._began = now
        elif self._cuda:
            self._pauses.append((idle, self._event(), now - start))
            if len(self._pauses) >= MOST_PAUSES:  # a rank that writes no log lines never asks for the share
                self._add_pauses()
        else:
            self._waited_s += now - start

    def share(self, step: int) -> float | None:
        """The share since the last call, at a log line; None before there was a second batch."""
        now = self._clock()
        if self._began is None or now <= self._began:
            return None
        self._add_pauses()
        waited_s, elapsed_s = self._waited_s, now - self._began
        self._began, self._waited_s = now, 0.0
        self._judge(step, waited_s, elapsed_s)
        return waited_s / elapsed_s

    def _judge(self, step: int, waited_s: float, elapsed_s: float) -> None:
        """Set or clear the warning, once enough time has come together."""
        self._judged = (self._judged[0] + waited_s, self._judged[1] + elapsed_s)
        waited_s, elapsed_s = self._judged
        if elapsed_s < LEAST_JUDGED_S:
            return
        self._judged = (0.0, 0.0)
        share = waited_s / elapsed_s
        if share <= MOST_WAIT_SHARE:
            self._warned = False
        elif not self._warned:
            self._warned = True
            self._message = (
                f"step {step}: {share:.0%} of the last {elapsed_s:.0f} seconds were spent waiting for clips; "
                "run `salt-data bench` on this list, raise `execution: decode_workers`, or pack the clips"
            )

    def warning(self) -> str | None:
        """What is wrong, once an episode."""
        message, self._message = self._message, None
        return message

    def _add_pauses(self) -> None:
        for idle, ready, host_s in self._pauses:
            ready.synchronize()
            self._waited_s += min(host_s, idle.elapsed_time(ready) / 1000)
        self._pauses = []

    def _event(self) -> Any:
        if not self._cuda:
            return None
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Watch:
    """All of the above for one attempt at a run, as the training loop uses it.

    with watch.waiting():
        crops = ...
    if step is the run's first:
        watch.begin(targets)
    ...
    watch.row(done, targets=..., context=...)  # at a log line, after `loss.item()`
    """

    def __init__(
        self,
        spec: RunSpec,
        execution: ExecSpec,
        warn: Callable[[str], None],
        *,
        step_flops: int,
        start: int,
        earlier: Earlier | None = None,
        highest_rank: float | None = None,
        devices: int = 1,
    ) -> None:
        if highest_rank is None:  # a state of a version that did not keep it: what was logged is near
            highest_rank = 0.0 if earlier is None else earlier.highest_rank
        self.collapse = Collapse(moving=spec.arm == "vjepa", highest_rank=highest_rank)
        self.starvation = Starvation(cuda=execution.device.startswith("cuda"))
        self.throughput = Throughput(
            spec,
            step_flops=step_flops,
            start=start,
            peak_flops_per_s=execution.peak_flops_per_s,
            devices=devices,
            earlier=earlier,
        )
        self._warn = warn
        self.waiting = self.starvation.waiting

    @property
    def wall_s(self) -> float:
        """Seconds of training behind this moment, over all attempts."""
        return self.throughput.wall_s

    @property
    def highest_rank(self) -> float | None:
        """That targets which move had so far: part of a run's state."""
        return self.collapse.highest_rank if self.collapse.moving else None

    def begin(self, targets: torch.Tensor | None) -> None:
        """The targets of the run's first step, if there are any."""
        if targets is not None:
            self.collapse.begin(targets)

    def row(
        self, step: int, *, targets: torch.Tensor | None = None, context: torch.Tensor | None = None
    ) -> Row:
        """The metrics' fields after `step` steps; warnings go out once an episode."""
        wait = self.starvation.share(step)
        row = self.throughput.row(step)
        row["data_wait_share"] = wait
        row |= self.collapse.observe(step, targets, context)
        for message in (self.collapse.warning(), self.starvation.warning()):
            if message is not None:
                self._warn(message)
        return row
