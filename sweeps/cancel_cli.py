"""`salt-sweep cancel`: take a plan's jobs out of the queue, or stop what runs on in the background here."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.errors import UserError, shown
from salt.plans import read_plan
from salt.store import store_path
from sweeps.command import STUDY_HELP, add_command, choose, print_json

if TYPE_CHECKING:
    from salt.plan_specs import Plan
    from slurm.records import LaneRef, Sent, SubmissionRecord
    from slurm.scheduler import QueuedTask
    from slurm.states import Standing


def add_cancel(commands: Any) -> None:
    parser = add_command(
        commands,
        "cancel",
        _cancel,
        "take a plan's jobs out of the queue",
        "Cancel the jobs of a plan that wait or run, or only those of some runs. Runs save what they have;\n"
        "no file is removed, and submitting again goes on. Also stops a local submission that was left\n"
        "running with --detach on this machine.",
        [
            "salt-sweep cancel study",
            "salt-sweep cancel study 3f2a91c0 77b0      # only the jobs of these runs",
            "salt-sweep cancel study 3f2a91c0 --with-others",
        ],
    )
    parser.add_argument("study", nargs="?", metavar="STUDY", help=STUDY_HELP)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="ids of runs, or their first characters")
    parser.add_argument(
        "--with-others",
        action="store_true",
        help="also where other runs that are not done are in the same job",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")


@dataclass
class Cancelled:
    """What is to be cancelled: lanes with what they are doing and their unfinished runs, and processes."""

    lanes: dict[LaneRef, tuple[QueuedTask, list[str]]] = field(default_factory=dict)
    tasks_of: dict[str, int] = field(default_factory=dict)  # tasks in the queue, by job
    local: list[SubmissionRecord] = field(default_factory=list)

    def ids(self) -> list[str]:
        """What scancel is given: a whole job where all of it goes, else its tasks."""
        by_job: dict[str, list[LaneRef]] = {}
        for lane in self.lanes:
            by_job.setdefault(lane.job, []).append(lane)
        found: list[str] = []
        for job, lanes in by_job.items():
            found += [job] if len(lanes) == self.tasks_of[job] else [str(lane) for lane in lanes]
        return found


def _cancel(args: argparse.Namespace) -> int:
    from slurm.names import run_names
    from slurm.states import assess
    from sweeps.logs_cli import find_run
    from sweeps.submit_cli import agreed

    store = store_path(args.store)
    plan = read_plan(store, choose(store, args.study))
    chosen = frozenset(find_run(plan, text) for text in args.runs)
    standings = assess(store, plan)
    found = _find(store, plan, standings, chosen, args.with_others)
    names = {run_id: str(name) for run_id, name in run_names(plan).items()}
    if not found.lanes and not found.local:
        if args.json:
            print_json(_data(plan, found))
        else:
            print(f"plan {plan.name}: nothing to cancel: no job of it waits or runs")
        return 0
    for line in _lines(found, names):
        _say(line)
    if not args.yes and not agreed(f"cancel {_what(found)}?"):
        _say("nothing was cancelled")
        return 1
    _do(plan, found)
    if args.json:
        print_json(_data(plan, found))
    else:
        print(f"plan {plan.name}: cancelled {_what(found)}; no file is removed; submit again to go on")
    return 0


def _find(
    store: Path, plan: Plan, standings: dict[str, Standing], chosen: frozenset[str], with_others: bool
) -> Cancelled:
    """Raises `UserError` where the queue does not answer, or others' runs would go too."""
    from slurm.records import chunks, submissions
    from slurm.states import State

    found = Cancelled()
    open_runs = {name for name, standing in standings.items() if standing.state is not State.DONE}
    sent = chunks(store, plan.name)
    if sent:
        _find_lanes(plan, sent, open_runs, chosen, found)
    found.local = _local([record for _, record in submissions(store, plan.name)], standings)
    if found.local and chosen and not with_others:
        raise UserError(
            f"process {found.local[0].process} on this machine runs all of plan {plan.name}: cancelling it "
            "stops other runs too; add --with-others, or name no run"
        )
    others = {name: lane for lane, (_, runs) in found.lanes.items() for name in runs if name not in chosen}
    if chosen and others and not with_others:
        some = ", ".join(f"{name} (job {lane})" for name, lane in list(others.items())[:10])
        more = f", and {len(others) - 10} more" if len(others) > 10 else ""
        raise UserError(
            f"the same jobs have other runs that are not done: {some}{more}; name them too, or add "
            "--with-others"
        )
    return found


def _find_lanes(
    plan: Plan, sent: Sequence[Sent], open_runs: set[str], chosen: frozenset[str], found: Cancelled
) -> None:
    from slurm.records import LaneRef, live, with_jobs
    from slurm.scheduler import MUST_S, SchedulerSilent, queue

    try:
        tasks = queue(MUST_S, users={each.folder.stat().st_uid for each in sent})
    except SchedulerSilent as silent:
        raise UserError(f"plan {plan.name}: nothing was cancelled: {silent}") from silent
    there = live(tasks)
    for task in there:
        found.tasks_of[task.job] = found.tasks_of.get(task.job, 0) + 1
    for each in with_jobs(sent, tasks):
        for place, lane in enumerate(each.chunk.lanes if each.chunk.job is not None else ()):
            reference = LaneRef(job=str(each.chunk.job), task=place)
            runs = [name for name in lane.runs if name in open_runs]
            if reference in there and (not chosen or chosen & set(runs)):
                found.lanes[reference] = (there[reference], runs)


def _local(records: Sequence[SubmissionRecord], standings: dict[str, Standing]) -> list[SubmissionRecord]:
    """Local submissions that run on by themselves here.

    Raises:
        UserError: one runs on another machine, by the claims of its runs.
    """
    from salt.processes import lives, machine

    held = {
        standing.claim.holder.machine
        for standing in standings.values()
        if standing.claim is not None and standing.claim.holder is not None and not standing.claim.stale
    }
    found = []
    for record in records:
        if record.on != "local" or record.process is None:
            continue
        if record.machine == machine():
            if lives(record.process, record.started):
                found.append(record)
        elif record.machine in held:
            raise UserError(
                f"submission {record.submission} of plan {record.plan} runs as process {record.process} on "
                f"{record.host}: run `salt-sweep cancel {record.plan}` there"
            )
    return found


def _do(plan: Plan, found: Cancelled) -> None:
    from slurm.scheduler import MUST_S, SchedulerSilent, ask

    for record in found.local:
        if record.process is not None:
            os.kill(record.process, signal.SIGTERM)
    if found.lanes:
        try:
            ask(["scancel", *found.ids()], MUST_S)
        except SchedulerSilent as silent:
            raise UserError(
                f"plan {plan.name}: {silent}; `salt-sweep status {plan.name}` tells what is in the queue"
            ) from silent


def _what(found: Cancelled) -> str:
    parts = []
    if found.lanes:
        runs = {name for _, names in found.lanes.values() for name in names}
        parts.append(f"{_count(len(found.lanes), 'job')} with {_count(len(runs), 'unfinished run')}")
    parts += [f"process {record.process} on this machine" for record in found.local]
    return " and ".join(parts)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _lines(found: Cancelled, names: dict[str, str]) -> list[str]:
    """What will be cancelled, running jobs first."""
    order = sorted(found.lanes.items(), key=lambda item: (item[1][0].state == "PENDING", int(item[0].job)))
    lines = []
    for lane, (task, runs) in order[:50]:
        where = f"{task.state.lower()} on {task.nodes}" if task.nodes else task.state.lower()
        what = "; ".join(f"{names[name]} ({name})" for name in runs[:5]) or "nothing left to do"
        more = f"; and {len(runs) - 5} more" if len(runs) > 5 else ""
        lines.append(shown(f"job {lane}, {where}: {what}{more}"))
    if len(order) > 50:
        lines.append(f"and {len(order) - 50} more jobs")
    lines += [f"process {each.process} on this machine: {each.workers} workers" for each in found.local]
    return lines


def _data(plan: Plan, found: Cancelled) -> dict[str, Any]:
    return {
        "plan": plan.name,
        "jobs": found.ids(),
        "lanes": {str(lane): runs for lane, (_, runs) in found.lanes.items()},
        "processes": [record.process for record in found.local],
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
