"""Numbers as text, without any heavy import."""

from __future__ import annotations


def flops_text(value: float) -> str:
    """A FLOP count for people, three digits at most: 800000000000 is `8e11`."""
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
