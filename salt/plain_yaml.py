"""YAML with plain rules, for every YAML file that is read: nothing in one can run, grow or surprise.

Values are read as in YAML 1.2: `200e9` and `1e-3` are numbers, only `true` and `false` are booleans, `010` is
ten and `on`, `no` or `12:30` are text. A key that comes twice is refused, and so is every tag: nothing but
text, finite numbers, booleans, lists and mappings comes out, whoever wrote the file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from salt.errors import UserError

T = TypeVar("T")

#: Values of a document once its aliases are written out. A study has hundreds; a few lines of anchors that
#: hold each other nine times would have more than any memory.
MOST_VALUES = 1_000_000


def _finite(text: str) -> float:
    value = float(text)  # raises on `.inf` and `.nan`
    if not math.isfinite(value):
        raise ValueError(f"{text} is beyond what a number can hold")
    return value


class _Loader(yaml.SafeLoader):
    """The safe loader with YAML 1.2 scalars, and without the types that tags name."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    yaml_constructors: dict[str | None, Any] = {}

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
            self._refuse_odd(key)
            seen.add(key.value)
        # Keys are field names, so they stay text even where they look like numbers.
        return {key.value: self.construct_object(value, deep=True) for key, value in node.value}

    def construct_plain_mapping(self, node: yaml.MappingNode) -> dict[Any, Any]:
        return self.construct_mapping(node)

    def construct_plain_sequence(self, node: yaml.SequenceNode) -> list[Any]:
        return [self.construct_object(item, deep=True) for item in node.value]

    def construct_text(self, node: yaml.ScalarNode) -> str:
        self._refuse_odd(node)
        return str(node.value)

    def construct_truth(self, node: yaml.ScalarNode) -> bool:
        return self._scalar(node, {"true": True, "false": False}.__getitem__, node.value.lower())

    def construct_nothing(self, node: yaml.ScalarNode) -> None:
        return None

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        return self._scalar(node, int, node.value.replace("_", ""))

    def construct_real(self, node: yaml.ScalarNode) -> float:
        return self._scalar(node, _finite, node.value.replace("_", ""))

    def refuse_tag(self, node: yaml.Node) -> Any:
        raise yaml.constructor.ConstructorError(
            None,
            None,
            f"the tag {node.tag!r} is not read: leave it out (text, numbers, booleans, lists, mappings are)",
            node.start_mark,
        )

    def _refuse_odd(self, node: yaml.ScalarNode) -> None:
        """Escapes such as `\\0` and `\\ud800`: no path, no other file and no terminal can hold them."""
        if any(character == "\0" or "\ud800" <= character <= "\udfff" for character in node.value):
            message = f"{_short(node.value)} holds a NUL or half a character (U+D800 to U+DFFF); leave it out"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark)

    def _scalar(self, node: yaml.ScalarNode, kind: Callable[[str], T], text: str) -> T:
        try:
            return kind(text)
        except (KeyError, ValueError) as error:  # of a tag that does not fit, or of too many digits
            message = f"{_short(node.value)} is no {_KINDS[node.tag]}"
            raise yaml.constructor.ConstructorError(None, None, message, node.start_mark) from error


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_BOOL, _NULL = "tag:yaml.org,2002:bool", "tag:yaml.org,2002:null"
#: What a value that cannot be read would have to be.
_KINDS = {
    _INT: "whole number of at most 4300 digits",
    _FLOAT: "finite number",
    _BOOL: "boolean: true or false",
}
for _tag, _pattern, _first in (
    (_BOOL, r"^(true|True|TRUE|false|False|FALSE)$", "tTfF"),
    (_NULL, r"^(~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    (_INT, r"^[-+]?[0-9][0-9_]*$", "-+0123456789"),
    (_FLOAT, r"^([-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$", "-+."),  # to be refused
    (_FLOAT, r"^[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?$", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
_Loader.add_constructor(_INT, _Loader.construct_decimal)
_Loader.add_constructor(_FLOAT, _Loader.construct_real)
_Loader.add_constructor(_BOOL, _Loader.construct_truth)
_Loader.add_constructor(_NULL, _Loader.construct_nothing)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.construct_plain_sequence)
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_plain_mapping)
_Loader.add_constructor(None, _Loader.refuse_tag)


class _Dumper(yaml.SafeDumper):
    """Quotes text that either kind of reader would take for something else, such as `1e3`."""

    yaml_implicit_resolvers = {
        first: [
            *yaml.SafeDumper.yaml_implicit_resolvers.get(first, []),
            *_Loader.yaml_implicit_resolvers.get(first, []),
        ]
        for first in {*yaml.SafeDumper.yaml_implicit_resolvers, *_Loader.yaml_implicit_resolvers}
    }


def written_yaml(data: dict[str, Any], *, flow: bool | None = None) -> str:
    """Plain data as YAML that `parse_yaml` reads back as it was, keys in their order.

    `flow` as in PyYAML: None writes `{a: 1}` for what holds nothing nested, False a line for each value.
    """
    text: str = yaml.dump(
        data, Dumper=_Dumper, sort_keys=False, default_flow_style=flow, width=110, allow_unicode=True
    )
    return text


def parse_yaml(data: bytes, file: Path, keys: str = "`name:` and `budgets_flops:`") -> dict[str, Any]:
    """The mapping in a YAML document; `keys` are examples of its keys, for the error that there is none.

    Raises:
        UserError: not UTF-8, not YAML, a key twice, a tag, aliases of aliases without end, or not a mapping;
            names file and line.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8 text (byte {error.start}): save it as UTF-8") from error
    try:
        value = _value_of(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark is not None else str(file)
        raise UserError(f"{place}: {getattr(error, 'problem', None) or error}") from error
    except RecursionError as error:
        raise UserError(f"{file}: nested too deeply, or an anchor that holds itself") from error
    if not isinstance(value, dict):
        raise UserError(f"{file}: expected keys such as {keys}, got {_short(value)}")
    return value


def _value_of(text: str) -> Any:
    """The value of a document: composed and counted first, so that aliases cannot grow beyond all bounds."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > MOST_VALUES:
            message = f"more than {MOST_VALUES:,} values once its aliases are written out; write fewer"
            raise yaml.composer.ComposerError(None, None, message, node.start_mark)
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[int, int]) -> int:
    """Values under a node with its aliases written out; of one that holds itself, without end."""
    number = id(node)
    if number not in known:
        known[number] = MOST_VALUES + 1  # what is met while it is counted holds itself
        items: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            items = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            items = node.value
        known[number] = 1 + sum(_values(item, known) for item in items)
    return known[number]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
