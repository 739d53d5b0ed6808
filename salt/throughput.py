"""What a run gets done, over all its attempts."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from salt.collapse import Row
from salt.metrics import last_row
from salt.reached import Reached
from salt.sizes import tokens
from salt.specs import RunSpec

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Earlier:
    """What attempts before this one did: seconds behind the restored state, what is done again, and the
    highest rank that targets had.

    What is done again is None where nobody knows: `reached.json` is lost, and an attempt left no line.
    """

    wall_s: float = 0.0
    burnt_steps: int | None = 0
    burnt_wall_s: float | None = 0.0
    highest_rank: float = 0.0

    @classmethod
    def read(
        cls,
        metrics: Path,
        *,
        step: int,
        wall_s: float,
        reached: Reached | None = None,
        attempt: int | None = None,
    ) -> Earlier:
        """For an attempt that goes on after `step`, reached in `wall_s` seconds.

        `reached` is where the attempt before was when it ended, to the step. Without it the last line says:
        steps between that line and a kill are then not counted. `attempt` is this one's number; None means
        that the last line is of the attempt before.
        """
        last = last_row(metrics) or {}
        if reached is not None:
            burnt = _added(
                (reached.burnt_steps, reached.step - step),
                (reached.burnt_wall_s, reached.wall_s - wall_s),
            )
        elif not last:
            # Neither file: no attempt came to its first step, unless there is a state of one that did.
            burnt = (0, 0.0) if attempt in (None, 1) or wall_s == 0.0 else (None, None)
        elif attempt is not None and attempt - last.get("attempt", 0) > 1:
            burnt = (None, None)
        else:
            # An attempt's rows carry what was burnt before it; what it did past the restored state adds to
            # that. Rows without these fields are of a version that did not count.
            burnt = _added(
                (last.get("burnt_steps", 0), last["step"] - step),
                (last.get("burnt_wall_s", 0.0), last.get("wall_s", wall_s) - wall_s),
            )
        return cls(
            wall_s=wall_s,
            burnt_steps=burnt[0],
            burnt_wall_s=burnt[1],
            highest_rank=last.get("target_rank_highest", 0.0),
        )


def _added(
    steps: tuple[int | None, int], seconds: tuple[float | None, float]
) -> tuple[int | None, float | None]:
    """Each sum so far, None if unknown, and what the attempt before this one did past the restored state."""
    before, again = steps
    before_s, again_s = seconds
    return (
        None if before is None else before + max(0, again),
        None if before_s is None else round(before_s + (max(0.0, again_s) if again > 0 else 0.0), 3),
    )


class Throughput:
    """FLOPs, clips, tokens and seconds of a run, over all its attempts.

    `step_flops` is the plan's count of one step on all devices; utilisation is FLOPs/s since the last log
    line over the peak of `devices` devices. `burnt_flops` are of steps that were done and had to be done
    again, None where that is not known; they are in no other number. Tokens are those of the clips seen,
    before masking, as in a plan.
    """

    def __init__(
        self,
        spec: RunSpec,
        *,
        step_flops: int,
        start: int,
        peak_flops_per_s: float | None = None,
        devices: int = 1,
        earlier: Earlier | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._first = 0 if spec.trunk is None else spec.trunk.step
        self._step_clips = spec.optim.batch_clips
        self._step_tokens = spec.optim.batch_clips * tokens(spec.model, spec.clip)
        self._step_flops = step_flops
        self._peak = None if peak_flops_per_s is None else peak_flops_per_s * devices
        self._earlier = earlier or Earlier()
        self._clock = clock
        self._began = clock()
        self.burnt_flops = (
            None if self._earlier.burnt_steps is None else self._earlier.burnt_steps * step_flops
        )
        self._last_step, self._last_s = start, self._began

    @property
    def wall_s(self) -> float:
        """Seconds of training behind this moment, those of earlier attempts included, burnt ones not."""
        return self._earlier.wall_s + self._clock() - self._began

    def row(self, step: int) -> Row:
        """Sums up to `step` and rates since the last call, once the step's loss is known to the host."""
        now = self._clock()
        done, elapsed_s = step - self._first, now - self._last_s
        rate = (step - self._last_step) * self._step_flops / elapsed_s if elapsed_s > 0 else None
        self._last_step, self._last_s = step, now
        return {
            "flops": done * self._step_flops,
            "clips": done * self._step_clips,
            "tokens": done * self._step_tokens,
            "wall_s": round(self._earlier.wall_s + now - self._began, 3),
            "flops_per_s": rate,
            "utilisation": None if rate is None or self._peak is None else rate / self._peak,
            "burnt_steps": self._earlier.burnt_steps,
            "burnt_wall_s": self._earlier.burnt_wall_s,
        }
