"""The study file: what is asked, on which data, with which grid of runs.

Fields that name a size, a label or an arm are checked here; whether the grid's cells can be built and paid
for is decided in `sweeps.grid`.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from salt.errors import UserError
from salt.sizes import SIZES
from salt.specs import (
    ARMS,
    Arm,
    ClipSpec,
    ExecSpec,
    MaskSpec,
    ModelSpec,
    NonNegativeInt,
    ObjectiveSpec,
    OptimSpec,
    PositionSpec,
    PositiveFloat,
    PositiveInt,
    ProbeSpec,
    Spec,
    VitSpec,
)
from sweeps.document import decode, overlay, parse_yaml, unknown_key, unknown_name

OpenShare = Annotated[float, Meta(gt=0.0, le=1.0)]
Role = Literal["teacher", "student", "reference"]
SPLITS = ("train", "selection", "report")


class DataFiles(Spec, kw_only=True):
    """Lists of videos, relative to the study file's folder."""

    train: str
    selection: str
    report: str


class ModelConfig(Spec, kw_only=True):
    """Everything of a `ModelSpec` but the encoder, which the grid varies."""

    predictor: VitSpec
    tubelet_frames: PositiveInt = 2
    patch_px: PositiveInt = 16
    position: PositionSpec = msgspec.field(default_factory=PositionSpec)
    init: Literal["trunc_normal", "xavier"] = "trunc_normal"


class ArmConfig(Spec, kw_only=True):
    """One arm. `optim` and `objective` lie over the study's own; `sweep` turns fields into axes."""

    optim: dict[str, Any] = {}
    objective: dict[str, Any] = {}
    sweep: dict[str, list[Any]] = {}
    students: tuple[str, ...] | None = None


class SaltConfig(ArmConfig, kw_only=True):
    """The frozen-teacher arm. A teacher costs a share of each budget or a fixed number of FLOPs."""

    teachers: Annotated[tuple[str, ...], Meta(min_length=1)]
    teacher_share: tuple[OpenShare, ...] = ()
    teacher_flops: tuple[PositiveFloat, ...] = ()


class ArmsConfig(Spec, kw_only=True):
    pixel: ArmConfig | None = None
    vjepa: ArmConfig | None = None
    salt: SaltConfig | None = None


class SupervisedConfig(Spec, kw_only=True):
    """Training on labels, outside the budgets: how much there is to know."""

    label: str
    steps: PositiveInt
    students: tuple[str, ...]
    optim: dict[str, Any] = {}


class ReferencesConfig(Spec, kw_only=True):
    random: bool = True
    raw: bool = True
    supervised: SupervisedConfig | None = None


class ProbeConfig(Spec, kw_only=True):
    """A suite of probes and the encoders it is run on; fields left out keep `ProbeSpec`'s defaults."""

    name: str
    labels: Annotated[tuple[str, ...], Meta(min_length=1)]
    kinds: Annotated[tuple[Literal["linear", "knn", "attentive"], ...], Meta(min_length=1)]
    frames: tuple[Literal["ordered", "shuffled", "first", "middle"], ...] = ("ordered",)
    on: Literal["all", "largest-budget"] = "all"
    roles: tuple[Role, ...] = ("teacher", "student", "reference")
    seeds: tuple[NonNegativeInt, ...] | None = None
    train_clips: PositiveInt
    selection_clips: PositiveInt
    report_clips: PositiveInt
    seed: NonNegativeInt = 0
    settings: dict[str, Any] = {}  # any other field of ProbeSpec


class StudyFile(Spec, kw_only=True):
    """The keys of a study file."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80)]
    question: str = ""
    data: DataFiles
    clip: ClipSpec
    model: ModelConfig
    sizes: dict[str, dict[str, Any]] = {}
    masks: Annotated[tuple[MaskSpec, ...], Meta(min_length=1)]
    budgets_flops: Annotated[tuple[PositiveFloat, ...], Meta(min_length=1)]
    seeds: Annotated[tuple[NonNegativeInt, ...], Meta(min_length=1)]
    students: Annotated[tuple[str, ...], Meta(min_length=1)]
    minimum_steps: PositiveInt = 1
    maximum_epochs: PositiveFloat | None = None
    optim: dict[str, Any] = {}
    objective: dict[str, Any] = {}
    arms: ArmsConfig
    references: ReferencesConfig = msgspec.field(default_factory=ReferencesConfig)
    probes: Annotated[tuple[ProbeConfig, ...], Meta(min_length=1)]
    execution: ExecSpec = msgspec.field(default_factory=ExecSpec)
    quick: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an arm trains: the study's settings with the arm's own laid over them."""

    optim: OptimSpec
    objective: ObjectiveSpec


@dataclass(frozen=True, kw_only=True)
class Study:
    """A checked study file."""

    path: Path
    data: bytes
    name: str
    file: StudyFile
    sizes: dict[str, VitSpec]
    lists: dict[str, Path]  # split -> list, resolved

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    def arm(self, name: Arm) -> ArmConfig | None:
        config: ArmConfig | None = getattr(self.file.arms, name)
        return config

    def model(self, size: str) -> ModelSpec:
        shared = {name: getattr(self.file.model, name) for name in self.file.model.__struct_fields__}
        return ModelSpec(encoder=self.sizes[size], **shared)

    def recipe(self, arm: Arm, changes: dict[str, Any] | None = None) -> Recipe:
        """The recipe of an arm; `changes` are swept fields such as `optim.lr`.

        A study without a pixel arm still trains teachers: they take the study's own recipe.
        """
        config = self.arm(arm) or ArmConfig()
        optim, objective = dict(config.optim), dict(config.objective)
        for field, value in (changes or {}).items():
            section, _, name = field.partition(".")
            (optim if section == "optim" else objective)[name] = value
        place = f"{self.path}: arms.{arm}."
        return Recipe(
            optim=decode(self.file.optim | optim, OptimSpec, f"{place}optim."),
            objective=decode(self.file.objective | objective, ObjectiveSpec, f"{place}objective."),
        )

    def supervised_optim(self) -> OptimSpec:
        config = self.file.references.supervised
        own = config.optim if config is not None else {}
        return decode(self.file.optim | own, OptimSpec, f"{self.path}: references.supervised.optim.")

    def probe_settings(self, probe: ProbeConfig) -> dict[str, Any]:
        """The checked extra fields of a suite."""
        place = f"{self.path}: probes.{probe.name}.settings."
        named = {"labels", "kinds", "frames", "train_clips", "selection_clips", "report_clips", "seed"} | set(
            SPLITS
        )
        valid = [name for name in ProbeSpec.__struct_fields__ if name not in named | {"numerics"}]
        for key in probe.settings:
            if key not in valid:
                raise UserError(unknown_key(f"{place}{key}", key, valid))
        return probe.settings


def load_study(
    path: Path,
    *,
    quick: bool = False,
    budgets_flops: tuple[float, ...] | None = None,
    lists: dict[str, Path] | None = None,
) -> Study:
    """Read and check a study file.

    Args:
        quick: lay the section `quick` over the file; the plan is then named `<name>-quick`.
        budgets_flops: take these budgets instead of the file's.
        lists: take these lists instead of the file's (a study file that was copied away from its data).

    Raises:
        UserError: the file, or a field of it, is wrong; names the value, its place and the way out.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such study file") from error
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: cannot read the study file: {error.strerror}") from error
    raw = parse_yaml(data, path)
    file = decode(raw, StudyFile, f"{path}: ")
    if file.quick:
        quick_file = decode(overlay(raw, file.quick), StudyFile, f"{path}: (with quick) ")
        if quick_file.name != file.name:
            raise UserError(
                f"{path}: quick.name: the quick plan is always named {file.name}-quick; leave it out"
            )
        file = quick_file if quick else file
    elif quick:
        raise UserError(
            f"{path}: --quick needs a section `quick:` with the fields to change, such as budgets_flops"
        )
    if budgets_flops is not None:
        file = msgspec.structs.replace(file, budgets_flops=budgets_flops)
    study = Study(
        path=path,
        data=data,
        name=f"{file.name}-quick" if quick else file.name,
        file=file,
        sizes=_sizes(file, path),
        lists=lists or {split: (path.parent / getattr(file.data, split)).absolute() for split in SPLITS},
    )
    problems = _problems(study)
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return study


def _sizes(file: StudyFile, path: Path) -> dict[str, VitSpec]:
    sizes = dict(SIZES)
    for name, raw in file.sizes.items():
        if name in SIZES:
            raise UserError(f"{path}: sizes.{name}: this name is a built-in size; choose another one")
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.]*", name):
            raise UserError(f"{path}: sizes.{name}: a size's name is made of letters, digits, `_` and `.`")
        sizes[name] = decode(raw, VitSpec, f"{path}: sizes.{name}.")
    return sizes


def _problems(study: Study) -> list[str]:
    """All mistakes that need no prices and no lists."""
    file = study.file
    problems = [
        f"budgets_flops: {value!r} is not a whole number" for value in file.budgets_flops if value % 1
    ]
    for field, values in (
        ("budgets_flops", file.budgets_flops),
        ("seeds", file.seeds),
        ("students", file.students),
    ):
        problems += _repeated(field, values)
    problems += _unknown_sizes(study, "students", file.students)
    if not any(study.arm(arm) for arm in ARMS):
        problems.append("arms: no arm is given; add one of pixel, vjepa, salt (for example `pixel: {}`)")
    for arm in ARMS:
        config = study.arm(arm)
        if config is not None:
            problems += _unknown_sizes(study, f"arms.{arm}.students", config.students or ())
            problems += _repeated(f"arms.{arm}.students", config.students or ())
            problems += _sweep_problems(f"arms.{arm}.sweep", config.sweep)
    if file.arms.salt is not None:
        problems += _teacher_problems(study, file.arms.salt)
    if file.references.supervised is not None:
        problems += _unknown_sizes(
            study, "references.supervised.students", file.references.supervised.students
        )
    problems += _repeated("probes: name", tuple(probe.name for probe in file.probes))
    for probe in file.probes:
        missing = [seed for seed in probe.seeds or () if seed not in file.seeds]
        if missing:
            problems.append(
                f"probes.{probe.name}.seeds: {missing} are not among the study's seeds {list(file.seeds)}"
            )
    if not problems:
        for arm in ARMS:
            study.recipe(arm)
        study.supervised_optim()
        for probe in file.probes:
            study.probe_settings(probe)
    return problems


def _teacher_problems(study: Study, config: SaltConfig) -> list[str]:
    problems = _unknown_sizes(study, "arms.salt.teachers", config.teachers)
    for field in ("teachers", "teacher_share", "teacher_flops"):
        problems += _repeated(f"arms.salt.{field}", getattr(config, field))
    if not config.teacher_share and not config.teacher_flops:
        problems.append(
            "arms.salt: say what a teacher may cost: `teacher_share: [0.3]` or `teacher_flops: [60e9]`"
        )
    problems += [
        f"arms.salt.teacher_flops: {value!r} is not a whole number"
        for value in config.teacher_flops
        if value % 1
    ]
    return problems


def _sweep_problems(where: str, sweep: dict[str, list[Any]]) -> list[str]:
    valid = [f"optim.{name}" for name in OptimSpec.__struct_fields__]
    valid += [f"objective.{name}" for name in ObjectiveSpec.__struct_fields__]
    problems = [unknown_name(where, field, valid) for field in sweep if field not in valid]
    problems += [f"{where}.{field}: give at least one value" for field, values in sweep.items() if not values]
    for field, values in sweep.items():
        problems += _repeated(f"{where}.{field}", tuple(values))
    return problems


def _unknown_sizes(study: Study, where: str, names: tuple[str, ...]) -> list[str]:
    return [unknown_name(where, name, list(study.sizes)) for name in names if name not in study.sizes]


def _repeated(where: str, values: tuple[Any, ...]) -> list[str]:
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    return [f"{where}: {twice[0]!r} comes twice; keep one of them"] if twice else []
