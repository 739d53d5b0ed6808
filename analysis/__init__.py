"""What a study means: one tidy table, and from it frontiers, comparisons, figures and a report.

In a notebook::

    import analysis

    study = analysis.load("salt-store")          # or an archive, or analysis.load_table("salt2025")
    study.pareto().ordered
    study.figure("pareto")
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.study import Study

__all__ = ["load", "load_table"]


def load(place: str | Path = "salt-store", plan: str | None = None) -> Study:
    """A study of a run store, or of an archive: `analysis.study.load`."""
    from analysis import study

    return study.load(place, plan)


def load_table(place: str | Path, columns: str | None = None) -> Study:
    """Results of another project, or `salt2025`: `analysis.study.load_table`."""
    from analysis import study

    return study.load_table(place, columns)
