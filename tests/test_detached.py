"""`salt-sweep submit --on local --detach`: it goes on alone, is seen, stopped, and gone on with."""

import json
import os
import signal
from pathlib import Path
from typing import Any

from salt.processes import lives
from salt.store import RunDir
from slurm.records import submissions
from slurm.states import State, assess
from tests.slurm.study import Study, make_study, numbers, run_inline
from tests.slurm.waiting import wait_for


def started(study: Study) -> int:
    """Submit in the background; its process, once a run of the plan is being trained."""
    text = study.sweep("submit", study.name, "--store", "store", "--on", "local", "--detach", "--json")
    found = json.loads(text)
    folder, record = submissions(study.store, study.name)[-1]
    assert (record.submission, record.process) == (found["submission"], found["process"])
    assert lives(found["process"], record.started)
    assert (folder / "local.log").exists()
    wait_for(lambda: any((run["step"] or 0) > 10 for run in running(study)), 120, "a run trains")
    return int(found["process"])


def running(study: Study) -> list[Any]:
    return [run for run in study.status()["runs"] if run["state"] == "running"]


def over(study: Study) -> bool:
    """Whether no background submission of the study lives."""
    records = [record for _, record in submissions(study.store, study.name)]
    return not any(each.process is not None and lives(each.process, each.started) for each in records)


def test_stopped_and_gone_on_with_it_gives_the_numbers_of_a_run_that_was_not(tmp_path: Path) -> None:
    study = make_study(tmp_path, budgets="[6e10]", arms=("pixel",))
    process = started(study)
    assert os.getsid(process) == process  # the terminal that it was started from may go
    os.kill(process, signal.SIGHUP)
    found = json.loads(study.sweep("cancel", study.name, "--store", "store", "--json"))
    assert found["processes"] == [process]
    wait_for(lambda: over(study), 60, "it has stopped")
    assert study.states() == {State.STOPPED: 1}
    log = submissions(study.store, study.name)[-1][0] / "local.log"
    assert log.read_text().endswith("stopped; submit again to go on\n")
    assert "nothing to cancel" in study.sweep("cancel", study.name, "--store", "store")
    # Its parent killed, workers stop by themselves and give their runs back.
    second = started(study)
    os.kill(second, signal.SIGKILL)
    wait_for(lambda: study.states() == {State.STOPPED: 1}, 60, "its worker has stopped")
    study.sweep("submit", study.name, "--store", "store", "--on", "local", "--detach")
    wait_for(lambda: over(study), 120, "it has ended")
    standings = assess(study.store, study.plan)
    assert {each.state for each in standings.values()} == {State.DONE}
    (run,) = study.plan.runs
    assert len(json.loads(RunDir(study.store, run.run_id).env.read_bytes())["attempts"]) == 3
    assert numbers(study.store, study.plan) == numbers(run_inline(study), study.plan)
