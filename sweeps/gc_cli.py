"""`salt-sweep gc`: remove what submissions left behind that nobody reads any more."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.errors import UserError, shown
from salt.plans import read_plan
from salt.store import store_path
from sweeps.command import STUDY_HELP, add_command, choose, print_json

if TYPE_CHECKING:
    from slurm.leftovers import Leftovers


_WHAT = {
    "files": "scripts, pickles and empty logs of jobs that are over",
    "temporaries": "temporary files of processes that are gone",
    "logs": "logs of jobs and workers that are over",
    "code": "code that no job and no unfinished plan refers to",
}


def add_gc(commands: Any) -> None:
    parser = add_command(
        commands,
        "gc",
        _gc,
        "remove what submissions left behind",
        "Remove scripts, pickles and empty logs of submissions whose jobs are all over, and temporary files\n"
        "of processes that are gone. Runs, plans, caches and records of what was sent are never touched.\n"
        "Says first what goes and how much it is.",
        [
            "salt-sweep gc                 # of all plans",
            "salt-sweep gc study --logs    # what jobs and workers said, too",
            "salt-sweep gc --code --yes    # copies of the code that jobs ran, too",
        ],
    )
    parser.add_argument(
        "studies", nargs="*", metavar="STUDY", help=STUDY_HELP.partition(" (")[0] + " (default: all)"
    )
    parser.add_argument("--logs", action="store_true", help="all logs, too")
    parser.add_argument(
        "--code", action="store_true", help="code that no job and no unfinished plan refers to, too"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _gc(args: argparse.Namespace) -> int:
    from slurm.cluster import submit_lock
    from slurm.leftovers import find_leftovers, remove, size_bytes, submitted_plans
    from sweeps.submit_cli import agreed

    store = store_path(args.store)
    if not store.is_dir():
        raise UserError(f"{store}: there is no store; name one with --store or SALT_STORE")
    submitted = submitted_plans(store)
    plans = [choose(store, study) for study in args.studies] or submitted
    for plan in plans:
        if plan not in submitted:
            read_plan(store, plan)  # refuses what is no plan at all
    with ExitStack() as locks:  # nothing is sent meanwhile
        for plan in submitted:
            if args.code or plan in plans:
                locks.enter_context(submit_lock(store, plan, _say))
        found = find_leftovers(store, plans, logs=args.logs, code=args.code)
        sizes = {name: size_bytes(paths) for name, paths in found.kinds().items()}
        total = sum(sizes.values())
        for line in _lines(store, found, sizes):
            _say(line)
        if found and not args.yes and not agreed(f"remove {total:,} bytes?"):
            _say("nothing was removed")
            return 1
        failed = remove(found)
    if failed:
        more = f", and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise UserError(f"not all could be removed: {'; '.join(failed[:5])}{more}")
    if args.json:
        removed = {name: [str(path) for path in paths] for name, paths in found.kinds().items()}
        print_json({"removed": removed, "bytes": sizes, "kept": found.kept})
    else:
        print(shown(f"{store}: removed {total:,} bytes" if found else f"{store}: nothing to remove"))
    return 0


def _lines(store: Path, found: Leftovers, sizes: dict[str, int]) -> list[str]:
    """What goes, how much it is and where; what stays, and why."""
    lines = []
    for name, paths in found.kinds().items():
        if not paths:
            continue
        folders = sorted({str(path.parent.relative_to(store)) for path in paths})
        more = f", and {len(folders) - 5} more folders" if len(folders) > 5 else ""
        lines.append(f"{_WHAT[name]}: {len(paths)}, {sizes[name]:,} bytes, in {', '.join(folders[:5])}{more}")
    return [shown(line) for line in [*lines, *found.kept]]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
