"""Weights that were trained elsewhere: teachers that cost nothing here, and references.

The study's `external` names runs that `salt-train import` made, or folders of transformers (`hf:FOLDER`),
which become runs of the store when the plan is written. Such a run has no steps; its spec says what it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import msgspec

from salt.errors import UserError
from salt.external_describe import Reading, describe
from salt.external_grid import grid_problems
from salt.external_import import bring_model, external_spec
from salt.specs import ClipSpec, ModelSpec, RunSpec, VitSpec, spec_id
from salt.store import read_json
from sweeps.config import ExternalConfig, StudyFile

#: What a folder of transformers is named with.
PREFIX = "hf:"


@dataclass(frozen=True, kw_only=True)
class External:
    """Weights from elsewhere, by the name that the study gives them."""

    name: str
    path: Path  # of an imported run's spec.json, or the folder of transformers
    spec: RunSpec

    @property
    def run_id(self) -> str:
        return spec_id(self.spec)

    @property
    def encoder(self) -> VitSpec:
        return self.spec.model.encoder

    @property
    def is_model(self) -> bool:
        """Whether it is a model of transformers, not an encoder of ours."""
        return self.spec.external is not None and bool(self.spec.external.adapter)

    @property
    def stated_flops(self) -> int | None:
        """What the study says that its training has cost."""
        return (self.spec.external.stated_flops or None) if self.spec.external is not None else None

    def bring(self, store: Path) -> bool:
        """Copy a model's weights into a store that lacks them; whether that was so."""
        return self.is_model and bring_model(store, self.path, self.spec)


def read_external(
    name: str, asked: str | ExternalConfig, folder: Path, where: str, clip: ClipSpec, model: ModelSpec
) -> External:
    """What the study's `external.NAME` means; `folder` is that of the study, `where` names the key in errors.

    Raises:
        UserError: nothing is there, it is not what it should be, or it is asked for what it cannot do.
    """
    config = ExternalConfig(model=asked) if isinstance(asked, str) else asked
    if not config.model.startswith(PREFIX):
        return _imported(name, config, (folder / config.model).absolute(), where)
    path = (folder / Path(config.model.removeprefix(PREFIX)).expanduser()).absolute()
    flops = config.trained_flops
    if flops is not None and flops % 1:
        raise UserError(f"{where}.trained_flops: {flops!r} is not a whole number")
    reading = Reading(
        input_px=config.input_px,
        per_tubelet=config.per_tubelet,
        resize_grid=config.resize_grid,
        trained_flops=None if flops is None else int(flops),
    )
    return External(name=name, path=path, spec=external_spec(describe(path, reading, where), clip, model))


def _imported(name: str, config: ExternalConfig, place: Path, where: str) -> External:
    path = place / "spec.json" if place.is_dir() else place
    if not path.is_file():
        hint = ""
        if (place / "config.json").is_file():
            hint = f"; or is it a folder of transformers? Then write hf:{config.model}"
        raise UserError(
            f"{where}: {path} is not there; give the folder of an imported run, or its spec.json "
            f"(`salt-train import FOLDER` makes one and prints where it is){hint}"
        )
    if config != ExternalConfig(model=config.model):
        raise UserError(
            f"{where}: {path} is a run of a store; input_px, per_tubelet, resize_grid and trained_flops are "
            "for folders of transformers, `hf:FOLDER`"
        )
    spec = read_json(path, RunSpec)
    if spec.arm != "external":
        raise UserError(
            f"{where}: {path} is a run of the arm {spec.arm}, not imported weights; name a run that "
            "`salt-train import` made"
        )
    return External(name=name, path=path, spec=spec)


def with_names(file: StudyFile, taken: Collection[str], where: str) -> StudyFile:
    """The file with `hf:FOLDER` among its teachers replaced by a name, which `external` then has.

    Raises:
        UserError: two folders, or a folder and a size (`taken`), would have one name.
    """
    external, arms = dict(file.external), {}
    for arm in ("salt", "external", "hybrid"):
        config = getattr(file.arms, arm)
        if config is None or not any(name.startswith(PREFIX) for name in config.teachers):
            continue
        names = []
        for teacher in config.teachers:
            name = teacher
            if teacher.startswith(PREFIX):
                name = re.sub(r"[^A-Za-z0-9_.]", "_", Path(teacher.removeprefix(PREFIX)).name).lstrip("_.")
                if not name or name in taken or external.get(name, teacher) != teacher:
                    raise UserError(
                        f"{where}: arms.{arm}.teachers: {teacher}: {name!r} cannot be its name, or is "
                        f"another one's; give it a name of its own, `external: {{NAME: {teacher}}}`"
                    )
                external[name] = teacher
            names.append(name)
        arms[arm] = msgspec.structs.replace(config, teachers=tuple(names))
    if not arms:
        return file
    return msgspec.structs.replace(file, external=external, arms=msgspec.structs.replace(file.arms, **arms))


def _clip_json(clip: ClipSpec) -> str:
    """The fields in which a clip is not the default one."""
    plain, default = msgspec.to_builtins(clip), msgspec.to_builtins(ClipSpec())
    return json.dumps({name: value for name, value in plain.items() if value != default[name]})


def external_problems(external: External, clip: ClipSpec, model: ModelSpec) -> list[str]:
    """Why weights from elsewhere cannot teach or be probed in a study of this clip and model; else empty."""
    found, own = external.spec, external.spec.model
    if found.external is not None and found.external.adapter:
        adapter = found.external.adapter
        problems = [f"external {external.name}: {text}" for text in grid_problems(adapter, clip, model)]
    else:
        problems = []
    problems += [
        f"external {external.name}: its model.{field} is {getattr(own, field)}, the study's is "
        f"{getattr(model, field)}: teacher and student must see the same tokens"
        for field in ("tubelet_frames", "patch_px")
        if getattr(own, field) != getattr(model, field)
    ]
    differ = [
        f"{field} {getattr(found.clip, field)!r} instead of {getattr(clip, field)!r}"
        for field in ClipSpec.__struct_fields__
        if getattr(found.clip, field) != getattr(clip, field)
    ]
    if differ:
        problems.append(
            f"external {external.name}: it was imported with another clip than the study's "
            f"({', '.join(differ)}); import it again with the study's, "
            f"`salt-train import FOLDER --clip CLIP.json`, where CLIP.json holds {_clip_json(clip)}"
        )
    return problems
