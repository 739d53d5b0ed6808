"""What runs of a plan take, before they run: by the site's speed, corrected by runs that are done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from salt.errors import UserError
from salt.plan_specs import Plan, PlannedRun
from salt.plans import plan_dir
from salt.specs import UNTRAINED
from salt.store import DamagedFile, RunDir
from sweeps.machine_time import run_gpu_hours
from sweeps.site import SiteSpec, load_site


def site_of_plan(store: Path, plan: Plan, option: str | None) -> tuple[SiteSpec | None, str]:
    """The site profile of `--site`, else that of the plan's study, where it is from; None if there is none.

    Raises:
        UserError: it cannot be read, or is wrong.
    """
    if option is not None:
        return load_site(None if option == "default" else option), option
    named = plan.overrides.get("site")
    if named is None:
        from sweeps.document import parse_yaml

        path = plan_dir(store, plan.name) / "study.yaml"
        named = parse_yaml(path.read_bytes(), path).get("site") if path.exists() else None
    if named is None:
        return None, ""
    if named == "default":
        return load_site(None), "default"
    file = Path(plan.execution.folder or ".") / str(named)
    return load_site(file), str(file)


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of runs on their own devices, and how many of this plan's runs they were corrected by."""

    seconds: dict[str, float]
    corrected_by: int

    def gpu_hours(self, runs: Iterable[PlannedRun], processes: int) -> float:
        """Device-hours of these runs, each on `processes` devices."""
        return sum(self.seconds[run.run_id] for run in runs) * processes / 3600


def estimate(store: Path, plan: Plan, site: SiteSpec) -> Estimate:
    """What each run takes from its start, its probes left out: site's speed x what done runs took of it.

    The correction is one factor for all: measured seconds of the training of runs that are done, over those
    that the site's speed says.
    """
    execution = plan.execution
    by_kind: dict[tuple[object, int], float] = {}
    seconds: dict[str, float] = {}
    for run in plan.runs:
        spec = run.spec
        if spec.arm in UNTRAINED or not spec.steps:
            seconds[run.run_id] = 0.0
            continue
        # Runs that differ in seed or names alone take the same time.
        key = (
            msgspec.structs.replace(spec, seed=0, teacher=None, trunk=None, keep_steps=()),
            run.cost.total_flops,
        )
        if key not in by_kind:
            hours = run_gpu_hours(spec, site, recompute=execution.recompute)
            by_kind[key] = 3600 * hours / execution.processes
        seconds[run.run_id] = by_kind[key]
    measured_s = expected_s = 0.0
    count = 0
    for run in plan.runs:
        folder = RunDir(store, run.run_id)
        if not seconds[run.run_id] or not folder.result.exists():
            continue
        try:
            result = folder.read_result()
        except DamagedFile:
            continue  # the status tells of it; others are enough
        if result is not None and result.train_wall_s:
            measured_s += result.train_wall_s
            expected_s += seconds[run.run_id]
            count += 1
    factor = measured_s / expected_s if expected_s else 1.0
    return Estimate(seconds={name: value * factor for name, value in seconds.items()}, corrected_by=count)


def refuse_hours(expected: float | None, most: float, where: str) -> None:
    """Raise `UserError` if what is to be sent is above `--max-gpu-hours`, or nobody can say."""
    if expected is None:
        raise UserError(
            f"--max-gpu-hours {most:g}: how long the runs take is not known without a site profile "
            "(--site SITE.yaml)"
        )
    if expected > most:
        raise UserError(
            f"--max-gpu-hours {most:g}: {where} would take about {expected:.4g} GPU-hours; raise the limit, "
            "or send fewer runs"
        )
