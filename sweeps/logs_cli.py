"""`salt-sweep logs`: what workers and lanes said about one run."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.errors import UserError, shown
from salt.plans import read_plan
from salt.store import RunDir, store_path
from sweeps.command import add_command, choose, print_json

if TYPE_CHECKING:
    from salt.plan_specs import Plan
    from slurm.run_logs import Section

LINES = 200
FOLLOW_EVERY_S = 1.0


def add_logs(commands: Any) -> None:
    parser = add_command(
        commands,
        "logs",
        _logs,
        "what workers and jobs said about one run",
        "Print the part of the workers' logs that is about a run, the newest attempt last, and what its job\n"
        "itself said. Reads files only.",
        [
            "salt-sweep logs 3f2a91c0           # the first characters of an id are enough",
            "salt-sweep logs 3f2a91c0 --plan study --lines 1000",
            "salt-sweep logs 3f2a91c0 --follow",
        ],
    )
    parser.add_argument("run_id", metavar="RUN", help="a run's id, or its first characters")
    parser.add_argument("--plan", metavar="STUDY", help="a plan's name (default: the newest plan)")
    parser.add_argument(
        "--follow", action="store_true", help="go on as the log grows, until it ends or Ctrl-C"
    )
    parser.add_argument(
        "--lines", type=int, default=LINES, metavar="N", help=f"at most the last N lines (default: {LINES})"
    )


def find_run(plan: Plan, text: str) -> str:
    """The run of a plan whose id begins so. Raises `UserError` for none or several."""
    found = [run.run_id for run in plan.runs if run.run_id.startswith(text)]
    if text in found:
        return text
    if len(found) != 1 or not text:
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        what = (
            f"several runs begin so: {some}" if found else "no run begins so; `salt-sweep status` lists them"
        )
        raise UserError(f"run {text!r} of plan {plan.name}: {what}")
    return found[0]


def _logs(args: argparse.Namespace) -> int:
    from slurm.names import run_names
    from slurm.run_logs import lane_logs

    if args.lines < 1:
        raise UserError(f"--lines {args.lines}: give at least 1")
    if args.follow and args.json:
        raise UserError("--follow with --json: leave one out")
    store = store_path(args.store)
    plan = read_plan(store, choose(store, args.plan))
    run_id = find_run(plan, args.run_id)
    name = str(run_names(plan)[run_id])
    found = _sections(store, plan.name, run_id)
    lanes = lane_logs(store, plan.name, run_id)
    if not found and not lanes and not args.follow:
        raise UserError(
            f"run {run_id} ({name}): no log says anything about it; looked in "
            f"{store / 'jobs' / plan.name}: worker-*.log, */workers/*.log, */logs/*_log.out and .err"
            + _also(RunDir(store, run_id))
        )
    if args.json:
        print_json(
            {
                "run_id": run_id,
                "name": name,
                "sections": [
                    {"path": str(each.path), "first_line": each.first, "lines": list(each.lines)}
                    for each in found
                ],
                "lane_logs": [str(path) for path in lanes],
            }
        )
        return 0
    _say(f"run {run_id}: {name}; {len(found)} attempts in workers' logs, the newest last")
    for path in reversed(lanes):
        print(f"==> {shown(path)} <==")
        _print(path.read_text(encoding="utf-8", errors="replace").splitlines()[-min(args.lines, 20) :])
    left = args.lines
    wanted: list[tuple[Section, list[str]]] = []
    for each in reversed(found):
        if left <= 0:
            break
        wanted.append((each, list(each.lines[-left:])))
        left -= len(each.lines)
    for each, lines in reversed(wanted):
        print(f"==> {shown(each.path)}, from line {each.first + len(each.lines) - len(lines)} <==")
        _print(lines)
    if args.follow:
        return _follow(store, plan.name, run_id, found)
    return 0


def _sections(store: Path, plan: str, run_id: str) -> list[Section]:
    """All that workers said about a run, the newest last."""
    from slurm.run_logs import sections, worker_logs

    return [each for path in reversed(worker_logs(store, plan)) for each in sections(path, run_id)]


def _follow(store: Path, plan: str, run_id: str, seen: list[Section]) -> int:
    """Print what is added, in whichever log, until an attempt ends; 0 at Ctrl-C as well."""
    told = {(each.path, each.first): len(each.lines) for each in seen}
    try:
        while True:
            found = _sections(store, plan, run_id)
            for each in found:
                key = (each.path, each.first)
                if key not in told:
                    print(f"==> {shown(each.path)}, from line {each.first} <==")
                _print(list(each.lines[told.get(key, 0) :]))
                told[key] = len(each.lines)
            if found and not found[-1].open:
                return 0
            time.sleep(FOLLOW_EVERY_S)
    except KeyboardInterrupt:
        return 0


def _also(folder: RunDir) -> str:
    return f"; its own files are in {folder.path}" if folder.path.exists() else "; it was never begun"


def _print(lines: list[str]) -> None:
    for line in lines:
        print(shown(line), flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
