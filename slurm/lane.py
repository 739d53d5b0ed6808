"""What a job does on its node: lets worker processes drain its lane, and has itself queued again.

The workers train; this process only watches them, so that one that dies costs its run and not the lane. It
is told to stop before a time limit or a preemption (SIGUSR2) or at once (SIGTERM): then the workers save, and
this one array task is queued again, unless somebody cancelled it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import msgspec

from salt.attempts import attempts_allowed
from salt.attempts import progress as how_far
from salt.plan_specs import Plan
from salt.plans import read_plan
from salt.signals import STOP, heeding
from salt.specs import NonNegativeInt, Spec
from salt.store import RunDir, pretty_json, read_json, write_atomically
from slurm.fleet import Fleet
from slurm.multinode import LAYOUT_VARIABLE
from slurm.names import run_names
from slurm.nodes import bad_nodes, node_table
from slurm.records import Chunk, SubmissionRecord, chunks, lanes_of, read_lanes, read_record
from slurm.request import ARRAY_VARIABLE
from slurm.scheduler import SchedulerSilent, ask, queue
from slurm.states import STUCK, State, assess
from slurm.submission import Submission
from slurm.worker import RUNS_FAILED, part_of

WATCH_EVERY_S = 0.5
#: Signals by which Slurm warns. SIGTERM may be somebody's `scancel`.
WARNINGS = ("SIGUSR1", "SIGUSR2")
#: Slurm sends the warning of a time limit up to a minute early (sbatch's manual, `--signal`).
LIMIT_SLACK_S = 90.0
#: Seconds for `scontrol requeue`, from what is left after the workers have saved; a controller that is just
#: being started again is asked for longer, as long as Slurm lets this process live.
REQUEUE_S = 15.0
REQUEUE_WITHIN_S, REQUEUE_PAUSE_S = 60.0, 3.0
NOBODY_THERE = re.compile(r"did not answer|[Uu]nable to contact|timed out|[Cc]onnection refused")


@dataclass(frozen=True)
class LaneTask:
    """What every task of a submission calls: its environment tells array and lane."""

    store: str
    plan: str
    submission: str

    def __call__(self) -> str:
        return run_lane(Path(self.store), self.plan, self.submission)


class Tries(Spec, kw_only=True):
    """`lanes/<job>_<task>.json`: times in a row that a lane used up its time without a new step."""

    vain: NonNegativeInt = 0
    progress: str = ""


def run_lane(store: Path, plan_name: str, submission: str) -> str:
    """Work through one lane; a word on how it ended. Exits with `RUNS_FAILED` if runs of it failed."""
    with heeding():
        folder = store / "jobs" / plan_name / submission
        record, chunk = read_record(folder), read_lanes(folder)[int(os.environ[ARRAY_VARIABLE])]
        task = int(os.environ["SLURM_ARRAY_TASK_ID"])
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{task}"
        plan = read_plan(store, plan_name)
        say(f"lane {job} on {os.environ.get('SLURMD_NODENAME', 'an unknown node')}, plan {plan_name}")
        if chunk.prepares:
            return _prepare(store, plan)
        lane = Lane(store, plan, folder, record, chunk, task, job)
        ended = lane.run()
        say(ended)
        return ended


def _prepare(store: Path, plan: Plan) -> str:
    from slurm.prepare import prepare_clips

    prepare_clips(store, plan, workers=len(os.sched_getaffinity(0)))
    return "clips decoded"


@dataclass
class Lane:
    """One job at work; its methods are called in turn by `run`."""

    store: Path
    whole: Plan
    folder: Path
    record: SubmissionRecord
    chunk: Chunk
    task: int
    job: str
    told: int = 0  # deaths of workers that have been said
    ends_unix_s: float | None = None  # by the time limit, as known at the start

    @property
    def own(self) -> tuple[str, ...]:
        return self.chunk.lanes[self.task].runs

    @cached_property
    def plan(self) -> Plan:
        """This lane's runs, and those that they begin from."""
        return part_of(self.whole, self.own)

    def run(self) -> str:
        submission = Submission(
            store=self.store,
            plan=self.whole,
            retry=self.record.retry,
            lane=(self.folder, self.chunk.number, self.task),
        )
        request_nodes = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        if request_nodes > 1 and self.record.profile is not None:
            os.environ[LAYOUT_VARIABLE] = self.record.profile.layout
        before, self.ends_unix_s = self.progress(), _end_unix_s(self.job)
        fleet = Fleet(submission, self.record.workers, logs=self.folder / "workers", name=self.job)
        try:
            fleet.start()
            while fleet.watch() and not STOP.requested:
                self._tell(fleet)
                time.sleep(WATCH_EVERY_S)
        finally:
            fleet.stop()
        self._tell(fleet)
        return self.end(before)

    def _tell(self, fleet: Fleet) -> None:
        for death in fleet.deaths[self.told :]:
            say(death)
        self.told = len(fleet.deaths)

    def end(self, before: str) -> str:
        standings = assess(
            self.store,
            self.plan,
            msgspec.structs.replace(self.record.retry, machine=True),
        )
        left = [name for name in self.own if standings[name].state not in (State.DONE, *STUCK)]
        failed = [name for name in self.own if standings[name].state in STUCK]
        if left and STOP.request is not None:
            return self._again(f"stopped ({STOP.request.signal_name})", before)
        if left and self._others_work_on(left):
            return self._again("what is left waits for other lanes", None)
        broken = [name for name in left if RunDir(self.store, name).error.exists()]
        if broken:  # errors about the machine: all others are failures
            self._avoid_bad_nodes()
            return self._again(f"the machine failed {', '.join(broken)}", None)
        for name in left:
            say(f"{name} is left: {standings[name].state}")
        if failed:
            say(f"{len(failed)} of {len(self.own)} runs failed: {', '.join(failed)}")
            sys.exit(RUNS_FAILED)
        return f"{len(left)} of {len(self.own)} runs left" if left else "all runs done"

    def _avoid_bad_nodes(self) -> None:
        """Leave out nodes on which runs keep ending, this one perhaps, when the lane is started again."""
        profile = self.record.profile
        bad = bad_nodes(self.store, self.whole, profile.exclude_after) if profile is not None else {}
        if profile is None or not bad:
            return
        names = ",".join(dict.fromkeys([*profile.exclude, *sorted(bad)]))
        for line in node_table(bad, {name: str(each) for name, each in run_names(self.whole).items()}):
            say(line)
        try:
            ask(["scontrol", "update", f"jobid={self.job}", f"ExcNodeList={names}"], REQUEUE_S)
            say(f"started again on other nodes than {names}")
        except SchedulerSilent as silent:
            say(f"nodes {names} could not be left out: {silent}")

    def _others_work_on(self, left: list[str]) -> bool:
        """Whether another lane of the plan that is in the queue has what these runs wait for."""
        near = {run.run_id for run in part_of(self.plan, left).runs}
        try:
            there = {f"{task.job}_{task.task}" for task in queue() if task.task is not None}
        except SchedulerSilent as silent:
            say(f"{silent}: it is taken that no other lane works on what is left")
            return False
        lanes = lanes_of(chunks(self.store, self.plan.name))
        makers = {str(lane) for name, lane in lanes.items() if name in near}
        return bool(there & makers - {self.job})

    def _again(self, why: str, before: str | None) -> str:
        """Have this array task queued again, unless it was cancelled or gets nowhere. `before` is how far its
        runs were when it began; None if that does not count.
        """
        warned = STOP.request is not None and STOP.request.signal_name in WARNINGS
        if STOP.request is not None and not warned and not self._still_wanted():
            return f"{why}: cancelled, so it is not queued again; submit again to go on"
        vain = self._vain(before) if before is not None and warned else 0
        if vain >= attempts_allowed():
            say(
                f"{why}: {vain} times in a row the time limit came before a new step, so it is not queued "
                "again; give jobs more time (slurm: time), or warn them earlier (slurm: signal_delay_s)"
            )
            sys.exit(1)
        refused = self._requeue()
        if refused is not None:
            say(f"{why}: could not be queued again ({refused}); submit again to go on")
            sys.exit(1)
        return f"{why}: queued again"

    def _requeue(self) -> str | None:
        """Ask for it until the controller answers or time is over; why it was refused, None if it was not."""
        deadline = time.monotonic() + REQUEUE_WITHIN_S
        while True:
            try:
                ask(["scontrol", "requeue", self.job], REQUEUE_S)
                return None
            except SchedulerSilent as silent:
                if not NOBODY_THERE.search(str(silent)) or time.monotonic() > deadline:
                    return str(silent)
                time.sleep(REQUEUE_PAUSE_S)

    def _still_wanted(self) -> bool:
        """After SIGTERM: a job that is preempted still counts as running, one that was cancelled does not."""
        try:
            tasks = queue()
        except SchedulerSilent as silent:
            say(f"{silent}: it is taken that the job was cancelled")
            return False
        return any(f"{task.job}_{task.task}" == self.job and task.state == "RUNNING" for task in tasks)

    def _vain(self, before: str) -> int:
        """Time limits in a row, this one included, that came before a new step; 0 if this is none."""
        if not self._by_time_limit():
            return 0  # a preemption: it may come at any time, and as often as it likes
        file = self.folder / "lanes" / f"{self.job}.json"
        tries = read_json(file, Tries) if file.exists() else Tries()
        now = self.progress()
        vain = tries.vain + 1 if now == before else 0
        write_atomically(file, pretty_json(Tries(vain=vain, progress=now)))
        return vain

    def _by_time_limit(self) -> bool:
        """Whether the warning was that of the time limit: a preemption moves the end of a job forward."""
        end, asked = self.ends_unix_s, STOP.request
        if end is None or asked is None or _end_unix_s(self.job) != end:
            return False
        delay_s = 0 if self.record.profile is None else self.record.profile.signal_delay_s
        return asked.unix_s >= end - delay_s - LIMIT_SLACK_S

    def progress(self) -> str:
        return "; ".join(how_far(RunDir(self.store, name)) for name in self.own)


def _end_unix_s(job: str) -> float | None:
    """When Slurm would end a job; None where it does not say."""
    try:
        text = ask(["squeue", "--noheader", f"--jobs={job}", "--format=%e"]).strip()
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except (SchedulerSilent, ValueError):
        return None


def say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}", flush=True)
