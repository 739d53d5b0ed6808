"""Runs beside the budgets: random encoders, training on labels, imported weights, raw pixels."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from salt.errors import UserError
from salt.plans import CellLine
from salt.specs import Arm, DataSpec, ObjectiveSpec, OptimSpec, RunSpec
from sweeps.bases import batch_problem, build_problems, run_spec
from sweeps.grid import Grid
from sweeps.schedule import Run, external_run, reference_run
from sweeps.study import Study, Training


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A reference's run and the size it is named by."""

    run: Run
    size: str

    @property
    def cell_id(self) -> str:
        return f"{self.run.spec.arm}-{self.size}-seed{self.run.spec.seed}"

    def line(self) -> CellLine:
        return CellLine(
            cell_id=self.cell_id,
            budget=0.0,
            arm=self.run.spec.arm,
            student=self.size,
            seed=self.run.spec.seed,
            run_id=self.run.run_id,
            residual=0.0,
        )


def references_of(grid: Grid, data: DataSpec) -> list[Reference]:
    """The references of a study, for each of its own seeds.

    Raises:
        UserError: the supervised reference cannot be built.
    """
    study = grid.study
    wanted = study.file.references
    # An untrained run must not change with the recipe.
    plain = Training(optim=OptimSpec(), objective=ObjectiveSpec())
    sizes = _sizes(grid)
    found: list[Reference] = []
    for size in sizes if wanted.random else ():
        found += _seeds(grid, _spec(study, "random", size, data, plain), size)
    if wanted.supervised is not None:
        training = Training(optim=study.supervised_optim(), objective=ObjectiveSpec())
        for size in wanted.supervised.students:
            spec = _spec(study, "supervised", size, data, training)
            problems = build_problems(study, spec, size, None, {})
            if spec.optim.batch_clips > grid.bases.clips:
                problems = [*problems, batch_problem(spec, grid.bases.clips)]
            if problems:
                raise UserError(f"{study.path}: references.supervised: {'; '.join(problems)}")
            spec = msgspec.structs.replace(spec, steps=wanted.supervised.steps, label=wanted.supervised.label)
            found += _seeds(grid, spec, size)
    # Whoever learns from weights trained elsewhere is held against them.
    taught = study.file.arms.external
    for name in dict.fromkeys([*wanted.external, *(taught.teachers if taught is not None else ())]):
        base = grid.bases.external(name)
        if base.problems:
            raise UserError("\n".join(f"{study.path}: {problem}" for problem in base.problems))
        found.append(Reference(run=external_run(base, "reference"), size=name))
    if wanted.raw:
        spec = _spec(study, "raw", sizes[0], data, plain)
        found.append(_reference(grid, spec, "raw", study.file.seeds[0]))
    return found


def _sizes(grid: Grid) -> list[str]:
    """Sizes of all students, then of all teachers that are trained here, each once."""
    students = [size for axes in grid.axes for size in axes.students]
    teachers = [stage.size for axes in grid.axes for way in axes.teachers for stage in way.stages]
    teachers = [size for size in teachers if size in grid.study.sizes]
    return list(dict.fromkeys([*students, *teachers]))


def _spec(study: Study, arm: Arm, size: str, data: DataSpec, training: Training) -> RunSpec:
    return run_spec(study, arm, size, data, training)


def _seeds(grid: Grid, spec: RunSpec, size: str) -> list[Reference]:
    return [_reference(grid, spec, size, seed) for seed in grid.study.file.seeds]


def _reference(grid: Grid, spec: RunSpec, size: str, seed: int) -> Reference:
    spec = msgspec.structs.replace(spec, seed=seed)
    hours = None
    if not spec.steps:
        hours = 0.0
    elif grid.bases.site is not None:
        from sweeps.machine_time import run_gpu_hours

        hours = run_gpu_hours(spec, grid.bases.site)
    return Reference(run=reference_run(spec, grid.study.file.convention, hours), size=size)
