"""The worker processes of one submission on one machine: started, watched, replaced when they die, stopped.

Workers are `python -m slurm.worker`, each with its own process group and its own log file; they find their
work themselves. When this process is killed, its workers notice and stop.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from salt.attempts import Fruitless
from salt.claim import Claim, ClaimHeld, read_claim
from salt.failures import ended_how
from salt.signals import grace_s, held_back
from salt.store import DamagedFile, RunDir
from slurm.submission import Submission, worker_environment
from slurm.worker import CALM_ENDS, give_up

#: A worker process that dies is replaced at most this often in one submission.
RESTARTS = 20
#: A worker that is asked to stop has the grace time to save and give its claim back, and this for itself.
GIVE_BACK_S = 5.0


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    log: Path
    place: int


@dataclass
class Fleet:
    """The worker processes of one submission.

    `devices` are what each of them may see of the machine's GPUs (`CUDA_VISIBLE_DEVICES`); none means all.
    Logs are `<name>-<number>.log` in `logs`, by default the submission's folder.
    """

    submission: Submission
    workers: int
    devices: Sequence[str] = ()
    logs: Path | None = None
    name: str = field(default_factory=lambda: f"worker-{os.getpid()}")
    deaths: list[str] = field(default_factory=list)  # one sentence each
    _alive: list[_Worker] = field(default_factory=list)
    _started: int = 0

    @property
    def processes(self) -> list[subprocess.Popen[bytes]]:
        """Those that have not been seen to end."""
        return [worker.process for worker in self._alive]

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for place in range(self.workers):
            self._start_one(place)

    def watch(self) -> bool:
        """Notice workers that ended, replacing those that died; whether any is left."""
        for worker in list(self._alive):
            code = worker.process.poll()
            if code is None:
                continue
            self._alive.remove(worker)
            if code not in CALM_ENDS:
                self.mourn(worker.process.pid, code, worker.log, worker.place)
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

    @property
    def _folder(self) -> Path:
        return self.logs or self.submission.folder

    def _start_one(self, place: int) -> None:
        self._started += 1
        log = self._folder / f"{self.name}-{self._started}.log"
        environment = worker_environment(self.submission.plan.execution.threads, self.submission.code)
        if self.devices:
            environment["CUDA_VISIBLE_DEVICES"] = self.devices[place]
        # A signal to the whole job may come before a new process has its handlers: it waits until then.
        with open(log, "ab") as output, held_back():
            process = subprocess.Popen(
                self.submission.worker_command(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches the parent only, which passes it on once
            )
        self._alive.append(_Worker(process=process, log=log, place=place))

    def mourn(self, pid: int, code: int, log: Path, place: int = 0) -> None:
        """Note a worker's death; give up a run that keeps killing; start another worker if that can help."""
        how = ended_how(code)
        runs = self._runs_of(pid)
        had = f"had run {', '.join(folder.run_id for folder in runs)} and " if runs else ""
        self.deaths.append(f"worker process {pid} {had}{how}; its log: {log}")
        for folder in runs:
            with suppress(DamagedFile):  # the status tells of it, and nobody takes the run
                vain = self.submission.retry.given_up_after(folder)
                if vain is not None:
                    _give_up(folder, vain, how)
        # One that ends by itself without a run, say because it cannot start, would only do so again.
        if len(self._alive) < self.workers and len(self.deaths) <= RESTARTS and (runs or code < 0):
            self._start_one(place)

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
