"""`salt-sweep gc`: remove what submissions left behind that nobody reads any more."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.errors import UserError, shown
from salt.store import store_path
from sweeps.command import STUDY_HELP, add_command, choose, print_json

if TYPE_CHECKING:
    from slurm.leftovers import Leftovers


def add_gc(commands: Any) -> None:
    parser = add_command(
        commands,
        "gc",
        _gc,
        "remove what submissions left behind",
        "Remove scripts, pickles and empty logs of submissions whose jobs are all over, and code snapshots\n"
        "that no job and no unfinished run refers to. Runs are never touched. Shows what goes first.",
        [
            "salt-sweep gc                 # of all plans",
            "salt-sweep gc study --logs    # what jobs and workers said, too",
            "salt-sweep gc --yes",
        ],
    )
    parser.add_argument(
        "study", nargs="?", metavar="STUDY", help=STUDY_HELP.partition(" (")[0] + " (default: all)"
    )
    parser.add_argument("--logs", action="store_true", help="logs, too")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _gc(args: argparse.Namespace) -> int:
    from slurm.cluster import submit_lock
    from slurm.leftovers import find_leftovers, remove, size_bytes, submitted_plans
    from sweeps.submit_cli import agreed

    store = store_path(args.store)
    if not store.is_dir():
        raise UserError(f"{store}: there is no store; name one with --store or SALT_STORE")
    plans = submitted_plans(store) if args.study is None else [choose(store, args.study)]
    with ExitStack() as locks:  # nothing is sent meanwhile
        for plan in submitted_plans(store):
            locks.enter_context(submit_lock(store, plan, _say))
        found = find_leftovers(store, plans, logs=args.logs)
        sizes = {
            "scripts": size_bytes(found.scripts),
            "logs": size_bytes(found.logs),
            "code": size_bytes(found.code),
        }
        for line in _lines(store, found, sizes):
            _say(line)
        total = sum(sizes.values())
        if found and not args.yes and not agreed(f"remove {total:,} bytes?"):
            _say("nothing was removed")
            return 1
        remove(found)
    if args.json:
        kinds = {name: [str(path) for path in getattr(found, name)] for name in sizes}
        print_json({"removed": kinds, "bytes": sizes, "kept": found.kept})
    else:
        print(f"{store}: removed {total:,} bytes" if found else f"{store}: nothing to remove")
    return 0


def _lines(store: Path, found: Leftovers, sizes: dict[str, int]) -> list[str]:
    what = {
        "scripts": "scripts, pickles and empty logs of jobs that are over",
        "logs": "logs of jobs and workers that are over",
        "code": "code snapshots that nothing refers to",
    }
    lines = []
    for name, text in what.items():
        paths: list[Path] = getattr(found, name)
        if not paths:
            continue
        folders = sorted({str(path.parent.relative_to(store)) for path in paths})
        more = f", and {len(folders) - 5} more folders" if len(folders) > 5 else ""
        lines.append(f"{text}: {len(paths)}, {sizes[name]:,} bytes, in {', '.join(folders[:5])}{more}")
    return [shown(line) for line in [*lines, *found.kept]]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
