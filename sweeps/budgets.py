"""Budgets on the command line: `1e21`, `1e21,3e21` or `1e19:1e21:5`."""

from __future__ import annotations

import math

from salt.errors import UserError

_HELP = "give positive numbers such as 1e21, a list 1e21,3e21 or a range 1e19:1e21:5"


def parse_budgets(texts: list[str]) -> tuple[float, ...]:
    """All budgets of all options, in their order, each once.

    A range `first:last:count` is spaced evenly in the logarithm; what lies between its ends is rounded to
    three digits, so that budgets have short names.

    Raises:
        UserError: names the text and what is wrong with it.
    """
    found: dict[float, None] = {}
    for text in texts:
        for part in text.split(","):
            found |= dict.fromkeys(_range(part, text) if ":" in part else [_number(part, text)])
    return tuple(found)


def _number(part: str, text: str) -> float:
    try:
        value = float(part)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise UserError(f"--budget {text}: {part!r} is not a budget; {_HELP}")
    return value


def _range(part: str, text: str) -> list[float]:
    ends = part.split(":")
    if len(ends) != 3 or not ends[2].strip().isdecimal() or int(ends[2]) < 2:
        raise UserError(f"--budget {text}: a range is first:last:count with a count of at least 2; {_HELP}")
    first, last, count = _number(ends[0], text), _number(ends[1], text), int(ends[2])
    if first >= last:
        raise UserError(f"--budget {text}: the range must rise; {_HELP}")
    ratio = math.log(last / first) / (count - 1)
    inner = [float(f"{first * math.exp(ratio * step):.2e}") for step in range(1, count - 1)]
    return [first, *inner, last]
