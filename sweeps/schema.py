"""JSON Schemas of the YAML files, from their types, so that editors complete and check them."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from salt.specs import ObjectiveSpec, OptimSpec, ProbeSpec
from sweeps.config import StudyFile
from sweeps.reference_doc import comments, structs, study_kinds
from sweeps.site import SiteSpec

Kind = Literal["study", "site"]
KINDS: tuple[Kind, ...] = ("study", "site")
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def schema(kind: Kind) -> dict[str, Any]:
    """The schema of a kind of file. Sections that are laid over a spec complete that spec's fields."""
    if kind == "site":
        site = msgspec.json.schema(SiteSpec)
        _explain(site["$defs"], structs(SiteSpec))
        return {"$schema": _DRAFT, "title": "site profile of salt", **_portable(site)}
    whole: dict[str, Any] = msgspec.json.schema(StudyFile)
    parts = whole["$defs"]
    extra = msgspec.json.schema_components(
        (OptimSpec, ObjectiveSpec, ProbeSpec), ref_template="#/$defs/{name}"
    )[1]
    for name, part in extra.items():
        parts.setdefault(name, part)
    _explain(parts, study_kinds())
    for name in ("StudyFile", *(name for name in parts if name.endswith("Config"))):
        fields = parts[name]["properties"]
        for field, spec in (
            ("optim", "OptimSpec"),
            ("objective", "ObjectiveSpec"),
            ("settings", "ProbeSpec"),
        ):
            if field in fields:
                fields[field] = _section(parts[spec])
    # Laid over the file level by level, so that what is required in it is not here.
    keys = [name for name in parts["StudyFile"]["properties"] if name not in ("name", "quick")]
    parts["StudyFile"]["properties"]["quick"] = {"type": "object", "propertyNames": {"enum": keys}}
    return {"$schema": _DRAFT, "title": "study file of salt", **_portable(whole)}


def _portable(part: Any) -> Any:
    """The same with patterns that editors read, too: their dialect has no `\\Z`."""
    if isinstance(part, dict):
        return {
            key: value.replace("\\Z", "$")
            if key == "pattern" and isinstance(value, str)
            else _portable(value)
            for key, value in part.items()
        }
    return [_portable(each) for each in part] if isinstance(part, list | tuple) else part


def _explain(parts: dict[str, Any], kinds: list[type[msgspec.Struct]]) -> None:
    """Give every field its explanation, which editors show beside it."""
    for kind in kinds:
        for name, text in comments(kind).items():
            field = parts[kind.__name__]["properties"][name]
            parts[kind.__name__]["properties"][name] = {**field, "description": text}


def _section(part: dict[str, Any]) -> dict[str, Any]:
    """Some of a type's fields, none of them required."""
    return {"type": "object", "properties": part["properties"], "additionalProperties": False}
