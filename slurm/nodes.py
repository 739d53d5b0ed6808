"""Nodes on which runs keep ending, told from the attempts in the runs' files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from salt.attempts import HARMLESS, Attempt, Environment
from salt.claim import read_claim
from salt.errors import shown
from salt.plan_specs import Plan
from salt.specs import Spec
from salt.store import RunDir
from slurm.causes import speaks_of_machine

#: Kinds that speak of the machine whatever the message.
_KINDS = ("killed", "ranks")
#: What is shown of a message, in characters.
_LONGEST = 160
_SILENT = "ended without a word"


class BadNode(Spec, kw_only=True):
    """What speaks against a node: the last `attempts` there, one after another, ended badly."""

    attempts: int
    reasons: tuple[str, ...]  # each once, the newest first
    runs: tuple[str, ...]  # each once, the oldest first


@dataclass(frozen=True, kw_only=True)
class _Seen:
    run_id: str
    node: str
    began_s: float
    reason: str | None  # what speaks against the machine; None: it did its part
    succeeded: bool


def bad_nodes(store: Path, plan: Plan, exclude_after: int) -> dict[str, BadNode]:
    """Nodes whose last attempts, at least `exclude_after` in a row, ended as on a broken machine.

    With 0 none is found.

    They are attempts of all runs of the plan, by time, that ended without a word or with an error about the
    machine (`slurm.causes.speaks_of_machine`, lost processes). A node's row is not held against it when it is
    of one run alone, unless that run was done or stopped on another node later. An `env.json` that cannot be
    read is left out: the status tells of it.
    """
    if exclude_after < 1:
        return {}
    by_node: defaultdict[str, list[_Seen]] = defaultdict(list)
    succeeded: defaultdict[str, list[_Seen]] = defaultdict(list)
    for seen in _attempts(store, plan):
        by_node[seen.node].append(seen)
        if seen.succeeded:
            succeeded[seen.run_id].append(seen)
    found = {}
    for node in sorted(by_node):
        row = _last_row(by_node[node])
        if len(row) < exclude_after:
            continue
        runs = tuple(dict.fromkeys(seen.run_id for seen in row))
        elsewhere = any(
            good.node != node and good.began_s > row[0].began_s for name in runs for good in succeeded[name]
        )
        if len(runs) > 1 or elsewhere:
            reasons = dict.fromkeys(seen.reason for seen in reversed(row) if seen.reason is not None)
            found[node] = BadNode(attempts=len(row), reasons=tuple(reasons), runs=runs)
    return found


def node_table(bad: Mapping[str, BadNode], names: Mapping[str, str]) -> list[str]:
    """Lines that name each node, its runs (by `names`, run_id -> name) and what they said."""
    lines = []
    for node, found in bad.items():
        runs = ", ".join(names.get(run_id, run_id) for run_id in found.runs)
        lines.append(shown(f"{node}: the last {found.attempts} attempts there ended badly, of {runs}"))
        lines += [shown(f"  {reason}") for reason in found.reasons]
    return lines


def _last_row(seen: Iterable[_Seen]) -> list[_Seen]:
    """The newest attempts up to the last one in which the machine did its part, oldest first."""
    row: list[_Seen] = []
    for each in sorted(seen, key=lambda one: one.began_s, reverse=True):
        if each.reason is None:
            break
        row.append(each)
    return row[::-1]


def _attempts(store: Path, plan: Plan) -> Iterator[_Seen]:
    """All attempts of a plan that have ended, as far as they say where they ran."""
    decoder = msgspec.json.Decoder(Environment)
    for run in plan.runs:
        folder = RunDir(store, run.run_id)
        try:
            attempts = decoder.decode(folder.env.read_bytes()).attempts
        except (FileNotFoundError, msgspec.DecodeError, UnicodeDecodeError):
            continue
        if attempts and attempts[-1].get("ended") is None and _under_way(folder):
            attempts = attempts[:-1]
        for attempt in attempts:
            seen = _seen(run.run_id, attempt)
            if seen is not None:
                yield seen


def _under_way(folder: RunDir) -> bool:
    claim = read_claim(folder)
    return claim is not None and not claim.stale


def _seen(run_id: str, attempt: Attempt) -> _Seen | None:
    node, ended = attempt.get("node") or attempt.get("host"), attempt.get("ended")
    try:
        began_s = float(attempt.get("began_unix_s") or "")
    except ValueError:
        return None
    if not node:
        return None
    message = " ".join((attempt.get("message") or "").split())[:_LONGEST]
    reason = None
    if ended is None:
        reason = _SILENT
    elif ended in _KINDS or (ended not in HARMLESS and speaks_of_machine(attempt.get("message"))):
        reason = f"{ended}: {message}" if message else ended
    return _Seen(run_id=run_id, node=node, began_s=began_s, reason=reason, succeeded=ended in HARMLESS)
