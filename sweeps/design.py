"""What a reviewer would hold against a study, said before it is paid for."""

from __future__ import annotations

import msgspec

from salt.plans import base_of
from salt.sizes import encoder_parameters, patch_values
from slurm.names import flops_text
from sweeps.draft import Draft, teacher_cost
from sweeps.execution import execution_warnings
from sweeps.recipe import WARMUP_LIMIT

#: The teacher's share of the FLOPs in the allocations that the SALT paper found best for ViT-L (arXiv
#: 2509.24317, table on allocation: 40k of 240k, 160k and 120k steps).
BEST_SHARES = (0.09, 0.20)
#: Clips a parameter of the student, between which the best published sizes lie. At 1.3e21 to 1.5e21 FLOPs by
#: the same paper's count, a ViT-L at 2.0 clips a parameter (40k + 200k steps) has 78.2 on average, a ViT-H at
#: 0.78 (80k + 160k) 79.1, and a ViT-G at 0.13 (80k + 80k) 79.0: means of K400, SSv2, IN1K and COIN in its
#: tables on allocation, teacher size, and six tasks. Above, a larger student does better; below, nothing is
#: published.
STARVED, SATED = 0.13, 2.0
#: A warmup of exactly the limit may come out so much above it.
ROUNDING = 1e-9


def warnings_of(draft: Draft) -> list[str]:
    """Sentences on the design, the gravest first; empty when there is nothing to say."""
    return [
        *_replication(draft),
        *_shares(draft),
        *_edges(draft),
        *_warmups(draft),
        *_teachers(draft),
        *_matching(draft),
        *execution_warnings(draft.grid),
    ]


def _replication(draft: Draft) -> list[str]:
    import numpy as np

    found, kept = [], draft.kept
    if max(len(seeds) for seeds in draft.seed_sets) == 1:
        found.append(
            "one seed: no difference can be told from the spread between seeds; add `seeds` or `extra_seeds`"
        )
    asked, left = len(draft.study.budgets), len(np.unique(draft.grid.budget[kept]))
    if left < 3:
        some = "" if left == asked else f" of {asked} have cells"
        found.append(f"{_count(left, 'budget')}{some}: how a result changes with compute needs at least 3")
    return found + _sizes(draft)


def _sizes(draft: Draft) -> list[str]:
    """Arms and budgets at which too few student sizes are left to have the best one between them."""
    import numpy as np

    grid, kept = draft.grid, draft.kept
    most = max(len(axes.students) for axes in grid.axes)
    left = np.zeros((len(grid.study.budgets), len(grid.axes), most), dtype=bool)
    left[grid.budget[kept], grid.arm[kept], grid.student[kept]] = True
    counts = left.sum(axis=2)
    # A budget without any cell is told with the budgets.
    few = (counts < 3) & (counts.sum(axis=1) > 0)[:, None]
    if not few.any():
        return []
    where = ""
    if not few.all():
        arms = [axes.arm for place, axes in enumerate(grid.axes) if few[:, place].any()]
        budgets = [budget for place, budget in enumerate(grid.study.budgets) if few[place].any()]
        where = f" of {', '.join(arms)} at {_budgets(draft, budgets)}"
    return [
        f"{_count(int(counts[few].min()), 'student size')}{where}: a best size can be bracketed by at least 3"
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"


def _shares(draft: Draft) -> list[str]:
    """Teachers whose shares of a budget cannot have the best one between them."""
    import numpy as np

    grid, table = draft.grid, draft.grid.table
    if table is None or grid.study.file.charge == "none":
        return []
    taught = draft.kept[grid.teacher[draft.kept] >= 0]
    left = np.zeros((len(table.ways), len(grid.study.budgets)), dtype=bool)
    left[grid.teacher[taught], grid.budget[taught]] = True
    shares: dict[str, dict[int, set[float]]] = {}
    for column, place in zip(*(places.tolist() for places in np.nonzero(left)), strict=True):
        if table.ways[column].is_external:  # its cost is what it is, no choice of a share
            continue
        chain = ">".join(stage.size for stage in table.ways[column].stages)
        found = draft.shares[place][column]
        # To two digits: whole steps of swept teachers come out a little apart.
        share = float(f"{found:.2g}")
        shares.setdefault(chain, {}).setdefault(place, set()).add(share)
    bad = []
    for chain, by_budget in shares.items():
        places = [place for place, found in sorted(by_budget.items()) if not _brackets(draft, found)]
        if len(places) == len(by_budget):
            bad.append(chain)
        elif places:
            bad.append(f"{chain} at {_budgets(draft, [grid.study.budgets[place] for place in places])}")
    if not bad:
        return []
    low, high = BEST_SHARES
    return [
        f"teacher shares of {', '.join(bad)} cannot bracket a best one: give at least 3 at each budget, some "
        f"below {100 * low:g} % and some above {100 * high:g} % (the best published allocations lie between)"
    ]


def _brackets(draft: Draft, shares: set[float]) -> bool:
    """Whether a budget's shares can have the best one between them. The published ones are of FLOPs."""
    low, high = BEST_SHARES
    around = draft.study.match != "flops" or (min(shares) < low and max(shares) > high)
    return len(shares) >= 3 and around


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
    if starved:
        found.append(
            f"the best size may be below the smallest student at {_budgets(draft, starved)}: it sees less "
            f"than {STARVED:g} clips a parameter, and no published student that did well saw fewer"
        )
    if sated:
        found.append(
            f"the best size may be above the largest student at {_budgets(draft, sated)}: it sees more than "
            f"{SATED:g} clips a parameter, where a larger published student did better at about equal FLOPs"
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
    found = _trunk_warmups(draft) if draft.schedule.wsd else _cosine_warmups(draft)
    bad = [(share, -steps) for share, steps in found if share > WARMUP_LIMIT + ROUNDING]
    if not bad:
        return []
    share, steps = max(bad)
    length = f"{-steps} steps" if steps else "their steps"
    return [
        f"warmup takes more than {100 * WARMUP_LIMIT:g} % of {_count(len(bad), 'kind')} of runs, up to "
        f"{100 * share:.0f} % of {length}: set optim.warmup_share, or a recipe whose warmup is a share such "
        "as salt@1"
    ]


def _cosine_warmups(draft: Draft) -> list[tuple[float, int]]:
    """(share of its steps that a run warms up, steps) for each kind of run, seeds apart.

    Steps are 0 where the share is the same at any length.
    """
    import numpy as np

    grid, points = draft.grid, draft.kept
    # Without rules on the length the share is the base's own, whatever the length.
    on_steps = any(base.recipe_on_steps for base in grid.bases.all)
    kinds = {
        (base_of(run.spec), run.spec.steps * on_steps): run.spec.optim.warmup_share for run in draft.others
    }
    keys = np.stack([grid.base[points], grid.steps[points]], axis=1) if on_steps else grid.base[points]
    _, first = np.unique(keys, axis=0, return_index=True)
    for point in points[first].tolist():
        base, steps = grid.base_of(point), int(grid.steps[point])
        optim = draft.schedule.optim_of(base, steps, None)
        kinds[msgspec.structs.replace(base.spec, optim=optim), steps * on_steps] = optim.warmup_share
    return [(share, steps) for (_, steps), share in kinds.items()]


def _trunk_warmups(draft: Draft) -> list[tuple[float, int]]:
    """The same under wsd, where the trunk warms up: of the shortest path that branches off each trunk."""
    grid, schedule = draft.grid, draft.schedule
    shortest: dict[str, int] = {}
    for run in draft.others:
        if run.spec.trunk is not None:
            name = run.spec.trunk.run_id
            shortest[name] = min(run.spec.steps, shortest.get(name, run.spec.steps))
    for place, point in enumerate(draft.kept.tolist()):
        steps = int(grid.steps[point])
        for seed in draft.seed_sets[int(draft.seeds[place])]:
            trunk = schedule.trunk_of(grid.base_of(point), steps, schedule.above(point, seed), seed)
            if trunk is not None:
                shortest[trunk[0]] = min(steps, shortest.get(trunk[0], steps))
    kinds = {}
    for run_id, steps in shortest.items():
        spec = schedule.runs[run_id].spec
        kinds[base_of(spec), steps] = (spec.optim.warmup_share * spec.steps / steps, steps)
    return list(kinds.values())


def _teachers(draft: Draft) -> list[str]:
    table = draft.grid.table
    if table is None:
        return []
    import numpy as np

    found = []
    columns = np.unique(draft.grid.teacher[draft.kept]).tolist()
    stages = [stage for column in columns if column >= 0 for stage in table.ways[column].stages]
    cut = sorted({stage.steps for stage in stages if stage.run_steps is not None and stage.steps})
    if cut:
        found.append(
            f"teachers at {', '.join(map(str, cut))} steps are states of a longer run: not annealed under "
            "its cosine, so weaker than teachers trained to that length"
        )
        found += [
            f"no cell is left that learns from the teacher {size} at {steps} steps, but its run goes on to "
            "there all the same: take that length out of teacher_steps"
            for size, steps in _needless_lengths(draft)
        ]
    shared = any(stage.share is not None for stage in stages)
    if draft.study.file.schedule == "wsd" and shared:
        found.append(
            "schedule wsd saves nothing for students of teachers that cost a share of each budget: their "
            "trunks differ; use teacher_steps or teacher_flops"
        )
    if draft.study.file.charge == "none":
        found.append(
            "charge none: what comes out holds for whoever has the teachers already, not at equal cost"
        )
    unstated = {name for name, found in draft.study.external.items() if found.stated_flops is None}
    names = (stage.size for stage in stages if stage.external)
    elsewhere = [name for name in dict.fromkeys(names) if name in unstated]
    if elsewhere:
        found.append(
            f"{', '.join(elsewhere)} cost nothing here: students of teachers that were trained elsewhere are "
            "not at equal cost with other arms"
        )
    return found


def _needless_lengths(draft: Draft) -> list[tuple[str, int]]:
    """(size, steps) of teachers' runs that cells learn from on the way, but none at the end."""
    table = draft.grid.table
    assert table is not None
    groups = sorted({group for group in draft.grid.group[draft.kept].tolist() if group >= 0})
    stages = [stage for group in groups for stage in table.stages_of(group)]
    ends = {(base.number, steps) for stage, base, steps in stages if stage.run_steps is None}
    cut = {(base.number, stage.run_steps): stage.size for stage, base, _ in stages if stage.run_steps}
    return [(size, steps) for (number, steps), size in cut.items() if steps and (number, steps) not in ends]


def _matching(draft: Draft) -> list[str]:
    """What cells cost where something else is matched: teachers whole, one seed."""
    if draft.study.match == "flops":
        return []
    import numpy as np

    grid, kept = draft.grid, draft.kept
    step, once = np.array([(base.step_flops, base.cache_flops) for base in grid.bases.all], dtype=float).T
    totals = grid.steps[kept] * step[grid.base[kept]] + once[grid.base[kept]]
    costs = {group: teacher_cost(draft, group) for group in np.unique(grid.group[kept]).tolist()}
    for group, cost in costs.items():
        totals[grid.group[kept] == group] += 0 if cost is None else cost.total_flops
    unit = {"steps": "steps", "gpu-hours": "GPU-hours"}[draft.study.match]
    return [
        f"{unit} are matched, FLOPs are not: a cell costs between {flops_text(float(totals.min()))} and "
        f"{flops_text(float(totals.max()))}"
    ]
