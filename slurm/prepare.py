"""What has to be so before workers start: runs that can be trained, and decoded clips of every list."""

from __future__ import annotations

import os
from pathlib import Path

from salt.errors import UserError
from salt.plan_specs import Plan
from salt.run import run_problems
from salt.specs import DECLARED, DataSpec
from slurm.names import run_names


def prepare_clips(store: Path, plan: Plan, progress: bool = True) -> None:
    """Decode the lists of a plan into the store's cache, with all cores; a second time costs milliseconds.

    Raises:
        UserError: a run cannot be trained whatever is there, or a list is missing, differs from the one that
            was planned, or too many of its files are broken.
    """
    from salt.clips import planned_clips

    refuse_runs(plan)
    clips = dict.fromkeys(run.spec.clip for run in plan.runs)
    for data in wanted_lists(plan):
        for clip in clips:
            planned_clips(
                _list_path(plan, data),
                data.fingerprint,
                clip,
                store / "cache",
                workers=os.cpu_count() or 1,
                progress=progress,
            )


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


def wanted_lists(plan: Plan) -> list[DataSpec]:
    """Every list that a run or a probe of the plan reads, each once."""
    lists = [run.spec.data for run in plan.runs]
    for probe in plan.probes.values():
        lists += [probe.train, probe.selection, probe.report]
    # Lists that are only declared have one fingerprint, so the name tells them apart.
    return list({(data.fingerprint, data.name): data for data in lists}.values())


def _list_path(plan: Plan, data: DataSpec) -> Path:
    try:
        return Path(plan.execution.lists[data.fingerprint])
    except KeyError:
        raise UserError(
            f"plan {plan.name}: it does not say where the list {data.name!r} is; plan again"
        ) from None
