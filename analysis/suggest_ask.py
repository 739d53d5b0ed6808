"""The questions of `salt-analyze suggest`, made from what a study has so far."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.pareto import configurations, selected
from analysis.power import chance_best
from analysis.suggest_points import Point, PointKey
from analysis.suggest_questions import (
    ArmDifferences,
    BestOf,
    Crossing,
    Crossover,
    Prior,
    Question,
    SeedNoise,
    crossings_of,
    seed_noise,
)
from analysis.suggest_shares import bridge_priors
from salt.errors import UserError
from salt.plan_specs import Plan

#: Sentences on where a question stands.
SHOWN = 10


def ask(
    plan: Plan,
    table: pd.DataFrame,
    points: list[Point],
    name: str,
    score: tuple[str, str],
    seed_sd: float | None,
) -> tuple[Question, SeedNoise, list[str]]:
    """The question, the noise it is judged by, and sentences on where it stands.

    Raises `UserError` where these results cannot be asked it.
    """
    if name == "best-share":
        groups = _groups(points, lambda p: (p.budget, p.teacher, p.student, p.variant), shares=True)
        if not groups:
            raise UserError(
                "--question best-share: no teacher and student have results at two teacher shares of one "
                "budget; add shares to `arms.salt.teacher_share`, or ask another question"
            )
        noise = _noise(groups, seed_sd)
        new, priors = bridge_priors(groups, noise, plan.charge)
        with_new = [group + [p for p in new if _beside(p, group)] for group in groups]
        priors |= _group_priors(with_new, noise, priors)
        best: Question = _best("best-share", with_new, priors, noise)
        return best, noise, _best_findings(groups, noise)
    if name == "frontier":
        groups = _groups(points, lambda p: (p.budget,), shares=False)
        if not groups:
            raise UserError(
                "--question frontier: no budget has results of two configurations yet; run more of the plan, "
                "or ask once `salt-sweep status` shows more of it done"
            )
        noise = _noise(groups, seed_sd)
        best = _best("frontier", groups, _group_priors(groups, noise, {}), noise)
        return best, noise, _best_findings(groups, noise)
    return _arm_question(plan, table, points, name, score, seed_sd)


def _arm_question(
    plan: Plan,
    table: pd.DataFrame,
    points: list[Point],
    name: str,
    score: tuple[str, str],
    seed_sd: float | None,
) -> tuple[Question, SeedNoise, list[str]]:
    by_budget = _arms_by_budget(table, points, score)
    groups = [list(arms.values()) for arms in by_budget.values() if len(arms) > 1]
    if not groups:
        raise UserError(f"--question {name}: no budget of the plan has two arms; ask best-share or frontier")
    noise = _noise(groups, seed_sd)
    if name == "arms":
        pairs = tuple((a, b) for group in groups for i, a in enumerate(group) for b in group[i + 1 :])
        differences = [_difference(a, b) for a, b in pairs]
        known = [each for each in differences if each is not None]
        prior = float(np.mean(np.square(known))) if known else 0.0
        return ArmDifferences(pairs=pairs, noise=noise, prior_variance=prior), noise, []
    crossings = crossings_of(by_budget, plan.charge)
    if not crossings:
        raise UserError(
            "--question crossover: no two arms change places between neighbouring budgets at common seeds "
            f"({_who_leads(by_budget)}); ask arms or frontier, or plan budgets beyond these"
        )
    findings = [_crossing_finding(each, noise) for each in crossings]
    return Crossover(crossings=tuple(crossings), noise=noise), noise, findings


def _crossing_finding(crossing: Crossing, noise: SeedNoise) -> str:
    """Where two arms change places; and whether their difference is seen to change at all."""
    spread = 2 * noise.residual_sd**2
    low, high = crossing.low, crossing.high
    error = sum(spread / len(a.values.keys() & b.values.keys()) for a, b in (low, high)) ** 0.5
    change = abs(crossing.slope) * float(np.log2(high[0].budget / low[0].budget))
    vague = "" if change > noise.reach * error else ", which is within noise: whether they cross is not known"
    return (
        f"{crossing.name}: near {2**crossing.place:.3g}, between {low[0].budget:.3g} and "
        f"{high[0].budget:.3g}; the difference changes by {change:.2g} points there{vague}."
    )


def _noise(groups: list[list[Point]], seed_sd: float | None) -> SeedNoise:
    if seed_sd is not None:
        return SeedNoise(residual_sd=seed_sd, degrees=None, basis="given")
    noise = seed_noise(groups)
    if noise is None:
        raise UserError(
            "no configuration of this question has results of two seeds, so the noise between seeds is not "
            "known: give --seed-sd POINTS"
        )
    return noise


def _groups(points: Sequence[Point], key: Callable[[Point], Any], shares: bool) -> list[list[Point]]:
    """Points compared with each other, at least two of them with results."""
    found: dict[Any, list[Point]] = defaultdict(list)
    for point in points:
        if not shares or point.share is not None:
            found[key(point)].append(point)
    return [group for group in found.values() if sum(bool(point.values) for point in group) > 1]


def _beside(point: Point, group: list[Point]) -> bool:
    keys = ("budget", "teacher", "student", "variant")
    return all(getattr(point, name) == getattr(group[0], name) for name in keys)


def _best(name: str, groups: list[list[Point]], priors: dict[PointKey, Prior], noise: SeedNoise) -> BestOf:
    return BestOf(name=name, groups=tuple(tuple(group) for group in groups), priors=priors, noise=noise)


def _group_priors(
    groups: list[list[Point]], noise: SeedNoise, known: dict[PointKey, Prior]
) -> dict[PointKey, Prior]:
    """For points without results: the mean and the spread of the others of their group."""
    found = {}
    for group in groups:
        means = [point.mean for point in group if point.values]
        spread = float(np.var(means, ddof=1)) + noise.residual_sd**2
        for point in group:
            if not point.values and point.key not in known:
                found[point.key] = Prior(mean=float(np.mean(means)), variance=spread)
    return found


def _arms_by_budget(
    table: pd.DataFrame, points: list[Point], score: tuple[str, str]
) -> dict[float, dict[str, Point]]:
    """At each budget the configuration of each arm that the selection clips choose; of an arm without any
    result the first one planned.
    """
    configs = configurations(table)
    label, kind = score
    chosen = selected(
        configs[(configs["label"] == label) & (configs["kind"] == kind) & (configs["frames"] == "ordered")]
    )
    best = set(zip(chosen["config_id"], chosen["arm"], chosen["budget_flops"], strict=True))
    found: dict[float, dict[str, Point]] = defaultdict(dict)
    for point in sorted(points, key=lambda p: (p.key[0], p.arm, p.budget_flops) not in best):
        found[point.budget].setdefault(point.arm, point)
    return dict(sorted(found.items()))


def _difference(a: Point, b: Point) -> float | None:
    seeds = sorted(a.values.keys() & b.values.keys())
    return float(np.mean([a.values[seed] - b.values[seed] for seed in seeds])) if seeds else None


def _who_leads(by_budget: dict[float, dict[str, Point]]) -> str:
    parts = []
    for budget, arms in by_budget.items():
        known = {arm: point.mean for arm, point in arms.items() if point.values}
        if len(known) > 1:
            parts.append(f"{max(known, key=lambda arm: known[arm])} leads at {budget:.3g}")
    return ", ".join(parts) or "no budget has results of two arms"


def _best_findings(groups: list[list[Point]], noise: SeedNoise) -> list[str]:
    """How sure the best of each group is, the least sure first, and whether it is at the edge."""
    found = []
    for group in groups:
        known = [point for point in group if point.values]
        sds = [noise.residual_sd / len(point.values) ** 0.5 for point in known]
        chances = chance_best([point.mean for point in known], sds)
        best = known[int(np.argmax(chances))]
        shares = [point.share for point in known if point.share is not None]
        edge = ""
        if len(shares) == len(known) and best.share in (min(shares), max(shares)):
            edge = "; at the edge of the shares, so that the best one may lie beyond"
        text = f"best of {len(known)} with probability {chances.max():.2f}{edge}."
        found.append((float(chances.max()), f"{best.config} at budget {best.budget:.3g}: {text}"))
    found.sort(key=lambda each: each[0])
    more = [f"{len(found) - SHOWN} others are surer."] if len(found) > SHOWN else []
    return [text for _, text in found[:SHOWN]] + more
