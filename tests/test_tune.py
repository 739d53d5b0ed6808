"""`salt-sweep tune` as a user starts it: real trainings, refusals before any job, the recipe that studies
name.
"""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from analysis.tuning_record import read_tuning
from salt.errors import UserError
from salt.plans import read_plan
from salt.store import RunDir
from sweeps.recipe_file import recipe_of
from sweeps.tune_config import check_objectives
from sweeps.tune_space import Axis, parse_space
from tests.arms_kit import write_clips
from tests.console import salt, start

MASK = {"blocks": 4, "scale": 0.3, "visible_tokens": 8, "target_tokens": 32}
STUDY: dict[str, Any] = {
    "name": "small",
    "data": {split: f"{split}/list.csv" for split in ("train", "selection", "report")},
    "clip": {"frames": 8, "frame_stride": 1, "store_px": 32, "crop_px": 24},
    "model": {
        "patch_px": 6, "init": "xavier",
        "predictor": {"width": 32, "depth": 1, "heads": 2, "mlp_width": 64},
    },
    "masks": [MASK],
    "mask_sets": {"few": [MASK], "many": [MASK, MASK]},
    "budgets_flops": [1.2e10],
    "seeds": [0],
    "students": ["nano"],
    "arms": {"pixel": {}, "vjepa": {}, "salt": {"teachers": ["nano"], "teacher_share": [0.3]}},
    "optim": {"batch_clips": 8, "lr": 1e-3, "lr_start": 0, "lr_end": 0, "clip_norm": 1.0},
    "objective": {"ema_start": 0.9},
    "references": {"random": False, "raw": False},
    "probes": [
        {
            "name": "main", "labels": ["motion"], "kinds": ["linear"],
            "train_clips": 12, "selection_clips": 12, "report_clips": 12,
        }
    ],
    "execution": {"checkpoint_every_steps": 40, "log_every_steps": 10, "decode_workers": 1, "threads": 1},
}  # fmt: skip
SPACE = {"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "masks": {"choices": ["few", "many"]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study file, a space, and clips."""
    path = tmp_path_factory.mktemp("tune")
    for first, split in ((0, "train"), (20, "selection"), (40, "report")):
        write_clips(path / split, first=first)
    write(path, "study.yaml", STUDY)
    write(path, "space.yaml", SPACE)
    return path


def write(folder: Path, name: str, document: dict[str, Any]) -> str:
    (folder / name).write_text(yaml.safe_dump(document, sort_keys=False))
    return name


def tuned(folder: Path, *argv: str) -> dict[str, Any]:
    out, _ = salt(folder, "salt-sweep", "tune", "study.yaml", *argv, "--json")
    found: dict[str, Any] = json.loads(out)
    return found


def test_every_arm_has_the_same_trials_and_studies_name_the_recipe(folder: Path) -> None:
    said = tuned(folder, "--space", "space.yaml", "--trials", "3", "--workers", "2", "--recipe", "tuned.yaml")
    assert set(said["arms"]) == {"pixel", "vjepa", "salt"}
    store = folder / "store"
    for arm, found in said["arms"].items():
        assert (found["complete"], found["failed"], found["open"]) == (3, 0, 0)
        (top,) = found["best"]
        run = RunDir(store, top["run_id"])
        spec, (probe,) = run.read_spec(), run.probes.iterdir()
        assert (spec.arm, spec.seed) == (arm, 1)  # the study has seed 0
        assert spec.optim.lr == top["values"]["optim.lr"]
        assert len(spec.masks) == {"few": 1, "many": 2}[top["values"]["masks"]]
        scores = json.loads(probe.read_bytes())["scores"]
        assert [score["selection_accuracy"] for score in scores] == [top["accuracy"]]
    (record,) = read_tuning(store)
    assert record.trials == {"pixel": 3, "vjepa": 3, "salt": 3}

    again = tuned(folder, "--space", "space.yaml", "--trials", "3", "--show")
    assert again["arms"] == said["arms"]
    rates = {arm: found["best"][0]["values"]["optim.lr"] for arm, found in said["arms"].items()}
    write(folder, "uses.yaml", STUDY | {"name": "uses", "recipe": "tuned.yaml", "optim": {"batch_clips": 8}})
    salt(folder, "salt-sweep", "plan", "uses.yaml")
    plan = read_plan(store, "uses")
    by_id = {run.run_id: run.spec for run in plan.runs}
    assert {cell.arm: by_id[cell.run_id].optim.lr for cell in plan.cells} == rates
    assert recipe_of("tuned.yaml", folder).name == "tuned@1"
    (folder / "tuned.yaml").write_text((folder / "tuned.yaml").read_text().replace("tuned@1", "tuned@2"))
    argv = ("--space", "space.yaml", "--trials", "3", "--show", "--recipe", "tuned.yaml")
    _, err = salt(folder, "salt-sweep", "tune", "study.yaml", *argv, code=2)
    assert "there is another recipe" in err
    assert "tuned-2.yaml" in err


def test_a_killed_training_goes_on_as_the_same_trial_from_its_checkpoint(folder: Path) -> None:
    """One long trial, killed in the middle: as many attempts as starts, one trial, no step lost before the
    save.
    """
    argv = (
        "tune",
        "study.yaml",
        "--name",
        "long",
        "--arms",
        "vjepa",
        "--trials",
        "1",
        "--cell",
        "budget=2e11",
    )
    process = start(folder, "salt-sweep", *argv)
    trials = folder / "store" / "tuning" / "long" / "trials"
    deadline = time.monotonic() + 120
    record: dict[str, Any] = {}
    while not record or not list(RunDir(folder / "store", record["run_id"]).checkpoints.glob("*.json")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
        for path in trials.glob("*/trial.json"):
            record = json.loads(path.read_bytes())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    run = RunDir(folder / "store", record["run_id"])
    assert not run.result.exists()
    out, _ = salt(folder, "salt-sweep", *argv, "--json")
    said = json.loads(out)["arms"]["vjepa"]
    assert (said["complete"], said["failed"], said["open"]) == (1, 0, 0)
    assert (said["best"][0]["trial"], said["best"][0]["run_id"]) == (record["number"], record["run_id"])
    first, second = json.loads(run.env.read_bytes())["attempts"]
    assert first["from"] == "step 0"
    assert int(second["from"].removeprefix("step ")) > 0


def test_a_bad_trial_is_pruned_and_keeps_its_state(folder: Path) -> None:
    """Rates at which nothing is learnt, among some at which something is."""
    write(folder, "rates.yaml", {"optim.lr": {"low": 1e-9, "high": 3e-3, "log": True}})
    argv = ("--name", "pruned", "--space", "rates.yaml", "--arms", "pixel", "--objective", "loss", "--prune")
    said = tuned(folder, *argv, "--trials", "12", "--cell", "budget=6e9")["arms"]["pixel"]
    assert said["complete"] + said["pruned"] == 12
    assert said["pruned"] >= 1
    assert said["best"][0]["values"]["optim.lr"] > 1e-5
    for path in (folder / "store" / "tuning" / "pruned" / "trials").glob("*/outcome.json"):
        outcome = json.loads(path.read_bytes())
        if outcome["state"] == "pruned":
            run = RunDir(folder / "store", json.loads(path.with_name("trial.json").read_bytes())["run_id"])
            assert not run.error.exists()
            assert list(run.checkpoints.glob("*.json"))
            assert outcome["reason"].startswith("loss ")


def test_accuracy_against_flops_is_a_frontier_that_pareto_reads(folder: Path) -> None:
    write(folder, "wide.yaml", {"budget_flops": {"low": 1e10, "high": 3e10, "log": True}})
    argv = (
        "--name",
        "wide",
        "--space",
        "wide.yaml",
        "--arms",
        "pixel,vjepa",
        "--objective",
        "accuracy,flops",
    )
    said = tuned(folder, *argv, "--trials", "3")
    for found in said["arms"].values():
        assert found["complete"] == 3
        points = [(top["flops"], top["accuracy"]) for top in found["best"]]
        assert points
        assert not any(a[0] <= b[0] and a[1] >= b[1] and a != b for a in points for b in points)
    table = folder / "store" / "tuning" / "wide" / "trials.csv"
    out, _ = salt(folder, "salt-analyze", "pareto", "--table", str(table), "--no-figures", "--json")
    configs = json.loads(out)["configurations"]
    assert {row["arm"] for row in configs} == {"pixel", "vjepa"}
    assert len(configs) == 6
    _, err = salt(
        folder, "salt-sweep", "tune", "study.yaml", *argv, "--trials", "3", "--recipe", "no.yaml", code=2
    )
    assert "no one trial is the best" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--objective", "accuracy,flops", "--prune"), "no one answer"),
        (("--objective", "accuracy,flops"), "add a range of budget_flops"),
        (("--objective", "loss", "--space", "space.yaml"), "differ in masks have other targets"),
        (("--objective", "speed"), "'speed' is none of accuracy, loss, flops"),
        (("--cell", "student=huge"), "unknown size 'huge'"),
        (("--cell", "size=nano"), "'size=nano' is no condition"),
        (("--arms", "byol"), "the study has no arm 'byol'"),
        (("--seed", "0"), "--seed 0 is one of the study's own"),
        (("--label", "colour"), "--label colour: the study's probes are motion/linear"),
        (("--workers", "0"), "--workers 0"),
        (("--trials", "0"), "--trials 0"),
        (("--cell", "budget=1e6"), "cannot be planned"),
    ],
)
def test_what_cannot_be_tuned_is_refused_before_any_job(
    folder: Path, argv: tuple[str, ...], words: str
) -> None:
    _, err = salt(folder, "salt-sweep", "tune", "study.yaml", "--name", "refused", *argv, code=2)
    assert words in err
    assert not (folder / "store" / "tuning" / "refused").exists()


def test_another_choice_is_refused_and_a_new_tuning_keeps_the_old_values(folder: Path) -> None:
    two = {"optim.lr": {"choices": [1e-3, 2e-3]}}
    write(folder, "two.yaml", two)
    write(folder, "three.yaml", {"optim.lr": {"choices": [1e-3, 2e-3, 3e-3]}})
    argv = ("--arms", "pixel", "--trials", "2")
    old = tuned(folder, "--name", "old", "--space", "two.yaml", *argv)
    asked = ("salt-sweep", "tune", "study.yaml", "--name", "old", "--space", "three.yaml", *argv)
    _, err = salt(folder, *asked, code=2)
    assert "is of something else" in err
    assert "--name NEW --seed-from old" in err
    new = tuned(folder, "--name", "new", "--space", "three.yaml", *argv, "--seed-from", "old")
    assert new["arms"]["pixel"]["complete"] == 4  # two of its own beside
    best = old["arms"]["pixel"]["best"][0]
    assert new["arms"]["pixel"]["best"][0]["accuracy"] >= best["accuracy"]
    rows = (folder / "store" / "tuning" / "new" / "trials.csv").read_text()
    assert best["run_id"] in rows
    _, err = salt(folder, "salt-sweep", "tune", "study.yaml", "--name", "new", "--space", "three.yaml", *argv,
                  "--seed-from", "old", code=2)  # fmt: skip
    assert "has begun" in err


def test_spaces_are_checked(folder: Path) -> None:
    from sweeps.study import load_study

    study = load_study(folder / "study.yaml")
    for document, words in (
        ({"optim.learning_rate": {"low": 0, "high": 1}}, "unknown key; did you mean"),
        ({"optim.lr": {"low": 1, "high": 1}}, "from 1 to 1 is no range"),
        ({"optim.lr": {"low": 0, "high": 1, "log": True}}, "begins above 0"),
        ({"optim.lr": {"low": 0}}, "give either low and high, or choices"),
        ({"optim.lr": {"choices": [1]}}, "at least two different choices"),
        ({"masks": {"choices": ["few", "none"]}}, "'none' is none of the study's mask_sets (few, many)"),
        ({}, "give fields with their ranges"),
    ):
        with pytest.raises(UserError) as caught:
            parse_space(document, study, "space.yaml")
        assert words in str(caught.value)
        assert "space.yaml" in str(caught.value)
    with pytest.raises(UserError, match="no one answer"):
        check_objectives(("accuracy", "flops"), True, {"budget_flops": Axis(low=1.0, high=2.0)}, ("pixel",))
