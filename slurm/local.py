"""Run a plan on this machine: W worker processes, watched by this one.

Workers are `python -m slurm.worker`, each with its own process group and its own log file; they find their
work themselves (`slurm.worker`), so the parent only watches: it shows progress, replaces workers that die,
passes on Ctrl-C, and says at the end what failed. When it is killed itself, its workers notice and stop.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from salt.attempts import Fruitless
from salt.claim import Claim, ClaimHeld, read_claim
from salt.failures import ended_how
from salt.plan_specs import Plan
from salt.signals import GRACE_VARIABLE, STOP, grace_s, heeding
from salt.store import DamagedFile, RunDir
from slurm.pace import Pace
from slurm.progress import Display
from slurm.states import Retry, State, assess
from slurm.status import plan_status
from slurm.worker import RUNS_FAILED, give_up

#: A worker process that dies is replaced at most this often in one submission.
RESTARTS = 20
#: A worker that is asked to stop has the grace time to save and give its claim back, and this for itself.
GIVE_BACK_S = 5.0
WATCH_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What to run and how: shared by all launchers."""

    store: Path
    plan: Plan
    since_ns: int  # errors older than this are retried
    retry_diverged: bool = False
    retry_given_up: bool = False

    @property
    def retry(self) -> Retry:
        """Which errors are let be."""
        return Retry(since_ns=self.since_ns, diverged=self.retry_diverged, given_up=self.retry_given_up)

    @property
    def folder(self) -> Path:
        """The launcher's own folder; disposable."""
        return self.store / "jobs" / self.plan.name


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    log: Path


@dataclass
class Fleet:
    """The worker processes of one submission."""

    submission: Submission
    workers: int
    deaths: list[str] = field(default_factory=list)  # one sentence each
    _alive: list[_Worker] = field(default_factory=list)
    _started: int = 0

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """Those that have not been seen to end."""
        return [worker.process for worker in self._alive]

    def start(self) -> None:
        self.submission.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(self.workers):
            self._start_one()

    def watch(self) -> bool:
        """Notice workers that ended, replacing those that died; whether any is left."""
        for worker in list(self._alive):
            code = worker.process.poll()
            if code is None:
                continue
            self._alive.remove(worker)
            if code not in (0, RUNS_FAILED):
                self.mourn(worker.process.pid, code, worker.log)
        return bool(self._alive)

    def stop(self) -> None:
        """Ask the workers to stop, and end those that do not within the grace time."""
        for worker in self._alive:
            worker.process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s() + GIVE_BACK_S
        for worker in self._alive:
            try:
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(worker.process.pid, signal.SIGKILL)
                worker.process.wait()
        self._alive.clear()

    def _start_one(self) -> None:
        self._started += 1
        log = self.submission.folder / f"worker-{os.getpid()}-{self._started}.log"
        command = [sys.executable, "-P", "-m", "slurm.worker", f"--store={self.submission.store}"]
        command += ["--plan", self.submission.plan.name, "--since-ns", str(self.submission.since_ns)]
        command += ["--parent", str(os.getpid())]
        command += ["--retry-diverged"] if self.submission.retry_diverged else []
        command += ["--retry-given-up"] if self.submission.retry_given_up else []
        with open(log, "wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=worker_environment(self.submission.plan.execution.threads),
                start_new_session=True,  # Ctrl-C reaches the parent only, which passes it on once
            )
        self._alive.append(_Worker(process=process, log=log))

    def mourn(self, pid: int, code: int, log: Path) -> None:
        """Note a worker's death; give up a run that keeps killing; start another worker if that can help."""
        how = ended_how(code)
        runs = self._runs_of(pid)
        on = f" while it had run {', '.join(folder.run_id for folder in runs)}" if runs else ""
        self.deaths.append(f"worker process {pid} {how}{on}; its log: {log}")
        for folder in runs:
            with suppress(DamagedFile):  # the status tells of it, and nobody takes the run
                vain = self.submission.retry.given_up_after(folder)
                if vain is not None:
                    _give_up(folder, vain, how)
        # One that ends by itself without a run, say because it cannot start, would only do so again.
        if len(self._alive) < self.workers and len(self.deaths) <= RESTARTS and (runs or code < 0):
            self._start_one()

    def _runs_of(self, pid: int) -> list[RunDir]:
        """Runs whose claim names a process of ours that is no more."""
        found = []
        for run in self.submission.plan.runs:
            folder = RunDir(self.submission.store, run.run_id)
            claim = read_claim(folder)
            if claim is not None and claim.stale and claim.holder is not None and claim.holder.pid == pid:
                found.append(folder)
        return found


def _give_up(folder: RunDir, vain: Fruitless, how: str) -> None:
    try:
        with Claim.acquire(folder):
            give_up(folder, vain, f"its process {how}")
    except ClaimHeld:
        return  # another worker has resumed it already: it gets its chance


def worker_environment(threads: int) -> dict[str, str]:
    """The environment of a worker: our packages first on the path, and no more threads than it was given."""
    root = str(Path(__file__).resolve().parent.parent)
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    pools = (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
    )
    return {**os.environ, **dict.fromkeys(pools, str(threads)), "PYTHONPATH": path}


def run_local(submission: Submission, workers: int) -> int:
    """Run what the plan lacks with `workers` processes.

    Returns 0 when every run of the plan is done, 1 when some are not. When asked to stop, it passes that on
    to the workers, waits for them and raises KeyboardInterrupt; asking again changes nothing.
    """
    fleet = Fleet(submission, workers)
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
