"""What to run next, per device-hour, to narrow a named question: a batch chosen one after the other.

Each time the proposal is taken that narrows the question most for what it costs, with everything that is
trained already, or stands in the batch before it, free. docs/power.md has the criteria.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.pareto import arm_rows
from analysis.suggest_ask import ask
from analysis.suggest_points import Point, Prices, RunKey, points_of, prices_of
from analysis.suggest_questions import Have, Proposal, Question, SeedNoise, Worth, with_runs
from salt.errors import UserError
from salt.plan_specs import Plan

#: A run that is expected to change less than this, in points or doublings, is not proposed.
LEAST_STEP = 1e-3


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A proposal with what it costs and is worth. `gpu_hours` None where no run tells how long they take."""

    proposal: Proposal
    worth: Worth
    flops: float
    gpu_hours: float | None
    teacher: str  # "none", "to train", "trained", "in this batch"
    new_runs: int


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What to run next. `left_out` counts cells that failed or diverged, which are not proposed again."""

    question: Question
    label: str
    kind: str
    noise: SeedNoise
    suggestions: tuple[Suggestion, ...]
    prices: Prices
    left_out: int
    findings: tuple[str, ...]


def suggest(
    plan: Plan,
    table: pd.DataFrame,
    done: Sequence[str],
    question: str,
    top: int,
    seed_sd: float | None = None,
) -> Batch:
    """The `top` best things to run next for a question, in the order in which to run them.

    `table` is the plan's, gathered; of several labels and probes the first that `chosen_score` names is
    used. `done` are the ids of finished runs, teachers' and trunks' included. `seed_sd` stands in for the
    noise between seeds, in points, where no configuration has two.

    Raises `UserError` where the question cannot be asked of the results.
    """
    label, kind = chosen_score(plan, table)
    points = points_of(plan, table, label, kind)
    asked, noise, findings = ask(plan, table, points, question, (label, kind), seed_sd)
    prices = prices_of(plan, table, done)
    return Batch(
        question=asked,
        label=label,
        kind=kind,
        noise=noise,
        suggestions=tuple(_choose(asked, points, prices, top)),
        prices=prices,
        left_out=_left_out(table, label, kind),
        findings=tuple(findings),
    )


def _left_out(table: pd.DataFrame, label: str, kind: str) -> int:
    rows = arm_rows(table)
    rows = rows[(rows["label"] == label) & (rows["kind"] == kind) & (rows["frames"] == "ordered")]
    return int(rows.loc[rows["state"].isin(["failed", "diverged"]), "cell_id"].nunique())


def chosen_score(plan: Plan, table: pd.DataFrame) -> tuple[str, str]:
    """(label, kind): of those in the table the first that the plan's probes name, linear before others."""
    rows = table[(table["frames"] == "ordered") & table["accuracy"].notna()]
    there = set(zip(rows["label"], rows["kind"], strict=True))
    named = [
        (label, kind)
        for suite in plan.probes.values()
        for label in suite.labels
        for kind in sorted(suite.kinds, key=lambda kind: kind != "linear")
    ]
    order = sorted(named, key=lambda pair: pair[1] != "linear")
    for pair in order:
        if pair in there:
            return pair
    raise UserError(
        "no scores on ordered frames yet, so nothing says what would help most: run the study first"
    )


def _choose(question: Question, points: Sequence[Point], prices: Prices, top: int) -> list[Suggestion]:
    have: Have = {point.key: frozenset(point.values) for point in points}
    paid: frozenset[RunKey] = frozenset()
    chosen: list[Suggestion] = []
    while len(chosen) < top:
        priced = [
            _priced(proposal, question.worth(proposal, have), prices, paid)
            for proposal in question.proposals(have)
            if proposal.runs
        ]
        good = [each for each in priced if each.worth.step >= LEAST_STEP]
        if not good:
            break
        best = max(good, key=lambda each: (value_of(each), -each.flops))
        chosen.append(best)
        paid |= prices.needed(best.proposal.runs, paid).keys()
        have = dict(with_runs(have, best.proposal.runs))
    return chosen


def value_of(suggestion: Suggestion) -> float:
    """Gain per device-hour, or per FLOP where hours are not known; what costs nothing comes first."""
    cost = suggestion.flops if suggestion.gpu_hours is None else suggestion.gpu_hours
    return suggestion.worth.gain / cost if cost > 0 else float("inf")


def _priced(proposal: Proposal, worth: Worth, prices: Prices, paid: frozenset[RunKey]) -> Suggestion:
    needed = prices.needed(proposal.runs, paid)
    alone = prices.needed(proposal.runs, frozenset())
    taught = any(part.is_teacher for point, _ in proposal.runs for part in point.parts)
    teacher = "none"
    if taught:
        to_train = any(part.is_teacher for part in needed.values())
        shared = any(part.is_teacher for part in alone.values())
        teacher = "to train" if to_train else "in this batch" if shared else "trained"
    return Suggestion(
        proposal=proposal,
        worth=worth,
        flops=sum(part.flops for part in needed.values()),
        gpu_hours=prices.hours(needed.values()),
        teacher=teacher,
        new_runs=len(needed),
    )
