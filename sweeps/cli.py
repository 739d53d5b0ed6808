"""`salt-sweep`: plan a study, run it, say where it stands. Each command says more with `--help`."""

from __future__ import annotations

import argparse

from salt import __version__
from sweeps.benchmark_cli import add_benchmark
from sweeps.cancel_cli import add_cancel
from sweeps.completion_cli import add_completion
from sweeps.diff_cli import add_diff
from sweeps.gc_cli import add_gc
from sweeps.init_cli import add_init
from sweeps.ledger import add_ledger
from sweeps.logs_cli import add_logs
from sweeps.plan_cli import add_plan
from sweeps.recipe_cli import add_recipe
from sweeps.retry_cli import add_retry
from sweeps.schema_cli import add_schema
from sweeps.simulate_cli import add_simulate
from sweeps.site_cli import add_site
from sweeps.status_cli import add_status
from sweeps.submit_cli import add_submit
from sweeps.tune_cli import add_tune


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
    add_init(commands)
    add_plan(commands)
    add_simulate(commands)
    add_submit(commands)
    add_retry(commands)
    add_status(commands)
    add_logs(commands)
    add_cancel(commands)
    add_gc(commands)
    add_site(commands)
    add_diff(commands)
    add_ledger(commands)
    add_recipe(commands)
    add_tune(commands)
    add_benchmark(commands)
    add_schema(commands)
    add_completion(commands)
    return parser
