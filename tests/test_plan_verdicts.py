"""Grids that cannot be: every bad point with all of its reasons at once. And the built-in study."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from salt.errors import UserError
from salt.flops import step_cost
from salt.plans import read_plan
from sweeps.budgets import parse_budgets
from sweeps.default_study import PATH, default_study
from sweeps.design import warnings_of
from sweeps.plan import build_plan, draft_plan
from sweeps.study import load_study
from tests.console import ROOT
from tests.plan_kit import BASE, drafted, study, study_bytes, sweep


def refusal(**changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        drafted(**changes)
    return str(caught.value)


def supervised(**changes: Any) -> dict[str, Any]:
    """References with training on labels."""
    section = {"label": "motion", "steps": 10, "students": ["nano"]} | changes
    return {"random": False, "raw": False, "supervised": section}


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
        # Its baselines alone would get the seeds.
        (
            {"extra_seeds": [{"seeds": [1], "where": {"teachers": ["micro"]}}]},
            ["no cell with such a teacher"],
        ),
        ({"extra_seeds": [{"seeds": [1], "where": {"teacher_share": [0.2]}}]}, ["only its baselines"]),
        ({"arms": {"pixel": None, "vjepa": {}}}, ["arms.pixel", "`pixel: {}`"]),
        ({"arms": {"pixel": {"students": []}}}, ["arms.pixel.students", "none is given"]),
        ({"match": "steps", "budgets_flops": None, "budgets_steps": ["0k"]}, ["budgets_steps", "below one"]),
        ({"budgets_flops": [1e40], "arms": {"pixel": {}}}, ["arm pixel", "9.1e+31 steps", "more than 1e+15"]),
        ({"arms": {"salt": {"teachers": ["nano"], "teacher_flops": [1e40]}}}, ["teacher nano", "1e+15"]),
        ({"arms": {"salt": {"teachers": ["nano"], "teacher_steps": [10**18]}}}, ["teacher nano", "1e+15"]),
        (
            {"schedule": "wsd", "arms": {"salt": {"chains": [[{"teacher": "nano", "steps": 60}]]}}},
            ["chains", "schedule: cosine"],
        ),
        (
            {"schedule": "wsd", "match": "steps", "budgets_flops": None, "budgets_steps": [1]},
            ["1 steps for the student is below 2"],
        ),
        ({"mask_sets": {"a/b": [{}]}, "arms": {"pixel": {"sweep": {"masks": ["a/b"]}}}}, ["mask_sets.a/b"]),
        ({"references": supervised(students=["nano", "nano"])}, ["supervised.students", "twice"]),
        ({"references": supervised(optim={"schedule": "cooldown"})}, ["supervised.optim.schedule"]),
        ({"references": supervised(optim={"batch_clips": 9000})}, ["supervised", "9000 clips", "8192"]),
        ({"arms": {"pixel": {"sweep": {"masks": ["tube"]}}}}, ["masks", "'tube'"]),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], words: list[str]) -> None:
    text = refusal(**changes)
    for word in words:
        assert word in text


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
    _, left = drafted(
        arms={"pixel": {}, "salt": teacher},
        students=["nano"],
        budgets_flops=[step // 2, 200_000_000_000, 182_000_000_000, 400_000_000_000],
        bad_cells="leave_out",
    )
    verdicts = {(refused.cell.split("-")[0], refused.budget): refused.verdicts for refused in left.refused}
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


@pytest.mark.parametrize("budget", [1e21, 1e25])
def test_what_cannot_be_built_has_no_price_at_any_budget(budget: float) -> None:
    """No number is made of it, so none can overflow: warnings are errors here."""
    odd = {"odd": {"width": 50, "depth": 2, "heads": 3, "mlp_width": 200}}
    for arms, students in (
        ({"pixel": {}}, ["odd"]),
        ({"salt": {"teachers": ["odd"], "teacher_share": [0.3], "teacher_flops": [1e20]}}, ["vit_gg"]),
    ):
        text = refusal(budgets_flops=[budget], sizes=odd, students=students, arms=arms)
        assert "every cell below: size odd: 3 heads do not divide the width 50" in text


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
    optim = {"batch_clips": 16, "precision": "bfloat16"}
    ask: dict[str, Any] = {
        "students": ["vit_gg"],
        "site": str(site),
        "budgets_flops": [1e17],
        "arms": {"pixel": {}},
    }
    with pytest.raises(UserError, match=r"site small has no peak_flops\.fp32"):
        draft_plan(study(**ask))  # the default precision
    text = refusal(**ask, optim=optim)
    assert "1 of 1 cells" in text
    assert "small" in text
    assert "GiB" in text


def test_budgets_of_the_command_line() -> None:
    assert parse_budgets(["1e21"]) == (1e21,)
    assert parse_budgets(["1e20,3e20", "1e21", "1e20"]) == (1e20, 3e20, 1e21)
    assert parse_budgets(["1e19:1e21:5"]) == (1e19, 3.16e19, 1e20, 3.16e20, 1e21)
    for bad in (
        "",
        "x",
        "0",
        "-1",
        "nan",
        "inf",
        "1e20:1e19:3",
        "1:2",
        "1:2:1",
        "1e20,",
        "1:2:3:4",
        "1:2:\u00b2",
    ):
        with pytest.raises(UserError, match="--budget"):
            parse_budgets([bad])


def test_a_plan_is_found_again_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that look like something else: a quick plan, a folder; and budgets in the unit of `quick`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SALT_STORE", str(tmp_path / "store"))
    Path("a.yaml").write_bytes(study_bytes(name="my-quick", arms={"pixel": {}}))
    quick = {"match": "steps", "budgets_flops": [], "budgets_steps": [10]}
    Path("b.yaml").write_bytes(study_bytes(name="b", arms={"pixel": {}}, quick=quick))
    Path("my-quick").mkdir()
    sweep("plan", "a.yaml")
    assert json.loads(sweep("plan", "my-quick", "--json")[0])["written"] == "unchanged"
    steps = {cell["steps"] for cell in planned("plan", "b.yaml", "--quick", "--budget", "20")}
    assert steps == {20}
    assert {cell["steps"] for cell in planned("plan", "b-quick")} == {20}  # options are remembered
    assert {cell["steps"] for cell in planned("plan", "b-quick", "--budget", "30")} == {30}


def planned(*argv: str) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(sweep(*argv, "--json")[0])["cells"]
    return cells


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
    # The file it wrote plans to the same bytes, but for the folder that its paths would be relative to.
    written = store / "plans" / "paper" / "study.yaml"
    text, _ = sweep("plan", str(written), "--store", str(tmp_path / "again"), "--json")
    data = [(place / "plans" / "paper" / "plan.jsonl").read_bytes() for place in (store, tmp_path / "again")]
    folders = [json.loads(lines.splitlines()[0])["execution"].pop("folder") for lines in data]
    assert folders[1] == str(written.parent)
    assert data[0].replace(folders[0].encode(), b"", 1) == data[1].replace(folders[1].encode(), b"", 1)
    answer = json.loads(text)
    row = next(r for r in answer["cells"] if r["arm"] == "salt")
    parts = ("teacher_charged_flops", "inference_flops", "encoder_flops", "predictor_flops")
    assert sum(row[name] for name in parts) == row["charged_flops"]
    assert answer["total_flops"] == sum(run.cost.total_flops for run in plan.runs)
    # At a small budget its extra seeds mean a teacher that is left out: that is no mistake.
    out, _ = sweep("plan", "--budget", "5e18", "--store", str(tmp_path / "small"))
    assert "Left out: 55 of 56 cells" in out
    out, err = sweep("submit", "paper", "--store", str(store), code=2)
    assert "only declared" in err
    assert not (store / "runs").exists()


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
    cell = next(c for c in plan.cells if c.teacher_steps == 80_000)
    assert cell.teacher_cost is not None
    assert round(cell.teacher_cost.total_flops / 1e21, 4) == 0.2418
    assert round(cell.cost.total_flops / 1e21, 4) == 0.9507
    vjepa = next(c for c in plan.cells if c.arm == "vjepa")
    assert round(vjepa.cost.total_flops / 1e21, 3) == 1.426
    assert cell.residual == vjepa.residual == 0
    assert cell.budget_flops == cell.charged_flops  # each stands at its own cost


def test_a_recipe_rules_what_the_study_does_not() -> None:
    text = default_study((1e21,)).decode()
    for recipe, warmup in (("salt@1", None), ("salt-2509@1", 10_000)):
        changed = text.replace("recipe: salt@1", f"recipe: {recipe}")
        data = changed.replace("optim: {", "optim: {beta2: 0.9, ").encode()
        plan = build_plan(load_study(PATH, data=data))
        for run in plan.runs:
            if run.role == "reference":
                continue
            share = 1 / 24 if warmup is None else min(1.0, warmup / run.spec.steps)
            assert run.spec.optim.warmup_share == pytest.approx(share, rel=1e-9)
            assert (run.spec.optim.lr, run.spec.optim.beta2) == (6.25e-4, 0.9)


def test_planning_loads_no_torch_and_depends_on_no_hash_seed(tmp_path: Path) -> None:
    code = (
        "import sys, salt_cli; code = salt_cli.run('salt-sweep', sys.argv[1:]) or"
        " salt_cli.run('salt-sweep', ['plan', 'kit.yaml', *sys.argv[4:]]);"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules; sys.exit(code)"
    )
    lengths = {"teachers": ["nano", "micro"], "teacher_steps": [50, 100], "sweep": {"optim.lr": [1e-3, 2e-3]}}
    data = study_bytes(
        schedule="wsd",
        charge="shared",
        bad_cells="leave_out",
        minimum_steps=80,
        arms={"pixel": {}, "vjepa": {}, "salt": lengths},
        extra_seeds=[{"seeds": [3, 1], "where": {"arms": ["salt", "pixel"]}}],
        references={},
    )
    (tmp_path / "kit.yaml").write_bytes(data)
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
        answers = done.stdout.replace("}\n{", "}\0{").split("\0")
        hashes.add(tuple(json.loads(answer)["sha256"] for answer in answers))
    (both,) = hashes
    assert len(both) == 2


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
