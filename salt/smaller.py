"""What a run does when memory is short: the next smaller execution that gives the same numbers.

Nothing here touches the run itself: `ExecSpec` changes no number beyond rounding, so a run that goes on with
smaller micro-batches is still the run that was planned.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec

from salt.attempts import Attempt, read_attempts
from salt.failures import speaks_of_device_memory
from salt.specs import ExecSpec, RunSpec
from salt.store import RunDir


@dataclass(frozen=True, kw_only=True)
class Need:
    """What of an execution decides how much memory a device needs. `micro_batch_clips` is what is really in
    one pass: a bound that is left out is the device's whole share of the batch.
    """

    micro_batch_clips: int
    recompute: bool
    processes: int
    sharding: str

    def __str__(self) -> str:
        return f"micro_batch_clips {self.micro_batch_clips}" + (" with recompute" if self.recompute else "")

    def at_least(self, other: Need) -> bool:
        """Whether this needs no less memory than `other`; False where that is not known."""
        return (
            (self.processes, self.sharding) == (other.processes, other.sharding)
            and self.micro_batch_clips >= other.micro_batch_clips
            and self.recompute <= other.recompute
        )

    def about(self) -> Attempt:
        """What `env.json` keeps of it."""
        return {
            "micro_batch_clips": str(self.micro_batch_clips),
            "recompute": "true" if self.recompute else "false",
            "processes": str(self.processes),
            "sharding": self.sharding,
        }


def need_of(spec: RunSpec, execution: ExecSpec) -> Need:
    """What a run needs under an execution; the micro-batch as `salt.prepare.micro_batches` cuts it."""
    share = max(1, spec.optim.batch_clips // execution.processes)
    groups = _group_clips(spec)
    return Need(
        micro_batch_clips=groups or min(execution.micro_batch_clips or share, share),
        recompute=execution.recompute,
        processes=execution.processes,
        sharding=execution.sharding,
    )


def smaller(spec: RunSpec, execution: ExecSpec) -> ExecSpec | None:
    """The next execution that needs less memory on a device for the same numbers; None if there is none.

    The micro-batch is halved (rounded up) down to one clip, then blocks are recomputed. Masks with
    `keep: batch_min` fix the micro-batch, so there only the second is left.
    """
    # Halving first: the same FLOPs in more and smaller kernels, where recomputation pays for a second forward
    # pass of all that is trained (about a third more). `sweeps.memory.propose` plans in the same order.
    now = need_of(spec, execution).micro_batch_clips
    if now > 1 and _group_clips(spec) is None:
        return msgspec.structs.replace(execution, micro_batch_clips=(now + 1) // 2)
    if not execution.recompute:
        return msgspec.structs.replace(execution, recompute=True)
    return None


def smaller_after(run: RunDir, spec: RunSpec, execution: ExecSpec, message: str) -> ExecSpec | None:
    """The execution to try after one that failed as `oom` with this message; None where none would help.

    Probes do not follow the micro-batch, and on a device nothing here lowers what the host needs: clips come
    there for whole steps.
    """
    if run.artefact.exists() or not spec.steps:
        return None
    if execution.device != "cpu" and not speaks_of_device_memory(message):
        return None
    return smaller(spec, execution)


def known_to_fit(
    run: RunDir, spec: RunSpec, execution: ExecSpec, *, hardware: str | None = None, since_ns: int = 0
) -> ExecSpec:
    """The execution that a run's next attempt should begin with, by how earlier ones ended.

    An attempt that ended as `oom` on the same `hardware` (None: on any) is not tried again at its setting or
    a larger one. Where all have failed, it is the smallest. Attempts before `since_ns` (Unix time) are left
    out.

    Raises:
        DamagedFile: `env.json` cannot be read.
    """
    failed = [
        need
        for attempt in read_attempts(run)
        if attempt.get("ended") == "oom"
        and float(attempt.get("began_unix_s") or 0) * 1e9 >= since_ns
        and (hardware is None or attempt.get("hardware") in (None, hardware))
        and (need := _noted(attempt)) is not None
    ]
    fits = execution
    for fits in _downwards(spec, execution):
        need = need_of(spec, fits)
        if not any(need.at_least(other) for other in failed):
            break
    return fits


def settings_tried(attempts: Iterable[Attempt]) -> list[str]:
    """The settings at which attempts ran out of memory, each once, the largest first as a rule."""
    needs = (_noted(attempt) for attempt in attempts if attempt.get("ended") == "oom")
    return list(dict.fromkeys(str(need) for need in needs if need is not None))


def _downwards(spec: RunSpec, execution: ExecSpec) -> Iterator[ExecSpec]:
    step: ExecSpec | None = execution
    while step is not None:
        yield step
        step = smaller(spec, step)


def _group_clips(spec: RunSpec) -> int | None:
    """Clips of a micro-batch that masks fix; None if they leave it free."""
    return next((mask.keep_clips for mask in spec.masks if mask.keep == "batch_min"), None)


def _noted(attempt: Attempt) -> Need | None:
    """The setting of an attempt; None for one of a version that did not note it."""
    clips, processes = attempt.get("micro_batch_clips"), attempt.get("processes")
    if not re.fullmatch(r"[1-9]\d*", clips or "") or not re.fullmatch(r"[1-9]\d*", processes or ""):
        return None
    return Need(
        micro_batch_clips=int(clips or ""),
        recompute=attempt.get("recompute") == "true",
        processes=int(processes or ""),
        sharding=attempt.get("sharding") or "none",
    )
