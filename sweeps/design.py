"""What a reviewer would hold against a study, said before it is paid for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from salt.sizes import encoder_parameters, patch_values
from slurm.names import flops_text
from sweeps.draft import Draft
from sweeps.recipe import WARMUP_LIMIT, warmup_warning
from sweeps.schedule import full_spec

if TYPE_CHECKING:
    from salt.specs import RunSpec

#: The teacher's share of the FLOPs in the allocations that the SALT paper found best for ViT-L (arXiv
#: 2509.24317, table on allocation: 40k of 240k, 160k and 120k steps).
BEST_SHARES = (0.09, 0.20)
#: Clips a parameter of the student. In the same table a ViT-L still gains from more steps at 0.4 and no
#: longer at 2: a smaller student would then be the better choice, or a larger one.
STARVED, SATED = 0.4, 2.0


def warnings_of(draft: Draft) -> list[str]:
    """Sentences on the design, the gravest first; empty when there is nothing to say."""
    return [
        *_replication(draft),
        *_shares(draft),
        *_edges(draft),
        *_warmups(draft),
        *_teachers(draft),
        *_matching(draft),
    ]


def _replication(draft: Draft) -> list[str]:
    study, found = draft.study, []
    if max(len(seeds) for seeds in draft.seed_sets) == 1:
        found.append(
            "one seed: no difference can be told from the spread between seeds; add `seeds` or `extra_seeds`"
        )
    if len(study.budgets) < 3:
        found.append(
            f"{_count(len(study.budgets), 'budget')}: how a result changes with compute needs at least 3"
        )
    sizes = {size for axes in draft.grid.axes for size in axes.students}
    if len(sizes) < 3:
        found.append(f"{_count(len(sizes), 'student size')}: a best size can be bracketed by at least 3")
    return found


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _shares(draft: Draft) -> list[str]:
    """Shares of the teacher that cannot have the best one between them, by teacher size."""
    table, grid = draft.grid.table, draft.grid
    if table is None or grid.study.file.charge == "none":
        return []
    shares: dict[str, set[float]] = {}
    for place in range(len(grid.study.budgets)):
        for column, way in enumerate(table.ways):
            shares.setdefault(way.size, set()).add(
                float(table.spent[place, column]) / grid.study.budgets[place]
            )
    least = {size: (min(found), max(found), len(found)) for size, found in shares.items()}
    low, high = BEST_SHARES
    bad = [
        s
        for s, (a, b, n) in least.items()
        if n < 3 or (grid.study.match == "flops" and (a > low or b < high))
    ]
    if not bad:
        return []
    return [
        f"teacher shares of {', '.join(bad)} cannot bracket a best one: give at least 3, some below "
        f"{100 * low:g} % and some above {100 * high:g} % (the best published allocations lie between)"
    ]


def _edges(draft: Draft) -> list[str]:
    """Budgets at which the best student size probably is the smallest or the largest of the grid."""
    import numpy as np

    grid, found = draft.grid, []
    counts = np.array(
        [
            encoder_parameters(base.spec.model.encoder, patch_values(base.spec.model, base.spec.clip))
            for base in grid.bases.all
        ]
    )
    batches = np.array([base.batch for base in grid.bases.all])
    starved, sated = [], []
    for place, budget in enumerate(grid.study.budgets):
        here = draft.kept[grid.budget[draft.kept] == place]
        if not len(here):
            continue
        bases = grid.base[here]
        rates = grid.steps[here] * batches[bases] / counts[bases]  # clips a parameter
        smallest, largest = (rates[counts[bases] == end(counts[bases])] for end in (np.min, np.max))
        if np.median(smallest) < STARVED:
            starved.append(budget)
        if np.median(largest) > SATED:
            sated.append(budget)
    rule = "by the paper's ViT-L runs"
    if starved:
        found.append(
            f"the best size is probably at or below the smallest student at {_budgets(draft, starved)}: it "
            "sees less "
            f"than {STARVED:g} clips a parameter ({rule})"
        )
    if sated:
        found.append(
            f"the best size is probably at or above the largest student at {_budgets(draft, sated)}: it sees "
            "more "
            f"than {SATED:g} clips a parameter ({rule})"
        )
    return found


def _budgets(draft: Draft, budgets: list[float]) -> str:
    unit = {"steps": " steps", "gpu-hours": " GPU-hours"}
    texts = [
        flops_text(budget) if draft.study.match == "flops" else f"{budget:g}{unit[draft.study.match]}"
        for budget in budgets
    ]
    return ", ".join(texts) if len(texts) <= 3 else f"{len(texts)} budgets from {texts[0]} to {texts[-1]}"


def _warmups(draft: Draft) -> list[str]:
    """Runs that spend more than a quarter of their steps warming up."""
    import numpy as np

    grid = draft.grid
    specs: list[RunSpec] = [run.spec for run in draft.others if run.role != "reference"]
    on_steps = any(base.recipe_on_steps for base in grid.bases.all)
    if draft.study.file.schedule == "cosine":
        # Without rules on the length the share is the base's own.
        points = draft.kept
        keys = np.stack([grid.base[points], grid.steps[points] * on_steps], axis=1)
        _, first = np.unique(keys, axis=0, return_index=True)
        for point in points[first].tolist():
            base, steps = grid.base_of(point), int(grid.steps[point])
            optim = draft.schedule.optim_of(base, steps, None)
            specs.append(full_spec(base, steps, None, None, 0, (), optim))
    bad = [spec for spec in specs if warmup_warning(spec.optim, spec.steps) is not None]
    if not bad:
        return []
    worst = max(bad, key=lambda spec: spec.optim.warmup_share)
    return [
        f"warmup takes more than {100 * WARMUP_LIMIT:g} % of {len(bad)} kinds of runs, up to "
        f"{100 * min(1.0, worst.optim.warmup_share):.0f} % of {worst.steps} steps: set optim.warmup_share, "
        "or a "
        "recipe whose warmup is a share such as salt@1"
    ]


def _teachers(draft: Draft) -> list[str]:
    table = draft.grid.table
    if table is None:
        return []
    found = []
    cut = sorted({s.steps for way in table.ways for s in way.stages if s.run_steps is not None and s.steps})
    if cut:
        found.append(
            f"teachers at {', '.join(map(str, cut))} steps are states of a longer run: not annealed under "
            "its cosine, "
            "so weaker than teachers trained to that length"
        )
    shared = any(stage.share is not None for way in table.ways for stage in way.stages)
    if draft.study.file.schedule == "wsd" and shared:
        found.append(
            "schedule wsd saves nothing for students of teachers that cost a share of each budget: their "
            "trunks "
            "differ; use teacher_steps or teacher_flops"
        )
    if draft.study.file.charge == "none":
        found.append(
            "charge none: what comes out holds for whoever has the teachers already, not at equal cost"
        )
    return found


def _matching(draft: Draft) -> list[str]:
    if draft.study.match != "steps":
        return []
    from sweeps.show import rows_of

    totals = [row.total_flops for row in rows_of(draft, 100_000)]
    return [
        f"steps are matched, FLOPs are not: a cell costs between {flops_text(min(totals))} and "
        f"{flops_text(max(totals))}"
    ]
