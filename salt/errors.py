"""The errors that end a command with a message instead of a traceback."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake of the user: the message names the value, the place and the way out.

    Command lines print it and exit with code 2 before anything is written.
    """


def shown(message: object) -> str:
    """A message whose names from files cannot move the cursor or turn the text around."""
    return "".join(
        character if character.isprintable() or character == "\n" else repr(character)[1:-1]
        for character in str(message)
    )


class NoDevice(UserError):
    """There is no such device here, or it does not work: mistyped, or of a machine that is broken."""


class RunFailed(RuntimeError):
    """A run stopped for a reason that belongs in its `error.json`.

    `kind` tells the causes apart: `diverged`, `data`, `teacher`, `trunk`, `checkpoint`, `config`, `disk`,
    `oom`, `ranks`, `killed`, `code`.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Interrupted(RunFailed):
    """A run was asked to stop and did: no error, and nothing is written to `error.json`.

    `step` is the step after which it stopped, None outside of training. `saved` says whether all steps up to
    there are in a checkpoint. Its kind is `interrupted`, so that ranks agree on it like on a failure.
    """

    def __init__(self, *, step: int | None, saved: bool) -> None:
        where = "" if step is None else f" after step {step}"
        kept = "its state is saved" if saved else "what was saved before stays"
        super().__init__("interrupted", f"stopped{where}; {kept}")
        self.step = step
        self.saved = saved


class ClaimLost(Interrupted):
    """The run is another process's now: this one stood still for too long. It writes nothing more there."""

    def __init__(self) -> None:
        super().__init__(step=None, saved=False)
        self.args = (
            "another process has taken the run over while this one stood still; it is left to that one",
        )
