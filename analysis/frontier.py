"""Everything that is said of a study's frontiers, from one table: bands, multipliers, crossovers, rules."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.conventions import Verdict, under_every_rule, verdicts
from analysis.cost_axis import CostAxis, cost_axis
from analysis.frontier_draws import Curves, attainment, choices, frontier_curves, hypervolumes
from analysis.multiplier import crossovers, multipliers
from analysis.noise import measured_noise
from analysis.pareto import configurations
from analysis.records import stacked


@dataclass(frozen=True)
class Frontier:
    """Accuracy against a cost, per arm, label and probe.

    `configs` one row per configuration and budget, with `on_frontier`; `curves` the drawn frontiers;
    `parts` the tables `attainment`, `multipliers`, `crossovers`, `hypervolumes` and `conventions`, empty
    where there is nothing to say; `verdicts` whether who leads is the same under every FLOP convention and
    charge (of costs in FLOPs alone).
    """

    cost: CostAxis
    configs: pd.DataFrame
    curves: list[Curves]
    parts: dict[str, pd.DataFrame]
    verdicts: list[Verdict]

    @property
    def ordered(self) -> pd.DataFrame:
        """Configurations scored on clips whose frames are in order: no controls."""
        return self.configs[self.configs["frames"] == "ordered"]


def frontier(table: pd.DataFrame, cost: str = "flops", price: float | None = None) -> Frontier:
    """Frontiers of a gathered table, with the uncertainty of seeds and report clips.

    Args:
        table: as `analysis.gather.gather` gives it.
        cost: `flops`, `gpu-hours`, `money` or `parameters`.
        price: of a GPU-hour, for `money`.

    Raises:
        UserError: the table does not hold what the cost is made of.
    """
    axis = cost_axis(table, cost, price)
    configs = configurations(axis.table)
    noises, chosen = measured_noise(table), choices(configs)
    curves = frontier_curves(chosen, noises)
    parts = {
        "attainment": stacked([attainment(each) for each in curves]),
        "multipliers": stacked([multipliers(each) for each in curves]),
        "crossovers": stacked([crossovers(each) for each in curves]),
        "hypervolumes": stacked([hypervolumes(each) for each in curves]),
        "conventions": under_every_rule(table, chosen, noises) if cost == "flops" else stacked([]),
    }
    said = verdicts(parts["conventions"]) if len(parts["conventions"]) else []
    return Frontier(axis, configs, curves, parts, said)
