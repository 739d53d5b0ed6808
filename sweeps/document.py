"""YAML documents with plain rules, decoded strictly, with errors that name file, line and field.

Values are read as in YAML 1.2: `200e9` and `1e-3` are numbers, only `true` and `false` are booleans, `010` is
ten and `on`, `no` or `12:30` are text. A key that comes twice is refused.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import msgspec.inspect
import yaml

from salt.errors import UserError

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2 scalars."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be plain text", key.start_mark
                )
            if key.value in seen:
                message = f"the key {key.value!r} comes twice; keep one of them"
                raise yaml.constructor.ConstructorError(None, None, message, key.start_mark)
            seen.add(key.value)
        # Keys are field names, so they stay text even where they look like numbers.
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def construct_plain_mapping(self, node: yaml.MappingNode) -> dict[Any, Any]:
        return self.construct_mapping(node)

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        return int(node.value.replace("_", ""))

    def construct_real(self, node: yaml.ScalarNode) -> float:
        return float(node.value.replace("_", ""))


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:null", r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    (_INT, r"^[-+]?[0-9][0-9_]*$", "-+0123456789"),
    (_FLOAT, r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
_Loader.add_constructor(_INT, _Loader.construct_decimal)
_Loader.add_constructor(_FLOAT, _Loader.construct_real)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_plain_mapping)


def parse_yaml(data: bytes, file: Path) -> dict[str, Any]:
    """The mapping in a YAML document.

    Raises:
        UserError: not UTF-8, not YAML, a key twice, or not a mapping; names file and line.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    try:
        value = yaml.load(text, Loader=_Loader)  # a subclass of the safe loader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark is not None else str(file)
        raise UserError(f"{place}: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise UserError(f"{file}: nested too deeply, or an anchor that holds itself") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected keys such as `name:` and `budgets_flops:`, got {_short(value)}")
    return value


def decode(data: Any, kind: type[T], where: str) -> T:
    """Turn plain data into a spec; `where` begins every field's path in an error.

    Raises:
        UserError: unknown keys, all at once and each with the nearest valid name, or the first value of a
            wrong type or range.
    """
    problems = list(_unknown_keys(data, _type_info(cast(Hashable, kind)), ""))
    if problems:
        raise UserError("\n".join(f"{where}{problem}" for problem in problems))
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$")
        path = path.rstrip("`").removeprefix(".")
        message = message[:1].lower() + message[1:].replace("`", "")
        got = (
            "" if path == "" or " required field " in message else f" (it is {_short(_value_at(data, path))})"
        )
        raise UserError(f"{where}{path or 'the document'}: {message}{got}") from error


@functools.lru_cache
def _type_info(kind: Hashable) -> msgspec.inspect.Type:
    return msgspec.inspect.type_info(kind)


def overlay(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes` laid over it: mappings are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = overlay(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def nearest(name: str, valid: list[str]) -> str:
    """The valid name most like a mistaken one."""
    return difflib.get_close_matches(name, valid, n=1, cutoff=0.0)[0]


def unknown_key(where: str, key: str, valid: list[str]) -> str:
    """The sentence for a key that a mapping does not have; `where` is its whole path."""
    return f"{where}: unknown key; did you mean {nearest(key, valid)!r}? (valid: {', '.join(valid)})"


def unknown_name(where: str, name: str, valid: list[str]) -> str:
    """The sentence for a name that does not exist."""
    listed = ", ".join(valid)
    return f"{where}: unknown name {name!r}; did you mean {nearest(name, valid)!r}? (valid: {listed})"


def _unknown_keys(data: Any, kind: msgspec.inspect.Type, path: str) -> list[str]:
    """Sentences for the keys that a type does not have, depth first."""
    found: list[str] = []
    if isinstance(kind, msgspec.inspect.UnionType):
        for option in kind.types:
            if isinstance(option, msgspec.inspect.StructType | msgspec.inspect.VarTupleType):
                found += _unknown_keys(data, option, path)
    elif isinstance(kind, msgspec.inspect.StructType) and isinstance(data, dict):
        fields = {field.encode_name: field.type for field in kind.fields}
        for key, value in data.items():
            inner = f"{path}.{key}" if path else str(key)
            if key in fields:
                found += _unknown_keys(value, fields[key], inner)
            else:
                found.append(unknown_key(inner, str(key), list(fields)))
    elif isinstance(kind, msgspec.inspect.VarTupleType | msgspec.inspect.ListType) and isinstance(data, list):
        for index, item in enumerate(data):
            found += _unknown_keys(item, kind.item_type, f"{path}[{index}]")
    return found


def _value_at(data: Any, path: str) -> Any:
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        data = data[key] if key else data[int(index)]
    return data


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
