"""`salt-analyze verify`."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from analysis.command import Command, Job
from salt.errors import UserError
from salt.plans import choose_plan, plan_dir

#: Differences shown on a terminal; `--json` has them all.
SHOWN = 40


def arguments(parser: argparse.ArgumentParser) -> None:
    """All options: this command is given a report, not a study."""
    parser.add_argument(
        "report", nargs="?", metavar="REPORT", help="folder of a report (default: that of the newest plan)"
    )
    parser.add_argument("--store", metavar="DIR", help="run store (default: $SALT_STORE, else ./salt-store)")
    parser.add_argument(
        "--from-table",
        action="store_true",
        help="compute from the table that lies in the report, without a run store",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")


def run(job: Job) -> int:
    """Make the report again, compare, and say what is stale; 1 where something is."""
    options, store = job.options, job.store
    if options.report is None:
        out = store / "reports" / choose_plan(store, None)
        job.say(f"report: {out} (of the newest plan)")
    else:
        out = Path(options.report)
    from analysis.report_manifest import read_manifest
    from analysis.report_source import again
    from analysis.verify import verify

    manifest = read_manifest(out)
    needs_store = not options.from_table and manifest.table is None
    if needs_store and not (plan_dir(store, manifest.name) / "plan.jsonl").is_file():
        raise UserError(
            f"plan {manifest.name!r} is not in {store}: name the run store with --store, or compute from the "
            "table in the report with --from-table"
        )
    source, table, of = again(out, manifest, store, options.from_table)
    found = verify(out, table, source, of, lambda text: job.say(f"verify: {text}"))
    if options.json:
        print(json.dumps({"report": str(out), "stale": found.stale} | asdict(found), indent=2))
        return int(found.stale)
    print(
        f"{out}: {found.texts:,} texts of the page, {found.cells:,} cells of data and {found.pictures} "
        "pictures "
        f"compared with what {found.of} gives"
    )
    for difference in found.differences[:SHOWN]:
        print(f"stale: {difference}")
    if len(found.differences) > SHOWN:
        print(f"and {len(found.differences) - SHOWN:,} more: --json lists all")
    for cause in found.causes:
        print(f"{'cause' if found.stale else 'noted, without effect'}: {cause}")
    print(f"{len(found.differences):,} differences" if found.stale else "nothing is stale")
    return int(found.stale)


COMMAND = Command(
    name="verify",
    text="Compute every number and figure of a report again, and list what is stale, and why.",
    examples=(
        "salt-analyze verify                                    the newest plan's report",
        "salt-analyze verify salt-store/reports/miniature",
        "salt-analyze verify report/ --from-table               on a laptop, from the table inside",
        "salt-analyze verify report/ --json > stale.json",
    ),
    run=run,
    arguments=arguments,
    common=False,
)
