"""The attempts of a run, from its `env.json`: where each began, on which machine, and how it ended.

One that ended without a word was killed. Attempts in a row that began at the same place got nowhere: they are
counted from these files, not from memory, so that it does not matter who counts.
"""

from __future__ import annotations

import os
import re
import time

import msgspec

from salt.disk import require_folder
from salt.errors import UserError
from salt.store import DamagedFile, RunDir, pretty_json, read_json, write_atomically

#: So many attempts in a row without a new step, and a run is given up.
ATTEMPTS_VARIABLE = "SALT_ATTEMPTS"
DEFAULT_ATTEMPTS = 3
#: How an attempt ended that is not held against the run.
HARMLESS = ("done", "stopped")

#: What is known of one attempt; see `begin_attempt` and `end_attempt`.
Attempt = dict[str, str | None]


class Environment(msgspec.Struct, kw_only=True):
    """`env.json`: provenance of each attempt. It is not part of the run's identity."""

    attempts: list[Attempt] = []


class Fruitless(msgspec.Struct, frozen=True, kw_only=True):
    """The attempts in a row, up to the last one, that ended without a new step."""

    count: int
    hosts: tuple[str, ...]  # each once
    last: str | None  # the error of the last one that left one

    def __str__(self) -> str:
        attempts = "attempt" if self.count == 1 else "attempts in a row"
        return f"{self.count} {attempts} without a new step, on {', '.join(self.hosts) or 'an unknown host'}"


def attempts_allowed() -> int:
    """`$SALT_ATTEMPTS`, else `DEFAULT_ATTEMPTS`. Raises `UserError` for what is no positive whole number."""
    text = os.environ.get(ATTEMPTS_VARIABLE, str(DEFAULT_ATTEMPTS))
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise UserError(f"{ATTEMPTS_VARIABLE}={text!r}: give a whole number of at least 1, or unset it")
    return int(text)


def read_attempts(run: RunDir) -> list[Attempt]:
    """All attempts of a run, oldest first; none before the first. Raises `DamagedFile` for a damaged file."""
    attempts = read_json(run.env, Environment).attempts if run.env.exists() else []
    for attempt in attempts:
        try:
            _began_ns(attempt)
        except ValueError as error:
            raise DamagedFile(
                f"{run.env}: `began_unix_s`: {error}; move it away and submit again; the attempts of the run "
                "are then counted anew"
            ) from error
    return attempts


def begin_attempt(run: RunDir, about: Attempt) -> int:
    """Note an attempt before it does anything, with what is `about` it; its number, from 1."""
    attempts = read_attempts(run)
    attempts.append({**about, "began_unix_s": f"{time.time():.3f}", "from": progress(run), "ended": None})
    _write(run, attempts)
    return len(attempts)


def end_attempt(run: RunDir, ended: str, message: str | None = None, *, smaller: str | None = None) -> None:
    """Note how the last attempt ended: `done`, `stopped` or the kind of its error, with its message.

    `smaller` is the setting that the next one takes after a lack of memory; then it is not held against the
    run.
    """
    require_folder(run.path)  # a store that went away is not made anew
    attempts = read_attempts(run)
    if attempts:
        attempts[-1] |= {"ended": ended, "message": message}
        if smaller is not None:
            attempts[-1]["smaller"] = smaller
        _write(run, attempts)


def was_stopped(run: RunDir) -> bool:
    """Whether the last attempt ended because it was asked to."""
    attempts = read_attempts(run)
    return bool(attempts) and attempts[-1].get("ended") == "stopped"


def fruitless(run: RunDir, since_ns: int = 0) -> Fruitless:
    """Attempts in a row that began where the run still is, those before `since_ns` (Unix time) left out.

    Attempts that were asked to stop, or after which a smaller setting was tried for want of memory, neither
    count nor end the row. The caller sees to it that none is under way.
    """
    here, found = progress(run), []
    for attempt in reversed(read_attempts(run)):
        if attempt.get("from") != here or _began_ns(attempt) < since_ns:
            break
        if attempt.get("ended") not in HARMLESS and not attempt.get("smaller"):
            found.append(attempt)
    hosts = dict.fromkeys(attempt.get("host") or "an unknown host" for attempt in found)
    last = next((attempt["message"] for attempt in found if attempt.get("message")), None)
    return Fruitless(count=len(found), hosts=tuple(hosts), last=last)


def progress(run: RunDir) -> str:
    """How far a run has come, by its files: what another attempt would begin from."""
    probes = len(list(run.probes.glob("*.json")))
    if run.artefact.exists():
        return f"trained, {probes} probes"
    names = (re.fullmatch(r"step-(\d+)\.json", path.name) for path in run.checkpoints.glob("step-*.json"))
    return f"step {max((int(name[1]) for name in names if name), default=0)}"


def _began_ns(attempt: Attempt) -> float:
    """When an attempt began, 0 where it does not say. Raises ValueError for what is no number."""
    return float(attempt.get("began_unix_s") or 0) * 1e9


def _write(run: RunDir, attempts: list[Attempt]) -> None:
    write_atomically(run.env, pretty_json(Environment(attempts=attempts)))
