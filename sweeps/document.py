"""Documents decoded strictly, with errors that name file, line and field."""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Hashable
from typing import Any, TypeVar, cast

import msgspec
import msgspec.inspect

from salt.errors import UserError
from salt.plain_yaml import parse_yaml as parse_yaml  # what reads a document belongs to it

T = TypeVar("T")


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
        raise UserError(f"{where}{_told(data, kind, error)}") from error


def _told(data: Any, kind: type[Any], error: msgspec.ValidationError) -> str:
    """What is wrong, where, and what stands there, from msgspec's own words.

    msgspec writes `[...]` for a mapping's key; which one it is comes out by leaving all others out.
    """
    message, _, path = str(error).partition(" - at `")
    message = message[:1].lower() + message[1:].replace("`", "")
    steps: list[Any] = []
    for name, index in re.findall(r"([^.\[\]`$]+)|\[(\d+|\.\.\.)\]", path.removeprefix("key` in `")):
        if index != "...":
            steps.append(name or int(index))
            continue
        key = _key_at_fault(data, kind, error, steps)
        if key is None:
            break
        steps.append(key)
    place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).removeprefix(".")
    if path.startswith("key` in `"):
        return f"{place or 'the document'}: {message}, as a key"
    got = "" if not place or " required field " in message else f" (it is {_short(_value_at(data, steps))})"
    return f"{place or 'the document'}: {message}{got}"


def _key_at_fault(data: Any, kind: type[Any], error: Exception, steps: list[Any]) -> str | None:
    """The key of the mapping at `steps` that alone gives the same error."""
    for key, value in _value_at(data, steps).items():
        try:
            msgspec.convert(_with_value(data, steps, {key: value}), kind)
        except msgspec.ValidationError as found:
            if str(found) == str(error):
                return str(key)
    return None


def _value_at(data: Any, steps: list[Any]) -> Any:
    for step in steps:
        data = data[step]
    return data


def _with_value(data: Any, steps: list[Any], value: Any) -> Any:
    """A copy of the document with another value at a place."""
    if not steps:
        return value
    copy = data.copy()
    copy[steps[0]] = _with_value(data[steps[0]], steps[1:], value)
    return copy


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


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
