"""`salt-sweep`: plan a study, run it, say where it stands. Each command says more with `--help`."""

from __future__ import annotations

import argparse
from typing import Any

from salt import __version__
from salt.plans import read_plan
from salt.store import store_path
from sweeps.benchmark_cli import add_benchmark
from sweeps.command import STUDY_HELP, add_command, choose, print_json, print_tables
from sweeps.diff_cli import add_diff
from sweeps.ledger import add_ledger
from sweeps.plan_cli import add_plan
from sweeps.recipe_cli import add_recipe
from sweeps.retry_cli import add_retry
from sweeps.submit_cli import add_submit


def main(argv: list[str]) -> int:
    """Run one command line; returns the exit code (0 well, 1 runs failed, 2 user's mistake)."""
    args = _parser().parse_args(argv)
    code: int = args.run(args)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="salt-sweep",
        description="Plan a study at matched FLOPs, run it, and say where it stands.",
        epilog="examples:\n"
        "  salt-sweep plan --budget 1e21\n"
        "  salt-sweep plan study.yaml\n"
        "  salt-sweep submit study --on local\n"
        "  salt-sweep status study",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"salt {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_plan(commands)
    add_submit(commands)
    add_retry(commands)
    _add_status(commands)
    add_diff(commands)
    add_ledger(commands)
    add_recipe(commands)
    add_benchmark(commands)
    return parser


def _add_status(commands: Any) -> None:
    parser = add_command(
        commands,
        "status",
        _status,
        "what is done, running, failed, blocked; what is left to pay",
        "Read the state of every run from the store's files. Changes nothing.",
        [
            "salt-sweep status study",
            "salt-sweep status            # the newest plan",
            "salt-sweep status study --json",
        ],
    )
    parser.add_argument("study", nargs="?", metavar="STUDY", help=STUDY_HELP)


# --- commands -------------------------------------------------------------------------------------


def _status(args: argparse.Namespace) -> int:
    import msgspec

    from slurm.status import plan_status, status_tables

    store = store_path(args.store)
    status = plan_status(store, read_plan(store, choose(store, args.study)))
    if args.json:
        print_json(msgspec.to_builtins(status))
    else:
        print_tables(status_tables(status))
    return 0
