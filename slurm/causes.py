"""What stops runs, in classes, and which of them are retried without being asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum

from salt.attempts import Attempt
from salt.errors import UserError
from salt.result_specs import RunError
from salt.specs import Spec


class Again(StrEnum):
    """When a run that was stopped is tried again without anybody asking."""

    ALWAYS = "always"  # and not counted
    COUNTED = "within SALT_ATTEMPTS"  # attempts in a row without a new step
    SMALLER = "with less memory"  # until nothing smaller is left
    NEVER = "when asked"


class Cause(Spec, kw_only=True):
    """A class of what stops a run, and why it is retried by itself or not."""

    again: Again
    why: str


#: Classes by name: what `retry --class` takes, and what `class_of` gives. Kinds of errors are classes, too.
CAUSES: dict[str, Cause] = {
    "interrupted": Cause(
        again=Again.ALWAYS,
        why="it was asked to stop, preempted or warned of its time limit, and saved: it goes on where it was",
    ),
    "killed": Cause(
        again=Again.COUNTED,
        why="its process ended without a word: on this machine the launcher starts another worker at once, "
        "which takes the run like any other that is left; on a cluster a worker of the lane, or the next "
        "submit; whoever takes it counts the attempts in its files",
    ),
    "node": Cause(
        again=Again.COUNTED,
        why="the machine failed, or its GPU did: another may do, and nodes where runs keep ending are named",
    ),
    "ranks": Cause(
        again=Again.COUNTED, why="its processes lost each other: mostly a network, or one that was killed"
    ),
    "timeout": Cause(
        again=Again.COUNTED,
        why="the time limit came before it could save: it goes on from its last checkpoint",
    ),
    "oom": Cause(
        again=Again.SMALLER,
        why="smaller micro-batches, then recomputed blocks, give the same numbers in less memory",
    ),
    "disk": Cause(
        again=Again.NEVER, why="room, quota or right must come first: every try would end in the same way"
    ),
    "diverged": Cause(again=Again.NEVER, why="it is a result: the same numbers would come again"),
    "data": Cause(again=Again.NEVER, why="the same files would be met again"),
    "code": Cause(again=Again.NEVER, why="the same error would come again; read it first"),
    "config": Cause(again=Again.NEVER, why="the run's settings must change, which makes another run of it"),
    "teacher": Cause(again=Again.NEVER, why="the teacher must be brought back, or trained again"),
    "trunk": Cause(again=Again.NEVER, why="the trunk's state must be brought back, or trained again"),
    "checkpoint": Cause(
        again=Again.NEVER, why="states are lost or damaged: going on could hide that, starting over costs"
    ),
}  # fmt: skip

#: Slurm's words for how a job ended; others say nothing that the run's files do not say better.
_SCHEDULER: dict[str, str] = {
    "OUT_OF_MEMORY": "oom",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "NODE_FAIL": "node",
    "BOOT_FAIL": "node",
    "LAUNCH_FAILED": "node",
    "PREEMPTED": "interrupted",
    "REQUEUED": "interrupted",
    "CANCELLED": "interrupted",
}
#: What CUDA, NCCL and the disk say when a machine is broken. torch's hint "enable device-side assertions" is
#: in every CUDA error, and an assertion that failed, or memory that is short, is the run's own.
_MACHINE = re.compile(
    r"uncorrectable (NVLink|ECC)|ECC error|no CUDA-capable device|No CUDA GPUs are available"
    r"|fell off the bus|GPU is lost|hardware stack error|unspecified launch failure|busy or unavailable"
    r"|CUDA error: (?!device-side assert|out of memory|invalid argument|invalid configuration)"
    r"|CUDA driver initialization failed|unhandled (cuda|system) error|NCCL (error|communicator)"
    r"|\(E(IO|STALE)\)|Input/output error|Stale file handle",
    re.IGNORECASE,
)


def speaks_of_machine(message: str | None) -> bool:
    """Whether an error's message is about the machine that it happened on."""
    return message is not None and _MACHINE.search(message) is not None


def again(kind: str | None) -> Again:
    """Whether an error of this kind is retried by itself; one that is not known is not."""
    cause = None if kind is None else CAUSES.get(kind)
    return Again.NEVER if cause is None else cause.again


def class_of(
    error: RunError | None, attempts: Sequence[Attempt], scheduler_state: str | None = None
) -> str | None:
    """The class of what stopped a run last; None for one that nothing did.

    What the run itself says comes first, then Slurm's word for its job (`scheduler_state`, as sacct has it):
    a process that was killed could say nothing. The caller sees to it that no attempt is under way.
    """
    last = attempts[-1] if attempts else None
    kind = error.kind if error is not None else None
    if kind is None and last is not None:
        ended = last.get("ended")
        if ended == "done":
            return None
        kind = "interrupted" if ended == "stopped" else (ended or "killed")
    if kind in ("killed", "ranks") or (kind is None and last is None):
        words = (scheduler_state or "").split()  # `CANCELLED by 1000`
        by_scheduler = _SCHEDULER.get(words[0].rstrip("+")) if words else None
        if by_scheduler is not None:
            return by_scheduler
    message = error.message if error is not None else (last or {}).get("message")
    if kind in ("code", "killed") and speaks_of_machine(message):
        return "node"
    return kind if kind is None or kind in CAUSES else "code"


def check_classes(names: Sequence[str]) -> tuple[str, ...]:
    """The same names, each once. Raises `UserError` for one that is no class."""
    for name in names:
        if name not in CAUSES:
            raise UserError(f"--class {name!r}: there is no such class; there are {', '.join(CAUSES)}")
    return tuple(dict.fromkeys(names))


def cause_lines() -> list[str]:
    """The table for `--help`: class, whether it is retried by itself, and why."""
    wide, middle = max(map(len, CAUSES)), max(map(len, Again))
    return [f"{name:<{wide}}  {cause.again:<{middle}}  {cause.why}" for name, cause in CAUSES.items()]
