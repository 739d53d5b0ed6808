"""What stopped a run, in classes, and which classes are retried: by themselves, and when asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from salt import errors
from salt.attempts import Attempt, begin_attempt, end_attempt
from salt.errors import UserError
from salt.failures import as_failure
from salt.plan_specs import Plan
from salt.result_specs import RunError
from salt.specs import ExecSpec
from salt.store import RunDir, pretty_json, write_atomically
from salt.world import join
from slurm.causes import CAUSES, Again, again, cause_lines, check_classes, class_of
from slurm.states import Retry, State, assess
from tests.drain_kit import plan

__all__ = ["plan"]  # a fixture


def error(kind: str, message: str = "said") -> RunError:
    return RunError(run_id="ab", kind=kind, message=message, attempt=1, step=None, host="gpu003")


def ended(how: str | None, message: str | None = None) -> list[Attempt]:
    return [{"host": "gpu003", "ended": how, "message": message}]


def test_every_kind_of_error_has_a_cause() -> None:
    kinds = set(re.findall(r"`(\w+)`", (errors.RunFailed.__doc__ or "").partition("apart:")[2]))
    assert len(kinds) == 11
    assert kinds | {"interrupted", "node", "timeout"} == set(CAUSES)
    of = {each: {name for name in CAUSES if again(name) is each} for each in Again}
    assert of[Again.ALWAYS] == {"interrupted"}
    assert of[Again.SMALLER] == {"oom"}
    assert of[Again.COUNTED] == {"killed", "node", "ranks", "timeout"}
    assert again("of a later version") is Again.NEVER
    assert any(line.startswith("oom ") and "with less memory" in line for line in cause_lines())


@pytest.mark.parametrize(
    ("found", "attempts", "scheduler", "wanted"),
    [
        (None, [], None, None),
        (None, ended("done"), "COMPLETED", None),
        (None, ended("stopped"), "TIMEOUT", "interrupted"),  # the run itself knows best
        (None, ended(None), None, "killed"),
        (None, ended(None), "FAILED", "killed"),
        (None, ended(None), "OUT_OF_MEMORY", "oom"),
        (None, ended(None), "TIMEOUT", "timeout"),
        (None, ended(None), "NODE_FAIL", "node"),
        (None, ended(None), "CANCELLED by 1000", "interrupted"),
        (None, [], "BOOT_FAIL", "node"),
        (error("killed"), ended(None), "OUT_OF_MEMORY", "oom"),
        (error("ranks"), ended("ranks"), "NODE_FAIL", "node"),
        (error("diverged"), ended("diverged"), "NODE_FAIL", "diverged"),
        (error("oom"), ended("oom"), None, "oom"),
        (error("disk"), ended("disk"), None, "disk"),
        (error("code", "CUDA error: uncorrectable ECC error encountered"), ended("code"), None, "node"),
        (error("code", "CUDA error: device-side assert triggered"), ended("code"), None, "code"),
        (None, ended("code", "RuntimeError: No CUDA GPUs are available"), None, "node"),
        (error("of a later version"), ended("x"), None, "code"),
    ],
)
def test_the_class_of_what_stopped_a_run(
    found: RunError | None, attempts: list[Attempt], scheduler: str | None, wanted: str | None
) -> None:
    assert class_of(found, attempts, scheduler) == wanted


def test_a_missing_gpu_is_the_machines_or_the_settings_and_not_of_the_data() -> None:
    wanted = {"No CUDA GPUs are available": "node", "Torch not compiled with CUDA enabled": "code"}
    for said, cause in wanted.items():
        failure = as_failure(errors.NoDevice(f"execution.device 'cuda': {said}; take cpu"))
        assert class_of(error(failure.kind, str(failure)), []) == cause
    with pytest.raises(errors.NoDevice, match="execution.device 'meta'"):
        join(ExecSpec(device="meta"))


def test_only_errors_of_the_classes_asked_for_are_retried(plan: Plan, tmp_path: Path) -> None:
    """Then also of runs that were given up or diverged; a run that never failed is as it was."""
    kinds = ("oom", "diverged", "code", "killed", "data")
    for run, kind in zip(plan.runs, kinds, strict=False):
        folder = RunDir(tmp_path, run.run_id)
        for _ in range(3 if kind in ("killed", "data") else 1):  # three without a new step: given up
            begin_attempt(folder, {"host": "gpu003"})
            end_attempt(folder, kind, "said")
        write_atomically(folder.error, pretty_json(error(kind)))
    later = max(RunDir(tmp_path, run.run_id).error.stat().st_mtime_ns for run in plan.runs[:5]) + 1

    def retried(*classes: str, since_ns: int = later) -> list[str]:
        standings = assess(tmp_path, plan, Retry(since_ns=since_ns, kinds=classes))
        stuck = (State.FAILED, State.DIVERGED, State.GIVEN_UP)
        return [
            kind
            for run, kind in zip(plan.runs, kinds, strict=False)
            if standings[run.run_id].state not in stuck
        ]

    assert retried() == ["oom", "code"]  # as ever: neither what diverged nor what was given up
    assert retried("killed") == ["killed"]
    assert retried("diverged", "data") == ["diverged", "data"]
    assert retried("node") == []
    assert retried("killed", since_ns=0) == []  # errors of this submission are not retried in it
    assert (
        assess(tmp_path, plan, Retry(since_ns=later, kinds=("node",)))[plan.runs[5].run_id].state
        == State.PENDING
    )


def test_a_class_that_there_is_not_is_refused() -> None:
    assert check_classes(["oom", "node", "oom"]) == ("oom", "node")
    with pytest.raises(UserError, match="--class 'memory': there is no such class; there are interrupted, "):
        check_classes(["oom", "memory"])
