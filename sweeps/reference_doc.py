"""Pages of the documentation that are made from the code: study file, site profile, command lines."""

from __future__ import annotations

import argparse
import inspect
import re
import tokenize
from io import StringIO
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from salt.specs import ObjectiveSpec, OptimSpec, ProbeSpec
from sweeps.config import StudyFile
from sweeps.site import SiteSpec

#: What a study file can hold that its own types only name as sections of free keys.
_BESIDE: tuple[type[msgspec.Struct], ...] = (OptimSpec, ObjectiveSpec, ProbeSpec)

#: Why a block of shell commands is not run by the tests, by the word after `sh` in its fence.
NOT_RUN = {
    "build": "installs or builds everything",
    "hours": "trains for long",
    "site": "needs a cluster, GPUs or a server",
    "weights": "needs published weights",
}


def with_reasons(page: str) -> str:
    """A page in which blocks that the tests do not run say why, above them."""
    for word, reason in NOT_RUN.items():
        fence = f"```{{code-block}} sh\n:caption: Checked, not run, by the tests: {reason}\n"
        page = re.sub(rf"^```sh {word}\n", fence, page, flags=re.M)
    return page


def structs(root: type[msgspec.Struct]) -> list[type[msgspec.Struct]]:
    """A type and all that it holds, in the order of its fields."""
    found: list[type[msgspec.Struct]] = []

    def visit(kind: Any) -> None:
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            if kind not in found:
                found.append(kind)
                for hint in get_type_hints(kind).values():
                    visit(hint)
            return
        for part in getattr(kind, "__args__", ()):
            visit(part)

    visit(root)
    return found


def study_kinds() -> list[type[msgspec.Struct]]:
    """Every type that a study file can hold, its sections of free keys included."""
    roots: tuple[type[msgspec.Struct], ...] = (StudyFile, *_BESIDE)
    return list(dict.fromkeys(kind for root in roots for kind in structs(root)))


def comments(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The comment at the end of each field's line in the source, by field; inherited fields have theirs."""
    found: dict[str, str] = {}
    for base in kind.__bases__:
        if issubclass(base, msgspec.Struct) and base.__struct_fields__:
            found |= comments(base)
    lines = inspect.getsource(kind).splitlines()
    for token in tokenize.generate_tokens(StringIO(inspect.cleandoc("\n".join(lines)) + "\n").readline):
        field = re.match(r"\s*(\w+)\s*:", token.line)
        if token.type == tokenize.COMMENT and field and field[1] in kind.__struct_fields__:
            found[field[1]] = token.string.lstrip("#: ").strip()
    return found


def type_text(hint: Any, schema: dict[str, Any]) -> str:
    """A field's type in words, from its JSON schema."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_text(hint, part) for part in schema["anyOf"]))
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        inner = schema.get("items") or (schema.get("prefixItems") or [{}])[0]
        return f"list of {type_text(hint, inner or {})}"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"mapping to {type_text(hint, inner)}" if isinstance(inner, dict) and inner else "mapping"
    names = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}
    return names.get(str(kind), "nothing" if kind == "null" else "anything") + _range(schema)


def _range(schema: dict[str, Any]) -> str:
    parts = [
        f"{sign} {schema[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in schema and abs(schema[key]) < 2**53
    ]
    return f" {', '.join(parts)}" if parts else ""


def reference(title: str, intro: str, kinds: list[type[msgspec.Struct]]) -> str:
    """A page: a section for each type, with its docstring and a table of its fields."""
    _, components = msgspec.json.schema_components(tuple(kinds), ref_template="#/{name}")
    lines = [f"# {title}", "", intro, ""]
    for kind in kinds:
        schema, told = components[kind.__name__], comments(kind)
        lines += [f"({kind.__name__.lower()})=", f"## {kind.__name__}", "", _docstring(kind), ""]
        lines += ["| key | what it is | type | default |", "| --- | --- | --- | --- |"]
        required = set(schema.get("required", ()))
        for name, field in schema["properties"].items():
            default = "**required**" if name in required else _default(field)
            text = type_text(None, field)
            lines.append(f"| `{name}` | {told.get(name, '').replace('|', '&#124;')} | {text} | {default} |")
        lines.append("")
    return "\n".join(lines)


def _docstring(kind: type[msgspec.Struct]) -> str:
    """A type's docstring; its `names` are code in Markdown too."""
    own = kind.__dict__.get("__doc__")
    return inspect.cleandoc(own) if own else ""


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return "its own defaults"
    text = msgspec.json.encode(field["default"]).decode()
    return "none" if text == "null" else f"`{text.replace('|', chr(92) + '|')}`"


def command_page() -> str:
    """Every command of the four, with its help as it is printed at 100 columns."""
    from sweeps.completion_cli import parsers

    lines = ["# Command line reference", "", "As `--help` prints it.", ""]
    for parser in parsers():
        lines += [f"## {parser.prog}", "", "```text", _help(parser), "```", ""]
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                for name, sub in action.choices.items():
                    lines += [f"### {parser.prog} {name}", "", "```text", _help(sub), "```", ""]
    return "\n".join(lines)


def _help(parser: argparse.ArgumentParser) -> str:
    import os

    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        return parser.format_help().rstrip()
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def write_reference(folder: Path) -> None:
    """Write the generated pages, where they changed."""
    pages = {
        "study-file.md": reference(
            "Study file reference",
            "Made from the types that a study file is decoded into. Keys that are not here are errors. "
            "`optim` and `objective` take the fields of [OptimSpec](#optimspec) and "
            "[ObjectiveSpec](#objectivespec), a probe's `settings` those of [ProbeSpec](#probespec).",
            study_kinds(),
        ),
        "site-profile.md": reference(
            "Site profile reference",
            "Made from the types that a site profile is decoded into.",
            structs(SiteSpec),
        ),
        "commands.md": command_page(),
    }
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text() != text + "\n":
            path.write_text(text + "\n")
