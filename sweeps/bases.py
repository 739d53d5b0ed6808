"""Bases: what many runs of a study share, with the price of a step and every reason why it cannot be.

A base is a run's spec without seed, steps and names of other runs. Prices, checks and memory depend on it
alone, so a grid of a million cells asks for a few hundred of them.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from salt.errors import UserError
from salt.flops import cache_cost, step_cost
from salt.ids import RunIds
from salt.masks import check_masks
from salt.plans import UNNAMED
from salt.problems import data_problems, objective_problems
from salt.sizes import check_model, grid
from salt.specs import UNTRAINED, CellArm, Cost, DataSpec, OptimSpec, RunSpec, TeacherRef, run_arm
from sweeps.external import external_problems
from sweeps.site import run_precision
from sweeps.study import Study, Training

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sweeps.memory import Fit
    from sweeps.site import SiteSpec

#: More steps than any run has.
MANY_STEPS = 10**9
#: The most steps that are counted: doubles are exact up to nine times as many.
MOST_STEPS = 10**15
Phase = Literal["cosine", "constant", "cooldown"]


@dataclass(frozen=True, kw_only=True)
class Base:
    """One base. Prices are per step: exact FLOPs, and in the unit that the study matches."""

    number: int
    arm: CellArm  # as the study calls it: a hybrid's run is of the arm salt
    size: str
    teacher: str | None  # size of the teacher, or name of imported weights
    spec: RunSpec
    step: Cost
    cache: Cost
    step_flops: int
    cache_flops: int
    unit_price: float
    unit_cache: float
    gpu_seconds: float | None  # a step on all GPUs of the run together; None without a site profile
    cache_gpu_seconds: float | None  # the cached targets, once
    fit: Fit | None
    problems: tuple[str, ...]
    training: Mapping[str, Any]  # swept fields of this base
    recipe_on_steps: bool

    @property
    def batch(self) -> int:
        return self.spec.optim.batch_clips

    def gpu_hours(self, steps: int, runs: int = 1) -> float | None:
        """GPU-hours of so many steps and of `runs` times the cached targets; None without a site profile."""
        if self.gpu_seconds is None or self.cache_gpu_seconds is None:
            return None
        return (self.gpu_seconds * steps + self.cache_gpu_seconds * runs) / 3600

    @functools.cached_property
    def ids(self) -> RunIds:
        return RunIds(self.spec)


class Bases:
    """All bases of a study, each made once."""

    def __init__(self, study: Study, data: DataSpec, site: SiteSpec | None) -> None:
        self.study, self.data, self.site = study, data, site
        self.clips = data.clips * study.file.clip.clips_per_file  # of all lists together
        self.epoch_clips = _epoch_clips(data) * study.file.clip.clips_per_file
        self.all: list[Base] = []
        self._known: dict[tuple[Any, ...], Base] = {}
        self._mask_problems: dict[Any, list[str]] = {}

    def get(
        self,
        arm: CellArm,
        size: str,
        teacher: str | None = None,
        changes: Mapping[str, Any] | None = None,
        *,
        stage: int = 1,
        phase: Phase | None = None,
    ) -> Base:
        """The base of an arm at a size, for students of teachers of a size; `changes` are swept fields.

        `stage` counts the runs behind the teacher's weights.
        Without `phase` it is that of a run that ends: cosine, or the cooldown of `schedule: wsd`.
        """
        if phase is None:
            phase = "cooldown" if self.study.file.schedule == "wsd" else "cosine"
        changes = changes or {}
        key = (
            arm,
            size,
            teacher,
            tuple((name, repr(value)) for name, value in changes.items()),
            stage,
            phase,
        )
        if key not in self._known:
            base = self._make(arm, size, teacher, changes, stage, phase)
            self._known[key] = base
            self.all.append(base)
        return self._known[key]

    def external(self, name: str) -> Base:
        """The base of weights from elsewhere: no steps, and no price but one that the study states."""
        key = ("external", name)
        if key not in self._known:
            self._known[key] = self._imported(name)
            self.all.append(self._known[key])
        return self._known[key]

    def _imported(self, name: str) -> Base:
        found, file = self.study.external[name], self.study.file
        nothing, stated = Cost(convention=file.convention), cache_cost(found.spec, file.convention)
        hours = None if self.site is None else 0.0
        return Base(
            number=len(self.all),
            arm="external",
            size=name,
            teacher=None,
            spec=found.spec,
            step=nothing,
            cache=stated,
            step_flops=0,
            cache_flops=stated.total_flops,
            unit_price=1.0,
            unit_cache=float(stated.total_flops) if self.study.match == "flops" else 0.0,
            gpu_seconds=hours,
            cache_gpu_seconds=hours,
            fit=None,
            problems=tuple(external_problems(found, file.clip, self.study.model(file.students[0]))),
            training={},
            recipe_on_steps=False,
        )

    def _make(
        self,
        arm: CellArm,
        size: str,
        teacher: str | None,
        changes: Mapping[str, Any],
        stage: int,
        phase: Phase,
    ) -> Base:
        study = self.study
        training = study.training(arm, size, changes)
        reference = None
        if teacher is not None:
            adapter = study.adapter(teacher) if stage == 1 else msgspec.UNSET
            reference = TeacherRef(
                run_id=UNNAMED, step=0, encoder=study.vit(teacher), stage=stage, adapter=adapter
            )
        spec = run_spec(
            study,
            arm,
            size,
            self.data,
            Training(
                optim=msgspec.structs.replace(training.optim, schedule=phase), objective=training.objective
            ),
            masks=changes.get("masks"),
            teacher=reference,
        )
        problems = self._problems(spec, size, teacher)
        # What cannot be built has no price; 1 keeps the arithmetic going until it is refused.
        price = Cost() if problems else step_cost(spec, study.file.convention)
        cache = Cost() if problems else cache_cost(spec, study.file.convention)
        seconds, cache_seconds, fit = (None, None, None) if problems else self._on_site(spec)
        unit = {
            "flops": (float(price.total_flops), float(cache.total_flops)),
            "steps": (1.0, 0.0),
            "gpu-hours": ((seconds or 0.0) / 3600, (cache_seconds or 0.0) / 3600),
        }[study.match]
        return Base(
            number=len(self.all),
            arm=arm,
            size=size,
            teacher=teacher,
            spec=spec,
            step=price,
            cache=cache,
            step_flops=price.total_flops,
            cache_flops=cache.total_flops,
            unit_price=unit[0] or 1.0,
            unit_cache=unit[1],
            gpu_seconds=seconds,
            cache_gpu_seconds=cache_seconds,
            fit=fit,
            problems=problems,
            training=changes,
            # Not where the study's own settings stand in for all rules on the length.
            recipe_on_steps=study.training(arm, size, changes, MANY_STEPS) != training,
        )

    def _on_site(self, spec: RunSpec) -> tuple[float | None, float | None, Fit | None]:
        """Seconds of a step and of the cached targets on one GPU, and how the run fits the site."""
        if self.site is None:
            return None, None, None
        from sweeps.machine_time import cache_gpu_seconds, gpu_seconds_per_step
        from sweeps.memory import propose

        if run_precision(spec) not in self.site.peak_flops:
            raise UserError(
                f"{self.study.path}: site {self.site.name} has no peak_flops.{run_precision(spec)}, and the "
                f"arm {spec.arm} trains in {spec.optim.precision}; add it to the "
                "profile, or set optim.precision"
            )
        # As long as the site's GPUs last: on few GPUs a short run might recompute what a long one need not.
        many = msgspec.structs.replace(spec, steps=MANY_STEPS)
        fit = propose(many, self.site, self.study.file.execution)
        seconds = gpu_seconds_per_step(spec, self.site, recompute=fit.recompute)
        return seconds, cache_gpu_seconds(spec, self.site), fit

    def _problems(self, spec: RunSpec, size: str, teacher: str | None) -> tuple[str, ...]:
        problems = dict.fromkeys(build_problems(self.study, spec, size, teacher, self._mask_problems))
        if spec.optim.batch_clips > self.clips:
            problems[batch_problem(spec, self.clips)] = None
        return tuple(problems)


def _epoch_clips(data: DataSpec) -> float:
    """Files that are drawn, of all lists, until the list that comes round first has been drawn once."""
    total = sum(part.weight for part in data.parts)
    return min([part.clips * total / part.weight for part in data.parts], default=float(data.clips))


def batch_problem(spec: RunSpec, clips: int) -> str:
    return f"a batch of {spec.optim.batch_clips} clips is larger than the training list of {clips}"


def whole_steps(
    wanted: NDArray[np.float64], built: NDArray[np.bool_] | bool, where: str
) -> NDArray[np.int64]:
    """The nearest whole numbers of steps, at least 0. What is not `built` has no price, so no number matters.

    Raises:
        UserError: more steps than can be counted; `where` names what asks for them.
    """
    import numpy as np

    most = np.where(built, wanted, 0.0).max()
    if most > MOST_STEPS:
        raise UserError(
            f"{where}: {most:.3g} steps of one run, more than {MOST_STEPS:.0e}; ask for less, or raise "
            "optim.batch_clips"
        )
    return np.rint(np.clip(wanted, 0, MOST_STEPS)).astype(np.int64)


def build_problems(
    study: Study, spec: RunSpec, size: str, teacher: str | None, known: dict[Any, list[str]]
) -> list[str]:
    """Every reason why a run cannot be built, in the study file's words; `known` keeps answers on masks."""
    problems = []
    for name in dict.fromkeys([size, *([teacher] if teacher is not None else [])]):
        if name in study.external:
            problems += external_problems(study.external[name], spec.clip, spec.model)
            continue
        for text in check_model(study.model(name), spec.clip, spec.masks):
            problems.append(text.replace("model.encoder", f"size {name}"))
    if not problems and spec.arm not in UNTRAINED:
        if spec.masks not in known:
            known[spec.masks] = check_masks(spec.masks, grid(spec.model, spec.clip))
        problems = known[spec.masks] + objective_problems(spec) + data_problems(spec)
    return problems


def run_spec(
    study: Study,
    arm: CellArm,
    size: str,
    data: DataSpec,
    training: Training,
    *,
    masks: str | None = None,
    teacher: TeacherRef | None = None,
) -> RunSpec:
    """A run of this study without seed and steps."""
    return RunSpec(
        arm=run_arm(arm),
        seed=0,
        steps=0,
        model=study.model(size),
        clip=study.file.clip,
        data=data,
        masks=study.masks(masks),
        objective=training.objective,
        optim=training.optim,
        teacher=teacher,
        cached_views=study.cached_views if teacher is not None else None,
    )


def optim_at(study: Study, base: Base, arm: CellArm, steps: int) -> OptimSpec | None:
    """The recipe of a run of this length where its rules depend on the length; None where they do not."""
    if not base.recipe_on_steps:
        return None
    optim = study.training(arm, base.size, base.training, steps).optim
    return msgspec.structs.replace(optim, schedule=base.spec.optim.schedule)
