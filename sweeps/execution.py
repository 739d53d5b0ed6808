"""How the runs of a study execute: settings that do not go together, and what the site knows of them."""

from __future__ import annotations

import msgspec

from salt.errors import UserError
from salt.specs import ExecSpec
from sweeps.bases import Base
from sweeps.grid import Grid
from sweeps.site import run_precision


def planned_execution(grid: Grid, lists: dict[str, str]) -> ExecSpec:
    """The study's execution with the places of its lists, and the peak of the site's device.

    The peak is taken from the site where the study gives none and all its runs have one precision: another
    precision has another peak.

    Raises:
        UserError: `folder` or `lists` are given, which the planner fills in.
    """
    study, execution = grid.study, grid.study.file.execution
    for name in ("folder", "lists"):
        if getattr(execution, name):
            raise UserError(
                f"{study.path}: execution.{name}: the plan fills it in; lists are named under `data:`"
            )
    peak, site = execution.peak_flops_per_s, grid.bases.site
    if peak is None and site is not None:
        used = {run_precision(base.spec) for base in grid.bases.all if base.fit is not None}
        peak = site.peak_flops[used.pop()] if len(used) == 1 else None
    return msgspec.structs.replace(execution, folder=str(study.folder), lists=lists, peak_flops_per_s=peak)


def _is_float32(base: Base) -> bool:
    """Whether a run that can be built and is trained here computes in float32."""
    return base.fit is not None and run_precision(base.spec) == "fp32"


def execution_warnings(grid: Grid) -> list[str]:
    """What is allowed and slow, or not what it looks like."""
    execution, site, found = grid.study.file.execution, grid.bases.site, []
    if site is not None and site.precision == "bf16":
        slow = list(dict.fromkeys(base.spec.arm for base in grid.bases.all if _is_float32(base)))
        if slow:
            times = site.peak_flops["bf16"] / site.peak_flops["fp32"]
            found.append(
                f"{', '.join(slow)} train in float32, at a peak {times:.3g} times lower than bfloat16's at "
                f"site {site.name}; set `optim: {{precision: bfloat16}}` if that is not meant"
            )
    masks = {mask for base in grid.bases.all for mask in base.spec.masks}
    if any(mask.keep == "batch_min" for mask in masks):
        found.append(
            "masks with `keep: batch_min` have other token counts in every step: FLOPs are those of the mean "
            "counts, and a finished run's may differ from them"
        )
        if execution.compile:
            found.append(
                "execution.compile with `keep: batch_min`: shapes change from step to step, so graphs are "
                "compiled again and again; leave compile off"
            )
    return found
