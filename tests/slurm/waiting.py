"""Waiting for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
POLL_S = 0.05


def wait_for(condition: Callable[[], T], limit_s: float = 30, what: str = "") -> T:
    """The first true value of `condition`, asked again and again. Raises `AssertionError` after `limit_s`."""
    end = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {limit_s:g} s: {what or condition} (last: {value!r})")
        time.sleep(POLL_S)
