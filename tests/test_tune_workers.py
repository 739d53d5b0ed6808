"""Many workers on one tuning, killed and stopped: every trial ends once, as the trial that it was."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest

from sweeps.tune_config import JOURNAL, TuneConfig, tuning_dir, write_config
from sweeps.tune_journal import open_journal
from sweeps.tune_space import Axis
from sweeps.tune_work import Slot, open_study, values_text
from tests.console import ROOT
from tests.tune_worker import GRACE_S, formula, identify

WORKERS, EACH = 16, 20


def config(trials: int, name: str = "formula") -> TuneConfig:
    return TuneConfig(
        name=name,
        study="none",
        study_sha256="0" * 64,
        folder="/",
        arms=("pixel", "vjepa"),
        student="micro",
        budget=1e11,
        seed=9,
        space={"x": Axis(low=0.0, high=1.0), "y": Axis(choices=("a", "b"))},
        objectives=("accuracy",),
        trials=trials,
    )


@contextmanager
def workers(
    store: Path, name: str, count: int, seconds: float = 0.0
) -> Iterator[list[subprocess.Popen[str]]]:
    """Started worker processes; whatever is left of them is killed at the end."""
    command = [sys.executable, "-m", "tests.tune_worker", str(store), name, str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    fleet = [
        subprocess.Popen(
            command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(count)
    ]
    try:
        yield fleet
    finally:
        for process in fleet:
            process.kill()
            process.communicate()


def ended(fleet: list[subprocess.Popen[str]], within_s: float = 240.0) -> list[str]:
    """Wait for all; their error outputs. Those that were not killed ended well."""
    errors = []
    for process in fleet:
        errors.append(process.communicate(timeout=within_s)[1])
        assert process.returncode in (0, -signal.SIGKILL), errors[-1]
    return errors


def wait_until(what: object, within_s: float = 120.0) -> None:
    deadline = time.monotonic() + within_s
    while not what():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trials(store: Path, of: TuneConfig) -> dict[str, list[optuna.trial.FrozenTrial]]:
    storage = open_journal(tuning_dir(store, of.name) / JOURNAL, GRACE_S)
    return {arm: open_study(storage, of, arm).get_trials() for arm in of.arms}


def test_sixteen_workers_four_killed_a_torn_line_and_a_lock_left(tmp_path: Path) -> None:
    of = write_config(tmp_path, config(WORKERS * EACH // 2), b"")
    folder = tuning_dir(tmp_path, of.name)
    journal = folder / JOURNAL

    def outcomes() -> int:
        return len(list(folder.glob("trials/*/outcome.json")))

    with workers(tmp_path, of.name, WORKERS, 0.02) as fleet:
        wait_until(lambda: outcomes() >= 40)
        for process in random.Random(1).sample(fleet, 4):
            process.send_signal(signal.SIGKILL)
        with open(
            journal, "ab"
        ) as file:  # what a process leaves that is killed while it writes, and its lock
            file.write(b'{"op_code":6,"worker_id":"gone","trial_id":1,"st')
        (folder / f"{JOURNAL}.lock").touch()
        ended(fleet)
    # Two more of the same command: nothing is left to do, whatever was torn is mended.
    with open(journal, "ab") as file:
        file.write(b'{"op_code":6,"wor')
    with workers(tmp_path, of.name, 2) as fleet:
        assert all("Traceback" not in text for text in ended(fleet))
    found = trials(tmp_path, of)
    slots = [Slot(folder, arm, number) for arm in of.arms for number in range(of.trials)]
    records = [slot.record() for slot in slots]
    assert len({(record.arm, record.number) for record in records if record is not None}) == WORKERS * EACH
    for arm in of.arms:
        complete = [trial for trial in found[arm] if trial.state.name == "COMPLETE"]
        assert len(complete) == WORKERS * EACH // 2
        assert {trial.state.name for trial in found[arm]} <= {"COMPLETE", "FAIL"}
        assert len(found[arm]) - len(complete) <= 4  # of workers killed between asking and writing it down
        for trial in complete:
            assert trial.user_attrs["run_id"] == identify(arm, trial.params)
            assert trial.values == [formula(trial.params)]
        best = max(complete, key=lambda trial: trial.value or 0.0)
        assert best.value == max(formula(trial.params) for trial in complete)
        assert best.params["y"] == "b"
    for line in journal.read_text().splitlines():
        json.loads(line)


def test_a_stopped_worker_goes_on_and_its_result_is_kept(tmp_path: Path) -> None:
    of = write_config(tmp_path, config(3), b"")
    folder = tuning_dir(tmp_path, of.name)
    with workers(tmp_path, of.name, 1, 1.0) as [slow]:
        wait_until(lambda: list(folder.glob("steps/*")))
        slow.send_signal(signal.SIGSTOP)
        stopped = {path.name for path in folder.glob("steps/*")}
        (lock := folder / f"{JOURNAL}.lock").touch()  # as if it stood still while it held the lock
        with workers(tmp_path, of.name, 1) as [other]:
            wait_until(lambda: len(list(folder.glob("trials/*/outcome.json"))) == 2 * of.trials - 1)
            assert not lock.exists() or other.poll() is None
            slow.send_signal(signal.SIGCONT)
            ended([slow, other])
    found = [trial for each in trials(tmp_path, of).values() for trial in each]
    assert [trial.state.name for trial in found] == ["COMPLETE"] * (2 * of.trials)
    kept = next(trial for trial in found if trial.user_attrs["run_id"] in stopped)
    assert kept.values == [formula(kept.params)]
    assert [path.read_text() for path in folder.glob("steps/*") if path.name in stopped] == ["begun\n"]


def test_a_killed_trial_is_the_same_trial_at_the_next_start(tmp_path: Path) -> None:
    of = write_config(tmp_path, config(2), b"")
    folder = tuning_dir(tmp_path, of.name)
    with workers(tmp_path, of.name, 1, 60.0) as [first]:
        wait_until(lambda: list(folder.glob("steps/*")))
        first.kill()
        first.wait()
    (begun,) = folder.glob("steps/*")
    with workers(tmp_path, of.name, 1) as fleet:
        ended(fleet)
    found = trials(tmp_path, of)
    assert [trial.state.name for each in found.values() for trial in each] == ["COMPLETE"] * 4
    assert begun.read_text() == "begun\nbegun\n"
    assert found["pixel"][0].user_attrs["run_id"] == begun.name
    assert values_text(found["pixel"][0].params)


@pytest.mark.parametrize("torn", [b"", b'{"op_code":6', b'{"op_code":6}\n{"x', b"not JSON\n", b"\x00\x00\n"])
def test_a_torn_journal_opens_with_all_whole_lines(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / JOURNAL
    storage = open_journal(path, GRACE_S)
    study = optuna.create_study(storage=storage, study_name="s")
    study.add_trial(optuna.trial.create_trial(value=2.0))
    whole = path.read_bytes()
    path.write_bytes(whole + torn.removeprefix(b'{"op_code":6}\n'))
    again = optuna.load_study(storage=open_journal(path, GRACE_S), study_name="s")
    assert path.read_bytes() == whole
    again.add_trial(optuna.trial.create_trial(value=3.0))
    assert [
        trial.value for trial in optuna.load_study(storage=open_journal(path), study_name="s").trials
    ] == [2.0, 3.0]
