"""What stands in a report, section by section: each number from an analysis, each with its runs."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from analysis import tables
from analysis.allocation_text import allocation_sentences, allocation_table
from analysis.beside_published import Answers, beside_published
from analysis.findings import limits, results
from analysis.frontier_text import frontier_sentences
from analysis.isoflop_results import law_table as isoflop_laws
from analysis.isoflop_text import isoflop_sentences, isoflop_table
from analysis.law_text import law_table
from analysis.loss_accuracy_text import predictor_table
from analysis.machine import flops_per_gpu_hour
from analysis.reference import NAME, reference_table
from analysis.regime_text import regime_sentences, regime_table
from analysis.report_analyses import Analyses
from analysis.report_blocks import Block, Pairs, Prose, Said, Section, Shown, found
from analysis.report_design import design, method, ran
from analysis.report_figures import columns, frontier_picture, teacher_picture
from analysis.threats import depends_on_rule, single_seed, unbracketed, unsound_fits
from analysis.tuning_record import Tuning, tuning_threats
from analysis.versus_text import versus_sentences, versus_table

_FITS = {
    "compute": "Accuracy in compute",
    "surface": "Accuracy in size and data",
    "teacher-compute": "Accuracy in compute, with the teacher's accuracy",
}


def sections(made: Analyses, figures: Path, tuning: list[Tuning]) -> list[Section]:
    """All sections in order; the pictures are those that lie in `figures`."""
    table, evidence = made.table, made.evidence
    threats = [
        *limits(evidence),
        *single_seed(made.frontier),
        *depends_on_rule(made.frontier, made.runs_of),
        *unbracketed(made.allocated, made.runs_of),
        *unsound_fits([law for each in made.laws.values() for law in each]),
        *tuning_threats(table, tuning),
    ]
    lost = tables.lost_table(table)
    return [
        Section("results", "What came out", found(results(evidence))),
        Section("limits", "Threats to these conclusions that the data show", found(threats)),
        Section("design", "Design", (Pairs("design", tuple(design(table))),)),
        Section(
            "ran",
            "What was run and what was lost",
            (Prose("ran", (ran(table),)), *([Shown("lost", lost)] if lost.rows else [])),
        ),
        _frontier(made, figures),
        Section("controls", "Controls", (Shown("controls", tables.control_table(table)),)),
        _teachers(made, figures),
        _allocation(made, figures),
        _laws(made, figures),
        _predictors(made, figures),
        _comparisons(made, figures),
        *([_published(made, figures)] if made.about["plan"] != NAME else []),
        Section("cost", "Cost, probes and repeats of data", (Shown("cost", tables.cost_table(table)),)),
        Section("method", "How the numbers are made", (Pairs("method", tuple(method(table))),)),
    ]


def _frontier(made: Analyses, figures: Path) -> Section:
    configs = made.frontier.ordered
    lines = frontier_sentences(made.frontier.parts, made.frontier.curves)
    lines += [each.text for each in made.frontier.verdicts]
    blocks: list[Block] = [
        frontier_picture(made, figures),
        Shown("frontier", tables.frontier_table(configs)),
        Shown(
            "configurations",
            tables.frontier_table(made.frontier.configs, only_frontier=False),
            "All configurations, on the frontier or not",
        ),
        *columns(
            figures,
            "pareto-attainment-",
            "Best accuracy up to a cost with its band, per arm: {}; below it the probability to be best.",
            "Attained accuracy with bands from seeds and report clips: {}.",
        ),
        *_said(lines, made, "Frontiers"),
    ]
    return Section("frontier", "Accuracy against FLOPs", tuple(blocks))


def _teachers(made: Analyses, figures: Path) -> Section:
    teachers = made.evidence.teachers[made.evidence.teachers["frames"] == "ordered"]
    title = "Students and their teachers, with the equal-FLOPs control"
    if teachers.empty:
        return Section(
            "teachers", title, (Prose("teachers", ("No cell of this study has a frozen teacher.",)),)
        )
    regime = made.regime
    lines = regime_sentences(regime.regimes, regime.turns, regime.weakest, regime.within)
    blocks: list[Block] = [
        teacher_picture(made, figures),
        Shown("teachers", tables.weak_teacher_table(teachers), "The table of teachers and students in full"),
    ]
    if len(regime.weakest):
        told = regime_table(regime.regimes, regime.turns, regime.weakest, regime.within)
        blocks.append(Shown("regimes", told))
    blocks += columns(
        figures,
        "weak-teacher-regime-",
        "Students against teachers at equal student compute, and the teacher by student surface: {}.",
        "Students of equal compute against their teachers: {}.",
    )
    return Section("teachers", title, (*blocks, *_said(lines, made, "Students and teachers")))


def _allocation(made: Analyses, figures: Path) -> Section:
    title = "The teacher's share of the budget"
    if made.allocated.optima.empty:
        text = "No finished run has a teacher with a share of the budget, so there is no split to judge."
        return Section("allocation", title, (Prose("allocation", (text,)),))
    several = made.allocated.optima[made.allocated.optima["shares"] > 1]
    blocks: list[Block] = [
        *([Shown("allocation", allocation_table(several))] if len(several) else []),
        *(
            columns(
                figures,
                "allocation-",
                "Accuracy along the teacher's share of the budget: {}; numbers are in the table.",
                "Accuracy along the teacher's share: {}.",
            )
            if len(several)
            else []
        ),
        *_said(allocation_sentences(made.allocated), made, "Every curve"),
    ]
    return Section("allocation", title, tuple(blocks))


def _laws(made: Analyses, figures: Path) -> Section:
    blocks: list[Block] = []
    for name, fits in made.laws.items():
        if not fits:
            continue
        counts = pd.Series([fit.fit.status for fit in fits]).value_counts().items()
        told = ", ".join(f"{number} {status}" for status, number in counts)
        blocks += [
            Prose(f"law-{name}-status", (f"{_FITS[name]}: {told}, of {len(fits)} fits.",)),
            Shown(f"law-{name}", law_table(fits, "accuracy"), f"{_FITS[name]}: every fit"),
        ]
        blocks += columns(
            figures,
            f"fit-{name}-accuracy.",
            "Fitted law and the runs it was fitted to; parameters and statuses are in the table.",
            f"{_FITS[name]}: fits, and the largest budget as predicted from the others.",
            column=False,
        )
    rate = flops_per_gpu_hour(made.table)
    for result in made.isoflop:
        blocks.append(Shown(f"isoflop-{result.of.name}", isoflop_table(result, "accuracy")))
    if made.isoflop:
        lines = [
            line for row in isoflop_laws(made.isoflop, rate).itertuples() for line in isoflop_sentences(row)
        ]
        blocks += [Prose("isoflop", tuple(lines))]
        blocks += columns(figures, "isoflop-", "IsoFLOP profiles: {}.", "IsoFLOP profiles: {}.")
    refused = tuple(f"Not made: {name}: {why}." for name, why in made.refused.items())
    return Section("laws", "Laws", (*blocks, *([Prose("laws-refused", refused)] if refused else [])))


def _predictors(made: Analyses, figures: Path) -> Section:
    title = "Does a number without labels tell accuracy?"
    if made.predictors is None or made.predictors.empty:
        text = "There are not enough runs under one teacher with a loss and a score."
        return Section("predictors", title, (Prose("predictors", (text,)),))
    pictures = columns(
        figures,
        "loss-accuracy.",
        "Accuracy against training loss, a panel per label, probe and arm; numbers are in the table.",
        "Accuracy against training loss, within runs of the same targets.",
        column=False,
    )
    shown = Shown("predictors", predictor_table(made.predictors), "Loss and label-free metrics, every group")
    return Section("predictors", title, (shown, *pictures))


def _comparisons(made: Analyses, figures: Path) -> Section:
    evidence = made.evidence
    note = (
        "Paired by seed. Intervals are uncorrected; p is Holm's over all comparisons of the same label and "
        "probe in a table, and nothing is claimed at a corrected p of 0.05 or more, or when the interval "
        "holds 0."
    )
    chosen = "Each arm's choice on the selection clips, whatever its size."
    same = "Each arm's choice on the selection clips, per student size."
    more = "Each arm's choice at its largest budget (a) and smallest budget (b)."
    blocks: list[Block] = [
        Prose("comparisons-note", (note,)),
        Shown("comparisons", tables.difference_table(evidence.differences, chosen)),
        Shown(
            "comparisons-size", tables.difference_table(evidence.same_size, same), "At the same student size"
        ),
        Shown("comparisons-budget", tables.difference_table(evidence.budgets, more), "More compute"),
    ]
    if len(made.versus):
        told = versus_table(made.versus, 0.95)
        blocks.append(Shown("comparisons-power", told, "How many seeds would tell"))
        blocks += columns(
            figures,
            "compare-",
            "Paired differences between arms with intervals: {}; numbers are in the tables.",
            "Paired differences between arms: {}.",
        )
        blocks += _said(versus_sentences(made.versus), made, "Comparisons")
    return Section("comparisons", "Comparisons of arms at equal budget", tuple(blocks))


def _published(made: Analyses, figures: Path) -> Section:
    regime = made.regime
    answers = Answers(made.table, regime.points, regime.regimes, made.allocated.optima)
    table, said = beside_published(answers, made.frontier.configs)
    reference = reference_table(NAME)
    scored = int(reference["run_id"].nunique())
    picture = columns(
        figures,
        f"pareto-{NAME}",
        "Published accuracy of the mean of four tasks against FLOPs; tasks and scales are not this study's.",
        f"The {scored} published runs, in their own tasks, probes and FLOPs (paper convention), not on one "
        "axis with this study.",
    )
    note = (
        "Other data, tasks, sizes and budgets: only the direction of answers can be set side by side, never "
        "the accuracies."
    )
    return Section(
        "published",
        "Beside the published numbers",
        (Prose("published-note", (note,)), Shown("published", table), *picture, *found(said)),
    )


def _said(lines: list[str], made: Analyses, rest: str) -> list[Said]:
    """Sentences that begin with a label and probe, together under these and with their runs; `rest` names
    those that do not.
    """
    rows = made.table.dropna(subset=["label", "kind"])
    places = dict.fromkeys(zip(rows["label"], rows["kind"], strict=True))
    heads = {f"{label}, {kind}": (label, kind) for label, kind in places}
    said: dict[str, list[str]] = {}
    for line in lines:
        fitting = [head for head in heads if line.startswith((f"{head}:", f"{head},"))]
        head = max(fitting, key=len, default="")
        said.setdefault(head, []).append(line.removeprefix(head).lstrip(":, "))
    every = tuple(dict.fromkeys(rows["run_id"]))
    return [
        Said(head or rest, tuple(parts), made.runs_of(*heads[head]) if head else every)
        for head, parts in said.items()
    ]
