"""`salt-analyze import`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec

from analysis.command import Command, Job


def arguments(parser: argparse.ArgumentParser) -> None:
    """All options."""
    parser.add_argument("file", metavar="FILE", help="what `salt-analyze export` wrote")
    parser.add_argument(
        "--store", metavar="DIR", help="run store to put it into (default: $SALT_STORE, else ./salt-store)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(job: Job) -> None:
    """Put a study into a run store and say what is new in it."""
    from analysis.archive_import import import_study

    contents, new, there = import_study(Path(job.options.file), job.store)
    if job.options.json:
        about = msgspec.to_builtins(contents)
        del about["files"]
        print(json.dumps(about | {"store": str(job.store), "new_runs": new, "runs_there": there}, indent=2))
        return
    was = f", {there:,} were there already" if there else ""
    print(f"plan {contents.plan} in {job.store}: {new:,} new runs{was}")
    if contents.unfinished:
        print(f"{len(contents.unfinished)} of {contents.runs} runs had no result when it was exported")
    store = f" --store {job.options.store}" if job.options.store else ""
    print(f"next: salt-analyze pareto {contents.plan}{store}")


COMMAND = Command(
    name="import",
    text="Put an exported study into a run store; what is there is never replaced.",
    examples=(
        "salt-analyze import miniature.salt.tar.gz",
        "salt-analyze import miniature.salt.tar.gz --store elsewhere",
    ),
    run=run,
    arguments=arguments,
    common=False,
)
