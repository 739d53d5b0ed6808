"""A checked study: the file's keys with names resolved, and what an arm trains with."""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import UNSET, UnsetType

from salt.adapter_spec import AdapterSpec
from salt.errors import UserError
from salt.sizes import SIZES, grid
from salt.specs import (
    CellArm,
    MaskSpec,
    Match,
    ModelSpec,
    ObjectiveSpec,
    OptimSpec,
    ProbeSpec,
    VitSpec,
    run_arm,
)
from sweeps.config import SPLITS, TARGETS, ArmConfig, ProbeConfig, StudyFile
from sweeps.document import decode, overlay, parse_yaml, unknown_key
from sweeps.external import External, read_external, with_names
from sweeps.mask_config import mask_spec
from sweeps.recipe import Recipe
from sweeps.recipe_file import recipe_of
from sweeps.sources import Source, sources_of
from sweeps.study_checks import problems_of


@dataclass(frozen=True, kw_only=True)
class Training:
    """How an arm trains: the recipe's rules, the study's settings over them, the arm's own on top."""

    optim: OptimSpec
    objective: ObjectiveSpec


@dataclass(frozen=True, kw_only=True)
class Study:
    """A checked study file. `budgets` are in the unit of `match`."""

    path: Path
    folder: Path  # what paths in the file are relative to
    data: bytes
    name: str
    file: StudyFile
    overrides: Mapping[str, Any]  # keys that the command line replaced
    budgets: tuple[float, ...]
    sizes: dict[str, VitSpec]
    sources: dict[str, Source]  # by key, see `sweeps.sources`
    external: dict[str, External]
    rules: Recipe | None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def match(self) -> Match:
        return self.file.match

    @property
    def cached_views(self) -> int | None:
        """Views of each clip whose targets are encoded once; None for targets made online."""
        return views_of(self.file.targets)

    @functools.cached_property
    def least_steps(self) -> int:
        """The fewest steps of a run: the file's, and under `schedule: wsd` one each of trunk and cooldown, or
        enough for the cooldown to begin after a warmup that a recipe gives in steps.
        """
        least = self.file.minimum_steps
        if self.file.schedule != "wsd":
            return least
        least = max(least, 2)
        many = 10**6
        size = self.file.students[0]
        now, later = (self.training("pixel", size, steps=n).optim.warmup_share for n in (many, 2 * many))
        if now != later:  # else the study sets a share of its own
            least = max(least, math.ceil(now * many / (1 - self.file.cooldown_share)) + 1)
        return least

    def vit(self, name: str) -> VitSpec:
        """The encoder of a size, or of imported weights, by name."""
        return self.external[name].encoder if name in self.external else self.sizes[name]

    def adapter(self, name: str) -> AdapterSpec | UnsetType:
        """How a model of transformers is read; unset for imported encoders and sizes."""
        found = self.external[name].spec.external if name in self.external else None
        return UNSET if found is None else found.adapter

    def arm(self, name: CellArm) -> ArmConfig | None:
        config: ArmConfig | None = getattr(self.file.arms, name)
        return config

    def model(self, size: str) -> ModelSpec:
        return _model(self.file, self.sizes[size])

    @functools.cached_property
    def token_grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width, the same for all sizes."""
        return grid(self.model(next(iter(self.sizes))), self.file.clip)

    def masks(self, name: str | None = None) -> tuple[MaskSpec, ...]:
        """The study's masks, or a named set of them, with the counts that the file leaves out filled in."""
        configs = self.file.masks if name is None else self.file.mask_sets[name]
        return tuple(mask_spec(config, self.token_grid) for config in configs)

    def training(
        self, arm: CellArm, size: str, changes: Mapping[str, Any] | None = None, steps: int = 0
    ) -> Training:
        """What an arm trains with; `changes` are swept fields such as `optim.lr`.

        A study without a pixel arm still trains teachers: they take the study's own settings. `steps` matter
        to recipes with rules on the length alone.
        """
        config = self.arm(arm) or ArmConfig()
        optim, objective = self.file.optim | config.optim, self.file.objective | config.objective
        for field, value in (changes or {}).items():
            section, _, name = field.partition(".")
            if name:
                (optim if section == "optim" else objective)[name] = value
        if self.rules is not None:
            batch = optim.get("batch_clips", OptimSpec().batch_clips)
            vit = self.sizes[size]
            optim = self.rules.optim(run_arm(arm), vit, batch, steps) | optim
            objective = self.rules.objective(run_arm(arm), vit, batch, steps) | objective
        if arm == "hybrid":
            objective.setdefault("pixel_weight", 1.0)
        place = f"{self.path}: arms.{arm}."
        return Training(
            optim=decode(optim, OptimSpec, f"{place}optim."),
            objective=decode(objective, ObjectiveSpec, f"{place}objective."),
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


def views_of(targets: str) -> int | None:
    """`online` -> None; `cached(views=2)` -> 2.

    Raises:
        ValueError: neither of them.
    """
    found = re.fullmatch(TARGETS, targets)
    if found is None:
        raise ValueError(f"{targets!r}: give online or 'cached(views=2)', with 1 view or more")
    return int(found[2]) if found[2] else None


def steps_number(steps: int | str) -> int:
    """40000 or `40k` as a number of steps."""
    return steps if isinstance(steps, int) else round(float(steps.removesuffix("k")) * 1000)


def load_study(
    path: Path,
    *,
    quick: bool = False,
    changes: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    data: bytes | None = None,
) -> Study:
    """Read and check a study file.

    Args:
        quick: lay the section `quick` over the file; the plan is then named `<name>-quick`.
        changes: keys of the file to replace, such as `budgets_flops` from the command line.
        folder: what its paths are relative to, where that is not its own folder (a copy in a plan).
        data: the file's content, where it is not on disk.

    Raises:
        UserError: the file, or a field of it, is wrong; names the value, its place and the way out.
    """
    data = _read(path) if data is None else data
    raw = parse_yaml(data, path)
    _refuse_arms(raw, path)
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
    if changes:
        changed = {key: value for key, value in raw.items() if not (key == "quick" and quick)}
        changed = overlay(changed, file.quick) if quick else changed
        file = decode({**changed, **changes}, StudyFile, f"{path}: ")
    sizes = _sizes(file, path)
    file = with_names(file, sizes, str(path))
    study = Study(
        path=path,
        folder=folder or path.parent.absolute(),
        data=data,
        name=f"{file.name}-quick" if quick else file.name,
        file=file,
        overrides=dict(changes or {}),
        budgets=_budgets(file),
        sizes=sizes,
        sources=sources_of(file, folder or path.parent),
        rules=recipe_of(file.recipe, folder or path.parent) if file.recipe is not None else None,
        external=_external(file, sizes, path, folder or path.parent),
    )
    problems = problems_of(study)
    if problems:
        raise UserError("\n".join(f"{path}: {problem}" for problem in problems))
    return study


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such study file") from error
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: cannot read the study file: {error.strerror}") from error


def _refuse_arms(raw: dict[str, Any], path: Path) -> None:
    """Refuse arms that are named and left empty, which would be no arms, and arms with a resolution.

    Arms of different resolutions are how a published comparison went wrong; they are no option here.
    """
    arms = raw.get("arms")
    for arm, config in arms.items() if isinstance(arms, dict) else ():
        if config is None:
            raise UserError(
                f"{path}: arms.{arm}: nothing is given; write `{arm}: {{}}`, or leave the arm out"
            )
        for key in ("clip", "crop_px", "frames", "model"):
            if isinstance(config, dict) and key in config:
                raise UserError(
                    f"{path}: arms.{arm}.{key}: a study has one resolution for all of its arms, or their "
                    "costs are not comparable; set it at the top level, or make two studies"
                )


def _budgets(file: StudyFile) -> tuple[float, ...]:
    """The budgets in the unit of `match`, as floats."""
    by_match: dict[Match, tuple[Any, ...]] = {
        "flops": file.budgets_flops,
        "steps": tuple(steps_number(steps) for steps in file.budgets_steps),
        "gpu-hours": file.budgets_gpu_hours,
    }
    return tuple(float(value) for value in by_match[file.match])


def _sizes(file: StudyFile, path: Path) -> dict[str, VitSpec]:
    sizes = dict(SIZES)
    for name, raw in file.sizes.items():
        if name in SIZES:
            raise UserError(f"{path}: sizes.{name}: this name is a built-in size; choose another one")
        _check_name(name, f"{path}: sizes.{name}")
        sizes[name] = decode(raw, VitSpec, f"{path}: sizes.{name}.")
    return sizes


def _model(file: StudyFile, encoder: VitSpec) -> ModelSpec:
    shared = {name: getattr(file.model, name) for name in file.model.__struct_fields__}
    return ModelSpec(encoder=encoder, **shared)


def _external(file: StudyFile, sizes: dict[str, VitSpec], path: Path, folder: Path) -> dict[str, External]:
    found = {}
    model = _model(file, next(iter(sizes.values())))  # any: it is the token grid that matters
    for name, asked in file.external.items():
        where = f"{path}: external.{name}"
        if name in SIZES or name in file.sizes:
            raise UserError(f"{where}: this is the name of a size; choose another one")
        _check_name(name, where)
        found[name] = read_external(name, asked, folder, where, file.clip, model)
    return found


def _check_name(name: str, where: str) -> None:
    """Names of cells hold it."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.]*", name):
        raise UserError(f"{where}: a name is made of letters, digits, `_` and `.`")
