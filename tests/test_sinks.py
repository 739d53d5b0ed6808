"""Metrics go to the file whatever happens to the sinks beside it."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from salt.errors import UserError
from salt.metrics import last_row, read_metrics
from salt.sinks import Sinks, check_sinks, open_sinks
from salt.specs import ExecSpec, spec_id
from salt.store import RunDir
from tests.examples import run_spec

SPEC = run_spec("pixel", "nano")


class FakeRun:
    """Stands for what `wandb.init` returns; breaks at the step it is told to."""

    def __init__(self, settings: dict[str, Any], breaks_at: int | None) -> None:
        self.settings, self.breaks_at = settings, breaks_at
        self.lines: list[dict[str, Any]] = []
        self.axes: list[tuple[str, str | None]] = []
        self.exit_code: int | None = None

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes.append((name, step_metric))

    def log(self, line: dict[str, Any]) -> None:
        if line["step"] == self.breaks_at:
            raise ConnectionError("no route to host")
        self.lines.append(line)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeUsageError(Exception):
    """Stands for `wandb.errors.UsageError`: what wandb raises where nobody has logged in."""


def fake_wandb(
    patch: pytest.MonkeyPatch, breaks_at: int | None = None, refuses: Exception | None = None
) -> list[FakeRun]:
    runs: list[FakeRun] = []

    def init(**settings: Any) -> FakeRun:
        if refuses is not None:
            raise refuses
        runs.append(FakeRun(settings, breaks_at))
        return runs[-1]

    module = ModuleType("wandb")
    vars(module).update(init=init, errors=SimpleNamespace(UsageError=FakeUsageError))
    patch.setitem(sys.modules, "wandb", module)
    return runs


def opened(store: Path, execution: ExecSpec, said: list[str], attempt: int = 1, start: int = 0) -> Sinks:
    run = RunDir(store, spec_id(SPEC))
    return open_sinks(run, SPEC, execution, said.append, attempt=attempt, start=start)


def events(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of the event files in a folder, as TensorBoard's own reader gives them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    return {
        tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]
    }


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path: Path) -> None:
    execution = ExecSpec(tensorboard=True)
    with opened(tmp_path, execution, []) as sinks:
        for step in (10, 20, 30):
            sinks.write(step, loss=0.5 * step, flops=step * 10**12, utilisation=None)
    with opened(tmp_path, execution, [], attempt=2, start=20) as sinks:  # the last checkpoint was at 20
        for step in (30, 40):
            sinks.write(step, loss=0.25 * step, flops=step * 10**12, utilisation=None)
    run = RunDir(tmp_path, spec_id(SPEC))
    shown = events(run.path / "tensorboard")
    assert shown["loss"] == [(10, 5.0), (20, 10.0), (30, 7.5), (40, 10.0)]
    assert shown["flops"][-1] == (40, pytest.approx(4e13, rel=1e-6))  # it keeps float32
    assert "utilisation" not in shown
    assert [(row["step"], row["loss"]) for row in read_metrics(run.metrics)] == shown["loss"]
    assert last_row(run.metrics) == {
        "step": 40, "attempt": 2, "loss": 10.0, "flops": 4 * 10**13, "utilisation": None,
    }  # fmt: skip


def test_wandb_goes_on_in_the_same_run_over_our_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = fake_wandb(monkeypatch)
    execution = ExecSpec(wandb_project="study")
    with opened(tmp_path, execution, []) as sinks:
        sinks.write(10, loss=1.0, utilisation=None)

    def killed() -> None:
        with opened(tmp_path, execution, [], attempt=2) as sinks:
            sinks.write(5, loss=2.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    first, second = runs
    assert first.settings["project"] == "study"
    assert first.settings["id"] == second.settings["id"] == spec_id(SPEC)
    assert second.settings["resume"] == "allow"
    assert first.settings["config"]["optim"]["lr"] == SPEC.optim.lr
    assert ("*", "step") in first.axes
    assert (first.lines, second.lines) == ([{"step": 10, "loss": 1.0}], [{"step": 5, "loss": 2.0}])
    assert (first.exit_code, second.exit_code) == (0, 1)


def test_a_sink_that_fails_is_told_once_and_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = fake_wandb(monkeypatch, breaks_at=20)
    said: list[str] = []
    with opened(tmp_path, ExecSpec(wandb_project="study", tensorboard=True), said) as sinks:
        for step in (10, 20, 30):
            sinks.write(step, loss=float(step))
    assert len(said) == 1
    assert all(part in said[0] for part in ("Weights & Biases", "step 20", "no route to host"))
    assert [line["step"] for line in runs[0].lines] == [10]
    folder = RunDir(tmp_path, spec_id(SPEC))
    assert [row["step"] for row in read_metrics(folder.metrics)] == [10, 20, 30]
    assert [step for step, _ in events(folder.path / "tensorboard")["loss"]] == [10, 20, 30]


def test_one_that_cannot_be_reached_at_the_start_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_wandb(monkeypatch, refuses=ConnectionError("timed out"))
    said: list[str] = []
    with opened(tmp_path, ExecSpec(wandb_project="study"), said) as sinks:
        sinks.write(10, loss=1.0)
    assert len(said) == 1
    assert "at its start" in said[0]
    assert len(read_metrics(RunDir(tmp_path, spec_id(SPEC)).metrics)) == 1


@pytest.mark.parametrize(
    ("execution", "missing", "words"),
    [
        (ExecSpec(wandb_project="study"), "wandb", "pip install wandb"),
        (ExecSpec(tensorboard=True), "torch.utils.tensorboard", "pip install tensorboard"),
    ],
)
def test_one_that_is_not_installed_stops_before_anything_is_written(
    execution: ExecSpec, missing: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(UserError, match=words):
        check_sinks(execution)
    with pytest.raises(UserError, match=words):
        opened(tmp_path, execution, [])
    assert not list(tmp_path.iterdir())
    check_sinks(ExecSpec())  # nobody asked: nothing is wanted


def test_nobody_logged_in_is_the_users_to_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wandb(monkeypatch, refuses=FakeUsageError("api_key not configured"))
    with pytest.raises(UserError, match="WANDB_MODE=offline"):
        opened(tmp_path, ExecSpec(wandb_project="study"), [])
