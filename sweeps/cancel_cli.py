"""`salt-sweep cancel`: take a plan's jobs out of the queue, or stop what runs on in the background here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from salt.errors import UserError, shown
from salt.plans import read_plan
from salt.store import store_path
from sweeps.command import STUDY_HELP, add_command, choose, print_json

if TYPE_CHECKING:
    from salt.plan_specs import Plan
    from slurm.cancel import Cancelled
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


def _cancel(args: argparse.Namespace) -> int:
    from slurm.cancel import cancel, find_live
    from slurm.names import run_names
    from slurm.states import assess
    from sweeps.logs_cli import find_run
    from sweeps.submit_cli import agreed

    store = store_path(args.store)
    plan = read_plan(store, choose(store, args.study))
    chosen = frozenset(find_run(plan, text) for text in args.runs)
    standings = assess(store, plan)
    found = find_live(store, plan.name, standings, chosen)
    if chosen and not args.with_others:
        _refuse_others(found, chosen)
    names = {run_id: str(name) for run_id, name in run_names(plan).items()}
    for damage in found.damages:
        _say(damage)
    if not found:
        if args.json:
            print_json(_data(found))
        else:
            which = "with a run of these to do " if chosen else ""
            print(f"plan {plan.name}: nothing to cancel: no job of it {which}waits or runs")
            _say_held(standings, chosen, names)
        return 0
    for line in [*_lines(found, names), *_followers(plan, chosen)]:
        _say(line)
    if not args.yes and not agreed(f"cancel {_what(found)}?"):
        _say("nothing was cancelled")
        return 1
    cancel(found)
    if args.json:
        print_json(_data(found))
    else:
        print(f"plan {plan.name}: cancelled {_what(found)}; no file is removed; submit again to go on")
    return 0


def _refuse_others(found: Cancelled, chosen: frozenset[str]) -> None:
    """Raise `UserError` where runs that were not named would be stopped, too."""
    if found.local:
        raise UserError(
            f"process {found.local[0].process} on this machine runs all of plan {found.plan}: cancelling it "
            "stops other runs too; add --with-others, or name no run"
        )
    others = found.others(chosen)
    if others:
        some = ", ".join(f"{name} (job {lane})" for name, lane in list(others.items())[:10])
        more = f", and {len(others) - 10} more" if len(others) > 10 else ""
        raise UserError(
            f"the same jobs have other runs that are not done: {some}{more}; name them too, or add "
            "--with-others"
        )


def _say_held(standings: Mapping[str, Standing], chosen: frozenset[str], names: dict[str, str]) -> None:
    """Processes that have runs without a job or a record: those that somebody started in the foreground."""
    held: dict[str, list[str]] = {}
    for name, standing in standings.items():
        claim = standing.claim
        if claim is not None and not claim.stale and claim.holder is not None and name in (chosen or names):
            held.setdefault(str(claim.holder), []).append(f"{names[name]} ({name})")
    for holder, runs in held.items():
        _say(f"{holder} works on {runs[0]}: stop it with Ctrl-C where it was started")


def _followers(plan: Plan, chosen: frozenset[str]) -> list[str]:
    """Runs that begin from those that are cancelled, if they are not themselves."""
    if not chosen:
        return []
    after = [
        run.run_id
        for run in plan.runs
        if run.run_id not in chosen
        and any(each is not None and each.run_id in chosen for each in (run.spec.teacher, run.spec.trunk))
    ]
    if not after:
        return []
    return [f"{_count(len(after), 'run')} cannot be made without these: {_some(after)}"]


def _some(run_ids: Sequence[str]) -> str:
    return ", ".join(run_ids[:5]) + (f", and {len(run_ids) - 5} more" if len(run_ids) > 5 else "")


def _what(found: Cancelled) -> str:
    parts = []
    if found.lanes:
        runs = {name for _, names in found.lanes.values() for name in names}
        what = f" with {_count(len(runs), 'unfinished run')}" if runs or not found.unknown else ""
        parts.append(_count(len(found.lanes), "job") + what)
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
        idle = "all its runs are done"
        if lane in found.preparing:
            idle = "decodes clips"
        elif lane in found.unknown:
            idle = "its runs are not known"
        what = "; ".join(f"{names[name]} ({name})" for name in runs[:5]) or idle
        more = f"; and {len(runs) - 5} more" if len(runs) > 5 else ""
        lines.append(shown(f"job {lane}, {where}: {what}{more}"))
    if len(order) > 50:
        lines.append(f"and {len(order) - 50} more jobs")
    for each in found.local:
        lines.append(f"process {each.process} on this machine: {_count(each.workers, 'worker')}")
    return lines


def _data(found: Cancelled) -> dict[str, Any]:
    return {
        "plan": found.plan,
        "jobs": found.ids(),
        "lanes": {str(lane): runs for lane, (_, runs) in found.lanes.items()},
        "processes": [record.process for record in found.local],
        "notes": found.damages,
    }


def _say(text: str) -> None:
    print(shown(text), file=sys.stderr, flush=True)
