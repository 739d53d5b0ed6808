"""Folders for results are made, and tried, before the work whose results they are to hold."""

from __future__ import annotations

import os
from pathlib import Path

from salt.errors import UserError


def make_folder(folder: Path, what: str) -> None:
    """Make a folder with its parents if it is not there; `what` names it to the user.

    Raises `UserError` if it cannot be made or written in.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{what} {folder}: cannot be made ({error.strerror}); name another place") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{what} {folder}: cannot be written in; it is read-only or belongs to someone else")
