"""`salt-sweep diff`: what two plans do not share, by name and in FLOPs that are counted by hand."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

import salt_cli
from salt.flops import step_cost
from salt.plan_specs import Plan
from salt.plans import read_plan
from salt.store import RunDir
from slurm.names import flops_text
from sweeps.diff_cli import compare
from sweeps.plan import draft_plan, write_plan
from tests.plan_kit import drafted, study, study_bytes

ONE: dict[str, Any] = {
    "students": ["nano"],
    "arms": {"pixel": {}, "vjepa": {}, "salt": {"teachers": ["nano"], "teacher_share": [0.3]}},
}


def diff(store: Path, a: object, b: object, *options: str, code: int) -> str:
    out, err = io.StringIO(), io.StringIO()
    argv = ["diff", str(a), str(b), "--store", str(store), *options]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert salt_cli.run("salt-sweep", argv) == code, err.getvalue()
    return err.getvalue() if code == 2 else out.getvalue()


def found(store: Path, a: object, b: object, code: int) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(diff(store, a, b, "--json", code=code))
    return answer


def put(store: Path, name: str, **changes: Any) -> Plan:
    write_plan(store, draft_plan(study(name=name, **(ONE | changes))))
    return read_plan(store, name)


def prices() -> dict[str, int]:
    """FLOPs of a step of a nano run, by arm."""
    _, plan = drafted(**ONE)
    return {run.spec.arm: step_cost(run.spec).total_flops for run in plan.runs}


def by_hand(budget: float, share: float) -> dict[str, int]:
    """Steps of the runs of `ONE` at a budget: what whole steps come nearest to."""
    price = prices()
    teacher = round(share * budget / price["pixel"])
    return {
        "pixel": round(budget / price["pixel"]),
        "vjepa": round(budget / price["vjepa"]),
        "teacher": teacher,
        "salt": round((budget - teacher * price["pixel"]) / price["salt"]),
    }


def flops_by_hand(steps: dict[str, int]) -> int:
    price = prices()
    return sum(count * price.get(arm, price["pixel"]) for arm, count in steps.items())


# --- one thing changed ----------------------------------------------------------------------------


def test_another_budget_and_what_is_done_of_it(tmp_path: Path) -> None:
    """A finished run of both plans saves nothing; a finished one that only the second wants does."""
    put(tmp_path, "a", budgets_flops=[200e9, 400e9])
    plan = put(tmp_path, "b", budgets_flops=[200e9, 800e9])
    new, old = by_hand(800e9, 0.3), by_hand(400e9, 0.3)
    runs = {(run.role, run.spec.arm, run.spec.steps): run.run_id for run in plan.runs}
    done = [runs["student", "vjepa", new["vjepa"]], runs["student", "vjepa", by_hand(200e9, 0.3)["vjepa"]]]
    for run_id in done:
        path = RunDir(tmp_path, run_id).result
        path.parent.mkdir(parents=True)
        path.write_text("{}")
    answer = found(tmp_path, "a", "b", 1)
    names = ("pixel-nano-{}-seed0", "vjepa-nano-{}-seed0", "salt-nano-from-nano-share0.3-{}-seed0")
    assert set(answer["added"]) == {name.format("800G") for name in names}
    assert set(answer["removed"]) == {name.format("400G") for name in names}
    assert (answer["changed"], answer["new_runs"], answer["dropped_runs"]) == ([], 4, 4)
    assert answer["new_flops"] == flops_by_hand(new)
    assert answer["dropped_flops"] == flops_by_hand(old)
    assert answer["new_flops_done"] == new["vjepa"] * prices()["vjepa"]
    small = flops_by_hand(by_hand(200e9, 0.3))
    assert answer["total_flops"] == [small + flops_by_hand(old), small + flops_by_hand(new)]
    assert list(answer["settings"]) == ["study_sha256"]
    text = diff(tmp_path, "a", "b", code=1)
    assert f"4 runs are new ({flops_text(answer['new_flops'])}, of which 800 GFLOP are done" in text


def test_a_run_that_goes_on_as_a_teacher_is_neither_new_nor_dropped(tmp_path: Path) -> None:
    """Half of 400 GFLOP buys the teacher that is the pixel cell of 200 GFLOP."""
    arms = {**ONE["arms"], "salt": {"teachers": ["nano"], "teacher_share": [0.5]}}
    put(tmp_path, "both", budgets_flops=[200e9, 400e9], arms=arms)
    put(tmp_path, "one", budgets_flops=[400e9], arms=arms)
    small = by_hand(200e9, 0.5)
    assert small["pixel"] == by_hand(400e9, 0.5)["teacher"]
    answer = found(tmp_path, "both", "one", 1)
    assert "pixel-nano-200G-seed0" in answer["removed"]
    assert (len(answer["removed"]), answer["dropped_runs"], answer["new_runs"]) == (3, 3, 0)
    assert answer["dropped_flops"] == flops_by_hand(small) - small["pixel"] * prices()["pixel"]
    back = found(tmp_path, "one", "both", 1)
    assert (back["added"], back["removed"]) == (answer["removed"], [])
    assert (back["new_flops"], back["dropped_flops"]) == (answer["dropped_flops"], 0)


def test_another_share(tmp_path: Path) -> None:
    put(tmp_path, "a")
    arms = {**ONE["arms"], "salt": {"teachers": ["nano"], "teacher_share": [0.3, 0.4]}}
    put(tmp_path, "b", arms=arms)
    answer = found(tmp_path, "a", "b", 1)
    steps = by_hand(200e9, 0.4)
    assert answer["added"] == ["salt-nano-from-nano-share0.4-200G-seed0"]
    assert (answer["removed"], answer["changed"], answer["dropped_runs"]) == ([], [], 0)
    assert answer["new_flops"] == flops_by_hand({name: steps[name] for name in ("teacher", "salt")})


def test_another_charge_of_the_same_file_changes_the_students_steps(tmp_path: Path) -> None:
    """The same file planned twice, in two stores: only the command line's `--charge` is not the same."""
    path = tmp_path / "kit.yaml"
    path.write_bytes(study_bytes(**ONE))
    folders = []
    for charge in ("full", "none"):
        store = tmp_path / charge
        argv = ["plan", str(path), "--charge", charge, "--store", str(store)]
        with contextlib.redirect_stdout(io.StringIO()):
            assert salt_cli.run("salt-sweep", argv) == 0
        folders.append(store / "plans" / "kit")
    answer = found(tmp_path / "none", *folders, 1)
    assert answer["settings"] == {
        "charge": ["full", "none"],
        "overrides": [{"charge": "full"}, {"charge": "none"}],
    }
    (change,) = answer["changed"]
    assert change["cell_id"] == "salt-nano-from-nano-share0.3-200G-seed0"
    whole = round(200e9 / prices()["salt"])
    assert change["fields"]["steps"] == [by_hand(200e9, 0.3)["salt"], whole]
    assert change["fields"]["charged_flops"][1] == whole * prices()["salt"]
    assert "teacher_run_id" not in change["fields"]
    assert (answer["added"], answer["removed"], answer["new_runs"], answer["dropped_runs"]) == ([], [], 1, 1)
    assert answer["new_flops"] == whole * prices()["salt"]


def test_more_seeds_cost_the_same_again(tmp_path: Path) -> None:
    before = put(tmp_path, "a")
    put(tmp_path, "b", seeds=[0, 1])
    answer = found(tmp_path, "a", "b", 1)
    assert set(answer["added"]) == {cell.cell_id.replace("seed0", "seed1") for cell in before.cells}
    assert (answer["removed"], answer["changed"]) == ([], [])
    first, second = answer["total_flops"]
    assert (answer["new_runs"], answer["new_flops"], second) == (len(before.runs), first, 2 * first)


def test_other_probes_of_the_same_runs_are_a_difference(tmp_path: Path) -> None:
    """A changed list of labelled clips changes a suite's id and nothing else of the plan."""
    suite = {"name": "main", "labels": ["motion"], "kinds": ["knn"], "train_clips": 64, "selection_clips": 64}
    a, b = (drafted(**ONE, probes=[suite | {"report_clips": clips}])[1] for clips in (64, 32))
    b = msgspec.structs.replace(b, study_sha256=a.study_sha256)
    answer = compare(a, b)
    assert (answer.settings, answer.changed, answer.new_runs) == ({}, (), 0)
    assert (answer.new_probes, answer.dropped_probes) == (len(a.runs), len(a.runs))
    assert not answer.same
    assert compare(a, a).same


# --- which plans ----------------------------------------------------------------------------------


def test_equal_plans_by_every_way_to_name_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "a")
    folder = tmp_path / "plans" / "a"
    # A folder that is called like a plan does not hide it.
    elsewhere = tmp_path / "work"
    write_plan(elsewhere, draft_plan(study(name="other", **ONE)))
    (elsewhere / "plans" / "other").rename(elsewhere / "a")
    monkeypatch.chdir(elsewhere)
    for name in ("a", folder, folder / "plan.jsonl"):
        answer = found(tmp_path, "a", name, 0)
        assert (answer["a"], answer["b"]) == ("a", "a")
        assert not any(answer[key] for key in ("settings", "added", "removed", "changed", "new_runs"))
        assert answer["total_flops"] == [flops_by_hand(by_hand(200e9, 0.3))] * 2
    assert "0 cells added, 0 removed, 0 changed" in diff(tmp_path, "a", folder, code=0)
    assert found(tmp_path, "a", "./a", 1)["b"] == "other"


def test_what_is_no_plan_is_refused_by_name(tmp_path: Path) -> None:
    put(tmp_path, "a")
    study_file = tmp_path / "kit.yaml"
    study_file.write_bytes(study_bytes(**ONE))
    assert f"{study_file}: this is a study file" in diff(tmp_path, "a", study_file, code=2)
    assert "no plan 'b'" in diff(tmp_path, "a", "b", code=2)
    assert "have a" in diff(tmp_path, "b", "a", code=2)
    broken = tmp_path / "plan.jsonl"
    lines = (tmp_path / "plans" / "a" / "plan.jsonl").read_bytes().splitlines(keepends=True)
    broken.write_bytes(b"".join([*lines[:3], lines[3][:20]]))
    assert f"{broken}:4:" in diff(tmp_path, "a", broken, code=2)
    csv = tmp_path / "plans" / "a" / "costs.csv"
    assert f"{csv}:1:" in diff(tmp_path, csv, "a", code=2)


# --- how it looks ---------------------------------------------------------------------------------


def test_the_table_is_whole_in_120_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long chains, all fields changed, and more cells than are shown."""
    monkeypatch.setenv("COLUMNS", "120")
    chain = [{"teacher": "nano", "steps": 60}, {"teacher": "micro", "share": 0.3}]
    arms = {"salt": {"chains": [chain]}}
    put(tmp_path, "a", arms=arms, seeds=list(range(45)), charge="none")
    put(tmp_path, "b", arms=arms, seeds=[0, *range(100, 145)], optim={"batch_clips": 8})
    text = diff(tmp_path, "a", "b", code=1)
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 120
    assert "\u2026" not in text
    flat = " ".join(text.split())
    assert "and 4 more" in flat
    assert "and 5 more" in flat
    assert "45 cells added, 44 removed, 1 changed" in flat
    answer = found(tmp_path, "a", "b", 1)
    assert (len(answer["added"]), len(answer["removed"])) == (45, 44)
    (change,) = answer["changed"]
    for name in ("steps", "run_id", "teacher_run_id", "stages"):
        assert name in change["fields"]
        assert name in flat
    for value in (answer["settings"]["study_sha256"][0][:12], change["fields"]["run_id"][1]):
        assert value in text.replace("\n", "")
