"""What has to be so before workers start: runs that can be trained, and decoded clips of every list."""

from __future__ import annotations

import os
from pathlib import Path

from salt.errors import UserError
from salt.flops import own_adapter
from salt.plan_specs import Plan
from salt.probe_views import probe_clip_spec
from salt.problems import run_problems
from salt.specs import DECLARED, ClipSpec, DataPart, DataSpec, RunSpec
from salt.store import RunDir
from slurm.names import run_names

#: A list that is read: one of its own, or a part of a mixture.
List = DataSpec | DataPart


def prepare_clips(store: Path, plan: Plan, progress: bool = True, workers: int | None = None) -> None:
    """Decode the lists of a plan into the store's cache, with all cores unless told otherwise; a second time
    costs milliseconds.

    Raises:
        UserError: a run cannot be trained whatever is there, or a list is missing, differs from the one that
            was planned, or too many of its files are broken.
    """
    from salt.clips import planned_clips

    refuse_runs(plan)
    require_imported(store, plan)
    for data, clip in wanted_clips(plan):
        planned_clips(
            _list_path(plan, data),
            data.fingerprint,
            clip,
            store / "cache",
            workers=workers or os.cpu_count() or 1,
            progress=progress,
        )


def clips_ready(store: Path, plan: Plan) -> bool:
    """Whether every list is decoded already. Raises `UserError` for runs that cannot be trained at all."""
    from salt.clips import load_clips

    refuse_runs(plan)
    require_imported(store, plan)
    wanted = wanted_clips(plan)
    return all(load_clips(store / "cache", data.fingerprint, clip) is not None for data, clip in wanted)


def require_imported(store: Path, plan: Plan) -> None:
    """Raise `UserError` unless the weights of every imported run of the plan are in the store."""
    absent = [
        run
        for run in plan.runs
        if run.spec.arm == "external" and not RunDir(store, run.run_id).artefact.exists()
    ]
    if absent:
        run = absent[0]
        others = f", nor those of {len(absent) - 1} more" if len(absent) > 1 else ""
        model = run.spec.external.model if run.spec.external is not None else "unknown"
        raise UserError(
            f"plan {plan.name}: the imported weights of run {run.run_id} ({model}) are not in {store}"
            f"{others}: {_how_to_bring(run.spec, store)}"
        )


def _how_to_bring(spec: RunSpec, store: Path) -> str:
    if own_adapter(spec) is not None:
        return "plan the study again, which copies them from the folder that it names"
    return f"bring them with `salt-train import FOLDER --store {store}`"


def refuse_runs(plan: Plan) -> None:
    """Raise `UserError` for runs that no attempt could bring to an end: it says why, and what to change."""
    declared = [data.name for data in wanted_lists(plan) if data.fingerprint == DECLARED]
    if declared:
        raise UserError(
            f"plan {plan.name}: these lists are only declared: {', '.join(map(repr, declared))}; name their "
            "files under `data:` in the study file, and plan again"
        )
    names = run_names(plan)
    bad = [(run, problems) for run in plan.runs if (problems := run_problems(run.spec))]
    if bad:
        run, problems = bad[0]
        others = f", and {len(bad) - 1} more" if len(bad) > 1 else ""
        name = f" ({names[run.run_id]})" if run.run_id in names else ""
        raise UserError(f"plan {plan.name}: run {run.run_id}{name}{others}: {'; '.join(problems)}")


def wanted_lists(plan: Plan) -> list[List]:
    """Every list that a run or a probe of the plan reads, each once; a mixture is its parts."""
    # What imported weights were trained on is not known, and not needed.
    lists = [part for run in plan.runs if run.spec.arm != "external" for part in _parts(run.spec.data)]
    for probe in plan.probes.values():
        lists += [probe.train, probe.selection, probe.report]
    # Lists that are only declared have one fingerprint, so the name tells them apart.
    return list({(data.fingerprint, data.name): data for data in lists}.values())


def wanted_clips(plan: Plan) -> list[tuple[List, ClipSpec]]:
    """Every list with each kind of clips that is stored of it. Streamed clips are decoded as they are drawn.

    Runs that train nothing read no training list; suites store as many clips of a video as they have
    segments.
    """
    pairs: dict[tuple[str, ClipSpec], List] = {}
    for run in plan.runs:
        if run.spec.steps and run.spec.clip.source == "stored":
            pairs |= {(part.fingerprint, run.spec.clip): part for part in _parts(run.spec.data)}
        for probe_id in run.probe_ids:
            probe = plan.probes[probe_id]
            clip = probe_clip_spec(probe, run.spec)
            for data in (probe.train, probe.selection, probe.report):
                pairs.setdefault((data.fingerprint, clip), data)
    return [(data, clip) for (_, clip), data in pairs.items()]


def _parts(data: DataSpec) -> tuple[List, ...]:
    return data.parts or (data,)


def _list_path(plan: Plan, data: List) -> Path:
    try:
        return Path(plan.execution.lists[data.fingerprint])
    except KeyError:
        raise UserError(
            f"plan {plan.name}: it does not say where the list {data.name!r} is; plan again"
        ) from None
