"""One self-contained HTML file about a study: question, answer, figures, tables, and what may not be
concluded.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from analysis import tables
from analysis.compare import arm_differences, budget_differences
from analysis.figure_pareto import write_pareto
from analysis.figure_weak_teacher import weak_teacher_data, weak_teacher_panels, write_weak_teacher
from analysis.findings import Evidence, limits, results
from analysis.gather import cells_used
from analysis.pareto import arm_rows, configurations
from analysis.plain import flops_text
from analysis.plots import PROBE_NAMES, file_name
from analysis.records import write_csv
from analysis.report_template import TEMPLATE
from analysis.weak_teacher import teacher_student_table
from salt.errors import UserError
from salt.plain_yaml import parse_yaml
from salt.plans import plan_dir
from salt.store import write_atomically

CONTENTS = (
    ("results", "What came out"),
    ("limits", "What may not be concluded at this size"),
    ("design", "Design"),
    ("ran", "What was run and what was lost"),
    ("frontier", "Accuracy against FLOPs"),
    ("controls", "Controls"),
    ("teachers", "Students and their teachers, with the equal-FLOPs control"),
    ("comparisons", "Comparisons of arms at equal budget"),
    ("cost", "Cost, probes and repeats of data"),
    ("method", "How the numbers are made"),
)


@dataclass(frozen=True)
class Image:
    """A figure inside the page: base64 PNG, what a reader who cannot see it is told, and a caption."""

    data: str
    alt: str
    caption: str


def collect(table: pd.DataFrame) -> Evidence:
    """All tables that the report and its findings are read from."""
    configs = configurations(table)
    return Evidence(
        table=table,
        configs=configs,
        differences=arm_differences(table, configs),
        same_size=arm_differences(table, configs, per_student=True),
        budgets=budget_differences(table, configs),
        teachers=teacher_student_table(table),
    )


def write_report(store: Path, table: pd.DataFrame, out: Path, say: Callable[[str], None]) -> list[Path]:
    """Write `report.html`, the gathered table and all figures with their data under `out`; the report comes
    first.

    `say` hears what is being done. Files of an earlier report are replaced.
    """
    name = str(table["plan"].iloc[0])
    question = read_question(store, name)
    figures = out / "figures"
    say("frontier figures")
    paths = write_pareto(table, figures)
    say("weak-teacher figures")
    paths += write_weak_teacher(table, figures)
    say("comparisons and findings")
    evidence = collect(table)
    for part, rows in (
        ("comparisons", pd.concat([evidence.differences, evidence.same_size], ignore_index=True)),
        ("comparisons-budgets", evidence.budgets),
        ("gathered", table),
    ):
        paths.append(write_csv(rows, figures / f"{part}.csv"))
    page = out / "report.html"
    write_atomically(page, render(evidence, question, figures).encode())
    return [page, *paths]


def read_question(store: Path, name: str) -> str:
    """The `question` of the study file that was planned; a plain sentence where it has none."""
    path = plan_dir(store, name) / "study.yaml"
    if not path.exists():
        return "The study file of this plan is not in the store."
    try:
        question = parse_yaml(path.read_bytes(), path).get("question")
    except UserError as error:
        raise UserError(f"{error}; plan the study again") from error
    return question if question and isinstance(question, str) else "The study file asks no question."


def render(evidence: Evidence, question: str, figures: Path) -> str:
    """The HTML text; PNG files are read from `figures` and put inside."""
    table = evidence.table
    used, total = cells_used(table)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    ordered = evidence.configs[evidence.configs["frames"] == "ordered"]
    teachers = evidence.teachers[evidence.teachers["frames"] == "ordered"]
    return environment.from_string(TEMPLATE).render(
        title=f"Study {table['plan'].iloc[0]}: frozen teachers, EMA teachers and pixels at equal FLOPs",
        question=question,
        used=used,
        total=total,
        contents=CONTENTS,
        results=results(evidence),
        limits=limits(evidence),
        design=_design(table),
        ran=_ran(table),
        lost=tables.lost_table(table),
        pareto_image=_pareto_image(ordered, figures),
        frontier=tables.frontier_table(ordered),
        all_configurations=tables.frontier_table(evidence.configs, only_frontier=False),
        controls=tables.control_table(table),
        weak_image=_weak_image(figures),
        weak_columns=_weak_columns(table, teachers, figures),
        teachers=tables.weak_teacher_table(teachers),
        differences=tables.difference_table(
            evidence.differences, "Each arm's choice on the selection clips, whatever its size."
        ),
        same_size=tables.difference_table(
            evidence.same_size, "Each arm's choice on the selection clips, per student size."
        ),
        budgets=tables.difference_table(
            evidence.budgets, "Each arm's choice at its largest budget (a) and smallest budget (b)."
        ),
        cost=tables.cost_table(table),
        method=_method(table),
    )


def _design(table: pd.DataFrame) -> list[tuple[str, str]]:
    arms = arm_rows(table)

    def names(column: str, rows: pd.DataFrame) -> str:
        return ", ".join(str(value) for value in dict.fromkeys(rows[column].dropna())) or "none"

    sizes = arms.dropna(subset=["parameters"]).drop_duplicates("student").sort_values("parameters")
    shares = sorted(set(arms["teacher_share"].dropna()))
    suites = table.dropna(subset=["kind"]).drop_duplicates(["kind", "label", "frames"])
    probes = "; ".join(
        f"{kind} on {names('label', group)} ({names('frames', group)})"
        for kind, group in suites.groupby("kind", sort=False)
    )
    splits = [f"{int(n):,} {text}" for n, text in _probe_clips(table)]
    return [
        ("Arms", names("arm", arms)),
        ("References", names("arm", table[(table["role"] == "cell") & ~table.index.isin(arms.index)])),
        (
            "Students",
            ", ".join(f"{row.student} ({int(row.parameters):,} parameters)" for row in sizes.itertuples()),
        ),
        (
            "Teachers",
            names("teacher", arms) + "".join(f", {100 * share:.3g} % of the budget" for share in shares),
        ),
        ("Budgets", ", ".join(f"{flops_text(b)} FLOPs" for b in sorted(set(arms["budget_flops"].dropna())))),
        ("Seeds", ", ".join(str(int(seed)) for seed in sorted(set(arms["seed"])))),
        ("FLOP convention", _convention(str(table["convention"].iloc[0]))),
        ("Charge for teacher training", str(table["charge"].iloc[0])),
        ("Largest residual of a budget", f"{100 * arms['residual'].abs().max():.2f} %"),
        ("Probes", probes),
        ("Probe clips", ", ".join(splits) or "no scores yet"),
    ]


def _probe_clips(table: pd.DataFrame) -> list[tuple[float, str]]:
    texts = (("n_train", "to train"), ("n_selection", "to select"), ("n_report", "to report"))
    return [(value, text) for name, text in texts for value in sorted(set(table[name].dropna()))]


def _convention(name: str) -> str:
    known = {
        "matmul": "matmul: a multiply-add is 2 FLOPs; matrix products, patch embedding and attention; "
        "backward is twice forward for trained parts; the frozen or EMA teacher's forward passes are "
        "inside; recomputation and probes are not"
    }
    return known.get(name, name)


def _ran(table: pd.DataFrame) -> str:
    cells = table[table["role"] == "cell"]
    runs = table.dropna(subset=["own_flops"]).drop_duplicates("run_id")
    done, wanted = int((cells["state"] == "done").sum()), len(cells)
    return (
        f"{cells['cell_id'].nunique()} cells, {table['run_id'].nunique()} runs "
        f"({table.loc[table['role'] == 'teacher', 'run_id'].nunique()} of them teachers only). {len(runs)} "
        f"runs finished, {flops_text(runs['own_flops'].sum())} FLOPs of training with each run counted once, "
        f"{runs['train_wall_s'].sum():,.0f} s of training and {runs['probe_wall_s'].sum():,.0f} s of probes, "
        f"summed over processes. {done} of {wanted} scores of cells are there."
    )


def _method(table: pd.DataFrame) -> list[tuple[str, str]]:
    return [
        (
            "Frontier",
            "Per arm, label and probe: configurations whose mean accuracy over seeds no other reaches with "
            "at most its FLOPs. Realised FLOPs within 1 % of the budget count as the budget. Exact; ties "
            "stay together; missing values take no part.",
        ),
        (
            "Intervals",
            "Student's t over seeds, 95 %, two-sided, n − 1 degrees of freedom, report clips fixed. Equal "
            "values or one seed give none.",
        ),
        (
            "Gain over random",
            "Accuracy minus that of the untrained encoder of the same size and seed, then the interval of "
            "the mean.",
        ),
        (
            "Choice",
            "Where an arm has several configurations, comparisons use the one that is best on the "
            "selection clips, never on the report clips.",
        ),
        ("Chance", "The share of the most frequent class of the report clips."),
        (
            "Missing",
            "A run that is missing, failed or diverged stays in the tables with its reason, and is never "
            "counted as 0.",
        ),
        (
            "Total FLOPs",
            "The run's own training, its teacher's forward passes, and its teacher's training as charged "
            f"(`{table['charge'].iloc[0]}`).",
        ),
    ]


# --- pictures -----------------------------------------------------------------------------------


def _read_png(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _pareto_image(configs: pd.DataFrame, figures: Path) -> Image:
    parts = []
    for (label, kind, arm), group in configs[configs["on_frontier"]].groupby(
        ["label", "kind", "arm"], sort=False
    ):
        points = ", ".join(
            f"{tables.percent(row.mean)} % at {flops_text(row.compared_flops)}"
            for row in group.sort_values("compared_flops").itertuples()
        )
        parts.append(f"{label}, {PROBE_NAMES.get(str(kind), str(kind))}, {arm}: {points}")
    alt = (
        "Accuracy against pretraining FLOPs. Frontiers: "
        + ("; ".join(parts) or "none, no finite scores")
        + "."
    )
    caption = "Accuracy against total pretraining FLOPs, one panel per label and probe. Files: figures/."
    return Image(_read_png(figures / "pareto.png"), alt, caption)


def _weak_image(figures: Path) -> Image:
    return Image(
        _read_png(figures / "weak-teacher.png"),
        "Student accuracy against the accuracy of its teacher, one panel per label and probe; numbers are "
        "in the table below.",
        "Every student run against its own teacher. Above the dashed line the student has passed its "
        "teacher.",
    )


def _weak_columns(table: pd.DataFrame, cells: pd.DataFrame, figures: Path) -> list[Image]:
    """The single-column figures, with teacher x student table, of every label and probe."""
    images = []
    for label, kind in weak_teacher_panels(weak_teacher_data(table)):
        here = cells[(cells["label"] == label) & (cells["kind"] == kind)]
        passed, pairs = int(here["above"].sum()), int(here["n"].sum())
        name = PROBE_NAMES.get(kind, kind)
        alt = f"{label}, {name}: {passed} of {pairs} students above their teacher, table below."
        images.append(
            Image(
                _read_png(figures / f"{file_name('weak-teacher', label, kind)}.png"),
                alt,
                f"{label}, {name}.",
            )
        )
    return images


def evidence_records(evidence: Evidence) -> dict[str, Any]:
    """Findings as plain data, for `--json`."""
    return {
        name: [{"topic": f.topic, "text": f.text, "run_ids": list(f.run_ids)} for f in found]
        for name, found in (("results", results(evidence)), ("limits", limits(evidence)))
    }
