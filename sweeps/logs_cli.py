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
from sweeps.command import STUDY_HELP, add_command, choose, print_json

if TYPE_CHECKING:
    from salt.plan_specs import Plan
    from slurm.run_logs import Part, RunLogs

LINES = 200
FOLLOW_EVERY_S = 1.0
#: A worker says how a run ended after it has given it back: so many looks more.
LOOKS_AFTER = 3


def add_logs(commands: Any) -> None:
    parser = add_command(
        commands,
        "logs",
        _logs,
        "what workers and jobs said about one run",
        "Print what workers' logs say about a run, the newest attempt last, with what its jobs and Slurm\n"
        "said meanwhile or when they ended under it. Reads files only.",
        [
            "salt-sweep logs 3f2a91c0           # the first characters of an id are enough",
            "salt-sweep logs 3f2a91c0 --plan study --lines 1000",
            "salt-sweep logs 3f2a91c0 --follow",
        ],
    )
    parser.add_argument("run_id", metavar="RUN", help="a run's id, or its first characters")
    parser.add_argument("--plan", metavar="STUDY", help=STUDY_HELP)
    parser.add_argument(
        "--follow", action="store_true", help="go on while a worker has the run, or until Ctrl-C"
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
    from slurm.run_logs import RunLogs

    if args.lines < 1:
        raise UserError(f"--lines {args.lines}: give at least 1")
    if args.follow and args.json:
        raise UserError("--follow with --json: leave one out")
    store = store_path(args.store)
    plan = read_plan(store, choose(store, args.plan))
    run_id = find_run(plan, args.run_id)
    name = str(run_names(plan)[run_id])
    logs = RunLogs(store, plan.name, run_id)
    parts = logs.parts()
    for problem in logs.problems:
        _say(problem)
    if not parts and not (args.follow and _active(store, run_id)):
        raise UserError(
            f"run {run_id} ({name}): no log says anything about it; looked in {logs.folder}: worker-*.log, "
            f"*/local.log, */workers/*.log, */logs/*_log.out and .err{_also(store, plan, run_id)}"
        )
    if args.json:
        print_json({"run_id": run_id, "name": name, "parts": [_data(part) for part in parts]})
        return 0
    _say(f"run {run_id}: {name}")
    for part, lines in _last(parts, args.lines):
        _print(part, lines)
    return _follow(logs, parts) if args.follow else 0


def _last(parts: list[Part], most: int) -> list[tuple[Part, tuple[str, ...]]]:
    """The last lines of all parts together, in their order."""
    found: list[tuple[Part, tuple[str, ...]]] = []
    for part in reversed(parts):
        if most <= 0:
            break
        found.append((part, part.lines[-most:]))
        most -= len(part.lines)
    return found[::-1]


def _follow(logs: RunLogs, parts: list[Part]) -> int:
    """Print what is added, in whichever log, while a worker has the run; 0 at Ctrl-C as well."""
    told = {(part.path, part.first): len(part.lines) for part in parts}
    last = parts[-1].path if parts else None
    looks = 0
    try:
        while True:
            active = _active(logs.store, logs.run_id)
            parts = logs.parts()
            for part in parts:
                key = (part.path, part.first)
                new = part.lines[told.get(key, 0) :]
                if new:
                    _print(part, new, head=part.path != last or key not in told)
                    told[key], last = len(part.lines), part.path
            workers = [part for part in parts if part.kind == "worker"]
            looks = 0 if active else looks + 1
            if not active and (looks > LOOKS_AFTER or not (workers and workers[-1].open)):
                _say(f"run {logs.run_id}: no worker has it")
                return 0
            time.sleep(FOLLOW_EVERY_S)
    except KeyboardInterrupt:
        return 0


def _active(store: Path, run_id: str) -> bool:
    from salt.claim import read_claim

    claim = read_claim(RunDir(store, run_id))
    return claim is not None and not claim.stale


def _also(store: Path, plan: Plan, run_id: str) -> str:
    """What else can be looked at."""
    from slurm.states import MEANING, assess

    folder = RunDir(store, run_id)
    state = assess(store, plan)[run_id].state
    where = f"; its own files are in {folder.path}" if folder.path.exists() else ""
    return f"; it is {state}: {MEANING[state]}{where}"


def _data(part: Part) -> dict[str, Any]:
    return {
        "kind": part.kind,
        "path": str(part.path),
        "first_line": part.first,
        "began": part.began.isoformat(timespec="seconds"),
        "open": part.open,
        "attempts": [{"number": each.number, **each.about} for each in part.attempts],
        "lines": list(part.lines),
    }


def _print(part: Part, lines: tuple[str, ...], *, head: bool = True) -> None:
    if head:
        place = f", from line {part.first + len(part.lines) - len(lines)}" if part.kind == "worker" else ""
        about = "".join(f"; {each}" for each in part.attempts)
        print(f"==> {shown(part.path)}{place}{shown(about)} <==")
    for line in lines:
        print(shown(line), flush=True)


def _say(text: str) -> None:
    print(shown(text), file=sys.stderr, flush=True)
