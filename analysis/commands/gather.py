"""`salt-analyze gather`."""

from __future__ import annotations

import argparse
import json

from analysis.command import Command, Job, only
from salt.errors import UserError


def arguments(parser: argparse.ArgumentParser) -> None:
    """Options of its own."""
    parser.add_argument("--parquet", action="store_true", help="write gathered.parquet too (needs pyarrow)")


def run(job: Job) -> None:
    """Write the table, scores or none yet, and print what is in it by arm and state."""
    if job.options.parquet:
        from analysis.foreign_file import require_pyarrow

        require_pyarrow("--parquet")
    from analysis.gather_tables import counts, counts_table, write_parquet
    from analysis.records import records, write_csv

    if job.options.table:
        from analysis.foreign import read_table

        table = read_table(job.options.table, job.options.columns)
    else:
        from analysis.gather import gather

        table = gather(job.store, job.name)
    if table.empty:
        raise UserError(f"plan {job.name!r} in {job.store} has no cells: plan the study again")
    table = only(only(table, "label", job.options.label), "kind", job.options.probe)
    paths = [write_csv(table, job.out / "gathered.csv")]
    if job.options.parquet:
        paths.append(write_parquet(table, job.out / "gathered.parquet"))
    found, notes = counts(table), [str(note) for note in table.attrs.get("notes", [])]
    if job.options.json:
        about = {name: str(table[name].iloc[0]) for name in ("plan", "charge", "convention")}
        parts = {"rows": len(table), "counts": records(found), "notes": notes}
        print(json.dumps(about | parts | {"files": [str(path) for path in paths]}, allow_nan=False, indent=2))
        return
    job.print_tables(
        [counts_table(found)], footer="A row is a score: a cell (or teacher), probe, label and frames."
    )
    job.print_lines(notes)
    for path in paths:
        print(f"table: {path} ({len(table)} rows, {len(table.columns)} columns)")


COMMAND = Command(
    name="gather",
    text="All runs as one tidy table: CSV, or Parquet too.",
    examples=(
        "salt-analyze gather                      the newest plan of ./salt-store",
        "salt-analyze gather miniature --parquet",
        "salt-analyze gather --table results.csv --columns compute=flops,metric=top1%",
    ),
    run=run,
    arguments=arguments,
)
