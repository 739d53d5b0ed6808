"""How well numbers without labels tell accuracy, as a table."""

from __future__ import annotations

import math

import pandas as pd

from analysis.loss_accuracy import LEVEL, PREDICTORS
from analysis.tables import MISSING, Table


def predictor_table(found: pd.DataFrame) -> Table:
    def ends(low: float, high: float) -> str:
        return MISSING if math.isnan(low) else f"[{low:.2f}, {high:.2f}]"

    rows = []
    measured = set(found.loc[found["status"] != "not measured", "predictor"])
    for row in found[found["predictor"].isin(measured)].itertuples():
        place = (row.label, row.kind, row.group, PREDICTORS[row.predictor], f"{row.n}", f"{row.teachers}")
        if row.status != "ok":
            rows.append((*place, row.status, *([MISSING] * 5)))
            continue
        rows.append(
            (
                *(*place, f"{row.r2:.2f}", ends(row.r2_low, row.r2_high), ends(row.boot_low, row.boot_high)),
                *(f"{row.spearman:+.2f}", f"{row.effective_n:.1f}"),
                f"{100 * row.left_out:.2f} ({100 * row.spread:.2f})",
            )
        )
    headers = (
        *(
            "label",
            "probe",
            "within",
            "predictor",
            "runs",
            "targets",
            "R2",
            f"{100 * LEVEL:.0f} % interval (Fisher)",
        ),
        *("bootstrap over runs", "Spearman", "effective n", "error left out (of the mean), points"),
    )
    return Table("How well a number without labels tells accuracy, within runs of one teacher", headers, rows)
