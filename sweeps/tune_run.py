"""Worker processes of a tuning, and what they begin with.

`python -m sweeps.tune_run STORE NAME` is one worker; several of them share a tuning through its folder.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from salt.errors import RunFailed, UserError
from salt.signals import STOP, heeding, install
from sweeps.tune_config import JOURNAL, TuneConfig, read_config, tuning_dir
from sweeps.tune_journal import GRACE_S

POLL_S = 0.3


def work(store: Path, config: TuneConfig, grace_s: int = GRACE_S) -> None:
    """Be one worker until no trial is left. Raises `KeyboardInterrupt` when asked to stop."""
    from sweeps.tune_train import Trainer
    from sweeps.tune_work import Slot, Worker, end_orphans

    trainer = Trainer(store, config, _say)
    worker = Worker(store, config, trainer.run_id, trainer.evaluate, grace_s=grace_s, report=_say)
    worker.run()
    slots = [Slot(worker.folder, arm, number) for number in range(config.trials) for arm in config.arms]
    end_orphans(worker.studies, slots)


def run_workers(store: Path, config: TuneConfig, workers: int) -> None:
    """Work with so many processes; one is this process itself.

    Raises:
        KeyboardInterrupt: asked to stop; what runs is saved, and the same command goes on.
        RunFailed: a worker ended by itself.
    """
    if workers == 1:
        with contextlib.redirect_stdout(sys.stderr):
            work(store, config)
        return
    from slurm.submission import worker_environment

    command = [sys.executable, "-P", "-m", "sweeps.tune_run", str(store.absolute()), config.name]
    command += ["--parent", str(os.getpid())]
    threads = max(1, (os.cpu_count() or 1) // workers)
    fleet = [
        subprocess.Popen(
            command, env=worker_environment(threads), stdin=subprocess.DEVNULL, stdout=sys.stderr
        )
        for _ in range(workers)
    ]
    try:
        with heeding():
            while any(process.poll() is None for process in fleet) and not STOP.requested:
                time.sleep(POLL_S)
            stopped = STOP.requested
    finally:
        for process in fleet:
            process.terminate()
        for process in fleet:
            process.wait()
    if stopped:
        raise KeyboardInterrupt
    codes = [process.returncode for process in fleet if process.returncode]
    if codes and all(process.returncode for process in fleet):
        raise RunFailed("worker", f"all {workers} workers ended with an error ({codes[0]}): see above")


def seeded(store: Path, config: TuneConfig, old: str) -> int:
    """Put the finished trials of another tuning before this one's own; how many. They are no slots of this
    one.

    Raises:
        UserError: there is no such tuning, it has other objectives, or this one has begun.
    """
    import optuna

    from sweeps.tune_journal import open_journal
    from sweeps.tune_space import distributions, of_arm
    from sweeps.tune_work import open_study

    before = read_config(store, old)
    if before.objectives != config.objectives or (before.student, before.budget) != (
        config.student,
        config.budget,
    ):
        raise UserError(
            f"--seed-from {old}: it is of other objectives or another cell, so its values are no values "
            "of this one"
        )
    here, there = (open_journal(tuning_dir(store, name) / JOURNAL) for name in (config.name, old))
    taken = 0
    for arm in config.arms:
        study = open_study(here, config, arm)
        if study.get_trials(deepcopy=False):
            raise UserError(f"--seed-from {old}: tuning {config.name!r} has begun; give another --name")
        space = distributions(of_arm(config.space, arm))
        if arm not in before.arms:
            continue
        for trial in open_study(there, before, arm).get_trials():
            fits = set(trial.params) == set(space) and all(
                space[name]._contains(space[name].to_internal_repr(value))
                for name, value in trial.params.items()
            )
            if trial.state.name != "COMPLETE" or not fits:
                continue
            study.add_trial(
                optuna.trial.create_trial(
                    params=trial.params,
                    distributions=space,
                    values=trial.values,
                    user_attrs=trial.user_attrs | {"from": f"{old}, trial {trial.number}"},
                )
            )
            taken += 1
    return taken


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main(argv: list[str]) -> int:
    """One worker process: 0 when nothing is left, 130 when it was stopped, 1 when it could not work."""
    store, name = Path(argv[0]), argv[1]
    try:
        install()
        if argv[2:3] == ["--parent"]:
            from slurm.worker import stop_with_parent

            threading.Thread(target=stop_with_parent, args=(int(argv[3]),), daemon=True).start()
        work(store, read_config(store, name))
    except KeyboardInterrupt:
        _say("stopped; the same command goes on")
        return 130
    except (UserError, RunFailed) as error:
        _say(f"this worker cannot go on: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
