"""A trial as a real run: the study's cell with the trial's values, trained, probed, and scored."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.claim import Claim, ClaimHeld
from salt.errors import ClaimLost, Interrupted, RunFailed, UserError
from salt.metrics import last_row, read_metrics
from salt.plan_specs import Cell, Plan, PlannedRun
from salt.signals import STOP
from salt.store import RunDir
from sweeps.tune_config import STUDY, TuneConfig, tuning_dir
from sweeps.tune_space import BUDGET, MASKS, Value
from sweeps.tune_work import Outcome, TrialRecord

if TYPE_CHECKING:
    from optuna.trial import Trial

POLL_S = 0.5
#: How often the loss of a trial that may be pruned is looked at.
LOOK_S = 0.1
#: A trial can be pruned at these shares of its steps.
RUNGS = (0.25, 0.5, 0.75)


class Trainer:
    """Makes and evaluates the runs of a tuning's trials. Raises `UserError` where a cell cannot be made."""

    def __init__(self, store: Path, config: TuneConfig, report: Callable[[str], None] = print) -> None:
        self.store, self.config, self.report = store, config, report
        self._plans = lru_cache(maxsize=8)(self._made)

    def run_id(self, arm: str, values: dict[str, Value]) -> str:
        """The run that a trial is."""
        return self.planned(arm, values)[1].run_id

    def planned(self, arm: str, values: dict[str, Value]) -> tuple[Plan, Cell]:
        """The plan of a trial, with its teacher, and its one cell."""
        return self._plans(arm, tuple(sorted(values.items())))

    def _made(self, arm: str, values: tuple[tuple[str, Value], ...]) -> tuple[Plan, Cell]:
        from sweeps.plan import build_plan
        from sweeps.study import load_study

        path = tuning_dir(self.store, self.config.name) / STUDY
        data = path.read_bytes()
        changes = trial_changes(self.config, data, path, arm, dict(values))
        study = load_study(
            path, data=data, folder=Path(self.config.folder), changes=changes, quick=self.config.quick
        )
        plan = build_plan(study)
        for external in study.external.values():
            if any(run.run_id == external.run_id for run in plan.runs):
                external.bring(self.store)
        cells = [cell for cell in plan.cells if cell.arm == arm and cell.budget]
        if len(cells) != 1:
            raise UserError(
                f"{self.config.name}: arm {arm} has {len(cells)} cells of student {self.config.student} "
                "at this "
                "budget, and a tuning is inside one: name the teacher and its share with --cell"
            )
        return plan, cells[0]

    def evaluate(self, record: TrialRecord, trial: Trial) -> Outcome:
        """Train what is missing of a trial, from its checkpoint; what came of it.

        Raises `KeyboardInterrupt` when this process is asked to stop, and `ClaimLost` when the trial was
        taken over by another.
        """
        plan, cell = self.planned(record.arm, record.values)
        if cell.run_id != record.run_id:
            raise UserError(
                f"trial {record.number} of {record.arm} was run {record.run_id} and would now be "
                f"{cell.run_id}: "
                "the lists or this version of salt are others; begin a new tuning with --name"
            )
        runs = {run.run_id: run for run in plan.runs}
        for name in _teachers(plan, cell.run_id):
            failed = self._train(plan, runs[name], None)
            if failed is not None:
                return Outcome(state="failed", reason=f"teacher {name}: {failed}")
        outcome = self._train(plan, runs[cell.run_id], trial if self.config.prune else None)
        if isinstance(outcome, Outcome):
            return outcome
        if outcome is not None:
            return Outcome(state="failed", reason=outcome)
        return Outcome(state="complete", objectives=tuple(self._scores(plan, cell)))

    def _train(self, plan: Plan, run: PlannedRun, trial: Trial | None) -> str | Outcome | None:
        """Train and probe one run, or wait for whoever does; why it failed, or that it was pruned."""
        from slurm.fitting import execute_within_memory
        from slurm.worker import _execute

        folder = RunDir(self.store, run.run_id)
        while not folder.is_complete(run.probe_ids):
            try:
                claim = Claim.acquire(folder)
            except ClaimHeld:
                time.sleep(POLL_S)
                if STOP.requested:
                    raise KeyboardInterrupt from None
                continue
            with claim:
                folder.error.unlink(missing_ok=True)
                probes = {name: plan.probes[name] for name in run.probe_ids}
                try:
                    with pruning(folder, run, trial) as pruned:
                        execute_within_memory(_execute, self.store, run, probes, plan.execution, self.report)
                except ClaimLost:
                    raise
                except Interrupted as stop:
                    if pruned and STOP.request is None:
                        return Outcome(state="pruned", reason=f"loss {pruned[0]:.6g} at step {stop.step}")
                    raise KeyboardInterrupt from stop
                except RunFailed as failure:
                    return f"{failure.kind}: {failure}"
        return None

    def _scores(self, plan: Plan, cell: Cell) -> Iterator[float]:
        folder = RunDir(self.store, cell.run_id)
        for objective in self.config.objectives:
            if objective == "flops":
                yield float(cell.charged_flops)
            elif objective == "loss":
                loss = recent_loss(folder)
                if loss is None:
                    raise UserError(f"run {cell.run_id} logged no loss: lower execution.log_every_steps")
                yield loss
            else:
                yield _selection_accuracy(plan, folder)


def _selection_accuracy(plan: Plan, folder: RunDir) -> float:
    """Accuracy on the clips that choose, never on those that are reported: of the plan's only score."""
    (name,) = plan.probes
    found = folder.read_probe(name)
    assert found is not None
    (score,) = found.scores
    return score.selection_accuracy


def _teachers(plan: Plan, run_id: str) -> list[str]:
    """Runs that a run begins from, first ones first."""
    by_id = {run.run_id: run for run in plan.runs}
    way: list[str] = []
    waiting = [by_id[run_id].spec]
    while waiting:
        spec = waiting.pop()
        for above in (spec.teacher, spec.trunk):
            if above is not None and above.run_id in by_id and above.run_id not in way:
                way.append(above.run_id)
                waiting.append(by_id[above.run_id].spec)
    return way[::-1]


def recent_loss(folder: RunDir, step: int | None = None) -> float | None:
    """Mean of the losses logged in the last tenth of a run's steps up to `step` (its end); None without any.

    One step's loss hangs on its clips.
    """
    rows = [row for row in read_metrics(folder.metrics) if row.get("loss") is not None]
    if step is not None:
        rows = [row for row in rows if row["step"] <= step] or rows[:1]
    if not rows:
        return None
    last = rows[-1]["step"]
    recent = [row["loss"] for row in rows if row["step"] > 0.9 * last]
    return float(sum(recent) / len(recent))


@contextlib.contextmanager
def pruning(folder: RunDir, run: PlannedRun, trial: Trial | None) -> Iterator[list[float]]:
    """While a run trains, report its loss at each rung and stop it where the median of the others is better.

    Yields a list that then holds the loss. Without a trial nothing happens.
    """
    pruned: list[float] = []
    if trial is None:
        yield pruned
        return
    done = threading.Event()

    def watch() -> None:
        rungs = [round(share * run.spec.steps) for share in RUNGS]
        while rungs and not done.wait(LOOK_S):
            row = last_row(folder.metrics)
            if row is None or row["step"] < rungs[0]:
                continue
            rung = rungs.pop(0)
            loss = recent_loss(folder, rung)
            if loss is None:
                continue
            # The pruner ranks in the direction of the objective: a low loss is good, whatever that is.
            maximizes = trial.study.direction.name == "MAXIMIZE"
            trial.report(-loss if maximizes else loss, rung)
            if trial.should_prune():
                pruned.append(loss)
                STOP.enough = True
                return

    thread = threading.Thread(target=watch, name="pruning", daemon=True)
    thread.start()
    try:
        yield pruned
    finally:
        done.set()
        thread.join()
        STOP.enough = False


def trial_changes(
    config: TuneConfig, data: bytes, path: Path, arm: str, values: dict[str, Value]
) -> dict[str, Any]:
    """Keys of the study file that make it the one cell of a trial: a size, a budget, a seed, an arm."""
    from sweeps.document import overlay, parse_yaml

    raw = parse_yaml(data, path)
    if config.quick:
        raw = overlay(raw, raw.get("quick", {}))
    arms = raw.get("arms", {})
    own = {key: value for key, value in arms.get(arm, {}).items() if key not in ("sweep", "students")}
    for section in ("optim", "objective"):
        fields = {
            name.partition(".")[2]: value for name, value in values.items() if name.startswith(f"{section}.")
        }
        if fields:
            own[section] = {**own.get(section, {}), **fields}
    if arm == "external":
        own["teachers"] = own.get("teachers", [])[:1]
    if arm in ("salt", "hybrid"):
        own.pop("teacher_sweep", None)
        if config.teacher is not None:
            own["teachers"] = [config.teacher]
        if config.share is not None:
            own["teacher_share"] = [config.share]
    changed: dict[str, Any] = {"arms": {arm: own}}
    if arm in ("salt", "hybrid") and "pixel" in arms:  # teachers take the pixel arm's settings
        changed["arms"]["pixel"] = {key: value for key, value in arms["pixel"].items() if key != "sweep"}
    key = {"flops": "budgets_flops", "steps": "budgets_steps", "gpu-hours": "budgets_gpu_hours"}
    match = raw.get("match", "flops")
    budget: Any = values.get(BUDGET, config.budget)
    changed |= dict.fromkeys(key.values(), ())
    changed[key[match]] = [budget if match == "gpu-hours" else round(budget)]
    changed |= {
        "seeds": [config.seed],
        "extra_seeds": [],
        "students": [config.student],
        "references": {"random": False, "raw": False},
        "probes": _the_one(raw.get("probes", []), config),
    }
    if MASKS in values:
        changed["masks"] = raw["mask_sets"][values[MASKS]]
    return changed


def _the_one(probes: list[dict[str, Any]], config: TuneConfig) -> list[dict[str, Any]]:
    """The suite that decides, with that probe alone: no controls, and on students of whatever seed."""
    if config.label is None:
        return []
    for probe in probes:
        if config.label in probe["labels"] and config.probe in probe["kinds"]:
            kept = {key: value for key, value in probe.items() if key not in ("frames", "seeds", "on")}
            return [kept | {"labels": [config.label], "kinds": [config.probe], "roles": ["student"]}]
    raise UserError(f"{config.name}: the study has no probe {config.label}/{config.probe}")
