"""`salt-analyze export`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msgspec

from analysis.command import Command, Job
from salt.plans import choose_plan


def arguments(parser: argparse.ArgumentParser) -> None:
    """All options."""
    parser.add_argument(
        "study", nargs="?", metavar="STUDY", help="name of a plan (default: the newest of the store)"
    )
    parser.add_argument("--store", metavar="DIR", help="run store (default: $SALT_STORE, else ./salt-store)")
    parser.add_argument("--to", metavar="FILE", help="the archive (default: STUDY.salt.tar.gz)")
    parser.add_argument(
        "--weights", action="store_true", help="with the weights of finished encoders, which may be large"
    )
    parser.add_argument(
        "--anonymous",
        action="store_true",
        help="without hosts, nodes, job and process numbers, and folders of this machine",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(job: Job) -> None:
    """Write the archive and say what is in it."""
    options, store = job.options, job.store
    name = choose_plan(store, options.study)
    if options.study is None:
        job.say(f"study: {name} (the newest plan in {store})")
    from analysis.archive import ENDING, export_study

    file = Path(options.to or f"{name}{ENDING}")
    contents = export_study(
        store, name, file, weights=options.weights, anonymous=options.anonymous, show=not options.json
    )
    size = file.stat().st_size
    if options.json:
        whole = msgspec.to_builtins(contents) | {"file": str(file), "bytes": size}
        print(json.dumps(whole, indent=2))
        return
    print(f"{file}: {size:,} bytes, {contents.runs:,} runs, {len(contents.files):,} files")
    if contents.unfinished:
        some = ", ".join(contents.unfinished[:6])
        print(f"{len(contents.unfinished)} of these runs have no result yet: {some}")
    print(f"to read it: salt-analyze import {file} --store DIR")


COMMAND = Command(
    name="export",
    text="A study as one file: plan, results, metrics, provenance; weights only if asked for.",
    examples=(
        "salt-analyze export",
        "salt-analyze export miniature --to results.salt.tar.gz --anonymous",
    ),
    run=run,
    arguments=arguments,
    common=False,
)
