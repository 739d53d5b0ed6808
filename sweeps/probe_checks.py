"""Suites that some encoder of the study cannot be probed with: found before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping

from salt.errors import UserError
from salt.probe_views import probe_problems
from salt.specs import ProbeSpec, Role, RunSpec
from sweeps.grid import Grid
from sweeps.references import Reference


def refuse_probes(grid: Grid, suites: Mapping[str, ProbeSpec], references: list[Reference]) -> None:
    """Raise `UserError` with every suite that does not fit an encoder it is planned for."""
    problems: dict[str, None] = {}
    probed = _probed(grid, references)
    for probe in grid.study.file.probes:
        suite = suites[probe.name]
        where = f"{grid.study.path}: probes.{probe.name}"
        problems |= dict.fromkeys(f"{where}: {text}" for text in _own_problems(suite))
        for role, size, spec in probed:
            if role in probe.roles and not (spec.arm == "raw" and "attentive" in probe.kinds):
                problems |= dict.fromkeys(
                    f"{where}: size {size}: {text}" for text in probe_problems(suite, spec)
                )
    if problems:
        raise UserError("\n".join(problems))


def _own_problems(suite: ProbeSpec) -> list[str]:
    """What contradicts itself, whatever the encoder."""
    controls = [frames for frames in suite.frames if frames != "ordered"]
    if suite.segments > 1 and controls:
        return [
            f"segments {suite.segments} with frames {', '.join(controls)}: clips of several times of a video "
            "keep an order that these controls are to take away; give them a suite of one segment"
        ]
    return []


def _probed(grid: Grid, references: list[Reference]) -> list[tuple[Role, str, RunSpec]]:
    """(role, size, spec) of each kind of encoder in the plan."""
    import numpy as np

    kept = grid.verdict == 0
    students = [grid.bases.all[number] for number in np.unique(grid.base[kept]).tolist()]
    found: list[tuple[Role, str, RunSpec]] = [("student", base.size, base.spec) for base in students]
    columns = [place for place in np.unique(grid.teacher[kept]).tolist() if place >= 0]
    if grid.table is not None:
        bases = grid.table.bases
        found += [("teacher", base.size, base.spec) for place in columns for base in bases[place]]
    return found + [("reference", reference.size, reference.run.spec) for reference in references]
