"""A study in a notebook: `analysis.load(store)`, then its table, analyses and figures by name.

Every analysis is the function that the command of the same name calls, over the same table, so that a
notebook and the command line give the same numbers.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from analysis.allocation import Allocation
    from analysis.figure_regime import RegimeData
    from analysis.findings import Finding
    from analysis.frontier import Frontier
    from analysis.isoflop_results import IsoflopResult
    from analysis.law_results import LawResult
    from analysis.laws import Metric


@dataclass(frozen=True)
class Drawing:
    """A figure that a notebook shows as a picture; `figure` is matplotlib's."""

    figure: Figure

    def _repr_png_(self) -> bytes:
        from analysis.plots import png_bytes

        return png_bytes(self.figure)

    def save(self, folder: str | Path, name: str) -> list[Path]:
        """Write `<name>.png` (200 dpi) and `<name>.pdf`; their paths."""
        from analysis.plots import write_figure

        return write_figure(self.figure, Path(folder), name)


@dataclass(frozen=True)
class LossAccuracy:
    """`points`: a row per run, label and probe; `predictions`: a row per group and predictor."""

    points: pd.DataFrame
    predictions: pd.DataFrame


@dataclass(frozen=True)
class Study:
    """A study's results. Made by `analysis.load` or `analysis.load_table`; nothing here writes to its store.

    `table` has one row per score (cell x probe x label x frames): see `analysis.gather.gather` for its
    columns. FLOPs are as the study's convention and charge count them; accuracies are shares from 0 to 1.
    """

    name: str
    table: pd.DataFrame
    question: str
    store: Path | None = None  # of a foreign table none
    _kept: _Kept | None = field(default=None, repr=False)  # the folder into which an archive was extracted
    _labels: tuple[str, ...] = field(default=(), repr=False)  # asked for by `only`; none: all
    _probes: tuple[str, ...] = field(default=(), repr=False)

    def only(self, *, label: str | None = None, probe: str | None = None) -> Study:
        """The same study with one label, one kind of probe, or both. Raises `UserError` for unknown names."""
        from dataclasses import replace

        from analysis.command import only

        table = only(self.table, "label", [label] if label else None)
        table = only(table, "kind", [probe] if probe else None)
        labels, probes = (label,) if label else self._labels, (probe,) if probe else self._probes
        return replace(self, table=table, _labels=labels, _probes=probes)

    @cached_property
    def configurations(self) -> pd.DataFrame:
        """One row per configuration, budget, label, probe and frames: `n` seeds, `mean`, `low` and `high` of
        Student's t interval (95 %), `gain` over the random encoder, `on_frontier`, `run_ids`.
        """
        from analysis.pareto import configurations

        return configurations(self.table)

    def pareto(self, cost: str = "flops", price: float | None = None) -> Frontier:
        """Accuracy against a cost per arm: `flops`, `gpu-hours`, `money` (with `price` of a GPU-hour) or
        `parameters`; bands over seeds and report clips, multipliers, crossovers, and verdicts on conventions.

        Raises `UserError` where the table lacks what the cost is made of.
        """
        from analysis.frontier import frontier

        return frontier(self.table, cost, price)

    def weak_teacher(self, within: float = 0.005) -> RegimeData:
        """Students against teachers at equal student compute: slopes and regimes, turning points, and the
        weakest teacher whose student is within `within` (a share: 0.005 is half a point) of the best.
        """
        from analysis.figure_regime import regime_data

        return regime_data(self.table, within)

    def allocation(self, draws: int = 4000) -> Allocation:
        """Accuracy along the teacher's share of the budget: `points`, `optima` per budget, `trends`."""
        from analysis.allocation import allocation

        return allocation(self.table, draws=draws)

    def fit(self, law: str = "compute", metric: Metric = "accuracy", **options: Any) -> list[LawResult]:
        """Fit a law (`compute`, `surface`, `teacher`, `teacher-compute`) to accuracy or loss; a result per
        arm, label and probe, with status, intervals and the largest budget held out (docs/laws.md).

        `options` as in `analysis.law_results.law_results`: `every`, `across`, `huber`, `draws`, `level`.
        Raises `UserError` for an unknown law, or a table with nothing to fit.
        """
        from analysis.law_results import law_results
        from analysis.laws import LAWS

        if law not in LAWS:
            raise UserError(f"law {law!r}: know {', '.join(LAWS)}")
        return law_results(self.table, LAWS[law], metric, **options)

    def isoflop(self, metric: Metric = "accuracy", at: float | None = None) -> list[IsoflopResult]:
        """The best encoder size at each budget, without the parabola's bias; `at` is a budget in FLOPs to
        extrapolate to. Raises `UserError` with fewer than three sizes.
        """
        from analysis.isoflop_results import isoflop_results

        return isoflop_results(self.table, metric, at=at)

    def loss_accuracy(self, across: bool = False) -> LossAccuracy:
        """How well loss, RankMe, LiDAR and alpha-ReQ tell accuracy, within one teacher's students; `across`
        sets losses of different targets on one axis, which are on no common scale.
        """
        from analysis.loss_accuracy import loss_points, predictions

        points = loss_points(self.table, across)
        return LossAccuracy(points, predictions(points))

    def compare(self, a: str | None = None, b: str | None = None, level: float = 0.95) -> pd.DataFrame:
        """Two sides paired by seed and cell, such as `arm=salt,student=micro`; without sides every pair of
        arms. One row per label, probe and budget: difference (a share), interval, p, Holm's p, seeds to tell.

        Raises `UserError` for one side alone, or a condition that nothing meets.
        """
        from analysis.versus import all_arms, comparisons, side

        if (a is None) != (b is None):
            raise UserError("compare: name both sides, or neither for every pair of arms")
        configs = self.configurations
        pairs = all_arms(configs)
        if a is not None and b is not None:
            pairs = [(side(a, configs, "a"), side(b, configs, "b"))]
        return comparisons(self.table, configs, pairs, level)

    def limits(self) -> list[Finding]:
        """What may not be concluded: findings with topic, text and run ids, computed from the numbers."""
        from analysis.findings import limits
        from analysis.report_analyses import collect

        return limits(collect(self.table))

    def report(self, out: str | Path) -> Path:
        """Write the HTML report with figures and tables into a folder; the page's path."""
        from analysis.report import write_report
        from analysis.report_manifest import Source
        from analysis.report_source import plan_source

        source = Source(self.name, self.question)
        if self.store is not None:
            source = plan_source(self.store, self.name, self._labels, self._probes)
        return write_report(source, self.table, Path(out), lambda text: None).paths[0]

    def figure(self, name: str = "pareto", *, label: str | None = None, probe: str | None = None) -> Drawing:
        """A figure: `pareto`, `attainment`, `weak-teacher`, `regime`, `allocation`, `fit`, `isoflop`,
        `loss-accuracy` or `compare`. `attainment`, `regime`, `allocation` and `compare` show one label and
        probe: the first, unless they are named. Raises `UserError` for another name, or nothing to draw.
        """
        from analysis.study_figures import FIGURES

        if name not in FIGURES:
            raise UserError(f"figure {name!r}: know {', '.join(FIGURES)}")
        draw: Callable[[Study], Figure] = FIGURES[name]
        return Drawing(draw(self.only(label=label, probe=probe)))


class _Kept:
    """A temporary folder that goes when nobody needs it any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        weakref.finalize(self, shutil.rmtree, path)


def load(place: str | Path = "salt-store", plan: str | None = None) -> Study:
    """A study of a run store, or of an archive that `salt-analyze export` wrote.

    Args:
        place: the store's folder, or the archive (it is read into a temporary folder).
        plan: its name; without one the newest of the store.

    Raises:
        UserError: no such store, plan or archive.
    """
    from analysis.archive_import import extract
    from analysis.gather import gather
    from analysis.report import read_question
    from salt.plans import choose_plan

    store, kept = Path(place), None
    if store.is_file():
        kept = _Kept(Path(tempfile.mkdtemp(prefix="salt-study-")))
        contents = extract(store, kept.path)
        if plan not in (None, contents.plan):
            raise UserError(f"{store} holds the plan {contents.plan!r}, not {plan!r}")
        store, plan = kept.path, contents.plan
    elif not store.is_dir():
        raise UserError(
            f"{store} is not there: name a run store or an archive (`salt-analyze export` writes one)"
        )
    name = choose_plan(store, plan)
    return Study(name, gather(store, name), read_question(store, name), store, kept)


def load_table(place: str | Path, columns: str | None = None) -> Study:
    """Results of any other project, CSV or Parquet, or `salt2025`, the SALT paper's published numbers.

    `columns` says what columns are called, such as `compute=C,size=N,loss=val_loss`
    (docs/analysis-tables.md). Raises `UserError` as `salt-analyze --table` does.
    """
    from analysis.foreign import read_table

    return Study(Path(place).stem, read_table(str(place), columns), f"Results from {Path(place).name}.")
