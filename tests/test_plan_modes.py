"""The planner's modes: who pays, what is matched, which teachers, schedules, seeds and recipes."""

from __future__ import annotations

import csv
import io
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from salt.errors import UserError
from salt.flops import cache_cost, encode_flops, path_cost, run_cost, step_cost
from salt.optim import branch_problems, schedule_problems
from salt.plan_specs import Cell, Plan
from salt.randomness import run_seed
from salt.sizes import SIZES
from slurm.names import flops_text
from slurm.prepare import refuse_runs
from sweeps.costs import costs_csv
from sweeps.design import warnings_of
from sweeps.machine_time import run_gpu_hours
from sweeps.plan import draft_plan
from sweeps.show import plan_tables, rows_of
from sweeps.site import load_site
from tests.plan_kit import BASE, drafted, study

SALT_ONLY = {"salt": {"teachers": ["nano"], "teacher_share": [0.3]}}


def cells_of(plan: Plan, arm: str) -> list[Cell]:
    return [cell for cell in plan.cells if cell.arm == arm]


# --- who pays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("charge", ["full", "shared", "none"])
def test_a_cell_is_charged_by_the_rule(charge: str) -> None:
    """By the closed form alone; a teacher of 110 % of the budget is too dear for one, not for two."""
    for share, fits in ((0.3, True), (None, charge != "full")):
        length = {"teacher_flops": [220e9]} if share is None else {"teacher_share": [share]}
        changes = {"charge": charge, "arms": {"salt": {"teachers": ["nano"]} | length}}
        if not fits:
            with pytest.raises(UserError, match=r"2 of 2 cells .*\n.*teacher exceeds budget"):
                drafted(**changes)
            continue
        _, plan = drafted(**changes)
        runs = {run.run_id: run for run in plan.runs}
        (teacher,) = (run.spec for run in plan.runs if run.role == "teacher")
        above = teacher.steps * step_cost(teacher).total_flops
        assert abs(above / (220e9 if share is None else share * 200e9) - 1) < 0.001
        for cell in plan.cells:
            spec = runs[cell.run_id].spec
            own = spec.steps * step_cost(spec).total_flops
            assert cell.teacher_students == 2
            assert cell.charged_flops == own + {"full": above, "shared": above // 2, "none": 0}[charge]
            assert abs(cell.charged_flops / 200e9 - 1) <= 0.01
        if charge == "shared":
            spent = sum(run.cost.total_flops for run in plan.runs)
            assert abs(sum(cell.charged_flops for cell in plan.cells) - spent) <= len(plan.cells)


def test_a_point_that_is_left_out_shares_no_teacher() -> None:
    arms = {"salt": {"teachers": ["nano"], "teacher_share": [0.9]}}
    odd = {"odd": {"width": 50, "depth": 2, "heads": 3, "mlp_width": 200}}
    _, plan = drafted(charge="shared", arms=arms, students=["nano", "odd"], sizes=odd, bad_cells="leave_out")
    (cell,) = plan.cells
    assert (cell.student, cell.teacher_students) == ("nano", 1)
    assert cell.charged_flops == cell.cost.total_flops + plan.runs[0].cost.total_flops
    (refused,) = plan.refused
    assert refused.verdicts == ("cannot be built",)
    assert "3 heads do not divide the width 50" in refused.reasons[0]


def test_cached_targets_are_encoded_once() -> None:
    _, plan = drafted(targets="cached(views=2)", arms=SALT_ONLY, budgets_flops=[2e12])
    spec = next(run.spec for run in plan.runs if run.role == "student")
    once = 2 * 8192 * encode_flops(SIZES["nano"], spec.model, spec.clip)
    for cell in plan.cells:
        assert cell.cost.parts["teacher_cache"].forward == once
        assert "teacher_forward" not in cell.cost.parts
    _, shared = drafted(targets="cached(views=2)", arms=SALT_ONLY, budgets_flops=[2e12], charge="shared")
    assert sum(cell.charged_flops for cell in shared.cells) < 2 * 2e12 * 1.001
    # Trained like any other run, once its lists are there.
    with pytest.raises(UserError, match="only declared"):
        refuse_runs(plan)
    here = tuple(
        replace(run, spec=replace(run.spec, data=replace(run.spec.data, fingerprint="f")))
        for run in plan.runs
    )
    refuse_runs(replace(plan, runs=here))
    assert {run.spec.cached_views for run in plan.runs if run.spec.arm != "salt"} == {None}
    streamed = BASE["clip"] | {"source": "streamed"}
    with pytest.raises(UserError, match=r"cached targets need clips that stay the same"):
        draft_plan(study(targets="cached(views=2)", arms=SALT_ONLY, budgets_flops=[2e12], clip=streamed))


@pytest.mark.parametrize("seed", range(12))
def test_who_shares_a_teacher_is_who_is_left(seed: int) -> None:
    """Random grids with limits on both sides: dearer teachers leave fewer steps, cheaper ones repeat data."""
    draw = random.Random(seed)
    lengths = {"teachers": ["nano", "micro"], "teacher_share": [0.2, 0.6, 0.95], "teacher_flops": [1e11]}
    _, plan = drafted(
        charge="shared",
        bad_cells="leave_out",
        students=draw.sample(["nano", "micro", "tiny"], draw.randint(1, 3)),
        budgets_flops=sorted({1e9 * draw.randint(50, 900) for _ in range(3)}),
        minimum_steps=draw.choice([1, 100, 400]),
        maximum_epochs=draw.choice([2, 4, 8]),
        targets=draw.choice(["online", "cached(views=1)"]),
        arms={"pixel": {}, "salt": lengths},
        optim={"batch_clips": 8},
    )
    sharers = Counter(cell.teacher_run_id for cell in plan.cells)
    for cell in cells_of(plan, "salt"):
        k, cache = sharers[cell.teacher_run_id], cell.cost.parts.get("teacher_cache")
        assert cell.teacher_students == k
        whole = 0 if cache is None else cache.forward
        above = cell.teacher_cost
        assert above is not None
        own = cell.cost.total_flops - whole + whole // k
        assert cell.charged_flops == own + above.total_flops // k
    assert all(refused.verdicts and refused.reasons for refused in plan.refused)


# --- what is matched ------------------------------------------------------------------------------


def test_matching_gpu_hours_divides_the_site() -> None:
    draft, plan = drafted(
        match="gpu-hours", budgets_flops=None, budgets_gpu_hours=[1e-3], site="default", minimum_steps=10
    )
    for place, point in enumerate(draft.kept.tolist()):
        base = draft.grid.base_of(point)
        hours = int(draft.grid.steps[point]) * (base.gpu_seconds or 0) / 3600
        hours += draft.teacher_gpu_hours(int(draft.grid.group[point])) or 0
        assert abs(hours / 1e-3 - 1) <= 0.01, place
    assert len({cell.budget_flops for cell in plan.cells}) > 1


def test_gpu_hours_hold_cached_targets_too() -> None:
    """What is matched is what the table shows: with the time of encoding the targets once."""
    draft, plan = drafted(
        match="gpu-hours",
        budgets_flops=None,
        budgets_gpu_hours=[1e-2],
        site="default",
        targets="cached(views=4)",
        arms=SALT_ONLY,
    )
    for row in rows_of(draft):
        assert row.gpu_hours == pytest.approx(row.charged, rel=1e-12)
    site = load_site(None)
    hours = [run_gpu_hours(run.spec, site) for run in plan.runs]
    totals = [total.gpu_hours or 0.0 for total in draft.totals.values()]
    assert sum(totals) == pytest.approx(sum(hours), rel=1e-12)
    assert len(hours) == 3


# --- teachers -------------------------------------------------------------------------------------


def test_teacher_lengths_from_runs_of_their_own_or_from_one() -> None:
    lengths = {"teachers": ["nano"], "teacher_steps": [50, "0.1k"]}
    _, own = drafted(arms={"salt": lengths}, students=["nano"])
    assert sorted(run.spec.steps for run in own.runs if run.role == "teacher") == [50, 100]
    assert all(run.spec.keep_steps == () for run in own.runs)
    one = lengths | {"teacher_runs": "one"}
    draft, plan = drafted(arms={"salt": one}, students=["nano"])
    (teacher,) = (run for run in plan.runs if run.role == "teacher")
    assert (teacher.spec.steps, teacher.spec.keep_steps) == (100, (50,))
    price = step_cost(teacher.spec).total_flops
    runs = {run.run_id: run.spec for run in plan.runs}
    for cell in plan.cells:
        ref = runs[cell.run_id].teacher
        assert ref is not None
        assert (ref.run_id, ref.step, ref.stage) == (teacher.run_id, cell.teacher_steps, 1)
        assert cell.teacher_cost is not None
        assert cell.teacher_cost.total_flops == price * ref.step
    assert {cell.teacher_steps for cell in plan.cells} == {50, 100}
    texts = warnings_of(draft)
    assert any("50 steps are states of a longer run: not annealed" in text for text in texts)
    assert not any("no cell is left" in text for text in texts)
    # Where the longest is too dear for every cell, its run is trained all the same: that is said.
    dear = {"salt": one | {"teacher_steps": [50, "10k"]}}
    draft, plan = drafted(arms=dear, students=["nano"], bad_cells="leave_out")
    assert [cell.teacher_steps for cell in plan.cells] == [50]
    assert any("no cell is left that learns from the teacher nano at 10000" in t for t in warnings_of(draft))


def test_a_chain_is_charged_all_of_its_stages() -> None:
    chain = [{"teacher": "nano", "steps": 60}, {"teacher": "micro", "share": 0.3}]
    _, plan = drafted(arms={"salt": {"chains": [chain, chain[:1]]}}, students=["micro"])
    runs = {run.run_id: run for run in plan.runs}
    cell, short = plan.cells
    first, second, student = (runs[name] for name in (*cell.stages, cell.teacher_run_id or "", cell.run_id))
    assert [run.spec.arm for run in (first, second, student)] == ["pixel", "salt", "salt"]
    assert [run.spec.teacher.stage for run in (second, student) if run.spec.teacher] == [1, 2]
    assert (first.spec.steps, short.teacher_run_id, short.stages) == (60, first.run_id, ())
    above = sum(run.spec.steps * step_cost(run.spec).total_flops for run in (first, second))
    assert cell.teacher_cost is not None
    assert cell.teacher_cost.total_flops == above
    assert cell.charged_flops == above + student.spec.steps * step_cost(student.spec).total_flops
    assert abs(second.cost.total_flops / 60e9 - 1) < 0.01
    assert len({run_seed(run.spec) for run in (first, second, student)}) == 3


ALMOST = {"teachers": ["nano"], "teacher_share": [0.3, 0.30001]}
SHARING: dict[str, tuple[dict[str, Any], int, int]] = {
    "budgets less than a step apart": ({"budgets_flops": [200e9, 200e9 + 1e5], "arms": {"pixel": {}}}, 2, 1),
    "shares less than a step apart": ({"arms": {"salt": ALMOST}}, 2, 2),
    "a size under two names": ({"students": ["nano", "again"], "arms": {"pixel": {}, **SALT_ONLY}}, 4, 3),
    "random encoders too": ({"students": ["nano", "again"], "arms": {"vjepa": {}}, "references": {}}, 5, 3),
    "a trunk's teacher is a pixel cell": (
        {
            "schedule": "wsd",
            "match": "steps",
            "budgets_flops": None,
            "budgets_steps": [100, 200],
            "arms": {"pixel": {}, "salt": {"teachers": ["nano"], "teacher_steps": [100]}},
            "bad_cells": "leave_out",
        },
        3,
        5,  # a trunk and two cooldowns of the pixel arm, a trunk and a cooldown of its student
    ),
}


@pytest.mark.parametrize("case", SHARING)
def test_cells_that_end_in_one_run_pay_for_one_in_the_sums(case: str) -> None:
    changes, cells, runs = SHARING[case]
    again = {"width": 32, "depth": 2, "heads": 2, "mlp_width": 128}
    draft, plan = drafted(**({"students": ["nano"], "sizes": {"again": again}} | changes))
    assert (len(plan.cells), len(plan.runs), draft.run_count) == (cells, runs, runs)


def test_a_cell_whose_run_is_a_teacher_gets_the_probes_of_both() -> None:
    counts = {"train_clips": 8, "selection_clips": 8, "report_clips": 8}
    suite = {"labels": ["motion"], "kinds": ["linear"], **counts}
    _, plan = drafted(
        budgets_flops=[200e9, 400e9],
        students=["nano"],
        arms={"pixel": {}, "salt": {"teachers": ["nano"], "teacher_share": [0.5]}},
        probes=[
            {"name": "a", "roles": ["student"], **suite},
            {"name": "b", "roles": ["teacher"], "seed": 1, **suite},
            {"name": "c", "roles": ["student"], "seed": 2, "on": "largest-budget", **suite},
        ],
    )
    runs = {run.run_id: run for run in plan.runs}
    found = {
        (cell.arm, cell.budget): sorted(plan.probes[name].seed for name in runs[cell.run_id].probe_ids)
        for cell in plan.cells
    }
    pixel = next(cell for cell in plan.cells if cell.arm == "pixel" and cell.budget == 200e9)
    assert pixel.run_id in {cell.teacher_run_id for cell in plan.cells if cell.budget == 400e9}
    assert found == {
        ("pixel", 200e9): [0, 1],
        ("pixel", 400e9): [0, 2],
        ("salt", 200e9): [0],
        ("salt", 400e9): [0, 2],
    }


# --- schedules, recipes, axes, seeds --------------------------------------------------------------


@pytest.mark.parametrize("targets", ["online", "cached(views=1)"])
def test_trunks_serve_every_budget_and_the_teachers(targets: str) -> None:
    arms = {"pixel": {}, "vjepa": {}, "salt": {"teachers": ["nano"], "teacher_steps": [100]}}
    budgets = [1e12, 2e12, 4e12]
    draft, plan = drafted(
        schedule="wsd", targets=targets, arms=arms, budgets_flops=budgets, students=["nano"], seeds=[0, 1]
    )
    runs = {run.run_id: run for run in plan.runs}
    trunks = [run for run in plan.runs if run.role == "trunk"]
    assert sorted((run.spec.arm, run.spec.seed) for run in trunks) == [
        (arm, seed) for arm in ("pixel", "salt", "vjepa") for seed in (0, 1)
    ]
    for run in plan.runs:
        assert schedule_problems(run.spec) == []
        assert run.cost == run_cost(run.spec)
        if run.spec.trunk is not None:
            assert branch_problems(run.spec, runs[run.spec.trunk.run_id].spec) == []
    # By hand: a cooldown is the last tenth of its path, a trunk goes on to where the last one leaves it.
    ends = {run.run_id: run.spec for run in plan.runs if run.role != "trunk"}
    leaves: dict[str, list[int]] = {}
    sums, cosine = 0, 0
    for spec in ends.values():
        assert spec.trunk is not None
        assert spec.trunk.step == spec.steps - round(spec.steps / 10)
        leaves.setdefault(spec.trunk.run_id, []).append(spec.trunk.step)
        price, once = step_cost(spec).total_flops, cache_cost(spec).total_flops
        sums += price * round(spec.steps / 10) + once
        cosine += price * spec.steps + once
    for run in trunks:
        assert run.spec.keep_steps == tuple(sorted(leaves[run.run_id]))
        assert run.spec.steps == run.spec.keep_steps[-1]
        sums += step_cost(run.spec).total_flops * run.spec.steps + cache_cost(run.spec).total_flops
    assert sum(run.cost.total_flops for run in plan.runs) == sums < 0.75 * cosine
    points, seeds = draft.kept.tolist(), [draft.seed_sets[place] for place in draft.seeds]
    assert draft.schedule.cosine_flops(points, seeds) == cosine
    for cell in plan.cells:
        assert cell.cost == path_cost(ends[cell.run_id])
    (pixel,) = (run for run in trunks if (run.spec.arm, run.spec.seed) == ("pixel", 0))
    assert pixel.spec.keep_steps[0] == 90  # the teacher's cooldown begins at 90 of 100 steps
    shown = "\n".join(text for text in plan_tables(draft) if isinstance(text, str))
    saved = f"save {flops_text(cosine - sums)} of {flops_text(cosine)} ({100 * (1 - sums / cosine):.0f} %)"
    assert saved in shown


def test_a_trunk_warms_up_as_the_recipe_says_or_as_the_study_does() -> None:
    """12,000 steps, so no path may branch off before; a share of the study's own has no such bound."""
    recipe: dict[str, Any] = {"schedule": "wsd", "recipe": "vjepa2-2506@1", "students": ["nano"]}
    short: dict[str, Any] = {"arms": {"pixel": {}}, "match": "steps", "budgets_flops": None}
    least = 13_335  # the first whose cooldown begins after step 12,000
    _, plan = drafted(**recipe, **short, budgets_steps=[least, "40k"])
    (trunk,) = (run.spec for run in plan.runs if run.role == "trunk")
    assert (trunk.steps, trunk.keep_steps[0] >= 12_000) == (36_000, True)
    assert trunk.optim.warmup_share * trunk.steps == pytest.approx(12_000)
    with pytest.raises(UserError, match=r"1 of 2 cells.*\n.*12000 steps for the student is below 13335"):
        drafted(**recipe, **short, budgets_steps=["12k", "40k"])
    _, plan = drafted(
        **recipe, **short, budgets_steps=[1000, "40k"], optim={"batch_clips": 16, "warmup_share": 0.1}
    )
    (trunk,) = (run.spec for run in plan.runs if run.role == "trunk")
    assert trunk.optim.warmup_share * trunk.steps == pytest.approx(100)  # of the shortest path
    assert trunk.optim.lr == pytest.approx(5.25e-4 * 16 / 3072, rel=1e-12)


def test_masks_losses_and_teachers_can_be_swept() -> None:
    one = [{"visible_tokens": 12, "target_tokens": 24}]
    arms = {
        "salt": {
            "teachers": ["nano"],
            "teacher_share": [0.3],
            "sweep": {"objective.latent_loss": ["l1", "l2"], "masks": ["one"]},
            "teacher_sweep": {"objective.pixel_loss": ["l1", "l2"]},
        }
    }
    _, plan = drafted(arms=arms, mask_sets={"one": one}, students=["nano"])
    runs = {run.run_id: run.spec for run in plan.runs}
    seen = {
        (runs[c.run_id].objective.latent_loss, runs[c.teacher_run_id or ""].objective.pixel_loss)
        for c in plan.cells
    }
    assert seen == {(a, b) for a in ("l1", "l2") for b in ("l1", "l2")}
    assert {len(runs[cell.run_id].masks) for cell in plan.cells} == {1}
    assert {len(runs[cell.teacher_run_id or ""].masks) for cell in plan.cells} == {2}


def test_more_seeds_where_they_help(tmp_path: Path) -> None:
    where = {"students": ["nano"], "arms": ["pixel", "salt"]}
    _, plan = drafted(extra_seeds=[{"seeds": [7], "where": where}])
    extra = {(cell.arm, cell.student) for cell in plan.cells if cell.seed == 7}
    assert extra == {("pixel", "nano"), ("salt", "nano")}
    front = tmp_path / "front.csv"
    front.write_text("cell_id,label\nsalt-micro-from-nano-share0.3-200G-seed0,motion\n")
    budgets, shares = [100e9, 200e9, 400e9], [0.2, 0.3, 0.4, 0.5]
    arms = {"salt": {"teachers": ["nano"], "teacher_share": shares}}
    _, plan = drafted(
        arms=arms,
        budgets_flops=budgets,
        extra_seeds=[{"seeds": [7], "where": {"frontier": str(front)}}],
    )
    near = {(c.student, c.teacher_share, c.budget) for c in plan.cells if c.seed == 7}
    assert near == {
        ("micro", 0.3, 200e9),
        ("nano", 0.3, 200e9),
        ("micro", 0.2, 200e9),
        ("micro", 0.4, 200e9),
        ("micro", 0.3, 100e9),
        ("micro", 0.3, 400e9),
    }
    # The same neighbours in whatever order the file has its values; another swept value is none.
    front.write_text("cell_id\nsalt-micro-from-nano-share0.3-teacher.optim.lr=0.001-200G-seed0\n")
    arms = {"salt": arms["salt"] | {"teacher_share": [0.4, 0.2, 0.5, 0.3]}}
    arms["salt"]["teacher_sweep"] = {"optim.lr": [1e-3, 2e-3]}
    _, plan = drafted(
        arms=arms,
        budgets_flops=[400e9, 100e9, 200e9],
        extra_seeds=[{"seeds": [7], "where": {"frontier": str(front)}}],
    )
    cells = [cell for cell in plan.cells if cell.seed == 7]
    assert {(c.student, c.teacher_share, c.budget) for c in cells} == near
    assert all("lr=0.001" in cell.cell_id for cell in cells)


def test_the_table_of_costs_adds_up_exactly() -> None:
    draft, plan = drafted(targets="cached(views=1)", budgets_flops=[2e12], charge="shared")
    rows = list(csv.DictReader(io.StringIO(b"".join(costs_csv(draft)).decode())))
    assert len(rows) == len(plan.cells)
    for row, cell in zip(rows, plan.cells, strict=True):
        parts = [int(v) for k, v in row.items() if k.endswith("_flops") and k != "total_flops" and v]
        above = cell.teacher_cost.total_flops if cell.teacher_cost else 0
        assert sum(parts) == int(row["total_flops"]) == cell.cost.total_flops + above
