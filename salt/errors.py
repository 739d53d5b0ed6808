"""The errors that end a command with a message instead of a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake of the user: the message names the value, the place and the way out.

    Command lines print it and exit with code 2 before anything is written.
    """


class RunFailed(RuntimeError):
    """A run stopped for a reason that belongs in its `error.json`.

    `kind` tells the causes apart: `diverged`, `data`, `teacher`, `trunk`, `checkpoint`, `config`, `disk`,
    `ranks`, `code`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
