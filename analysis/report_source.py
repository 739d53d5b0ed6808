"""What a report is made from: the plan in its store, with its question and the tuning that is on record."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from analysis.command import Job, only
from analysis.foreign import read_table
from analysis.gather import gather
from analysis.gathered_file import read_gathered
from analysis.report import FIGURES, GATHERED, read_question
from analysis.report_manifest import Manifest, Source
from analysis.tuning_record import read_tuning
from salt.plans import plan_dir


def source_of(job: Job) -> Source:
    """The source that a command line names."""
    options = job.options
    labels, probes = tuple(options.label or ()), tuple(options.probe or ())
    if options.table:
        question = f"Results of another project: {Path(options.table).name}."
        return Source(
            job.name,
            question,
            table=options.table,
            columns=options.columns,
            labels=labels,
            probes=probes,
        )
    return plan_source(job.store, job.name, labels, probes)


def plan_source(store: Path, name: str, labels: tuple[str, ...] = (), probes: tuple[str, ...] = ()) -> Source:
    """A plan of a store as a source."""
    data = (plan_dir(store, name) / "plan.jsonl").read_bytes()
    return Source(
        name,
        read_question(store, name),
        plan_sha256=hashlib.sha256(data).hexdigest(),
        labels=labels,
        probes=probes,
        tuning=read_tuning(store),
    )


def again(out: Path, manifest: Manifest, store: Path, from_table: bool) -> tuple[Source, pd.DataFrame, str]:
    """The source and the table of a report that lies in `out`, as they are now; and what the table is of.

    From the table inside the report, everything else is as it was when the report was written.
    """
    if from_table:
        was = Source(
            manifest.name,
            manifest.question,
            plan_sha256=manifest.plan_sha256,
            table=manifest.table,
            columns=manifest.columns,
            labels=tuple(manifest.labels),
            probes=tuple(manifest.probes),
            tuning=manifest.tuning,
        )
        return was, read_gathered(out / FIGURES / GATHERED), "the table in the report"
    labels, probes = tuple(manifest.labels), tuple(manifest.probes)
    if manifest.table is not None:
        table = read_table(manifest.table, manifest.columns)
        source = Source(
            manifest.name,
            manifest.question,
            table=manifest.table,
            columns=manifest.columns,
            labels=labels,
            probes=probes,
        )
        of = f"the table {manifest.table}"
    else:
        table = gather(store, manifest.name)
        source, of = plan_source(store, manifest.name, labels, probes), "the run store"
    return source, only(only(table, "label", list(labels)), "kind", list(probes)), of
