"""What a submission would send: missing runs that no job in the queue has, as arrays of lanes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from salt.plan_specs import Plan, PlannedRun
from salt.store import RunDir
from slurm.lanes import Array, PlannedLane, Wishes, arrays, plan_lanes
from slurm.profile import SlurmProfile
from slurm.records import LaneRef, Sent, live
from slurm.scheduler import QueuedTask, SchedulerSilent, ask, configuration
from slurm.states import ACTIVE, STUCK, Standing, State, absent_states

#: Slurm's own default of MaxArraySize (slurm.conf's manual).
DEFAULT_ARRAY_SIZE = 1001


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the cluster takes: tasks of one array, and jobs of this user at once (None: no limit is known)."""

    array: int
    jobs: int | None


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Every run of a plan is in one of `done`, `queued`, `busy`, `stuck`, `missing`."""

    done: int
    queued: Mapping[str, LaneRef]  # in a lane that waits or runs
    busy: tuple[str, ...]  # held by a process that no lane of ours is
    stuck: Mapping[str, Standing]  # let be: failed, given up, blocked, ...
    missing: tuple[PlannedRun, ...]
    lanes: tuple[PlannedLane, ...]  # those to send, makers first
    arrays: tuple[Array, ...]
    left_out: tuple[str, ...]  # missing runs beyond the cluster's limit on jobs
    prepares: bool  # clips are to be decoded first, by an array of their own
    prepared_by: LaneRef | None  # the live lane that does that already
    tasks_of: Mapping[str, int] = field(default_factory=dict)  # of jobs in the queue


def find_limits(profile: SlurmProfile) -> Limits:
    """The profile's limits, else the cluster's. Raises `SchedulerSilent` where only `scontrol` could tell."""
    array = profile.max_array_size
    if array is None:
        text = configuration().get("MaxArraySize", str(DEFAULT_ARRAY_SIZE))
        array = int(text) if text.isdigit() else DEFAULT_ARRAY_SIZE
    jobs = profile.max_submit_jobs
    if jobs is None:
        jobs = _accounts_limit()
    return Limits(array=max(1, array), jobs=jobs)


def _accounts_limit() -> int | None:
    """The least limit on jobs at once that accounting knows for this user; None where it knows none."""
    command = ["sacctmgr", "--noheader", "--parsable2", "show", "associations", f"user={_user()}"]
    try:
        text = ask([*command, "format=MaxSubmitJobs,GrpSubmitJobs"])
    except SchedulerSilent:
        return None  # no accounting: then nothing enforces such limits either
    found = [int(each) for line in text.splitlines() for each in line.split("|") if each.isdigit()]
    return min(found) if found else None


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def propose(
    store: Path,
    plan: Plan,
    standings: Mapping[str, Standing],
    sent: Sequence[Sent],
    tasks: Sequence[QueuedTask],
    wishes: Wishes,
    limits: Limits,
    *,
    clips_ready: bool = True,
    only: frozenset[str] | None = None,
) -> Proposal:
    """What to send, given where runs stand, what was sent before (`records.with_jobs`) and what is queued.

    With `only` no other runs are sent, but for those that they begin from.
    """
    there = live(tasks)
    queued: dict[str, LaneRef] = {}
    tails: dict[int, LaneRef] = {}
    prepared_by, extra = None, 10**6
    for each in sent:
        if each.chunk.job is None:
            continue
        for task, lane in enumerate(each.chunk.lanes):
            reference = LaneRef(job=each.chunk.job, task=task)
            if reference not in there:
                continue
            queued |= dict.fromkeys(lane.runs, reference)
            if each.chunk.prepares:
                prepared_by = reference
            elif lane.slot is not None:
                tails[lane.slot] = reference
            else:  # sent without a cap: it counts against one of now
                extra += 1
                tails[extra] = reference
    queued = {
        name: lane for name, lane in queued.items()
        if name in standings and standings[name].state not in (State.DONE, *STUCK)
    }  # fmt: skip
    missing = tuple(
        run
        for run in plan.runs
        if run.run_id not in queued and standings[run.run_id].state not in (State.DONE, *ACTIVE, *STUCK)
    )
    if only is not None:
        wanted = _with_makers(plan, only)
        missing = tuple(run for run in missing if run.run_id in wanted)
    specs = {run.run_id: run.spec for run in plan.runs}
    needs = {run.run_id: absent_states(store, run.spec, specs) for run in missing}
    lanes = plan_lanes(needs, queued, wishes, tails)
    kept = len(lanes) if limits.jobs is None else max(0, min(len(lanes), limits.jobs - len(tasks)))
    prepares = bool(lanes) and not clips_ready and prepared_by is None
    if prepares and kept < len(lanes):
        kept = max(0, kept - 1)
    return Proposal(
        done=sum(standing.state is State.DONE for standing in standings.values()),
        queued=queued,
        busy=tuple(name for name, each in standings.items() if each.state in ACTIVE and name not in queued),
        stuck={name: each for name, each in standings.items() if each.state in STUCK},
        missing=missing,
        lanes=tuple(lanes[:kept]),
        arrays=tuple(arrays(lanes[:kept], limits.array)),
        left_out=tuple(name for lane in lanes[kept:] for name in lane.lane.runs),
        prepares=prepares and kept > 0,
        prepared_by=prepared_by,
        tasks_of={each.chunk.job: len(each.chunk.lanes) for each in sent if each.chunk.job is not None},
    )


def _with_makers(plan: Plan, only: frozenset[str]) -> set[str]:
    from slurm.worker import part_of

    return {run.run_id for run in part_of(plan, sorted(only)).runs}


def first_started(store: Path, runs: Sequence[PlannedRun]) -> int:
    """How many of these runs have been begun: they are resumed."""
    return sum(RunDir(store, run.run_id).env.exists() for run in runs)
