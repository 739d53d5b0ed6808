"""Workers of a tuning: as many trials for every arm, each in a slot of its own that one worker holds at a
time.

A slot's `trial.json` ties an Optuna trial to its run before training begins, and `outcome.json` keeps what
came of it before Optuna is told. So a worker may be killed anywhere: the next one that takes the slot goes on
with the same trial, and the run with the same checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from salt.claim import Claim, ClaimHeld
from salt.errors import ClaimLost, UserError
from salt.signals import STOP, heeding
from salt.specs import NonNegativeInt, Spec
from salt.store import RunDir, pretty_json, read_json, write_atomically
from sweeps.tune_config import DIRECTIONS, JOURNAL, TuneConfig, tuning_dir
from sweeps.tune_journal import GRACE_S, open_journal
from sweeps.tune_space import Value, distributions, of_arm, suggest

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

#: A worker that finds all open slots held looks again after this long.
POLL_S = 0.5
#: Stands for the run of a trial whose values cannot be planned.
NO_RUN = "none"


class TrialRecord(Spec, kw_only=True):
    """`trial.json`: an Optuna trial and the run that it is."""

    arm: str
    number: NonNegativeInt
    values: dict[str, Value]
    run_id: str


class Outcome(Spec, kw_only=True):
    """`outcome.json`. `failed` has a reason; `pruned` the last loss that was reported."""

    state: Literal["complete", "pruned", "failed"]
    objectives: tuple[float, ...] = ()
    reason: str | None = None


class Slot(RunDir):
    """The folder of one trial; claimed as a run is."""

    def __init__(self, folder: Path, arm: str, number: int) -> None:
        super().__init__(folder, f"{arm}-{number:04d}")
        self.arm = arm
        self.path = folder / "trials" / self.run_id

    def record(self) -> TrialRecord | None:
        path = self.path / "trial.json"
        return read_json(path, TrialRecord) if path.exists() else None

    def outcome(self) -> Outcome | None:
        path = self.path / "outcome.json"
        return read_json(path, Outcome) if path.exists() else None

    def write(self, name: str, value: Spec) -> None:
        write_atomically(self.path / name, pretty_json(value))


#: (arm, values) -> the id of the run that a trial is.
Identify = Callable[[str, dict[str, Value]], str]
#: (record, trial) -> what came of it. Raises `KeyboardInterrupt` when asked to stop, `ClaimLost` when taken
#: over.
Evaluate = Callable[[TrialRecord, "Trial"], Outcome]


class Worker:
    """Works through the open slots of a tuning until none is left."""

    def __init__(
        self,
        store: Path,
        config: TuneConfig,
        identify: Identify,
        evaluate: Evaluate,
        *,
        grace_s: int = GRACE_S,
        report: Callable[[str], None] = print,
    ) -> None:
        self.folder = tuning_dir(store, config.name)
        self.config, self.identify, self.evaluate, self.report = config, identify, evaluate, report
        storage = open_journal(self.folder / JOURNAL, grace_s)
        self._finished: set[str] = set()
        self.studies = {arm: open_study(storage, config, arm) for arm in config.arms}

    def run(self) -> None:
        """Until every slot has an outcome that Optuna knows. `KeyboardInterrupt`: asked to stop."""
        slots = [
            Slot(self.folder, arm, number) for number in range(self.config.trials) for arm in self.config.arms
        ]
        with heeding():
            while slots:
                took = [slot for slot in slots if self._take(slot)]
                slots = [slot for slot in slots if slot not in took]
                if STOP.requested:
                    raise KeyboardInterrupt
                if slots and not took:
                    time.sleep(POLL_S)

    def _take(self, slot: Slot) -> bool:
        """Work on a slot if nobody else does; whether nothing is left to do in it."""
        if STOP.requested:
            return False
        if self._ended(slot):
            return True
        try:
            claim = Claim.acquire(slot)
        except ClaimHeld:
            return False
        with claim:
            try:
                self._work(slot)
            except ClaimLost as lost:
                self.report(f"{slot.run_id}: {lost}")
                return False
        return True

    def _ended(self, slot: Slot) -> bool:
        """Whether a slot has its outcome and Optuna knows; looked at without a claim, for it stays so."""
        if slot.run_id not in self._finished and slot.outcome() is not None:
            record = slot.record()
            if record is not None and _frozen(self.studies[slot.arm], record.number).state.is_finished():
                self._finished.add(slot.run_id)
        return slot.run_id in self._finished

    def _work(self, slot: Slot) -> None:
        if self._ended(slot):  # by another worker, between the look and the claim
            return
        study = self.studies[slot.arm]
        record, outcome = slot.record(), slot.outcome()
        if record is None:
            trial = study.ask(distributions(of_arm(self.config.space, slot.arm)))
            values = suggest(trial, of_arm(self.config.space, slot.arm))
            try:
                run_id = self.identify(slot.arm, values)
            except UserError as error:  # such values make no run: a step too dear for the budget
                run_id = NO_RUN
                self.report(f"{slot.run_id}: {error}")
            record = TrialRecord(arm=slot.arm, number=trial.number, values=values, run_id=run_id)
            trial.set_user_attr("run_id", record.run_id)
            slot.write("trial.json", record)
            self.report(f"{slot.run_id}: trial {trial.number}, run {record.run_id}: {values_text(values)}")
        if record.run_id == NO_RUN:
            outcome = Outcome(
                state="failed", reason="its values make no run: the budget cannot be met with them"
            )
        if outcome is None:
            outcome = self.evaluate(record, running(study, record.number))
        slot.write("outcome.json", outcome)
        tell(study, record.number, outcome)
        self.report(f"{slot.run_id}: {outcome.state} {', '.join(f'{v:.6g}' for v in outcome.objectives)}")


def values_text(values: dict[str, Value]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
    )


def open_study(storage: Any, config: TuneConfig, arm: str) -> Study:
    """An arm's Optuna study; several processes may make it at once."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Many workers ask before others have answered: running trials count as bad ones, so that they spread.
    sampler = optuna.samplers.TPESampler(seed=None, constant_liar=True, multivariate=False)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=0) if config.prune else None
    return optuna.create_study(
        storage=storage,
        study_name=f"{config.name}/{arm}",
        sampler=sampler,
        pruner=pruner or optuna.pruners.NopPruner(),
        directions=[DIRECTIONS[each] for each in config.objectives],
        load_if_exists=True,
    )


def running(study: Study, number: int) -> Trial:
    """A trial of a study by its number, to report to."""
    from optuna.trial import Trial

    return Trial(study, _frozen(study, number)._trial_id)


def _frozen(study: Study, number: int) -> Any:
    storage = study._storage
    return storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study._study_id, number))


def tell(study: Study, number: int, outcome: Outcome) -> None:
    """Let Optuna know, unless it does: another worker may have told while this one stood still."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    if _frozen(study, number).state.is_finished():
        return
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    values = list(outcome.objectives) if outcome.state == "complete" else None
    try:
        if outcome.reason is not None:
            study._storage.set_trial_user_attr(_frozen(study, number)._trial_id, "reason", outcome.reason)
        study.tell(number, values, state=states[outcome.state])
    except UpdateFinishedTrialError:
        return


def end_orphans(studies: dict[str, Study], slots: list[Slot]) -> int:
    """Trials that no slot knows: their worker was killed before it was written down what to train. They are
    told as failed once all slots have their outcome; how many.
    """
    from optuna.trial import TrialState

    known = {(record.arm, record.number) for slot in slots if (record := slot.record()) is not None}
    ended = 0
    for arm, study in studies.items():
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
            if (arm, trial.number) not in known:
                reason = "its worker ended before it was written down what to train"
                tell(study, trial.number, Outcome(state="failed", reason=reason))
                ended += 1
    return ended
