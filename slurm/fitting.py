"""A run that lacks memory is tried again by the same worker, each time with less in memory at once."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from salt.attempts import end_attempt, read_attempts
from salt.errors import Interrupted, RunFailed
from salt.failures import as_failure
from salt.hardware import hardware
from salt.plan_specs import PlannedRun
from salt.smaller import known_to_fit, need_of, settings_tried, smaller_after
from salt.specs import ExecSpec, ProbeSpec
from salt.store import RunDir, pretty_json, write_atomically

if TYPE_CHECKING:
    from slurm.worker import Execute


def execute_within_memory(
    execute: Execute,
    store: Path,
    run: PlannedRun,
    probes: dict[str, ProbeSpec],
    execution: ExecSpec,
    report: Callable[[str], None],
    *,
    since_ns: int = 0,
) -> None:
    """`execute`, again with smaller settings (`salt.smaller`) as long as it lacks memory and that can help.

    It begins with what earlier attempts since `since_ns` (Unix time) leave as possible. The caller holds the
    run's claim.

    Raises:
        RunFailed: `oom`: nothing smaller is left; the message says what was tried. Whatever else `execute`
            raises, as it is.
    """
    folder = RunDir(store, run.run_id)
    now = execution
    if settings_tried(read_attempts(folder)):
        now = known_to_fit(folder, run.spec, execution, hardware=_hardware(execution), since_ns=since_ns)
    if now != execution:
        report(f"{run.run_id} begins with {need_of(run.spec, now)}: earlier attempts lacked memory with more")
    while True:
        before = len(read_attempts(folder))
        message = _lack_of_memory(execute, store, run, probes, now)
        if message is None:
            return
        _release()
        begun = len(read_attempts(folder)) > before
        following = smaller_after(folder, run.spec, now, message)
        if following is None:
            raise _given_up(folder, run, now, message, begun=begun)
        then = str(need_of(run.spec, following))
        if begun:  # of several processes, the one that keeps the files may only have lost the others
            end_attempt(folder, "oom", message, smaller=then)
        report(f"{run.run_id} lacked memory with {need_of(run.spec, now)}; again with {then}")
        now = following


def _lack_of_memory(
    execute: Execute, store: Path, run: PlannedRun, probes: dict[str, ProbeSpec], execution: ExecSpec
) -> str | None:
    """One attempt: None if it succeeded, the message if it lacked memory; other errors are raised.

    Only the message outlives this call: the traceback of an error holds the tensors of the frames it names.
    """
    try:
        execute(store, run, probes, execution)
    except Interrupted:
        raise
    except Exception as error:
        failure = as_failure(error)
        if failure.kind != "oom":
            raise
        return str(failure)
    return None


def _release() -> None:
    """Give a device's memory back: what is in cycles first, then what torch keeps for later."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _hardware(execution: ExecSpec) -> str | None:
    """What this process computes on; None where others do, and this one is to take nothing of a GPU."""
    return hardware(execution.device) if execution.processes == 1 else None


def _given_up(folder: RunDir, run: PlannedRun, last: ExecSpec, message: str, *, begun: bool) -> RunFailed:
    """The error after which nothing smaller is left, also in the run's files where an attempt wrote there."""
    tried = [
        each for each in settings_tried(read_attempts(folder)) if each != str(need_of(run.spec, last))
    ] + [str(need_of(run.spec, last))]
    why = (
        "the run is trained, and probes take no smaller setting"
        if folder.artefact.exists()
        else "no smaller one helps"
    )
    failure = RunFailed("oom", f"{message}; settings tried: {', then '.join(tried)}; {why}")
    if begun:
        end_attempt(folder, "oom", str(failure))
        error = folder.read_error()
        if error is not None:
            told = msgspec.structs.replace(error, kind="oom", message=str(failure))
            write_atomically(folder.error, pretty_json(told))
    return failure
