"""Damaged inputs, made by rules, and the commands that must survive them."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import signal
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import yaml
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

import salt_cli

#: No input may take more of a processor's time, nor keep a command waiting on a busy machine.
LIMIT_S, WAIT_S = 20, 300

#: Values that no field expects, and those that many do, out of place.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 7, 1000),
    *(2**31, 2**63 - 1, 2**63, 2**64, 10**30, -(10**30)),
    *(0.0, -0.0, 0.5, 1.5, 1e-300, 1e18, 1e21, 1e300, float("nan"), float("inf"), float("-inf")),
    *("", " ", "nan", "1e400", "1e3", "0x10", "0", "-1", "~", "=", "<<", "train", "nano", "vit_gg"),
    *(
        "40k",
        "0k",
        "1" * 4301 + "k",
        "cached(views=2)",
        "cached(views=" + "9" * 30 + ")",
        "salt@1",
        "salt@99",
    ),
    *("..", "../../x", "/", "/dev/null", "/proc/self/mem", "a/b", "a\0b", "a\nb", "-rf", "--store", "$HOME"),
    *(
        "\u6f22\u5b57",
        "\u202eabc",
        "e\u0301",
        "\U0001f600",
        "\ufeff",
        "<script>alert(1)</script>",
        "{{ 7 * 7 }}",
    ),
    *("[red]x[/red]", "%s%n", "'\"`", "x" * 5000, "a,b", "a.b", "a[0]", "*", "?"),
    *([], {}, [[]], [None], [[], {}], {"": 0}, {"a": {"b": {"c": []}}}, [1, "a", None], [0] * 50),
)

#: Texts that go into files as they are: bombs, tags, endings, encodings.
RAW: tuple[bytes, ...] = (
    *(
        b"",
        b"\n",
        b"\0",
        b" ",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
        b"\xc3",
        b"---\n---\n",
        b"- a\n- b\n",
        b"null\n",
    ),
    *(b"a: &a [*a]\n", b"a: &a {b: *a}\n", b"a: *b\n", b"[" * 3000, b"{" * 3000, b"[" * 3000 + b"]" * 3000),
    b"a: &a [x, x, x, x, x, x, x, x, x]\n"
    + b"".join(b"%c: &%c [%s]\n" % (n, n, b", ".join([b"*%c" % (n - 1)] * 9)) for n in range(98, 112)),
    *(b"name: !!python/object/apply:os.system ['exit 7']\n", b"name: !!python/name:os.system\n"),
    *(b"!!python/object/new:tuple [[1]]\n", b"name: !!binary aGk=\n", b"name: !!set {a, b}\n"),
    *(b"name: !!timestamp 2001-01-01\n", b"name: !!int abc\n", b"name: !!float abc\n", b"name: !!bool abc\n"),
    *(
        b"name: !unknown x\n",
        b"%YAML 9.9\n---\na: b\n",
        b"%TAG ! tag:x,2000:\n---\n!a b\n",
        b"? [a, b]\n: c\n",
    ),
    *(
        b"<<: {name: x}\n",
        b"<<: [1]\n",
        b"a: b: c\n",
        b"a:\n\tb: c\n",
        b"a: 'x\n",
        b'a: "\\q"\n',
        b"a: |2\n x\n",
    ),
    *(b"name: " + b"9" * 5000 + b"\n", b'{"a": ' * 2000, b'{"a": 1e999}', b'{"a": NaN}', b'{"a": "\\ud800"}'),
)


#: How the line of an error begins: ours, or argparse's own.
_STARTS = ("error:", *(f"{name}:" for name in salt_cli.COMMANDS))
#: What `make test` tries; `--hypothesis-profile=long` tries as many as one has hours for.
QUICK, LONG = 40, 20_000

settings.register_profile(
    "quick",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=QUICK,
    suppress_health_check=list(HealthCheck),
)
settings.register_profile(
    "long",
    deadline=None,
    database=None,
    max_examples=LONG,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("quick")
set_hypothesis_home_dir(tempfile.gettempdir())  # it keeps what it knows of Unicode, not beside our sources


def tries(count: int) -> settings:
    """Settings for `count` inputs in the quick profile, and in proportion in others."""
    return settings(max_examples=max(1, count * settings.default.max_examples // QUICK))


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str


class TooSlow(BaseException):
    """A command that an input kept busy for too long; no handler for exceptions catches it."""


@contextlib.contextmanager
def limited(limit_s: int = LIMIT_S) -> Iterator[None]:
    """End what is inside with `TooSlow` when its time is over."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"busy for {limit_s} s, or waiting for {WAIT_S} s")

    timers = {signal.ITIMER_PROF: (signal.SIGPROF, limit_s), signal.ITIMER_REAL: (signal.SIGALRM, WAIT_S)}
    before = {number: signal.signal(number, late) for number, _ in timers.values()}
    for timer, (_, after_s) in timers.items():
        signal.setitimer(timer, after_s)
    try:
        yield
    finally:
        for timer in timers:
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def command(name: str, *argv: str) -> Ended:
    """Run a command line in this process as a shell would; whatever it does not catch escapes."""
    out, err = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), io.StringIO()  # JSON goes out as bytes
    with limited(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = salt_cli.run(name, list(argv))
        except SystemExit as ended:  # argparse's own refusals
            code = int(ended.code or 0)
    out.seek(0)
    return Ended(code=code, out=out.read(), err=err.getvalue())


def held(ended: Ended, *places: str) -> Ended:
    """The command ended well, or with one message that names a place; never with a traceback."""
    assert ended.code in (0, 1, 2), ended
    assert "Traceback" not in ended.err, ended.err
    if ended.code == 2:
        starts = [line for line in ended.err.splitlines() if line.partition(" ")[0] in _STARTS]
        assert len(starts) == 1, ended.err
        message = ended.err[ended.err.index(starts[0]) :].partition("error: ")[2]
        assert len(message.strip()) > 12, message
        assert not places or any(place in message for place in places), f"names none of {places}: {message}"
    return ended


# --- documents ------------------------------------------------------------------------------------


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a document but the document itself."""
    found = [] if not path else [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += _places(item, (*path, key))
    return found


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def _scaled(value: Any, factor: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value * factor if number else [value] * min(abs(int(factor)), 40)


#: (value, odd value, a value from elsewhere in the document) -> what stands there instead.
CHANGES: tuple[Callable[[Any, Any, Any], Any], ...] = (
    lambda value, odd, other: odd,
    lambda value, odd, other: odd,
    lambda value, odd, other: other,
    lambda value, odd, other: [value],
    lambda value, odd, other: {"value": value},
    lambda value, odd, other: str(value),
    lambda value, odd, other: _scaled(value, -1),
    lambda value, odd, other: _scaled(value, 10**6),
    lambda value, odd, other: _scaled(value, 1e-6),
    lambda value, odd, other: [*value, *value] if isinstance(value, list) else odd,
    lambda value, odd, other: [*value, odd] if isinstance(value, list) else odd,
    lambda value, odd, other: value | {"unknown": odd} if isinstance(value, dict) else odd,
    lambda value, odd, other: value | {str(odd): other} if isinstance(value, dict) else odd,
)


@st.composite
def damaged(draw: st.DrawFn, document: Any, most: int = 3) -> Any:
    """A document with one to `most` of its values deleted, replaced, repeated or moved."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, most))):
        places = _places(document)
        if not places:
            return document
        path = draw(st.sampled_from(places))
        parent, value = _at(document, path[:-1]), copy.deepcopy(_at(document, path))
        what = draw(st.integers(-2, len(CHANGES) - 1))
        if what < 0:
            del parent[path[-1]]
            continue
        odd = draw(st.sampled_from(ODD))
        other = _at(document, draw(st.sampled_from(places)))
        parent[path[-1]] = copy.deepcopy(CHANGES[what](value, odd, other))
    return document


def yaml_bytes(document: Any) -> bytes:
    """The document as YAML; a copy is written out, so that no anchors tie equal parts together."""
    return yaml.safe_dump(copy.deepcopy(document), sort_keys=False, allow_unicode=True).encode(
        "utf-8", "replace"
    )


def json_bytes(document: Any) -> bytes:
    """The document as JSON, with NaN and Infinity as Python writes them."""
    return json.dumps(document).encode()


@st.composite
def mangled(draw: st.DrawFn, data: bytes) -> bytes:
    """A file's bytes cut, repeated, swapped or overwritten; or one of `RAW` in their place."""
    what = draw(st.integers(0, 6))
    if what == 0:
        return draw(st.sampled_from(RAW))
    place = draw(st.integers(0, max(0, len(data) - 1)))
    if what == 1:
        return data[:place]
    if what == 2:
        return data[:place] + draw(st.binary(min_size=1, max_size=6)) + data[place + 1 :]
    if what == 3:
        return data[:place] + draw(st.sampled_from(RAW)) + data[place:]
    lines = data.splitlines(keepends=True)
    at, other = (draw(st.integers(0, max(0, len(lines) - 1))) for _ in range(2))
    if what == 4:
        return b"".join([*lines[:at], *lines[at + 1 :]])
    if what == 5:
        return b"".join([*lines[:at], *lines[other : other + 1], *lines[at:]])
    return b"".join([*lines[: at + 1], *lines[other:]])
