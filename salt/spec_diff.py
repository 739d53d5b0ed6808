"""Two specs, field by field."""

from __future__ import annotations

import json
from typing import Any

ABSENT = "absent"


def differences(old: Any, new: Any, place: str = "") -> list[str]:
    """Where plain data differs: `optim.lr: 0.001 -> 0.002`, a line for each field, in the order of `new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        lines = []
        for name in dict.fromkeys([*new, *old]):
            below = f"{place}.{name}" if place else str(name)
            if name not in old:
                lines.append(f"{below}: {ABSENT} -> {_text(new[name])}")
            elif name not in new:
                lines.append(f"{below}: {_text(old[name])} -> {ABSENT}")
            else:
                lines += differences(old[name], new[name], below)
        return lines
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            line
            for number, (ours, theirs) in enumerate(zip(old, new, strict=True))
            for line in differences(ours, theirs, f"{place}[{number}]")
        ]
    if old == new and isinstance(old, bool) == isinstance(new, bool):
        return []
    return [f"{place}: {_text(old)} -> {_text(new)}"]


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
