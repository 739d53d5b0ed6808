"""A plan in GPU-hours, days, money, memory and disk at a site, as sentences and as plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from sweeps.draft import Draft

if TYPE_CHECKING:
    from rich.table import Table

    from sweeps.memory import Fit
    from sweeps.site import SiteSpec

GIB = 2**30
_UNITS = ((2**40, "TiB"), (GIB, "GiB"), (2**20, "MiB"))


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How the longest run of a kind is laid out at the site."""

    arm: str
    size: str
    teacher: str | None
    steps: int
    fit: Fit
    checkpoint_bytes: int


def layouts(draft: Draft) -> list[Layout]:
    """The layouts of all kinds of runs that students and teachers are; empty without a site.

    Bases that differ in a swept field alone are often laid out alike, and are then listed once.
    """
    return list(dict.fromkeys(_layouts_by_base(draft).values()))


def _layouts_by_base(draft: Draft) -> dict[int, Layout]:
    """Number of each base in use -> the layout of its longest run."""
    from sweeps.machine_time import checkpoint_bytes
    from sweeps.memory import propose

    site = draft.grid.bases.site
    if site is None:
        return {}
    found = {}
    for number, steps in draft.longest.items():
        base = draft.grid.bases.all[number]
        spec = msgspec.structs.replace(base.spec, steps=steps)
        found[number] = Layout(
            arm=spec.arm,
            size=base.size,
            teacher=base.teacher,
            steps=steps,
            fit=propose(spec, site, draft.study.file.execution),
            checkpoint_bytes=checkpoint_bytes(spec),
        )
    return found


def site_json(draft: Draft) -> dict[str, Any] | None:
    """Hours, days, money and layouts as plain data; None without a site."""
    site = draft.grid.bases.site
    if site is None:
        return None
    from sweeps.machine_time import price

    hours = _hours(draft)
    return {
        "name": site.name,
        "utilisation": _source(draft, site),
        "gpu_hours": hours,
        "days": days(draft, hours),
        "price": price(hours, site),
        "currency": site.currency,
        "layouts": [{**asdict(row), "fit": msgspec.to_builtins(row.fit)} for row in layouts(draft)],
    }


def _hours(draft: Draft) -> float:
    return sum(total.gpu_hours or 0.0 for total in draft.totals.values())


def plan_days(draft: Draft) -> list[str]:
    """Sentences on hours, days, money and disk; one that says what is missing where there is no site."""
    site = draft.grid.bases.site
    if site is None:
        return ["GPU-hours: give a site profile (`site:` in the study file, or --site) to see them."]
    from sweeps.machine_time import price

    hours = _hours(draft)
    money = price(hours, site)
    cost = "" if money is None else f", {_number(money)} {site.currency or ''}".rstrip()
    count = f"{site.gpu_cap} GPU{'s' if site.gpu_cap != 1 else ''}"
    return [
        f"At site {site.name} ({site.gpu}): {_number(hours)} GPU-hours{cost}, at least "
        f"{_number(days(draft, hours))} days on {count} (utilisation {_source(draft, site)}; no probes, "
        "queues, data loading or failures).",
        _disk_sentence(draft),
    ]


def _source(draft: Draft, site: SiteSpec) -> str:
    """Whether the utilisation that the hours rest on was measured, for all encoders that are trained."""
    encoders = {draft.grid.bases.all[number].spec.model.encoder for number in draft.longest}
    found = {site.source(encoder) for encoder in encoders}
    return found.pop() if len(found) == 1 else "measured for some sizes, assumed for others"


def _number(value: float) -> str:
    """Three digits; whole numbers in full."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def _size(count: float) -> str:
    """Bytes in the largest unit of which there is one."""
    size, name = next((unit for unit in _UNITS if count >= unit[0]), _UNITS[-1])
    return f"{_number(count / size)} {name}"


def days(draft: Draft, hours: float) -> float:
    """Days that the plan takes at the least: all hours over all GPUs, or the longest teachers and student.

    Every run is on as many GPUs as the longest one of its kind.
    """
    import numpy as np

    site, grid = draft.grid.bases.site, draft.grid
    assert site is not None
    # Hours of one step, and of the cached targets, on the GPUs of the run.
    per_step, once = np.zeros((2, len(grid.bases.all)))
    for number, layout in _layouts_by_base(draft).items():
        base, gpus = grid.bases.all[number], layout.fit.gpus
        assert base.gpu_seconds is not None
        assert base.cache_gpu_seconds is not None
        per_step[number], once[number] = base.gpu_seconds / 3600 / gpus, base.cache_gpu_seconds / 3600 / gpus
    used = grid.base[draft.kept]
    chains = grid.steps[draft.kept] * per_step[used] + once[used]
    if grid.table is not None:
        above = grid.table.by_group(dict(enumerate(per_step.tolist())), dict(enumerate(once.tolist())))
        # The last place stands for no teacher.
        chains += np.append(above, 0.0)[grid.group[draft.kept]]
    return max(hours / site.gpu_cap, float(chains.max())) / 24


def _disk_sentence(draft: Draft) -> str:
    from salt.checkpoint import KEPT
    from sweeps.machine_time import artefact_bytes, cached_target_bytes, checkpoint_bytes

    specs = [draft.grid.bases.all[number].spec for number in draft.longest]
    largest = max((checkpoint_bytes(spec) for spec in specs), default=0)
    artefact = max((artefact_bytes(spec) for spec in specs), default=0)
    cached = [cached_target_bytes(spec) for spec in specs if spec.cached_views]
    text = (
        f"Disk: {KEPT} checkpoints of a running run, each of up to {_size(largest)}; a finished encoder of "
        f"up to {_size(artefact)}"
    )
    kept = sum(len(run.spec.keep_steps) * checkpoint_bytes(run.spec) for run in draft.others)
    if kept:
        text += f"; states that trunks and teachers keep for others {_size(kept)} in all"
    if cached:
        text += f"; cached targets of one teacher up to {_size(max(cached))}"
    return text + "."


def layout_table(draft: Draft) -> Table | None:
    """Memory, micro-batch, recomputation and GPUs of the longest run of each kind; None without a site."""
    from rich import box
    from rich.table import Table

    rows = layouts(draft)
    site = draft.grid.bases.site
    if site is None or not rows:
        return None
    title = f"layout at {site.name}: the longest run of each kind ({site.memory_gib:g} GiB a GPU)"
    table = Table(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.title_justify = "left"
    for name in ("arm", "student", "teacher"):
        table.add_column(name, no_wrap=True)
    for name in (
        "steps",
        "GPUs",
        "clips\na GPU",
        "accumu-\nlation",
        "recom-\npute",
        "sharded",
        "peak\nGiB",
        "hours",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("checkpoint\nGiB", justify="right")
    for row in rows:
        fit = row.fit
        table.add_row(
            row.arm,
            row.size.removeprefix("vit_"),
            "-" if row.teacher is None else row.teacher.removeprefix("vit_"),
            str(row.steps),
            str(fit.gpus),
            str(fit.micro_batch),
            str(fit.accumulation_steps),
            "yes" if fit.recompute else "no",
            "yes" if fit.sharded else "no",
            _number(fit.peak_bytes / GIB),
            _number(fit.hours),
            _number(row.checkpoint_bytes / GIB),
        )
    return table
