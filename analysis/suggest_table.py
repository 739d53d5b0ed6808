"""What `salt-analyze suggest` found, as data, as a table, as sentences and as lines of the study file."""

from __future__ import annotations

import json
import math
from collections import defaultdict

import pandas as pd

from analysis.suggest import LEAST_STEP, Batch, Suggestion, value_of
from analysis.suggest_points import Point
from analysis.tables import MISSING, Table, flops
from salt.plan_specs import Plan

_WORDS = {
    "seed": "one seed more",
    "planned": "planned, missing",
    "share": "new share",
    "budget": "new budget",
}
_BUDGET_KEYS = {"flops": "budgets_flops", "steps": "budgets_steps", "gpu-hours": "budgets_gpu_hours"}


def suggestion_rows(batch: Batch) -> pd.DataFrame:
    """One row per suggestion, in order; FLOPs and device-hours are those to be paid after the rows before."""
    columns = [
        *("order", "what", "runs", "why", "teacher", "new_runs", "flops", "gpu_hours", "gain", "gain_unit"),
        *("gain_per_gpu_hour", "interval_of", "half_width_now", "half_width_after", "half_width_unit"),
    ]
    return pd.DataFrame(
        [_row(batch, place, each) for place, each in enumerate(batch.suggestions, start=1)], columns=columns
    )


def _row(batch: Batch, place: int, each: Suggestion) -> dict[str, object]:
    value = value_of(each)
    return {
        "order": place,
        "what": each.proposal.kind,
        "runs": "; ".join(f"{point.name}, seed {seed}" for point, seed in each.proposal.runs),
        "why": each.proposal.why,
        "teacher": each.teacher,
        "new_runs": each.new_runs,
        "flops": each.flops,
        "gpu_hours": math.nan if each.gpu_hours is None else each.gpu_hours,
        "gain": each.worth.gain,
        "gain_unit": batch.question.gain_unit,
        "gain_per_gpu_hour": value if each.gpu_hours is not None and math.isfinite(value) else math.nan,
        "interval_of": each.worth.what,
        "half_width_now": each.worth.before,
        "half_width_after": each.worth.after,
        "half_width_unit": batch.question.unit,
    }


def suggestion_table(batch: Batch, rows: pd.DataFrame) -> Table:
    """What, why, what it costs beyond the lines above, and the interval before and after."""
    lines = [
        (
            str(row.order),
            _WORDS[row.what],
            row.runs,
            row.why,
            row.teacher,
            flops(row.flops),
            MISSING if pd.isna(row.gpu_hours) else f"{row.gpu_hours:.3g}",
            f"{row.gain:.3g}",
            f"{row.half_width_now:.2f} > {row.half_width_after:.2f}",
        )
        for row in rows.itertuples()
    ]
    headers = (
        *("", "what", "runs", "for", "teacher", "FLOPs", "GPU-hours"),
        f"gain, {batch.question.gain_unit}",
        f"± now > after, {batch.question.unit}",
    )
    caption = (
        f"What to run next for {batch.question.name}, best per cost first. Each line costs what the lines "
        "above have not paid yet; ± is half of the 95 % interval."
    )
    return Table(caption, headers, lines)


def batch_lines(batch: Batch) -> list[str]:
    """Sentences: what the numbers rest on, where the question stands, what the batch costs."""
    noise = batch.noise
    degrees = "" if noise.degrees is None else f", {noise.degrees} degrees of freedom"
    lines = [
        f"Judged on {batch.label}, {batch.kind} probe; noise of one run: {noise.residual_sd:.2g} points "
        f"({noise.basis}{degrees}).",
        *batch.findings,
    ]
    if batch.prices.hours_per_flop is None:
        lines.append("No finished run says how long runs take: ordered by gain per FLOP, no GPU-hours.")
    else:
        lines.append(f"GPU-hours: by the seconds per FLOP of {batch.prices.measured_runs} finished runs.")
    if batch.left_out:
        lines.append(f"{batch.left_out} failed or diverged cells are not proposed again: salt-sweep retry.")
    if not batch.suggestions:
        lines.append(
            "Nothing more to run for this question: any further run is expected to change less than "
            f"{LEAST_STEP:g} {batch.question.unit}."
        )
        return lines
    total = sum(each.flops for each in batch.suggestions)
    hours = [each.gpu_hours for each in batch.suggestions if each.gpu_hours is not None]
    cost = f"{total:.3g} FLOPs" + (f", {sum(hours):.3g} GPU-hours" if hours else "")
    lines.append(f"The batch: {sum(each.new_runs for each in batch.suggestions)} new runs, {cost}.")
    return lines


def study_lines(batch: Batch, plan: Plan) -> list[str]:
    """What to put into the study file for the batch, as YAML; comments say what its keys cannot."""
    seeds: dict[str, set[int]] = defaultdict(set)
    new: dict[tuple[str, float], list[tuple[Point, int]]] = defaultdict(list)
    variants: set[str] = set()
    planned = False
    for point, seed in (run for each in batch.suggestions for run in each.proposal.runs):
        if seed in point.planned:
            planned = True
        elif point.new is not None:
            new[(point.new, point.budget)].append((point, seed))
        else:
            seeds[_where(point)].add(seed)
            variants |= {point.variant} - {""}
    lines = ["extra_seeds:"] if seeds else []
    lines += [f"  - {{seeds: {sorted(numbers)}, where: {where}}}" for where, numbers in seeds.items()]
    if variants:
        lines.append("# `where` knows no swept fields: their other values get these seeds too")
    for number, ((kind, budget), runs) in enumerate(new.items(), start=1):
        lines += _own_study(f"{plan.name}-{kind}-{number}", _BUDGET_KEYS[plan.match], budget, runs)
    if planned:
        lines.append(f"# planned already: salt-sweep submit {plan.name}")
    return lines


def _own_study(name: str, budget_key: str, budget: float, runs: list[tuple[Point, int]]) -> list[str]:
    """Keys of a study of its own, as the file's grid would add more than these points."""
    points = [point for point, _ in runs]
    arms = sorted({point.arm for point in points})
    lines = [
        f"# a study of its own: a copy of the file, with the arms {', '.join(arms)} only, and these keys",
        f"name: {name}",
        f"{budget_key}: [{_number(budget)}]",
        f"seeds: {sorted({seed for _, seed in runs})}",
        f"students: {_list({point.student for point in points})}",
    ]
    salt = [point for point in points if point.teacher is not None and point.share is not None]
    if salt:
        teachers = _list({str(point.teacher) for point in salt})
        shares = ", ".join(_number(share) for share in sorted({point.share or 0 for point in salt}))
        lines.append(f"arms: {{salt: {{teachers: {teachers}, teacher_share: [{shares}]}}}}")
        axes = [{getattr(point, name) for point in points} for name in ("student", "teacher", "share")]
        more = math.prod(map(len, axes)) * len({seed for _, seed in runs}) - len(runs)
        if more and len(salt) == len(points):
            lines.append(f"# {more} of its cells are not suggested: the grid joins every student and seed")
    return lines


def _where(point: Point) -> str:
    texts = [f"arms: {_list({point.arm})}", f"students: {_list({point.student})}"]
    if point.teacher is not None:
        texts.append(f"teachers: {_list({point.teacher})}")
    if point.share is not None:
        texts.append(f"teacher_share: [{_number(point.share)}]")
    texts.append(f"budgets: [{_number(point.budget)}]")
    return "{" + ", ".join(texts) + "}"


def _list(names: set[str]) -> str:
    """Names as a list in YAML: quoted as in JSON where they are not plain words."""
    return "[" + ", ".join(name if name.isidentifier() else json.dumps(name) for name in sorted(names)) + "]"


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)
