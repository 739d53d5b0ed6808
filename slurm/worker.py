"""A worker: takes runs of a plan one after another until none is left for it.

`python -m slurm.worker --store S --plan NAME ...` is what the local and cluster launchers start; `Drain` is
the same inside a process. Several workers share a store: the claim file in a run's folder decides who has it.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from salt.attempts import Fruitless, fruitless, read_attempts
from salt.claim import HEARTBEAT_S, STALE_AFTER_S, Claim, ClaimHeld
from salt.disk import require_folder
from salt.errors import ClaimLost, Interrupted, RunFailed, UserError
from salt.failures import as_failure
from salt.plan_specs import Plan, PlannedRun
from salt.plans import read_plan
from salt.result_specs import RunError
from salt.signals import STOP, grace_s, heeding, install
from salt.specs import ExecSpec, ProbeSpec
from salt.store import DamagedFile, RunDir, pretty_json, write_atomically
from slurm.fitting import execute_within_memory
from slurm.names import run_names
from slurm.states import ACTIVE, READY, STUCK, Retry, State, assess
from slurm.status import last_step
from slurm.tidy import tidy

Execute = Callable[[Path, PlannedRun, dict[str, ProbeSpec], ExecSpec], None]

#: A worker whose runs are all waited for or held by others looks again after this long.
POLL_S = 0.5
#: A lane does not keep its machine for longer where all it has is waited for or held by others: by then the
#: claim of a holder that died is stale.
PATIENCE_S = STALE_AFTER_S + 3 * HEARTBEAT_S
#: Exit codes of a worker that did its work although runs failed, or that left some which it could not take
#: yet; not 1, with which Python ends on a fault.
RUNS_FAILED = 3
RUNS_LEFT = 4
#: Those that are no accident.
CALM_ENDS = (0, RUNS_FAILED, RUNS_LEFT)


@dataclass
class Drained:
    """What one worker did."""

    finished: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)  # of a lane: waited for, or held by others for long


class Drain:
    """Runs what a plan still lacks, in the plan's order, going on after a run that fails.

    A run is taken when it is not complete, not claimed by a living process, and its teacher's artefact
    exists. Students of failed teachers are left alone. Returns when no run can become ready any more.

    With `run_ids` these alone, in their order: a lane. It returns, too, when what it has is waited for and
    nobody makes it now, or is held by others for `patience_s`.
    """

    def __init__(
        self,
        store: Path,
        plan: Plan,
        run_ids: Sequence[str] | None = None,
        *,
        execute: Execute | None = None,
        retry: Retry | None = None,
        poll_s: float = POLL_S,
        patience_s: float = PATIENCE_S,
        report: Callable[[str], None] = print,
    ) -> None:
        self.store = store
        self.lane = run_ids is not None
        self.plan = plan if run_ids is None else part_of(plan, run_ids)
        by_id = {run.run_id: run for run in self.plan.runs}
        self._own = tuple(by_id[name] for name in (by_id if run_ids is None else run_ids))
        self.patience_s = patience_s
        self.execute = execute or _execute
        self.retry = msgspec.structs.replace(retry or Retry(), machine=self.lane)
        self.poll_s = poll_s
        self.report = report
        self._names = run_names(plan)
        self._done: set[str] = set()
        #: Failed here: not taken again, also where the disk was too full to say so in `error.json`.
        self._failed: set[str] = set()

    def run(self) -> Drained:
        """Work until nothing is left. A run's failure is recorded and reported, not raised.

        A request to stop lets the run in hand save itself, gives its claim back and raises KeyboardInterrupt.
        """
        with heeding():
            return self._run()

    def _run(self) -> Drained:
        drained = Drained()
        busy_s = time.monotonic()
        while True:
            standings = assess(
                self.store,
                self.plan,
                self.retry,
                known_done=self._done,
            )
            done = {run_id for run_id, standing in standings.items() if standing.state is State.DONE}
            tidy(self.store, done - self._done)
            self._done = done
            open_runs = [
                run.run_id for run in self._own if standings[run.run_id].state not in (State.DONE, *STUCK)
            ]
            if not open_runs:
                return drained
            if STOP.requested:
                raise KeyboardInterrupt
            ready = [
                run
                for run in self._own
                if standings[run.run_id].state in READY and run.run_id not in self._failed
            ]
            if any(self._attempt(run, drained) for run in ready):
                busy_s = time.monotonic()
                continue
            held = any(standing.state in ACTIVE for standing in standings.values())
            if not ready and not held and not self.lane:
                return drained  # what is left waits for a teacher that nobody of this plan trains
            if self.lane and time.monotonic() - busy_s > (self.patience_s if held else 0.0):
                drained.left = [name for name in open_runs if name not in self._failed]
                return drained
            time.sleep(self.poll_s)

    def _attempt(self, run: PlannedRun, drained: Drained) -> bool:
        """Execute a run if it can be claimed and is still wanted; whether it was taken."""
        folder = RunDir(self.store, run.run_id)
        try:
            claim = Claim.acquire(folder)
        except ClaimHeld:
            return False
        with claim:
            name = self._names[run.run_id]
            try:
                # Another worker may have ended it between the look and the claim.
                if self.retry.held_against(folder) is not None or folder.is_complete(run.probe_ids):
                    return True
                vain = self.retry.given_up_after(folder)
            except DamagedFile as damage:  # since the look; the next one tells it apart
                self.report(f"NOT STARTED {name} ({run.run_id}): {damage}")
                return True
            if vain is not None:
                give_up(folder, vain)
                self._failed.add(run.run_id)
                drained.failed.append(run.run_id)
                self.report(f"GIVEN UP {name} ({run.run_id}): {vain}")
                return True
            folder.error.unlink(missing_ok=True)  # an older one: what is there afterwards is of this attempt
            self.report(f"start {name} ({run.run_id})")
            started = time.monotonic()
            try:
                execute_within_memory(
                    self.execute,
                    self.store,
                    run,
                    self._probes_of(run),
                    self.plan.execution,
                    self.report,
                    since_ns=self.retry.since_ns if self.retry.kinds or self.retry.given_up else 0,
                )
            except ClaimLost as lost:
                self.report(f"{name} ({run.run_id}): {lost}")
                return True
            except Interrupted as stop:
                self.report(f"{name} ({run.run_id}) {stop}")
                raise KeyboardInterrupt from stop
            except Exception as failure:  # noqa: BLE001 - a worker outlives any run; the cause is kept
                self._record(folder, failure)
                self._failed.add(run.run_id)
                drained.failed.append(run.run_id)
                self.report(f"FAILED {name} ({run.run_id}): {failure}")
                return True
        drained.finished.append(run.run_id)
        self.report(f"done {name} ({run.run_id}) in {time.monotonic() - started:.1f} s")
        return True

    def _probes_of(self, run: PlannedRun) -> dict[str, ProbeSpec]:
        return {probe_id: self.plan.probes[probe_id] for probe_id in run.probe_ids}

    def _record(self, folder: RunDir, failure: Exception) -> None:
        """Make sure that the cause is in `error.json`: most failing runs have written it already."""
        cause = as_failure(failure)
        try:
            there = folder.read_error()
            if there is not None and there.kind == cause.kind:
                return
            record_error(folder, cause.kind, str(cause), "".join(traceback.format_exception(failure)))
        except (OSError, UserError, RunFailed) as second:  # such as a full disk: the worker goes on
            self.report(f"the error of {folder.run_id} could not be written to {folder.error}: {second}")


def record_error(folder: RunDir, kind: str, message: str, trace: str | None = None) -> None:
    """Write a run's `error.json` on behalf of a run that could not. The caller holds the claim."""
    attempts = read_attempts(folder)
    error = RunError(
        run_id=folder.run_id,
        kind=kind,
        message=message,
        attempt=len(attempts),
        step=last_step(folder.metrics),
        host=(attempts[-1].get("host") if attempts else None) or socket.gethostname(),
        restarts_without_progress=fruitless(folder).count,
        traceback=trace,
    )
    require_folder(folder.path)
    write_atomically(folder.error, pretty_json(error))


def give_up(folder: RunDir, vain: Fruitless, how: str | None = None) -> None:
    """Write down that a run gets no further attempt; `how` says how the last one ended. Needs the claim.

    An error that the last attempts left is the better message, and its kind stays.
    """
    last = folder.read_error()
    message = how or vain.last or "its process was killed"
    record_error(
        folder,
        "killed" if last is None else last.kind,
        f"{vain}: {message if last is None else last.message}",
        None if last is None else last.traceback,
    )


def _execute(store: Path, run: PlannedRun, probes: dict[str, ProbeSpec], execution: ExecSpec) -> None:
    if execution.processes > 1:
        from slurm.ranks import execute_together

        execute_together(store, run, probes, execution)
        return
    from salt.run import execute  # torch comes with it: only a process that trains pays for it

    execute(store, run, probes, execution)


def part_of(plan: Plan, run_ids: Sequence[str]) -> Plan:
    """The plan with these runs and those that they begin from, directly or on the way; no cells are left out.

    Raises `UserError` for a run that is not in the plan.
    """
    by_id = {run.run_id: run for run in plan.runs}
    wanted: set[str] = set()
    waiting = list(run_ids)
    while waiting:
        name = waiting.pop()
        if name in wanted:
            continue
        if name not in by_id:
            raise UserError(f"plan {plan.name} has no run {name}: it was made again since; submit again")
        wanted.add(name)
        spec = by_id[name].spec
        above = (each.run_id for each in (spec.teacher, spec.trunk) if each is not None)
        waiting += [each for each in above if each in by_id]
    return msgspec.structs.replace(plan, runs=tuple(run for run in plan.runs if run.run_id in wanted))


def lane_runs(folder: Path, array: int, task: int) -> tuple[str, ...]:
    """The runs of a lane of a submission. Raises `DamagedFile`."""
    from slurm.records import read_lanes

    return read_lanes(folder)[array].lanes[task].runs


def stop_with_parent(parent: int) -> None:
    """End this process soon after the one that started it: gently first, so that its claim is given back."""
    wait_for_end(parent)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s())
    os._exit(1)


def wait_for_end(parent: int) -> None:
    """Return when that process is no longer the parent of this one."""
    while os.getppid() == parent:
        time.sleep(0.5)


def main(argv: list[str]) -> int:
    """Exit code 0 when every run this worker took was finished, `RUNS_FAILED` when not, `RUNS_LEFT` when some
    of its lane could not be taken, 130 when it was stopped, 1 when it could not work.
    """
    parser = argparse.ArgumentParser(
        prog="slurm.worker", description="Run what a plan lacks. Started by salt-sweep submit."
    )
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--plan", required=True)
    parser.add_argument("--retry", default="{}", metavar="JSON", help="which errors are tried again")
    lane = ("FOLDER", "ARRAY", "TASK")
    parser.add_argument("--lane", nargs=3, metavar=lane, help="take the runs of one lane alone")
    parser.add_argument("--parent", type=int, help="stop when this process is no longer the parent")
    args = parser.parse_args(argv)
    try:
        install()
        if args.parent is not None:
            watch = threading.Thread(target=stop_with_parent, args=(args.parent,), daemon=True)
            watch.start()
        drained = Drain(
            args.store,
            read_plan(args.store, args.plan),
            None if args.lane is None else lane_runs(Path(args.lane[0]), *map(int, args.lane[1:])),
            retry=_retry(args.retry),
            report=_report_line,
        ).run()
    except KeyboardInterrupt:
        _report_line("stopped; submit again to go on")
        return 130
    except (RunFailed, UserError) as error:  # of the store itself: no run can say it
        _report_line(f"this worker cannot go on: {error}")
        return 1
    if drained.failed:
        return RUNS_FAILED
    return RUNS_LEFT if drained.left else 0


def _retry(text: str) -> Retry:
    try:
        return msgspec.json.decode(text, type=Retry)
    except msgspec.DecodeError as error:
        raise UserError(f"--retry {text!r}: {error}") from error


def _report_line(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
