"""The planner's modes: who pays, what is matched, which teachers, schedules, seeds and recipes."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from salt.errors import UserError
from salt.flops import encode_flops, run_cost, step_cost
from salt.optim import branch_problems, schedule_problems
from salt.randomness import run_seed
from salt.sizes import SIZES
from salt.specs import Cell, Plan
from slurm.prepare import refuse_runs
from sweeps.costs import costs_csv
from sweeps.default_study import PATH, default_study
from sweeps.design import warnings_of
from sweeps.plan import build_plan
from sweeps.study import load_study
from tests.plan_kit import BASE, drafted

SALT_ONLY = {"salt": {"teachers": ["nano"], "teacher_share": [0.3]}}


def cells_of(plan: Plan, arm: str) -> list[Cell]:
    return [cell for cell in plan.cells if cell.arm == arm]


# --- who pays -------------------------------------------------------------------------------------


@pytest.mark.parametrize("charge", ["full", "shared", "none"])
def test_a_cell_is_charged_by_the_rule(charge: str) -> None:
    _, plan = drafted(charge=charge, arms=SALT_ONLY)
    teacher = next(run for run in plan.runs if run.role == "teacher")
    part = {"full": 1, "shared": 2, "none": 0}[charge]
    for cell in plan.cells:
        assert cell.teacher_students == 2
        above = teacher.cost.total_flops // part if part else 0
        assert cell.charged_flops == cell.cost.total_flops + above
        assert abs(cell.charged_flops / 200e9 - 1) <= 0.01
    if charge == "shared":
        spent = sum(run.cost.total_flops for run in plan.runs)
        assert abs(sum(cell.charged_flops for cell in plan.cells) - spent) <= len(plan.cells)


def test_a_point_that_is_left_out_shares_no_teacher() -> None:
    arms = {"salt": {"teachers": ["nano"], "teacher_share": [0.9]}}
    odd = {"odd": {"width": 50, "depth": 2, "heads": 3, "mlp_width": 200}}
    draft, plan = drafted(
        charge="shared", arms=arms, students=["nano", "odd"], sizes=odd, bad_cells="leave_out"
    )
    (cell,) = plan.cells
    assert (cell.student, cell.teacher_students) == ("nano", 1)
    assert cell.charged_flops == cell.cost.total_flops + plan.runs[0].cost.total_flops
    (refused,) = plan.refused
    assert refused.verdicts == ("cannot be built",)
    assert "3 heads do not divide the width 50" in refused.reasons[0]
    assert len(draft.grid) == 2
    # Fewer sharers pay more each: without the larger student the smaller one no longer reaches its steps.
    both = {"charge": "shared", "arms": arms, "students": ["nano", "micro"]}
    assert len(drafted(**both, minimum_steps=400)[1].cells) == 2
    with pytest.raises(UserError, match="2 of 2 cells"):
        drafted(**both, minimum_steps=500)


def test_cached_targets_are_encoded_once() -> None:
    _, plan = drafted(targets="cached(views=2)", arms=SALT_ONLY, budgets_flops=[2e12])
    spec = next(run.spec for run in plan.runs if run.role == "student")
    once = 2 * 8192 * encode_flops(SIZES["nano"], spec.model, spec.clip)
    for cell in plan.cells:
        assert cell.cost.parts["teacher_cache"].forward == once
        assert "teacher_forward" not in cell.cost.parts
    _, shared = drafted(targets="cached(views=2)", arms=SALT_ONLY, budgets_flops=[2e12], charge="shared")
    assert sum(cell.charged_flops for cell in shared.cells) < 2 * 2e12 * 1.001
    with pytest.raises(UserError, match="only declared"):
        refuse_runs(plan)


# --- what is matched ------------------------------------------------------------------------------


def test_matching_steps_in_the_papers_convention_gives_its_allocation_table() -> None:
    """ViT-L, 80k + 160k steps: 0.241 and 0.951 e21 FLOPs (arXiv 2509.24317, table on allocation)."""
    text = default_study((1e21,)).decode()
    text = text.replace("budgets_flops: [1e+21]", "match: steps\nconvention: paper\nbudgets_steps: [240k]")
    text = text.replace("teachers: [vit_b, vit_l, vit_h]\n", "teachers: [vit_l]\n")
    text = text.replace("teacher_share: [0.05, 0.1, 0.2, 0.4]", "teacher_steps: [80k, 40k]")
    text = text.replace("students: [vit_l, vit_h, vit_g, vit_gg]", "students: [vit_l]")
    text = text.replace(", teacher_share: [0.1]", "")
    assert "budgets_steps" in text
    plan = build_plan(load_study(PATH, data=text.encode()))
    cell = next(c for c in cells_of(plan, "salt") if c.teacher_steps == 80_000 and c.seed == 0)
    assert cell.teacher_cost is not None
    assert round(cell.teacher_cost.total_flops / 1e21, 3) == pytest.approx(0.242, abs=0.001)
    assert round(cell.cost.total_flops / 1e21, 3) == 0.951
    vjepa = next(c for c in cells_of(plan, "vjepa") if c.seed == 0)
    assert round(vjepa.cost.total_flops / 1e21, 3) == 1.426
    assert cell.residual == vjepa.residual == 0
    assert cell.budget_flops == cell.charged_flops  # each stands at its own cost


def test_matching_gpu_hours_divides_the_site(tmp_path: Path) -> None:
    draft, plan = drafted(
        match="gpu-hours", budgets_flops=None, budgets_gpu_hours=[1e-3], site="default", minimum_steps=10
    )
    for place, point in enumerate(draft.kept.tolist()):
        base = draft.grid.base_of(point)
        hours = int(draft.grid.steps[point]) * (base.gpu_seconds or 0) / 3600
        hours += draft.teacher_gpu_hours(int(draft.grid.group[point])) or 0
        assert abs(hours / 1e-3 - 1) <= 0.01, place
    assert len({cell.budget_flops for cell in plan.cells}) > 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"match": "steps"}, ["budgets_flops", "match: steps"]),
        ({"budgets_flops": None, "match": "steps"}, ["budgets_steps", "at least one"]),
        ({"match": "gpu-hours", "budgets_flops": None, "budgets_gpu_hours": [1.0]}, ["site"]),
        ({"arms": {"vjepa": {"clip": {"crop_px": 30}}}}, ["arms.vjepa.clip", "one resolution"]),
        ({"targets": "cached(2)"}, ["targets"]),
        ({"schedule": "wsd", "recipe": "salt@1"}, ["salt@1", "wsd"]),
        ({"recipe": "salt@7"}, ["salt@7"]),
        ({"optim": {"schedule": "constant"}}, ["optim.schedule", "top level"]),
        ({"arms": {"salt": {"teachers": ["nano"]}}}, ["teacher_share"]),
        ({"arms": {"salt": {"chains": [[{"teacher": "nano"}]]}}}, ["chains[0][0]", "share, flops, steps"]),
        ({"extra_seeds": [{"seeds": [0], "where": {"students": ["nano"]}}]}, ["extra_seeds[0]", "[0]"]),
        ({"extra_seeds": [{"seeds": [1], "where": {"students": ["tiny"]}}]}, ["extra_seeds[0]", "no cell"]),
        ({"arms": {"pixel": {"sweep": {"masks": ["tube"]}}}}, ["masks", "'tube'"]),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        drafted(**changes)
    for word in words:
        assert word in str(caught.value)


# --- teachers -------------------------------------------------------------------------------------


def test_teacher_lengths_from_runs_of_their_own_or_from_one() -> None:
    lengths = {"teachers": ["nano"], "teacher_steps": [50, "0.1k"]}
    _, own = drafted(arms={"salt": lengths}, students=["nano"])
    draft, one = drafted(arms={"salt": lengths | {"teacher_runs": "one"}}, students=["nano"])
    assert sum(run.role == "teacher" for run in own.runs) == 2
    (teacher,) = (run for run in one.runs if run.role == "teacher")
    assert (teacher.spec.steps, teacher.spec.keep_steps) == (100, (50,))
    price = step_cost(teacher.spec).total_flops
    for cell in one.cells:
        assert cell.teacher_run_id == teacher.run_id
        assert cell.teacher_cost is not None
        assert cell.teacher_cost.total_flops == price * (cell.teacher_steps or 0)
    assert {cell.teacher_steps for cell in one.cells} == {50, 100}
    assert any("not annealed" in text for text in warnings_of(draft))


def test_a_chain_is_charged_all_of_its_stages() -> None:
    chain = [{"teacher": "nano", "steps": 60}, {"teacher": "micro", "share": 0.3}]
    _, plan = drafted(arms={"salt": {"chains": [chain]}}, students=["micro"])
    (cell,) = plan.cells
    runs = {run.run_id: run for run in plan.runs}
    first, second = runs[cell.stages[0]], runs[cell.teacher_run_id or ""]
    student = runs[cell.run_id]
    assert (first.spec.arm, second.spec.arm, student.spec.arm) == ("pixel", "salt", "salt")
    assert cell.teacher_cost is not None
    assert cell.teacher_cost.total_flops == first.cost.total_flops + second.cost.total_flops
    assert len({run_seed(run.spec) for run in (first, second, student)}) == 3
    assert second.cost == run_cost(second.spec)


# --- schedules, recipes, axes, seeds --------------------------------------------------------------


def test_trunks_serve_every_budget_and_the_teachers() -> None:
    arms = {"pixel": {}, "vjepa": {}, "salt": {"teachers": ["nano"], "teacher_steps": [100]}}
    budgets = [100e9, 200e9, 400e9]
    draft, plan = drafted(schedule="wsd", arms=arms, budgets_flops=budgets, students=["nano"], seeds=[0, 1])
    runs = {run.run_id: run for run in plan.runs}
    trunks = [run for run in plan.runs if run.role == "trunk"]
    assert sorted((run.spec.arm, run.spec.seed) for run in trunks) == [
        (arm, seed) for arm in ("pixel", "salt", "vjepa") for seed in (0, 1)
    ]
    for run in plan.runs:
        assert schedule_problems(run.spec) == []
        if run.spec.trunk is not None:
            assert branch_problems(run.spec, runs[run.spec.trunk.run_id].spec) == []
    for cell in plan.cells:
        spec = runs[cell.run_id].spec
        assert cell.cost.total_flops == step_cost(spec).total_flops * spec.steps
    paths = sum(cell.cost.total_flops for cell in plan.cells)
    teachers = {cell.teacher_run_id: cell.teacher_cost for cell in plan.cells if cell.teacher_cost}
    cosine = paths + sum(cost.total_flops for cost in teachers.values())
    points = draft.kept.tolist()
    assert draft.schedule.cosine_flops(points, [draft.seed_sets[s] for s in draft.seeds]) == cosine
    assert sum(run.cost.total_flops for run in plan.runs) < 0.75 * cosine
    (pixel,) = (run for run in trunks if (run.spec.arm, run.spec.seed) == ("pixel", 0))
    assert 90 in pixel.spec.keep_steps  # the teacher's cooldown begins at 90 of 100 steps


def test_a_recipe_rules_what_the_study_does_not() -> None:
    text = default_study((1e21,)).decode()
    for recipe, warmup in (("salt@1", None), ("salt-2509@1", 10_000)):
        data = text.replace("recipe: salt@1", f"recipe: {recipe}\noptim: {{beta2: 0.9}}").encode()
        plan = build_plan(load_study(PATH, data=data))
        for run in plan.runs:
            if run.role == "reference":
                continue
            share = 1 / 24 if warmup is None else min(1.0, warmup / run.spec.steps)
            assert run.spec.optim.warmup_share == pytest.approx(share, rel=1e-9)
            assert (run.spec.optim.lr, run.spec.optim.beta2) == (6.25e-4, 0.9)


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


def test_the_table_of_costs_adds_up_exactly() -> None:
    draft, plan = drafted(targets="cached(views=1)", budgets_flops=[2e12], charge="shared")
    rows = list(csv.DictReader(io.StringIO(b"".join(costs_csv(draft)).decode())))
    assert len(rows) == len(plan.cells)
    for row, cell in zip(rows, plan.cells, strict=True):
        parts = [int(v) for k, v in row.items() if k.endswith("_flops") and k != "total_flops" and v]
        above = cell.teacher_cost.total_flops if cell.teacher_cost else 0
        assert sum(parts) == int(row["total_flops"]) == cell.cost.total_flops + above
    assert BASE["seeds"] == [0]
