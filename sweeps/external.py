"""Weights that were trained elsewhere and imported: teachers that cost nothing here, and references.

The study's `external` names runs that `salt-train import` made. Such a run has no steps and no price; what it
is, its `spec.json` says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import msgspec

from salt.errors import UserError
from salt.specs import ClipSpec, ModelSpec, RunSpec, VitSpec, spec_id
from salt.store import read_json


@dataclass(frozen=True, kw_only=True)
class External:
    """An imported run, by the name that the study gives it."""

    name: str
    path: Path  # of its spec.json
    spec: RunSpec

    @property
    def run_id(self) -> str:
        return spec_id(self.spec)

    @property
    def encoder(self) -> VitSpec:
        return self.spec.model.encoder


def read_external(name: str, place: Path, where: str) -> External:
    """The imported run at a path: its folder or its `spec.json`; `where` names the key in errors.

    Raises:
        UserError: nothing is there, it is not a run's spec, or the run is not imported.
    """
    path = place / "spec.json" if place.is_dir() else place
    if not path.is_file():
        raise UserError(
            f"{where}: {path} is not there; give the folder of an imported run, or its spec.json "
            "(`salt-train import FOLDER` makes one and prints where it is)"
        )
    spec = read_json(path, RunSpec)
    if spec.arm != "external":
        raise UserError(
            f"{where}: {path} is a run of the arm {spec.arm}, not imported weights; name a run that "
            "`salt-train import` made"
        )
    return External(name=name, path=path, spec=spec)


def _clip_json(clip: ClipSpec) -> str:
    """The fields in which a clip is not the default one."""
    plain, default = msgspec.to_builtins(clip), msgspec.to_builtins(ClipSpec())
    return json.dumps({name: value for name, value in plain.items() if value != default[name]})


def external_problems(external: External, clip: ClipSpec, model: ModelSpec) -> list[str]:
    """Why imported weights cannot teach or be probed in a study of this clip and model; empty if they can."""
    found, own = external.spec, external.spec.model
    problems = [
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
