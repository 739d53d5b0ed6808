"""Run a plan on this machine: W worker processes, watched by this one.

The parent only watches: it shows progress, replaces workers that die, passes on Ctrl-C, and says at the end
what failed.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from salt.signals import GRACE_VARIABLE, STOP, grace_s, heeding
from slurm.fleet import Fleet
from slurm.pace import Pace
from slurm.progress import Display
from slurm.states import State, assess
from slurm.status import plan_status
from slurm.submission import Submission

WATCH_EVERY_S = 0.5


def run_local(
    submission: Submission, workers: int, *, devices: Sequence[str] = (), logs: Path | None = None
) -> int:
    """Run what the plan lacks with `workers` processes; `devices` and `logs` as for `Fleet`.

    Returns 0 when every run of the plan is done, 1 when some are not. When asked to stop, it passes that on
    to the workers, waits for them and raises KeyboardInterrupt; asking again changes nothing.
    """
    fleet = Fleet(submission, workers, devices=devices, logs=logs)
    with heeding() as stop:
        try:
            with Display(Pace(submission.store, submission.plan, workers)) as display:
                _watch(fleet, display)
                if stop.request is not None:
                    display.say(
                        f"asked to stop ({stop.request.signal_name}): runs save, and go on when submitted "
                        f"again; workers that take longer than {grace_s():g} s ({GRACE_VARIABLE}) are ended"
                    )
        finally:
            fleet.stop()
        if stop.requested:
            raise KeyboardInterrupt
    standings = assess(submission.store, submission.plan)
    return 0 if all(standing.state is State.DONE for standing in standings.values()) else 1


def _watch(fleet: Fleet, display: Display) -> None:
    """Show how things go until no worker is left, or this process is to stop."""
    submission, told = fleet.submission, 0
    fleet.start()
    while fleet.watch() and not STOP.requested:
        for death in fleet.deaths[told:]:
            display.say(death)
        told = len(fleet.deaths)
        display.show(plan_status(submission.store, submission.plan))
        time.sleep(WATCH_EVERY_S)
    for death in fleet.deaths[told:]:
        display.say(death)
    display.show(plan_status(submission.store, submission.plan), last=True)
