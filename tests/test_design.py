"""Warnings on a study's design fire where they are true and nowhere else; hours and days by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from salt.optim import warmup_steps
from salt.plan_specs import Plan
from salt.plans import base_of
from salt.sizes import encoder_parameters, patch_values
from slurm.names import flops_text
from sweeps.default_study import PATH, default_study
from sweeps.design import SATED, STARVED, warnings_of
from sweeps.draft import Draft
from sweeps.hours import days, layout_table, layouts, plan_days
from sweeps.machine_time import calendar_days, checkpoint_bytes, run_gpu_hours
from sweeps.memory import propose
from sweeps.plan import draft_plan
from sweeps.study import load_study
from tests.plan_kit import drafted, study

SHARES = {"teachers": ["nano"], "teacher_share": [0.05, 0.15, 0.3]}
#: A study of which nothing is to be said.
SOUND: dict[str, Any] = {
    "seeds": [0, 1],
    "students": ["nano", "micro", "tiny"],
    "budgets_flops": [500e9, 1e12, 2e12],
    "arms": {"pixel": {}, "vjepa": {}, "salt": SHARES},
}


def said(**changes: Any) -> list[str]:
    return warnings_of(draft_plan(study(**(SOUND | changes))))


def salt_arm(**changes: Any) -> dict[str, Any]:
    """The three arms, with the salt arm's keys replaced; a key of None is left out."""
    salt = {key: value for key, value in (SHARES | changes).items() if value is not None}
    return {"pixel": {}, "vjepa": {}, "salt": salt}


def paper(*budgets: float, **changes: str) -> Draft:
    text = default_study(budgets).decode()
    for old, new in changes.items():
        assert text.count(f"{old}: ") == 1
        text = text.replace(f"{old}: ", f"{old}: {new} # ")
    return draft_plan(load_study(PATH, data=text.encode()))


# --- exactly when it should -----------------------------------------------------------------------


def test_nothing_is_said_of_a_sound_study() -> None:
    assert said() == []
    assert said(charge="shared") == []


BRACKET = (
    "cannot bracket a best one: give at least 3 at each budget, some below 9 % and some above 20 % (the best "
    "published allocations lie between)"
)
SIZES = "a best size can be bracketed by at least 3"
BUDGETS = "how a result changes with compute needs at least 3"
ONE: dict[str, tuple[dict[str, Any], str]] = {
    "one seed": (
        {"seeds": [3]},
        "one seed: no difference can be told from the spread between seeds; add `seeds` or `extra_seeds`",
    ),
    "two budgets": ({"budgets_flops": [500e9, 2e12]}, f"2 budgets: {BUDGETS}"),
    "a budget without cells": (
        {"budgets_flops": [1e9, 1e12, 2e12], "bad_cells": "leave_out", "minimum_steps": 100},
        f"2 budgets of 3 have cells: {BUDGETS}",
    ),
    "two sizes": ({"students": ["micro", "tiny"]}, f"2 student sizes: {SIZES}"),
    "an arm of one size": (
        {"arms": {"pixel": {"students": ["tiny"]}, "vjepa": {}, "salt": SHARES}},
        f"1 student size of pixel at 500 GFLOP, 1 TFLOP, 2 TFLOP: {SIZES}",
    ),
    # vjepa tiny takes 605 steps at the smallest budget, 1210 at the next.
    "a size left out at one budget": (
        {
            "arms": {"pixel": {}, "vjepa": {}},
            "bad_cells": "leave_out",
            "minimum_steps": 700,
        },
        f"2 student sizes of vjepa at 500 GFLOP: {SIZES}",
    ),
    # A teacher's whole steps make its share a little different at each budget.
    "two shares at three budgets": (
        {"arms": salt_arm(teacher_share=[0.05, 0.3])},
        f"teacher shares of nano {BRACKET}",
    ),
    "no small share": (
        {"arms": salt_arm(teacher_share=[0.09, 0.15, 0.3])},
        f"teacher shares of nano {BRACKET}",
    ),
    "no large share": (
        {"arms": salt_arm(teacher_share=[0.05, 0.15, 0.2])},
        f"teacher shares of nano {BRACKET}",
    ),
    # 5 to 30 % of the middle budget are 2.5 to 15 % of the largest.
    "fixed costs bracket at one budget only": (
        {"arms": salt_arm(teacher_share=None, teacher_flops=[5e10, 1.5e11, 3e11])},
        f"teacher shares of nano at 500 GFLOP, 2 TFLOP {BRACKET}",
    ),
    "charge none": (
        {"charge": "none", "arms": salt_arm(teacher_share=[0.3])},
        "charge none: what comes out holds for whoever has the teachers already, not at equal cost",
    ),
    "trunks that no other budget shares": (
        {"schedule": "wsd"},
        "schedule wsd saves nothing for students of teachers that cost a share of each budget: their trunks "
        "differ; use teacher_steps or teacher_flops",
    ),
    "a long warmup": (
        {"optim": {"batch_clips": 16, "warmup_share": 0.26}, "arms": {"pixel": {}}},
        "warmup takes more than 25 % of 3 kinds of runs, up to 26 % of their steps: set optim.warmup_share, "
        "or a recipe whose warmup is a share such as salt@1",
    ),
}


@pytest.mark.parametrize("case", ONE)
def test_one_weakness_is_told_alone(case: str) -> None:
    changes, sentence = ONE[case]
    assert said(**changes) == [sentence]


def test_extra_seeds_and_a_warmup_of_a_quarter_are_enough() -> None:
    assert said(seeds=[0], extra_seeds=[{"seeds": [1], "where": {"students": ["nano"]}}]) == []
    quarter = {"batch_clips": 16, "warmup_share": 0.25}
    assert said(optim=quarter) == []
    assert said(optim=quarter, schedule="wsd", arms={"pixel": {}, "vjepa": {}}) == []


def test_swept_teachers_of_one_share_are_one_share() -> None:
    """Masks of another price give other steps: 5 % is still 5 %."""
    masks = [{"visible_tokens": 12, "target_tokens": 24}]
    swept = {"teacher_share": [0.05, 0.3], "teacher_sweep": {"masks": ["few"]}}
    both = {"teacher_share": None, "teacher_flops": [2.5e10, 1.5e11], "teacher_sweep": {"masks": ["few"]}}
    for keys in (swept, both):
        (text,) = said(arms=salt_arm(**keys), mask_sets={"few": masks}, budgets_flops=[500e9, 501e9, 502e9])
        assert text == f"teacher shares of nano {BRACKET}"


def test_states_on_the_way_are_not_annealed() -> None:
    lengths = {"teacher_share": None, "teacher_steps": [200, 400, 800]}
    one = said(arms=salt_arm(**lengths, teacher_runs="one"))
    own = said(arms=salt_arm(**lengths))
    (more,) = [text for text in one if text not in own]
    assert more.startswith("teachers at 200, 400 steps are states of a longer run: not annealed")
    assert said(schedule="wsd", arms=salt_arm(**lengths)) == own  # trunks that the budgets share


# --- edges ----------------------------------------------------------------------------------------


def median_rates(plan: Plan, budget: float) -> dict[int, float]:
    """Median over runs of clips a parameter, by parameters of the student."""
    specs = {run.run_id: run.spec for run in plan.runs}
    rates: dict[int, list[float]] = {}
    for cell in plan.cells:
        if cell.budget == budget:
            spec = specs[cell.run_id]
            count = encoder_parameters(spec.model.encoder, patch_values(spec.model, spec.clip))
            rates.setdefault(count, []).append(spec.steps * spec.optim.batch_clips / count)
    return {count: float(np.median(found)) for count, found in rates.items()}


def test_edges_are_told_at_the_budgets_where_they_are() -> None:
    budgets = [20e9, 40e9, 80e9, 1e12, 8e12, 16e12, 32e12]
    draft, plan = drafted(**(SOUND | {"budgets_flops": budgets}))
    rates = {budget: median_rates(plan, budget) for budget in budgets}
    starved = [budget for budget in budgets if rates[budget][min(rates[budget])] < STARVED]
    sated = [budget for budget in budgets if rates[budget][max(rates[budget])] > SATED]
    assert starved == [20e9, 40e9]
    assert sated == [16e12, 32e12]
    low, high = warnings_of(draft)
    assert low.startswith(
        "the best size may be below the smallest student at 20 GFLOP, 40 GFLOP: it sees less than 0.13"
    )
    assert high.startswith(
        "the best size may be above the largest student at 16 TFLOP, 32 TFLOP: it sees more"
    )


def test_the_papers_sizes_lie_between_the_limits() -> None:
    """Clips a parameter of its ViT-G after 80k steps and ViT-L after 200k: both beside its best."""
    clips, large, giant = 3072, 303_885_312, 1_843_000_000
    assert pytest.approx(80_000 * clips / giant, rel=0.03) == STARVED
    assert pytest.approx(200_000 * clips / large, rel=0.03) == SATED


# --- the built-in study ---------------------------------------------------------------------------


def test_the_built_in_study_at_three_budgets() -> None:
    """At 1e20 FLOPs ViT-L is too large, and ViT-H teachers of a small share fall below minimum_steps."""
    assert warnings_of(paper(3e20, 1e21, 3e21)) == []
    shares, size = warnings_of(paper(1e20, 1e21, 1e22))
    assert shares == f"teacher shares of vit_h at 1e20 FLOP {BRACKET}"
    assert size.startswith("the best size may be below the smallest student at 1e20 FLOP")
    draft = paper(1e20, 1e21, 1e22)
    kept = {
        (draft.grid.axes_of(p).teachers[int(draft.grid.teacher[p])].size, draft.grid.budget[p])
        for p in draft.kept.tolist()
        if draft.grid.teacher[p] >= 0
    }
    assert ("vit_h", 0) in kept


def test_a_warmup_in_steps_is_long_for_short_teachers() -> None:
    draft = paper(3e20, 1e21, 3e21, recipe="salt-2509@1")
    specs = [
        run.spec
        for run in drafted_plan(draft).runs
        if run.role != "reference" and 0.25 * run.spec.steps < 10_000
    ]
    for spec in specs:
        assert warmup_steps(spec.optim, spec.steps) == min(10_000, spec.steps)
    kinds = {(base_of(spec), spec.steps) for spec in specs}
    shortest = min(spec.steps for spec in specs)
    assert shortest < 10_000
    (text,) = warnings_of(draft)
    assert text.startswith(
        f"warmup takes more than 25 % of {len(kinds)} kinds of runs, up to 100 % of {shortest} steps: "
    )


def drafted_plan(draft: Draft) -> Plan:
    from salt.plans import decode_plan

    return decode_plan(b"".join(draft.lines()))


def test_a_trunk_warms_up_for_its_shortest_path() -> None:
    """30 % of the path of 500 GFLOP are 7.5 % of the trunk, and still 30 % of that path."""
    arms = {"pixel": {}, "vjepa": {}}
    short = {"batch_clips": 16, "warmup_share": 0.3}
    draft, plan = drafted(**(SOUND | {"schedule": "wsd", "arms": arms, "optim": short}))
    trunks = [run.spec for run in plan.runs if run.role == "trunk" and run.spec.seed == 0]
    assert len(trunks) == 6
    assert max(spec.optim.warmup_share for spec in trunks) < 0.09
    (text,) = warnings_of(draft)
    assert text.startswith("warmup takes more than 25 % of 6 kinds of runs, up to 30 % of ")
    assert said(schedule="wsd", arms=arms, optim={"batch_clips": 16, "warmup_share": 0.2}) == []


# --- what is matched ------------------------------------------------------------------------------


@pytest.mark.parametrize("match", ["steps", "gpu-hours"])
def test_flops_that_are_not_matched_are_told(match: str) -> None:
    budgets = {
        "steps": {"budgets_steps": [500, 1000, 2000]},
        "gpu-hours": {"budgets_gpu_hours": [1e-3, 2e-3, 4e-3]},
    }
    changes = {"match": match, "site": "default", "budgets_flops": None, **budgets[match]}
    draft, plan = drafted(**(SOUND | changes))
    costs = [
        cell.cost.total_flops + (cell.teacher_cost.total_flops if cell.teacher_cost else 0)
        for cell in plan.cells
    ]
    assert max(costs) > 2 * min(costs)
    told = [text for text in warnings_of(draft) if "FLOPs are not" in text]
    unit = {"steps": "steps", "gpu-hours": "GPU-hours"}[match]
    assert told == [
        f"{unit} are matched, FLOPs are not: a cell costs between {flops_text(min(costs))} and "
        f"{flops_text(max(costs))}"
    ]
    shares = [
        text for text in said(**changes, arms=salt_arm(teacher_share=[0.3, 0.4, 0.5])) if "bracket" in text
    ]
    assert shares == []  # the published shares are of FLOPs


# --- hours and days -------------------------------------------------------------------------------

SITE = """\
name: hand
gpu: abacus
gpus_total: 4
gpus_per_node: 4
memory_gib: 1
reserve_gib: 0.1
peak_flops: {fp32: 1e6}
precision: fp32
utilisation: {default: 0.5}
max_hours_per_job: 20
price_per_gpu_hour: 2
currency: EUR
"""
TWO_RUNS: dict[str, Any] = {
    "students": ["nano"],
    "arms": {"salt": {"teachers": ["nano"], "teacher_share": [0.3]}},
}


def site_file(folder: Path, **changes: str) -> str:
    text = SITE
    for key, value in changes.items():
        lines = [f"{key}: {value}" if line.startswith(f"{key}:") else line for line in text.splitlines()]
        text = "\n".join(
            lines if any(line.startswith(f"{key}:") for line in lines) else [*lines, f"{key}: {value}"]
        )
    path = folder / "site.yaml"
    path.write_text(text)
    return str(path)


def test_hours_days_and_money_of_two_runs_by_hand(tmp_path: Path) -> None:
    """60 GFLOP at 0.5 MFLOP/s are 33.3 hours: 2 GPUs for 20 at most; 140 are 77.8: 4. One after the other."""
    draft, plan = drafted(**TWO_RUNS, site=site_file(tmp_path))
    teacher, student = plan.runs
    assert (teacher.role, student.role) == ("teacher", "student")
    speed = 1e6 * 0.5 * 3600
    own = [run.cost.total_flops / speed for run in plan.runs]
    assert own == pytest.approx([33.3, 77.8], rel=1e-3)
    assert sum(total.gpu_hours or 0 for total in draft.totals.values()) == pytest.approx(
        200e9 / speed, rel=1e-3
    )
    chain = own[0] / 2 + own[1] / 4
    assert chain > sum(own) / 4
    assert days(draft, sum(own)) == pytest.approx(chain / 24, rel=1e-12)
    site = draft.grid.bases.site
    assert site is not None
    assert calendar_days([(own[0], 2, None), (own[1], 4, 0)], site) == pytest.approx(chain / 24, rel=1e-12)
    assert plan_days(draft)[0] == (
        "At site hand (abacus): 111 GPU-hours, 222 EUR, at least 1.5 days on 4 GPUs (utilisation assumed; no "
        "probes, queues, data loading or failures)."
    )
    cap = drafted(**TWO_RUNS, site=site_file(tmp_path, max_gpus="1", max_hours_per_job="200"))[0]
    assert days(cap, sum(own)) == pytest.approx(sum(own) / 24, rel=1e-12)
    assert "at least 4.63 days on 1 GPU (" in plan_days(cap)[0]


def test_the_layout_has_gpus_and_micro_batches(tmp_path: Path) -> None:
    draft, _ = drafted(**TWO_RUNS, site=site_file(tmp_path))
    rows = {row.arm: row for row in layouts(draft)}
    fits = {arm: (row.fit.gpus, row.fit.micro_batch, row.fit.accumulation_steps) for arm, row in rows.items()}
    assert fits == {"pixel": (2, 8, 1), "salt": (4, 4, 1)}
    text = shown(draft)
    cells = {
        line.split()[0]: line.split()
        for line in text.splitlines()
        if line.split()[:1] in (["pixel"], ["salt"])
    }
    steps = {arm: str(row.steps) for arm, row in rows.items()}
    assert cells["pixel"][:7] == ["pixel", "nano", "-", steps["pixel"], "2", "8", "1"]
    assert cells["salt"][:7] == ["salt", "nano", "nano", steps["salt"], "4", "4", "1"]
    assert [cells[arm][10] for arm in ("pixel", "salt")] == ["16.7", "19.4"]
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 120
    # Fields without a price or a weight of their own do not make more kinds of runs.
    swept = {"salt": {**TWO_RUNS["arms"]["salt"], "sweep": {"optim.lr": [1e-3, 2e-3]}}}
    again, _ = drafted(**(TWO_RUNS | {"arms": swept}), site=site_file(tmp_path))
    assert layouts(again) == layouts(draft)


def shown(draft: Draft) -> str:
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=120).print(layout_table(draft))
    return out.getvalue()


def test_days_agree_with_the_schedule_run_by_run(tmp_path: Path) -> None:
    """On many GPUs the longest chain counts; with cached targets, of which each student encodes its own."""
    site = site_file(tmp_path, gpus_total="512", gpus_per_node="4", max_hours_per_job="20")
    chain = [{"teacher": "nano", "share": 0.1}, {"teacher": "micro", "share": 0.3}]
    arms = {"pixel": {}, "vjepa": {}, "salt": {**SHARES, "chains": [chain]}}
    draft, plan = drafted(
        students=["nano", "micro"], arms=arms, site=site, targets="cached(views=1)", budgets_flops=[4e12]
    )
    profile = draft.grid.bases.site
    assert profile is not None
    specs = [run.spec for run in plan.runs]
    longest: dict[Any, int] = {}
    for spec in specs:
        longest[base_of(spec)] = max(spec.steps, longest.get(base_of(spec), 0))
    places = {run.run_id: place for place, run in enumerate(plan.runs)}
    runs = []
    for spec in specs:
        kind = base_of(spec)
        gpus = propose(msgspec.structs.replace(kind, steps=longest[kind]), profile).gpus
        needs = None if spec.teacher is None else places[spec.teacher.run_id]
        runs.append((run_gpu_hours(spec, profile), gpus, needs))
    hours = sum(total.gpu_hours or 0.0 for total in draft.totals.values())
    assert hours == pytest.approx(sum(own for own, _, _ in runs), rel=1e-9)
    expected = calendar_days(runs, profile)
    assert expected > 1.5 * hours / profile.gpu_cap / 24
    assert days(draft, hours) == pytest.approx(expected, rel=1e-9)


def test_whether_the_utilisation_was_measured(tmp_path: Path) -> None:
    cases = {
        "[default]": "utilisation measured;",
        "[nano]": "utilisation measured for some sizes, assumed for others;",
        "[]": "utilisation assumed;",
    }
    for measured, words in cases.items():
        site = site_file(tmp_path, utilisation="{default: 0.5, nano: 0.5}", measured=measured)
        students = ["nano"] if measured == "[]" else ["micro"]
        arms = {"pixel": {}} if measured == "[default]" else TWO_RUNS["arms"]
        draft, _ = drafted(students=students, arms=arms, site=site)
        assert words in plan_days(draft)[0]


def test_states_that_are_kept_take_disk(tmp_path: Path) -> None:
    """A checkpoint of nano: weights and two moments of encoder and decoder, four bytes a number."""
    lengths = {"teachers": ["nano"], "teacher_steps": [100, 200, 400], "teacher_runs": "one"}
    draft, plan = drafted(students=["nano"], arms={"salt": lengths}, site=site_file(tmp_path))
    (teacher,) = [run.spec for run in plan.runs if run.role == "teacher"]
    assert teacher.keep_steps == (100, 200)
    size = checkpoint_bytes(teacher)
    assert f"keep for others {2 * size / 2**20:.3g} MiB in all" in plan_days(draft)[1]
    assert "keep for others" not in plan_days(drafted(**TWO_RUNS, site=site_file(tmp_path))[0])[1]


def test_disk_of_the_built_in_study_and_no_site() -> None:
    """ViT-G as V-JEPA: 3 x (1843 + 22) + 1843 million numbers of 4 bytes, the largest of the checkpoints."""
    disk = plan_days(paper(1e21))[1]
    assert f"each of up to {4 * (3 * (1843 + 22.3) + 1843) * 1e6 / 2**30:.3g} GiB" in disk
    assert f"encoder of up to {4 * 1843e6 / 2**30:.3g} GiB" in disk
    draft, _ = drafted()
    (text,) = plan_days(draft)
    assert text.startswith("GPU-hours: give a site profile")
    assert (layouts(draft), layout_table(draft)) == ([], None)
