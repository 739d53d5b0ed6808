"""A run's FLOPs as tables for people and as plain data for programs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from salt.flops import (
    BACKWARD_PASSES,
    cache_cost,
    clip_lines,
    output_width,
    run_cost,
    step_cost,
    target_encoder,
    uncounted_flops,
)
from salt.sizes import encoder_parameters, grid, patch_values, predictor_parameters, tokens
from salt.specs import DECODES, Charge, Convention, Cost, Part, RunSpec

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from salt.audit import Audit

CONVENTIONS: tuple[Convention, ...] = ("matmul", "paper")


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """One run, and the teacher's own training (`teacher_run`) where its length is known.

    `spec.steps` is 0 where the run's length was not asked for; its totals are then left out.
    """

    student: str
    teacher: str | None
    spec: RunSpec
    teacher_run: RunSpec | None
    charge: Charge
    students_per_teacher: int
    tokens_from: str


# --- numbers --------------------------------------------------------------------------------------


def clip_parts(spec: RunSpec) -> dict[str, dict[str, Part]]:
    """FLOPs of one clip in one step under `matmul`: part -> kind of product -> forward and backward."""
    return {
        part: {
            line: Part(forward=flops, backward=BACKWARD_PASSES[part] * flops) for line, flops in lines.items()
        }
        for part, lines in clip_lines(spec).items()
    }


def clip_cost(spec: RunSpec, convention: Convention) -> Cost:
    """FLOPs of one clip in one step. A `paper` part is cut to whole FLOPs."""
    one = msgspec.structs.replace(spec, optim=msgspec.structs.replace(spec.optim, batch_clips=1))
    return step_cost(one, convention)


def teacher_training(ledger: Ledger, convention: Convention) -> Cost | None:
    """What the teacher's own training costs, whoever pays; None where its length is not known."""
    return None if ledger.teacher_run is None else run_cost(ledger.teacher_run, convention)


def charged_cost(ledger: Ledger, convention: Convention) -> Cost | None:
    """The whole run: its steps, its cached targets and the training of its teacher, as the charge has it.

    Under `shared` the students divide the training and the cached targets, each part cut to whole FLOPs. None
    where the run's length is not known.
    """
    if not ledger.spec.steps:
        return None
    own, teacher = run_cost(ledger.spec, convention), teacher_training(ledger, convention)
    if teacher is None or ledger.charge == "none":
        return own
    training = Part(
        forward=sum(part.forward for part in teacher.parts.values()),
        backward=sum(part.backward for part in teacher.parts.values()),
    )
    parts = own.parts | {"teacher_training": training}
    for name in {"teacher_training", "teacher_cache"} & parts.keys():
        part = parts[name]
        parts[name] = Part(
            forward=part.forward // ledger.students_per_teacher,
            backward=part.backward // ledger.students_per_teacher,
        )
    return Cost(convention=convention, parts=parts)


def parameters(spec: RunSpec) -> dict[str, int | None]:
    """Trained numbers of encoder and predictor (or pixel decoder, with one mask token), and the teacher's."""
    values = patch_values(spec.model, spec.clip)
    teacher = target_encoder(spec)
    return {
        "encoder": encoder_parameters(spec.model.encoder, values),
        "predictor": predictor_parameters(spec.model.predictor, spec.model.encoder.width, output_width(spec)),
        "target_encoder": None if teacher is None else encoder_parameters(teacher, values),
    }


def targets_text(spec: RunSpec) -> str:
    """Where the targets come from."""
    if spec.arm in DECODES:
        return "pixels"
    return "online" if spec.cached_views is None else f"cached(views={spec.cached_views})"


# --- plain data -----------------------------------------------------------------------------------


def ledger_json(ledger: Ledger) -> dict[str, Any]:
    """All numbers of one run, FLOPs as integers."""
    spec = ledger.spec
    per_clip = {name: _cost_json(clip_cost(spec, name)) for name in CONVENTIONS}
    for part, lines in clip_parts(spec).items():
        per_clip["matmul"]["parts"][part]["lines"] = msgspec.to_builtins(lines)
    return {
        "arm": spec.arm,
        "student": ledger.student,
        "teacher": ledger.teacher,
        "crop_px": spec.clip.crop_px,
        "frames": spec.clip.frames,
        "batch_clips": spec.optim.batch_clips,
        "steps": spec.steps or None,
        "grid": list(grid(spec.model, spec.clip)),
        "tokens": tokens(spec.model, spec.clip),
        "masks": [msgspec.to_builtins(mask) for mask in spec.masks],
        "tokens_from": ledger.tokens_from,
        "parameters": parameters(spec),
        "targets": targets_text(spec),
        "cached_clips": spec.data.clips if spec.cached_views is not None else None,
        "charge": ledger.charge,
        "students_per_teacher": ledger.students_per_teacher,
        "teacher_steps": None if ledger.teacher_run is None else ledger.teacher_run.steps,
        "per_clip": per_clip,
        "per_step": {name: _cost_json(step_cost(spec, name)) for name in CONVENTIONS},
        "cached_targets": {name: _cost_json(cache_cost(spec, name)) for name in CONVENTIONS}
        if spec.cached_views is not None
        else None,
        "teacher_training": {name: _maybe(teacher_training(ledger, name)) for name in CONVENTIONS},
        "per_run": {name: _maybe(charged_cost(ledger, name)) for name in CONVENTIONS},
        "uncounted_per_step": uncounted_flops(spec),
    }


def _maybe(cost: Cost | None) -> dict[str, Any] | None:
    return None if cost is None else _cost_json(cost)


def _cost_json(cost: Cost) -> dict[str, Any]:
    return {
        "parts": msgspec.to_builtins(cost.parts),
        "forward": sum(part.forward for part in cost.parts.values()),
        "backward": sum(part.backward for part in cost.parts.values()),
        "total": cost.total_flops,
    }


# --- tables ---------------------------------------------------------------------------------------


def ledger_tables(ledger: Ledger) -> list[RenderableType]:
    """Title, FLOPs of one clip, totals, and what lies outside the convention."""
    spec = ledger.spec
    clip, count = spec.clip, tokens(spec.model, spec.clip)
    teacher = "" if ledger.teacher is None else f", teacher {ledger.teacher}"
    numbers = parameters(spec)
    masks = ", ".join(f"{mask.visible_tokens} + {mask.target_tokens}" for mask in spec.masks)
    other = "" if numbers["target_encoder"] is None else f", target encoder {numbers['target_encoder']:,}"
    grid_text = " x ".join(str(side) for side in grid(spec.model, clip))
    narrow = "pixel decoder" if spec.arm in DECODES else "predictor"
    return [
        f"{spec.arm}: student {ledger.student}{teacher}, {clip.crop_px} px, {clip.frames} frames",
        f"parameters: encoder {numbers['encoder']:,}, {narrow} {numbers['predictor']:,}{other}",
        f"tokens: {grid_text} = {count:,}; visible + predicted per mask {masks} ({ledger.tokens_from})",
        f"`paper` takes {count / 10:,.1f} visible of each mask and {count:,} in the {narrow}",
        _clip_table(spec),
        "The paper's N includes the patch embedding, so the encoder's ratio is to both parts.",
        _total_table(ledger),
        *_outside(ledger),
        "",
    ]


def _clip_table(spec: RunSpec) -> Table:
    from rich.table import Table

    table = Table(title="GFLOP of one clip in one step", title_justify="left")
    table.add_column("part", no_wrap=True)
    for name in ("forward", "backward", "both", "share", "paper forward", "paper backward", "paper / matmul"):
        table.add_column(name, justify="right", no_wrap=True)
    counted, paper = clip_cost(spec, "matmul"), clip_cost(spec, "paper")
    whole = counted.total_flops
    for part, lines in clip_parts(spec).items():
        of_paper = paper.parts.get(part)
        base = [counted.parts[part]]
        if part == "encoder":
            base.append(counted.parts["patch_embedding"])
        texts = (
            ["in encoder", "in encoder", ""]
            if of_paper is None
            else [_giga(of_paper.forward), _giga(of_paper.backward), _ratio(_both(of_paper), _both(*base))]
        )
        table.add_row(*_cells(part.replace("_", " "), counted.parts[part], whole), *texts, style="bold")
        for line, flops in lines.items():
            if len(lines) > 1:
                table.add_row(*_cells(f"  {line}", flops, whole))
        table.add_section()
    forward = Part(forward=sum(p.forward for p in counted.parts.values()))
    total = Part(forward=forward.forward, backward=whole - forward.forward)
    paper_forward = sum(part.forward for part in paper.parts.values())
    table.add_row(
        *_cells("total", total, whole),
        _giga(paper_forward),
        _giga(paper.total_flops - paper_forward),
        _ratio(paper.total_flops, whole),
        style="bold",
    )
    return table


def _cells(name: str, part: Part, whole: int) -> list[str]:
    share = f"{100 * _both(part) / whole:.1f} %"
    return [name, _giga(part.forward), _giga(part.backward), _giga(_both(part)), share]


def _both(*parts: Part) -> int:
    return sum(part.forward + part.backward for part in parts)


def _giga(flops: int) -> str:
    return f"{flops / 1e9:,.3f}"


def _ratio(flops: int, base: int) -> str:
    return f"{flops / base:.3f}"


def _total_table(ledger: Ledger) -> Table:
    from rich.table import Table

    spec = ledger.spec
    table = Table(title="FLOPs", title_justify="left")
    table.add_column("of", no_wrap=True)
    for name in (*CONVENTIONS, "paper / matmul"):
        table.add_column(name, justify="right", no_wrap=True)

    def add(name: str, costs: list[Cost | None], style: str | None = None) -> None:
        totals = [None if cost is None else cost.total_flops for cost in costs]
        if totals[0] is not None and totals[1] is not None:
            texts = [f"{flops:.4e}" for flops in totals if flops is not None]
            table.add_row(name, *texts, _ratio(totals[1], totals[0]), style=style)

    add(f"one step of {spec.optim.batch_clips:,} clips", [step_cost(spec, name) for name in CONVENTIONS])
    if spec.cached_views is not None:
        name = f"cached targets, once: {spec.cached_views} views of {spec.data.clips:,} clips"
        add(name, [cache_cost(spec, name_) for name_ in CONVENTIONS])
    if spec.steps:
        cached = "" if spec.cached_views is None else ", cached targets included"
        add(f"the run of {spec.steps:,} steps{cached}", [run_cost(spec, name) for name in CONVENTIONS])
    if ledger.teacher_run is not None:
        name = f"its teacher's training, {ledger.teacher_run.steps:,} steps on pixels"
        add(name, [teacher_training(ledger, name_) for name_ in CONVENTIONS])
        shared = f" among {ledger.students_per_teacher}" if ledger.charge == "shared" else ""
        add(f"charged ({ledger.charge}{shared})", [charged_cost(ledger, n) for n in CONVENTIONS], "bold")
    return table


def _outside(ledger: Ledger) -> list[RenderableType]:
    spec = ledger.spec
    step = step_cost(spec).total_flops
    lines: list[RenderableType] = [
        f"outside the convention, FLOPs a step, estimated: {name.replace('_', ' ')} {flops:.3e}, "
        f"{flops / step:.1e} of a step"
        for name, flops in uncounted_flops(spec).items()
    ]
    if spec.arm != "salt":
        return lines
    training = "not charged: " + ("--charge none" if ledger.teacher_run else "no --teacher-steps")
    if ledger.teacher_run is not None and ledger.charge != "none":
        shared = (
            f", 1/{ledger.students_per_teacher} of it and of cached targets"
            if ledger.charge == "shared"
            else ""
        )
        training = f"charged {ledger.charge}{shared}"
    return [*lines, f"targets: {targets_text(spec)}; the teacher's training is {training}"]


# --- the audit ------------------------------------------------------------------------------------


def audit_json(audit: Audit) -> dict[str, Any]:
    """The audit's rows as integers, of one step (cached targets: of the run), and its worst disagreement."""
    return {"rows": msgspec.to_builtins(audit.rows), "worst": _finite(audit.worst)}


def _finite(value: float) -> float | None:
    """None for infinity, which JSON lacks: a counter that found nothing where the formula has FLOPs."""
    return value if math.isfinite(value) else None


def audit_tables(audit: Audit) -> list[RenderableType]:
    """The closed form beside both counters."""
    from rich.table import Table

    from salt.audit import AUDIT_TOLERANCE

    table = Table(
        title="audit, GFLOP of one step: the closed form and two counters of the built modules",
        title_justify="left",
    )
    table.add_column("part", no_wrap=True)
    table.add_column("counter", no_wrap=True)
    for name in ("closed form", "counted", "off by"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in audit.rows:
        for gap in row.gaps():
            off = f"{100 * gap.relative:.4f} %"
            table.add_row(row.part.replace("_", " "), gap.counter, _giga(gap.closed), _giga(gap.counted), off)
        table.add_section()
    verdict = "within" if audit.worst <= AUDIT_TOLERANCE else "ABOVE"
    return [table, f"worst {100 * audit.worst:.4f} %: {verdict} the limit of {100 * AUDIT_TOLERANCE:g} %", ""]
