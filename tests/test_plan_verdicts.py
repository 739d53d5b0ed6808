"""Grids that cannot be: every bad point with all of its reasons at once. And the built-in study."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import salt_cli
from salt.errors import UserError
from salt.flops import step_cost
from salt.plans import read_plan
from sweeps.budgets import parse_budgets
from sweeps.design import warnings_of
from sweeps.plan import draft_plan
from tests.console import ROOT
from tests.plan_kit import BASE, drafted, study, study_bytes


def sweep(*argv: str, code: int = 0) -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert salt_cli.run("salt-sweep", list(argv)) == code, err.getvalue()
    return out.getvalue(), err.getvalue()


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        drafted(**changes)
    return str(caught.value)


def test_every_width_that_heads_do_not_divide_is_listed_at_once(tmp_path: Path) -> None:
    """Widths 192, 200, 384, 500 with 3, 6, 7 heads; a crop and frames that patches do not divide."""
    sizes = {
        f"w{width}h{heads}": {"width": width, "depth": 2, "heads": heads, "mlp_width": 4 * width}
        for width in (192, 200, 384, 500)
        for heads in (3, 6, 7)
    }
    arms = {"pixel": {}}
    text = refusal(sizes=sizes, students=list(sizes), arms=arms, budgets_flops=[1e15])
    bad = {name for name, size in sizes.items() if size["width"] % size["heads"]}
    assert len(bad) == 8
    assert "8 of 12 cells" in text
    for name, size in sizes.items():
        wanted = f"size {name}: {size['heads']} heads do not divide the width {size['width']}"
        assert (wanted in text) == (name in bad)
    clip = {"frames": 15, "frame_stride": 1, "store_px": 256, "crop_px": 225, "channels": 1}
    model = {**BASE["model"], "patch_px": 16}
    text = refusal(sizes=sizes, students=list(sizes), arms=arms, clip=clip, model=model)
    for words in ("12 of 12 cells", "crop_px 225", "patch_px 16", "use 224", "frames 15", "tubelet_frames 2"):
        assert words in text
    path = tmp_path / "bad.yaml"
    path.write_bytes(study_bytes(sizes=sizes, students=list(sizes), arms=arms))
    out, err = sweep("plan", str(path), "--store", str(tmp_path / "store"), code=2)
    assert out == ""
    assert "8 of 12" in err
    assert not (tmp_path / "store").exists()


def test_budgets_that_make_no_sense_get_their_verdicts_together() -> None:
    """Half a step; the teacher's cost; a teacher at 110 % of the budget; one clip again and again."""
    _, plan = drafted()
    specs = {run.run_id: run.spec for run in plan.runs}
    pixel = next(cell for cell in plan.cells if cell.arm == "pixel" and cell.student == "nano")
    step = step_cost(specs[pixel.run_id]).total_flops
    teacher = {"teachers": ["nano"], "teacher_flops": [200e9]}
    draft, _ = drafted(
        arms={"pixel": {}, "salt": teacher},
        students=["nano"],
        budgets_flops=[step // 2, 200_000_000_000, 182_000_000_000, 400_000_000_000],
        bad_cells="leave_out",
    )
    verdicts = {
        (refused.cell.split("-")[0], refused.budget): refused.verdicts for refused in read_back(draft)
    }
    assert verdicts["pixel", step // 2] == ("too small",)
    for budget in (step // 2, 200e9, 182e9):
        assert "teacher exceeds budget" in verdicts["salt", budget]
    assert ("salt", 400e9) not in verdicts
    assert ("pixel", 182e9) not in verdicts
    text = refusal(
        arms={"pixel": {}}, maximum_epochs=100, data={**BASE["data"], "train": {"name": "one", "clips": 16}}
    )
    assert "repeats data" in text
    assert "maximum_epochs 100" in text
    assert text.count("\n  arm") == 2
    text = refusal(data={**BASE["data"], "train": {"name": "one", "clips": 1}})
    assert "a batch of 16 clips is larger than the training list of 1" in text


def read_back(draft: Any) -> tuple[Any, ...]:
    from salt.plans import decode_plan

    return decode_plan(b"".join(draft.lines())).refused


def test_one_teacher_for_four_students_is_charged_as_the_rule_says() -> None:
    arms = {"salt": {"teachers": ["nano"], "teacher_share": [0.3]}}
    students = ["nano", "micro", "tiny", "vit_ti"]
    for charge, part in (("full", 1.0), ("shared", 0.25), ("none", 0.0)):
        _, plan = drafted(arms=arms, students=students, charge=charge, budgets_flops=[2e12])
        assert sum(run.role == "teacher" for run in plan.runs) == 1
        for cell in plan.cells:
            assert cell.teacher_cost is not None
            above = cell.charged_flops - cell.cost.total_flops
            assert above == int(cell.teacher_cost.total_flops * part)


def test_what_no_machine_of_the_site_holds_does_not_fit(tmp_path: Path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(
        "name: small\ngpu: small\ngpus_total: 1\ngpus_per_node: 1\nmemory_gib: 1\nreserve_gib: 0.1\n"
        "peak_flops: {bf16: 1e12}\nutilisation: {default: 0.5}\n"
    )
    text = refusal(students=["vit_gg"], site=str(site), budgets_flops=[1e17], arms={"pixel": {}})
    assert "1 of 1 cells" in text
    assert "small" in text
    assert "GiB" in text


def test_budgets_of_the_command_line() -> None:
    assert parse_budgets(["1e21"]) == (1e21,)
    assert parse_budgets(["1e20,3e20", "1e21", "1e20"]) == (1e20, 3e20, 1e21)
    assert parse_budgets(["1e19:1e21:5"]) == (1e19, 3.16e19, 1e20, 3.16e20, 1e21)
    for bad in ("", "x", "0", "-1", "nan", "inf", "1e20:1e19:3", "1:2", "1:2:1", "1e20,", "1:2:3:4"):
        with pytest.raises(UserError, match="--budget"):
            parse_budgets([bad])


def test_the_papers_question_needs_no_study_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    store = tmp_path / "store"
    out, _ = sweep("plan", "--budget", "1e21", "--store", str(store), "--layout")
    plan = read_plan(store, "paper")
    arms = [cell.arm for cell in plan.cells if cell.seed == 0 and cell.budget]
    assert [arms.count(arm) for arm in ("pixel", "vjepa", "salt")] == [4, 4, 48]
    specs = {run.run_id: run.spec for run in plan.runs}
    for cell in plan.cells:
        if not cell.budget:
            continue
        spec = specs[cell.run_id]
        total = step_cost(spec).total_flops * spec.steps
        if cell.teacher_run_id is not None:
            teacher = specs[cell.teacher_run_id]
            total += step_cost(teacher).total_flops * teacher.steps
        assert total == cell.charged_flops
        assert abs(total / 1e21 - 1) <= 0.001
        assert (spec.optim.batch_clips, spec.clip.crop_px, spec.clip.frames) == (3072, 224, 16)
        assert [mask.visible_tokens for mask in spec.masks] == [366, 100]
    lines = [line.rstrip() for line in out.splitlines() if not line.startswith(("warning", "new: "))]
    assert max(len(line) for line in lines) <= 120
    assert "\u2026" not in out  # nothing is cut
    # The file it wrote plans to the same runs and cells.
    written = store / "plans" / "paper" / "study.yaml"
    text, _ = sweep("plan", str(written), "--store", str(tmp_path / "again"), "--json")
    again = read_plan(tmp_path / "again", "paper")
    assert (again.runs, again.cells) == (plan.runs, plan.cells)
    answer = json.loads(text)
    row = next(r for r in answer["cells"] if r["arm"] == "salt")
    parts = ("teacher_charged_flops", "inference_flops", "encoder_flops", "predictor_flops")
    assert sum(row[name] for name in parts) == row["charged_flops"]
    assert answer["total_flops"] == sum(run.cost.total_flops for run in plan.runs)
    out, err = sweep("submit", "paper", "--store", str(store), code=2)
    assert "only declared" in err
    assert not (store / "runs").exists()


def test_planning_loads_no_torch_and_depends_on_no_hash_seed(tmp_path: Path) -> None:
    code = (
        "import sys, salt_cli; code = salt_cli.run('salt-sweep', sys.argv[1:]);"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules; sys.exit(code)"
    )
    hashes = set()
    for seed in ("1", "2"):
        argv = ["plan", "--budget", "1e20", "--store", str(tmp_path / seed), "--json"]
        done = subprocess.run(
            [sys.executable, "-c", code, *argv],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed, "PATH": ""},
        )
        assert done.returncode == 0, done.stderr
        hashes.add(json.loads(done.stdout)["sha256"])
    assert len(hashes) == 1


def test_warnings_name_what_is_weak_and_nothing_else() -> None:
    weak = warnings_of(draft_plan(study()))
    for words in ("one seed", "1 budget", "2 student sizes", "cannot bracket"):
        assert any(words in text for text in weak), words
    strong = warnings_of(
        draft_plan(
            study(
                seeds=[0, 1],
                students=["nano", "micro", "tiny"],
                budgets_flops=[1e12, 2e12, 4e12],
                arms={"salt": {"teachers": ["nano"], "teacher_share": [0.05, 0.15, 0.3]}},
            )
        )
    )
    assert [text for text in strong if "the best size" not in text] == []
    slow = study(optim={"warmup_share": 0.3, "batch_clips": 16})
    assert any("warmup" in text for text in warnings_of(draft_plan(slow)))
    assert any("not at equal cost" in text for text in warnings_of(draft_plan(study(charge="none"))))
    steps = study(match="steps", budgets_flops=None, budgets_steps=["1k"])
    assert any("FLOPs are not" in text for text in warnings_of(draft_plan(steps)))


def test_a_difference_between_plans_is_told_and_priced(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    for name, shares in (("a", [0.2, 0.3]), ("b", [0.3, 0.4])):
        path = tmp_path / f"{name}.yaml"
        arms = {"pixel": {}, "salt": {"teachers": ["nano"], "teacher_share": shares}}
        path.write_bytes(study_bytes(name=name, arms=arms, students=["nano"]))
        sweep("plan", str(path), "--store", store)
    out, _ = sweep("diff", "a", "b", "--store", store, "--json", code=1)
    found = json.loads(out)
    assert found["added"] == ["salt-nano-from-nano-share0.4-200G-seed0"]
    assert found["removed"] == ["salt-nano-from-nano-share0.2-200G-seed0"]
    assert found["changed"] == []
    plans = {name: {r.run_id: r.cost.total_flops for r in read_plan(Path(store), name).runs} for name in "ab"}
    fresh = set(plans["b"]) - set(plans["a"])
    assert (found["new_runs"], found["dropped_runs"]) == (2, 2)
    assert found["new_flops"] == sum(plans["b"][run_id] for run_id in fresh)
    assert found["total_flops"] == [sum(plans["a"].values()), sum(plans["b"].values())]
    text, _ = sweep("diff", "a", "b", "--store", store, code=1)
    assert "share0.4" in text
    out, _ = sweep("diff", "a", str(Path(store) / "plans" / "a"), "--store", store)
    assert "0 cells added, 0 removed, 0 changed" in out
    _, err = sweep("diff", "a", str(tmp_path / "b.yaml"), "--store", store, code=2)
    assert "study file" in err
