"""A plan as a table for people and as plain data for programs. Seeds of one cell share a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from salt.plans import charged_flops
from slurm.names import flops_text
from sweeps.draft import Draft, teacher_cost
from sweeps.hours import plan_days, site_json
from sweeps.verdicts import UNITS

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

#: Lines of the table without `--rows`; the rest is in costs.csv.
ROWS = 200
CONVENTIONS = {"matmul": "a multiply-add is 2", "paper": "6ND and 2ND as the SALT paper counts"}
CHARGES = {
    "full": "each cell pays for its whole teacher, shared or not",
    "shared": "the students of a teacher share its training and cached targets",
    "none": "teachers are taken as given",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """Cells that differ in their seed only. FLOPs are of one seed; None where a cell has no such part."""

    cell: str
    arm: str
    student: str
    teacher: str | None
    teacher_share: float | None
    changes: str
    seeds: tuple[int, ...]
    budget: float
    steps: int
    teacher_steps: str
    teacher_flops: int | None  # training of the teachers, whole
    teacher_charged_flops: int | None  # the part of it that the cell answers for
    inference_flops: int | None  # the part that the cell answers for, of cached targets
    encoder_flops: int  # patch embedding and encoder
    predictor_flops: int | None  # or the pixel decoder's
    charged_flops: int  # all of what the cell answers for
    total_flops: int  # with the teachers' training and cached targets whole
    charged: float  # in the plan's unit
    residual: float
    tokens: int  # of the clips that the student sees, before masking
    epochs: float
    gpu_hours: float | None  # the student's and its teachers'


def rows_of(draft: Draft, limit: int | None = None) -> list[Row]:
    """The lines of the plan's table, in the order of the grid."""
    return [_row(draft, place) for place in range(min(len(draft.kept), limit or len(draft.kept)))]


def _row(draft: Draft, place: int) -> Row:
    from salt.sizes import tokens

    grid, point = draft.grid, int(draft.kept[place])
    axes, base, way = grid.axes_of(point), grid.base_of(point), grid.teacher_of(point)
    steps, group, budget = int(grid.steps[point]), int(grid.group[point]), int(grid.budget[point])
    change = int(grid.change[point])
    above, own = teacher_cost(draft, group), base.step * steps + base.cache
    flops = {name: part.forward + part.backward for name, part in own.parts.items()}
    students = int(grid.students_per_group[group]) if group >= 0 else 0
    charge = grid.study.file.charge
    charged = charged_flops(own, above, charge, students)
    own_charged = charged_flops(own, None, charge, students)
    inference = [flops[name] for name in ("teacher_forward", "teacher_cache") if name in flops]
    predictor = [flops[name] for name in ("predictor", "decoder") if name in flops]
    if above is not None and not above.parts:
        above = None  # what it cost is not known here
    own_hours = base.gpu_hours(steps)
    teacher_hours = draft.teacher_gpu_hours(group)
    return Row(
        cell=draft.names.name(
            int(grid.arm[point]), int(grid.student[point]), int(grid.teacher[point]), budget, change
        ),
        arm=axes.arm,
        student=axes.students[int(grid.student[point])],
        teacher=None if way is None else ">".join(stage.size for stage in way.stages),
        teacher_share=None if way is None else draft.shares[budget][int(grid.teacher[point])],
        changes=" ".join(f"{key}={value}" for key, value in axes.changes[change].items())
        + ("" if way is None else "".join(f" teacher.{key}={value}" for key, value in way.changes.items())),
        seeds=draft.seed_sets[draft.seeds[place]],
        budget=grid.study.budgets[budget],
        steps=steps,
        teacher_steps=draft.teacher_steps(group),
        teacher_flops=None if above is None else above.total_flops,
        teacher_charged_flops=None if above is None else charged - own_charged,
        inference_flops=sum(inference) - (own.total_flops - own_charged) if inference else None,
        encoder_flops=flops.get("patch_embedding", 0) + flops["encoder"],
        predictor_flops=sum(predictor) if predictor else None,
        charged_flops=charged,
        total_flops=own.total_flops + (0 if above is None else above.total_flops),
        charged=float(grid.charged[point]),
        residual=float(grid.residual[point]),
        tokens=steps * base.batch * tokens(base.spec.model, base.spec.clip),
        epochs=steps * base.batch / grid.bases.clips,
        gpu_hours=None if own_hours is None or teacher_hours is None else own_hours + teacher_hours,
    )


# --- tables ---------------------------------------------------------------------------------------


def plan_tables(draft: Draft, limit: int = ROWS) -> list[RenderableType]:
    """The cells, the probe suites, the sums and what was left out, ready to print."""
    shown = rows_of(draft, limit)
    tables: list[RenderableType] = [_cell_table(draft, shown)]
    if len(shown) < len(draft.kept):
        tables.append(f"{len(shown)} of {len(draft.kept)} lines; all of them are in costs.csv (or --rows N).")
    if draft.probing.specs:
        tables.append(_probe_table(draft))
    return [*tables, *_sentences(draft)]


def _unit(largest: float) -> tuple[float, str]:
    """A power of a thousand in which a table's largest number has two to four digits before the point."""
    exponent = 0
    while largest >= 10 * 1000 ** (exponent + 1):
        exponent += 1
    return 1000.0**exponent, f"1e{3 * exponent}"


def _cell_table(draft: Draft, rows: list[Row]) -> Table:
    from rich import box
    from rich.table import Table

    unit, unit_text = _unit(max((row.total_flops for row in rows), default=1))
    token_unit, token_text = _unit(max((row.tokens for row in rows), default=1))
    swept = any(row.changes for row in rows)
    caption = (
        f"Of one seed: FLOPs in {unit_text} by part, tokens in {token_text} before masking. Steps and epochs "
        "are the student's; total = teacher training (the part charged) + inference + encoder + predictor or "
        "decoder; GPU-h are the student's and all of its teachers'."
    )
    table = Table(
        title=f"plan {draft.study.name}", caption=caption, box=box.SIMPLE, padding=0, pad_edge=False
    )
    table.title_justify = table.caption_justify = "left"
    for name in ("arm", "student", "teacher"):
        table.add_column(name, no_wrap=True)
    for name in ("share", "seeds", "steps", "teacher\nsteps", "teacher\ntrain", "teacher\ninfer", "encoder"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("predict", "total", "off %", "tokens", "epochs", "GPU-h"):
        table.add_column(name, justify="right", no_wrap=True)
    if swept:
        table.add_column("swept", overflow="fold")
    previous: float | None = None
    for row in rows:
        if row.budget != previous:
            if previous is not None:
                table.add_section()
            table.add_row(*_budget_cells(draft, row.budget), style="bold")
        previous = row.budget
        table.add_row(*_texts(row, unit, token_unit), *([row.changes] if swept else []))
    return table


def _budget_cells(draft: Draft, budget: float) -> list[str]:
    """The line above a budget's cells: its number in the first column, its unit in the second."""
    number = f"{budget:.3g}".replace("e+", "e") if draft.study.match == "flops" else f"{budget:g}"
    return [number, {"flops": "FLOPs", "steps": "steps", "gpu-hours": "GPU-h"}[draft.study.match]]


def _texts(row: Row, unit: float, token_unit: float) -> list[str]:
    def flops(value: int | None) -> str:
        return "-" if value is None else short(value / unit)

    return [
        row.arm,
        row.student.removeprefix("vit_"),
        "-" if row.teacher is None else row.teacher.replace("vit_", ""),
        "-" if row.teacher_share is None else f"{100 * row.teacher_share:.3g}%",
        seeds_text(row.seeds),
        str(row.steps),
        row.teacher_steps or "-",
        flops(row.teacher_charged_flops),
        flops(row.inference_flops),
        flops(row.encoder_flops),
        flops(row.predictor_flops),
        flops(row.charged_flops),
        f"{100 * row.residual:+.2f}",
        short(row.tokens / token_unit),
        short(row.epochs),
        "-" if row.gpu_hours is None else short(row.gpu_hours),
    ]


def short(value: float) -> str:
    """Three digits, without an exponent."""
    rounded = float(f"{value:.3g}")
    return f"{value:.0f}" if rounded >= 100 else f"{value:.1f}" if rounded >= 10 else f"{value:.2f}"


def _probe_table(draft: Draft) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(title="probe suites, on frozen encoders, outside the budgets", box=box.SIMPLE)
    table.title_justify = "left"
    for name in ("labels", "kinds", "frames", "labelled clips", "chosen on", "reported on"):
        table.add_column(name)
    for spec in draft.probing.specs.values():
        table.add_row(
            ", ".join(spec.labels),
            ", ".join(spec.kinds),
            ", ".join(spec.frames),
            f"{spec.train_clips} of {spec.train.name}",
            f"{spec.selection_clips} of {spec.selection.name}",
            f"{spec.report_clips} of {spec.report.name}",
        )
    return table


def _sentences(draft: Draft) -> list[str]:
    """What the plan costs in all, by which rules, and what was left out."""
    file, totals = draft.study.file, draft.totals
    words = [
        f"{total.runs} {role}{'s' if total.runs != 1 else ''} {flops_text(total.flops)}"
        for role, total in totals.items()
        if total.runs
    ]
    every = sum(total.flops for total in totals.values())
    lines = [
        f"{draft.run_count} runs, each trained once: {', '.join(words)}; in all {flops_text(every)} of "
        "training."
    ]
    lines += _wsd_sentence(draft, every) + _external_sentence(draft) + plan_days(draft)
    lines.append(
        f"Matched: {UNITS[draft.study.match]}. FLOPs: convention {file.convention} "
        f"({CONVENTIONS[file.convention]}), "
        f"charge {file.charge} ({CHARGES[file.charge]}), targets {file.targets}."
    )
    refused = len(draft.grid) - len(draft.kept)
    if refused:
        lines.append(
            f"Left out: {refused} of {len(draft.grid)} cells (seeds apart): {_refused_counts(draft)}. "
            "Their reasons are in plan.jsonl."
        )
    return lines


def _external_sentence(draft: Draft) -> list[str]:
    used = {run.run_id for run in draft.others} | {ref.run.run_id for ref in draft.references}
    names = [name for name, external in draft.study.external.items() if external.run_id in used]
    if not names:
        return []
    stated = {name: draft.study.external[name].stated_flops for name in names}
    free = [name for name, flops in stated.items() if flops is None]
    found = []
    if free:
        found.append(
            f"Not charged, trained elsewhere: {', '.join(free)}. Their students have the whole budget."
        )
    words = [f"{name} {flops_text(flops)}" for name, flops in stated.items() if flops is not None]
    if words:
        found.append(
            f"Trained elsewhere at a cost that the study states: {', '.join(words)}. Teachers' FLOPs above "
            "hold it, students are charged it like the training of any teacher, no machine here spends it."
        )
    return found


def _wsd_sentence(draft: Draft, every: int) -> list[str]:
    if draft.study.file.schedule != "wsd":
        return []
    points = draft.kept.tolist()
    seeds = [draft.seed_sets[place] for place in draft.seeds]
    references = draft.totals["reference"].flops
    cosine = draft.schedule.cosine_flops(points, seeds) + references
    text = (
        f"schedule wsd: trunks and cooldowns instead of a cosine run for each budget save "
        f"{flops_text(cosine - every)} of {flops_text(cosine)} ({100 * (1 - every / cosine):.0f} %); "
        "every cell is charged its whole path."
    )
    return [text]


def _refused_counts(draft: Draft) -> str:
    from sweeps.grid import VERDICTS

    verdict = draft.grid.verdict
    counts = {name: int(((verdict & bit) > 0).sum()) for bit, name in VERDICTS.items()}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def seeds_text(seeds: tuple[int, ...]) -> str:
    """`0-2` for a run of seeds, else a list."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[0] + len(seeds))):
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(str(seed) for seed in seeds)


# --- plain data -----------------------------------------------------------------------------------


def plan_json(draft: Draft) -> dict[str, Any]:
    """The same numbers as plain data; the seeds of a cell are a list."""
    from dataclasses import asdict

    from sweeps.verdicts import refusals

    file = draft.study.file
    return {
        "plan": draft.study.name,
        "convention": file.convention,
        "charge": file.charge,
        "match": file.match,
        "targets": file.targets,
        "schedule": file.schedule,
        "runs": draft.run_count,
        "totals": {
            role: {"runs": total.runs, "flops": total.flops, "gpu_hours": total.gpu_hours}
            for role, total in draft.totals.items()
        },
        "site": site_json(draft),
        "total_flops": sum(total.flops for total in draft.totals.values()),
        "cells": [asdict(row) for row in rows_of(draft)],
        "refused": [
            {"cell": r.cell, "budget": r.budget, "verdicts": r.verdicts, "reasons": r.reasons}
            for r in refusals(draft.grid)
        ],
    }
