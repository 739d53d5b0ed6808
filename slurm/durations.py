"""Time limits as Slurm writes them, read strictly: what looks like hours must not turn out to be minutes."""

from __future__ import annotations

import re

from salt.errors import UserError

_FORMS = (
    re.compile(r"(?P<minutes>\d+)"),
    re.compile(r"(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d)"),
    re.compile(r"(?P<days>\d+)-(?P<hours>\d+)(?::(?P<minutes>\d\d)(?::(?P<seconds>\d\d))?)?"),
)


def minutes_of(value: str | int, where: str) -> int:
    """Whole minutes, seconds rounded up: `90` is 90 minutes, `1:30:00` hours, `2-00:00:00` two days (sbatch's
    manual, `--time`).

    Raises:
        UserError: no such form, or no time at all; `1:30` too, which sbatch reads as 90 seconds. `where`
            names the place.
    """
    text = str(value).strip()
    match = next((found for form in _FORMS if (found := form.fullmatch(text))), None)
    if match is None:
        two = re.fullmatch(r"(\d+):(\d\d)", text)
        meant = f"; {two[1]}:{two[2]}:00 is hours, 0:{int(two[1]):02d}:{two[2]} minutes" if two else ""
        raise UserError(
            f"{where} {text!r}: give minutes as 90, hours as 1:30:00, or days as 2-00:00:00{meant}"
        )
    parts = {name: int(number) for name, number in match.groupdict().items() if number is not None}
    for name in ("minutes", "seconds"):
        if len(parts) > 1 and parts.get(name, 0) > 59:
            raise UserError(f"{where} {text!r}: {parts[name]} {name}; give at most 59, and more hours")
    whole = 60 * (24 * parts.get("days", 0) + parts.get("hours", 0)) + parts.get("minutes", 0)
    whole += 1 if parts.get("seconds") else 0
    if whole < 1:
        raise UserError(f"{where} {text!r}: no time at all, and Slurm would let such a job wait for ever")
    return whole


def slurm_time(minutes: int) -> str:
    """`days-hours:minutes:00`, which no version of Slurm reads in another way."""
    return f"{minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}:00"


def spoken(minutes: int) -> str:
    """For people: `1 h 30 min`, `2 days`."""
    days, hours, rest = minutes // 1440, minutes // 60 % 24, minutes % 60
    parts = [f"{days} day{'s' if days > 1 else ''}" if days else "", f"{hours} h" if hours else ""]
    parts.append(f"{rest} min" if rest else "")
    return " ".join(part for part in parts if part)
