"""Where metrics go: `metrics.jsonl` always, TensorBoard and Weights & Biases if the execution asks.

The file is part of the run: if it cannot be written, the run stops. The other two are for watching: one that
fails is reported once and dropped, and training goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from salt.errors import UserError
from salt.metrics import Metrics

if TYPE_CHECKING:
    from salt.specs import ExecSpec, RunSpec
    from salt.store import RunDir

Value = float | int | str | None


class Sink(Protocol):
    """One of the two that may fail."""

    name: str

    def write(self, step: int, values: dict[str, Value]) -> None: ...

    def close(self, failed: bool) -> None: ...


class TensorBoard:
    """Event files in the run's `tensorboard` folder. Numbers only: text and missing values are left out.

    After a resume, steps from `first_step` on replace those of the attempt before.
    """

    name = "TensorBoard"

    def __init__(self, run: RunDir, first_step: int) -> None:
        summary_writer = _tensorboard()
        folder = run.path / "tensorboard"
        self._writer = summary_writer(log_dir=str(folder), purge_step=first_step)

    def write(self, step: int, values: dict[str, Value]) -> None:
        for key, value in values.items():
            if isinstance(value, float | int):
                self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class WeightsAndBiases:
    """One Weights & Biases run under the run's id; later attempts go on in it.

    `WANDB_MODE` is honoured: `offline` writes to the run's `wandb` folder, for `wandb sync` later. Its own
    step must not go back, as ours does after a kill, so ours is a value of its own that the plots are over.
    """

    name = "Weights & Biases"

    def __init__(self, run: RunDir, spec: RunSpec, project: str) -> None:
        wandb = _wandb()
        run.path.mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(
                project=project,
                id=run.run_id,
                name=f"{spec.arm}-{run.run_id}",
                resume="allow",
                dir=str(run.path),
                config=msgspec.to_builtins(spec),
            )
        except wandb.errors.UsageError as error:
            raise UserError(
                f"execution: wandb_project {project!r}: {str(error).rstrip('.')}; "
                "log in, set WANDB_MODE=offline, or leave it out"
            ) from error
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: dict[str, Value]) -> None:
        known = {key: value for key, value in values.items() if value is not None}
        self._run.log({"step": step, **known})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class Sinks:
    """A context manager that writes each line everywhere. `Sinks(None, [], warn)` writes nowhere."""

    def __init__(self, metrics: Metrics | None, others: list[Sink], warn: Callable[[str], None]) -> None:
        self._metrics, self._others, self._warn = metrics, others, warn

    def write(self, step: int, **values: Value) -> None:
        """One line after `step` steps: the file first, as it is the one that counts."""
        if self._metrics is not None:
            self._metrics.write(step, **values)
        self._each(lambda sink: sink.write(step, values), f"at step {step}")

    def __enter__(self) -> Sinks:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._each(lambda sink: sink.close(kind is not None), "at its end")
        finally:
            if self._metrics is not None:
                self._metrics.__exit__(kind, error, trace)

    def _each(self, action: Callable[[Sink], None], when: str) -> None:
        for sink in list(self._others):
            try:
                action(sink)
            except Exception as error:  # noqa: BLE001 - other people's code over a network: anything may come
                self._others.remove(sink)
                self._warn(_lost(sink.name, when, error))


def check_sinks(execution: ExecSpec) -> None:
    """Raises `UserError` if a sink is asked for whose package is not installed. It imports the package."""
    if execution.tensorboard:
        _tensorboard()
    if execution.wandb_project is not None:
        _wandb()


def open_sinks(
    run: RunDir,
    spec: RunSpec,
    execution: ExecSpec,
    warn: Callable[[str], None],
    *,
    attempt: int,
    start: int,
) -> Sinks:
    """Sinks of an attempt that goes on after `start` steps; for one process of a run, the first.

    Raises `UserError` for a sink that is not installed, or that the user has not set up. One that cannot be
    reached is reported through `warn` and left out.
    """
    check_sinks(execution)
    makers: list[tuple[str, Callable[[], Sink]]] = []
    project = execution.wandb_project
    if project is not None:  # first: the only one that can refuse, and nothing is open yet
        makers.append((WeightsAndBiases.name, lambda: WeightsAndBiases(run, spec, project)))
    if execution.tensorboard:
        makers.append((TensorBoard.name, lambda: TensorBoard(run, start + 1)))
    sinks: list[Sink] = []
    for name, make in makers:
        try:
            sinks.append(make())
        except UserError:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            warn(_lost(name, "at its start", error))
    return Sinks(Metrics(run.metrics, attempt), sinks, warn)


def _lost(name: str, when: str, error: Exception) -> str:
    return (
        f"{name} failed {when} ({type(error).__name__}: {error}); it gets nothing more of this attempt, "
        "metrics.jsonl has everything"
    )


def _tensorboard() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            f"execution: tensorboard: true, but it cannot be imported ({error}): "
            "`pip install tensorboard`, or leave it out"
        ) from error
    return SummaryWriter


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError(
            f"execution: wandb_project, but wandb cannot be imported ({error}): "
            "`pip install wandb`, or leave it out"
        ) from error
    return wandb
