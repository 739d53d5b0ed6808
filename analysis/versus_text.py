"""What paired comparisons say, as a table and as sentences on how many there are."""

from __future__ import annotations

import pandas as pd

from analysis.plain import flops_text
from analysis.tables import MISSING, Table, count, interval, percent


def versus_table(rows: pd.DataFrame, level: float) -> Table:
    import pandas as pd

    def number(value: float) -> str:
        return MISSING if pd.isna(value) else f"{value:.3f}"

    lines = [
        (
            *(row.label, row.kind, row.a, row.b),
            "all, by seed" if pd.isna(row.budget_flops) else flops_text(row.budget_flops),
            *(count(row.n), percent(row.difference, signed=True), interval(row.low, row.high, signed=True)),
            *(number(row.p), number(row.p_flip), number(row.p_holm), number(row.probability)),
            *(count(row.seeds_observed), count(row.seeds_point), row.basis),
        )
        for row in rows.itertuples()
    ]
    headers = (
        *("label", "probe", "a", "b", "budget", "seeds", "a − b, points", f"{100 * level:.3g} % interval"),
        *("p (t)", "p (sign flips)", "p (Holm)", "P(a better)", "seeds to see this", "seeds to see 1 point"),
        "interval from",
    )
    return Table("Paired comparisons", headers, lines, list(rows["run_ids"]))


def versus_sentences(rows: pd.DataFrame) -> list[str]:
    lines = []
    for (label, kind), group in rows[rows["budget_flops"].notna()].groupby(["label", "kind"], sort=False):
        family = int(group["family"].fillna(0).max())
        raw, kept = int((group["p"] < 0.05).sum()), int((group["p_holm"] < 0.05).sum())
        lines.append(
            f"{label}, {kind}: of {family} comparisons with an interval, {raw} have p below 0.05 alone "
            f"and {kept} after "
            f"Holm's correction; without any true difference {0.05 * family:.1f} of them would be "
            "expected by chance"
        )
        single = int((group["basis"] == "report clips alone (one seed)").sum())
        if single:
            lines.append(
                f"{label}, {kind}: {single} rest on one seed; their intervals hold the sampling of "
                "report clips alone, "
                "not what another seed would give"
            )
    return lines
