"""What `salt-sweep simulate` finds out about a plan, as data, tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from analysis.noise import MeasuredNoise
from analysis.plan_contrasts import Family, arm_families, share_families, share_seeds, teacher_families
from analysis.power import (
    ALPHA,
    MOST_SEEDS,
    POWER,
    BestShare,
    FamilyPower,
    Noise,
    best_share,
    chance_of_order,
    family_power,
)
from salt.errors import UserError
from salt.plan_specs import Plan

_UNITS = {"flops": "FLOPs", "steps": "steps", "gpu-hours": "GPU-hours"}
_DASH = "–"


@dataclass(frozen=True, kw_only=True)
class Order:
    """Chances that arms come out in their true order, where each is `difference` points above the one before:
    at one budget (that with the fewest seeds) and at all of them.
    """

    difference: float
    one_budget: float
    all_budgets: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    plan: str
    unit: str
    seeds: tuple[int, ...]
    noise: Noise
    families: tuple[FamilyPower, ...]
    share_loss: float
    shares: dict[str, BestShare]
    arms: tuple[str, ...]
    budgets: int
    orders: tuple[Order, ...]


def answer(plan: Plan, noise: Noise, share_loss: float, differences: Sequence[float], rng: int) -> Answer:
    """All that can be said of a plan; raises `UserError` if it compares nothing."""
    arms = arm_families(plan)
    families = [*arms, *share_families(plan), *teacher_families(plan)]
    if not families:
        raise UserError(
            f"plan {plan.name!r} compares nothing: it needs two arms, teacher shares or teacher sizes at one "
            "budget"
        )
    placed = share_seeds(plan)
    by_seeds = {each: best_share(*each, share_loss, noise) for each in set(placed.values())}
    return Answer(
        plan=plan.name,
        unit=_UNITS[plan.match],
        seeds=tuple(sorted({cell.seed for cell in plan.cells if cell.budget > 0})),
        noise=noise,
        families=tuple(family_power(family, noise, differences, rng) for family in families),
        share_loss=share_loss,
        shares={name: by_seeds[each] for name, each in placed.items()},
        arms=arms[0].levels if arms else (),
        budgets=len(arms[0].strata) if arms else 0,
        orders=_orders(arms[0], noise, differences) if arms else (),
    )


def _orders(family: Family, noise: Noise, differences: Sequence[float]) -> tuple[Order, ...]:
    """Budgets are independent; at each, the mean over the fewest seeds of any arm that is there."""
    counts = []
    for grid in family.seeds:
        there = grid[grid.any(axis=1)]
        if len(there) > 1:
            counts.append((len(there), int(there.sum(axis=1).min())))
    found = []
    for difference in differences:
        chances = [
            chance_of_order([difference * place for place in range(arms)], noise.residual_sd / n**0.5)
            for arms, n in counts
        ]
        every = 1.0
        for chance in chances:
            every *= chance
        found.append(Order(difference=difference, one_budget=min(chances), all_budgets=every))
    return tuple(found)


# --- as data ----------------------------------------------------------------------------------------


def answer_json(found: Answer, measured: MeasuredNoise | None) -> dict[str, Any]:
    """Plain data; chances are shares of 1, differences points of accuracy, what cannot be said null."""
    noise = found.noise
    return {
        "plan": found.plan,
        "seeds": list(found.seeds),
        "noise": {
            "seed_sd": noise.seed_sd,
            "pair_correlation": noise.correlation,
            "probe_sd": noise.probe_sd,
            "pair_sd": noise.pair_sd,
            "measured": None if measured is None else dict(vars(measured)),
        },
        "alpha": ALPHA,
        "power": POWER,
        "comparisons": [_family_json(each) for each in found.families],
        "share_loss": found.share_loss,
        "best_share": [{"at": name} | _share_json(each) for name, each in found.shares.items()],
        "order_of_arms": {
            "arms": list(found.arms),
            "budgets": found.budgets,
            "chances": [dict(vars(each)) for each in found.orders],
        },
        "lines": answer_lines(found, measured),
    }


def _family_json(each: FamilyPower) -> dict[str, Any]:
    return {
        "question": each.family.question,
        "basis": each.family.basis,
        "levels": list(each.family.levels),
        "family": len(each.family.comparisons),
        "fewest_seeds": each.family.fewest_seeds,
        "most_seeds": each.family.most_seeds,
        "without_interval": each.blind,
        "smallest_alone": each.alone,
        "smallest_after_holm": each.corrected,
        "smallest_after_bonferroni": each.bounded,
        "power_after_holm": {f"{d:g}": value for d, value in each.power_corrected.items()},
        "false_claims": each.false_claims,
        "seeds_for_one_point": each.seeds_for_one_point,
        "draws": each.draws,
    }


def _share_json(each: BestShare) -> dict[str, Any]:
    return {
        "shares": list(each.shares),
        "seeds": list(each.seeds),
        "found": list(each.found),
        "found_or_next": list(each.one_off),
        "points_lost": list(each.lost),
    }


# --- as tables --------------------------------------------------------------------------------------


def answer_tables(found: Answer, measured: MeasuredNoise | None) -> list[Any]:
    """Tables, and the sentences below them."""
    tables: list[Any] = [_power_table(found)]
    if found.shares:
        tables.append(_share_table(found))
    if found.orders:
        tables.append(_order_table(found))
    return [*tables, *map(Text, answer_lines(found, measured))]


def _power_table(found: Answer) -> Table:
    differences = list(found.families[0].power_corrected)
    table = Table(
        title=f"{found.plan}: differences that would be seen, points of accuracy",
        caption=f"power {POWER:.0%} at {ALPHA:.0%} two-sided; power columns: after Holm over the family",
    )
    for name in ("compared", "at", "pairs", "seeds", "smallest alone", "after Holm"):
        table.add_column(name, justify="left" if name in ("compared", "at") else "right")
    for difference in differences:
        table.add_column(f"{difference:g}", justify="right")
    table.add_column("seeds for 1 point", justify="right")
    for each in found.families:
        table.add_row(
            f"{each.family.question}: {', '.join(each.family.levels)}",
            each.family.basis,
            str(len(each.family.comparisons)),
            _seeds(each.family),
            _points(each.alone),
            _points(each.corrected),
            *(_chance(each.power_corrected[difference]) for difference in differences),
            f"over {MOST_SEEDS:,}" if each.seeds_for_one_point is None else f"{each.seeds_for_one_point:,}",
        )
    return table


def _share_table(found: Answer) -> Table:
    table = Table(
        title="Finding the best teacher share",
        caption=f"if a share twice or half the best one costs {found.share_loss:g} points",
    )
    for name in ("at", "best share", "seeds", "comes out best", "it or its neighbour", "points lost"):
        table.add_column(name, justify="left" if name == "at" else "right")
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, each in found.shares.items():
        groups.setdefault((each.shares, each.seeds), []).append(name)
    for names in groups.values():
        each = found.shares[names[0]]
        at = names[0] if len(names) == 1 else f"each of {len(names)}: {names[0]} ..."
        for place, share in enumerate(each.shares):
            table.add_row(
                at if place == 0 else "",
                f"{100 * share:.3g} %",
                str(each.seeds[place]),
                _chance(each.found[place]),
                _chance(each.one_off[place]),
                f"{each.lost[place]:.2f}",
            )
    return table


def _order_table(found: Answer) -> Table:
    table = Table(
        title=f"Order of {len(found.arms)} arms: chance that all come out in their true order",
        caption="by their mean accuracies; arms evenly spaced, points between neighbours",
    )
    for name in ("points between", "at one budget", f"at all {found.budgets}"):
        table.add_column(name, justify="right")
    for each in found.orders:
        table.add_row(f"{each.difference:g}", _chance(each.one_budget), _chance(each.all_budgets))
    return table


def _seeds(family: Family) -> str:
    few, most = family.fewest_seeds, family.most_seeds
    return str(few) if few == most else f"{few}-{most}"


def _points(value: float | None) -> str:
    return _DASH if value is None else f"{value:.2f}"


def _chance(value: float) -> str:
    return f"{100 * value:.0f} %"


def answer_lines(found: Answer, measured: MeasuredNoise | None) -> list[str]:
    """What the numbers rest on and what they say, a sentence each."""
    lines = [_noise_line(found.noise, measured)]
    lines += [_family_line(each, measured) for each in found.families]
    if found.shares:
        worst = min(found.shares.values(), key=lambda each: each.mean_found)
        lines.append(
            f"Best share: comes out best in {_chance(worst.mean_found)} of studies, averaged over where it "
            "lies, where the plan is weakest; choosing what comes out best loses "
            f"{max(worst.lost):.2g} points on average at most."
        )
    return lines


def _family_line(each: FamilyPower, measured: MeasuredNoise | None) -> str:
    what, members = f"{each.family.question} ({each.family.basis})", len(each.family.comparisons)
    blind = ""
    if each.blind:
        needed = f"over {MOST_SEEDS:,}" if each.seeds_for_one_point is None else each.seeds_for_one_point
        blind = (
            f"{each.blind} of {members} comparisons have fewer than two common seeds: no interval, no claim, "
            f"whatever the difference; {needed} seeds would see one point"
        )
    if each.corrected is None:
        return f"{what}: {blind}."
    line = (
        f"{what}: after Holm, differences below {each.corrected:.2g} points would be missed in more than one "
        "study in five"
    )
    if measured is not None:
        low, high = (each.corrected * bound / measured.seed_sd for bound in (measured.low, measured.high))
        line += f" ({low:.2g} to {high:.2g} within the interval of the noise)"
    return f"{line}. {blind[0].upper()}{blind[1:]}." if blind else f"{line}."


def _noise_line(noise: Noise, measured: MeasuredNoise | None) -> str:
    if measured is None:
        probe = f", {noise.probe_sd:.3g} from the report clips" if noise.probe_sd else ""
        return (
            f"Noise (given): {noise.seed_sd:.3g} points between seeds, correlation {noise.correlation:.2g} "
            f"at equal seed{probe}; a paired difference varies by {noise.pair_sd:.3g} points."
        )
    correlation = (
        "no two arms share seeds, so correlation 0 is taken"
        if measured.correlation is None
        else f"correlation {measured.correlation:.2g} between arms at equal seed ({measured.pairs} pairs)"
    )
    return (
        f"Noise (measured, {measured.label}, {measured.kind} probe): {measured.seed_sd:.3g} points between "
        f"seeds, 95 % interval {measured.low:.3g} to {measured.high:.3g} ({measured.degrees} degrees of "
        f"freedom: {measured.runs} runs of {measured.configurations} configurations); "
        f"{correlation}; a paired difference varies by {noise.pair_sd:.3g} points."
    )
