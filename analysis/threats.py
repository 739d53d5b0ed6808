"""Threats to a conclusion that only show when all analyses are there: seeds, rules, brackets, fits."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from analysis.allocation import FEW, FLAT, INTERIOR, Allocation
from analysis.findings import Finding
from analysis.frontier import Frontier
from analysis.law_results import LawResult

#: Run ids behind a label and probe, in the order in which they stand in the table.
RunsOf = Callable[[str, str], tuple[str, ...]]


def single_seed(found: Frontier) -> list[Finding]:
    """Configurations with one seed have no interval at all."""
    rows = found.ordered[found.ordered["n"] > 0]
    single = rows[rows["n"] == 1]
    if single.empty:
        return []
    text = (
        f"{len(single)} of {len(rows)} configurations with scores have one seed: nothing tells what another "
        "seed would have given, and no interval over seeds exists for them."
    )
    return [Finding("One seed", text, _ids(single))]


def depends_on_rule(found: Frontier, runs_of: RunsOf) -> list[Finding]:
    """Who leads is another arm under another FLOP convention or charge for teachers."""
    return [
        Finding(
            f"The convention decides: {each.label}, {each.kind}",
            f"{_sentence(each.text.removeprefix(f'{each.label}, {each.kind}: '))} Who is better is then "
            "a matter of bookkeeping, and the rule has to be "
            "named with the result.",
            runs_of(each.label, each.kind),
        )
        for each in found.verdicts
        if not each.survives
    ]


def unbracketed(allocated: Allocation, runs_of: RunsOf) -> list[Finding]:
    """Curves along the teacher's share whose best lies at an end, or which are too short for one inside."""
    optima = allocated.optima
    at_end = optima[~optima["status"].isin([FEW, FLAT, INTERIOR])]
    short = optima[optima["status"] == FEW]
    parts = []
    if len(at_end):
        parts.append(
            f"In {len(at_end)} of {len(optima)} curves the best share lies at an end of those tried, so a "
            f"better one may lie outside ({_places(at_end)})."
        )
    if len(short):
        parts.append(
            f"{len(short)} of {len(optima)} curves have too few shares to bracket a best one "
            f"({_places(short)})."
        )
    if not parts:
        return []
    both = pd.concat([at_end, short])
    places = dict.fromkeys(zip(both["label"], both["kind"], strict=True))
    runs = tuple(dict.fromkeys(run for label, kind in places for run in runs_of(label, kind)))
    return [Finding("The best share of the teacher is not bracketed", " ".join(parts), runs)]


def _places(rows: pd.DataFrame) -> str:
    counts = rows.groupby(["label", "kind"], sort=False).size().items()
    return "; ".join(f"{label}, {kind}: {number}" for (label, kind), number in counts)


def unsound_fits(laws: list[LawResult]) -> list[Finding]:
    """Fits that did not end well: their parameters say nothing beyond the points."""
    bad = [law for law in laws if law.fit.status != "converged"]
    if not bad:
        return []
    counts = pd.Series([law.fit.status for law in bad]).value_counts()
    text = (
        f"{len(bad)} of {len(laws)} fitted laws are not sound "
        f"({', '.join(f'{number} {status}' for status, number in counts.items())}): the data do not fix "
        "their parameters, and nothing is to be read off them outside the budgets tried."
    )
    ids = tuple(dict.fromkeys(run for law in bad for run in law.fit.data.run_ids))
    return [Finding("Laws are not fixed by these runs", text, ids)]


def _ids(rows: pd.DataFrame) -> tuple[str, ...]:
    return tuple(dict.fromkeys(run for ids in rows["run_ids"] for run in ids))


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."
