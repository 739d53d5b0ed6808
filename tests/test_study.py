"""The whole job on real files, as a user does it: clips, plan, submit, kill -9, submit again, analyse."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from analysis.gather import gather
from salt.claim import read_claim
from salt.metrics import read_metrics
from salt.plan_specs import Plan
from salt.plans import read_plan
from salt.store import RunDir
from tests.console import ROOT, salt, start

PLAN = "miniature-quick"


@dataclass(frozen=True)
class Killed:
    """A run that was killed with -9, and the step of its newest checkpoint at that moment."""

    run_id: str
    checkpoint_step: int


@dataclass(frozen=True)
class Study:
    folder: Path
    store: Path
    plan: Plan
    killed: Killed


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    store = folder / "store"
    (folder / "examples").mkdir()
    (folder / "examples" / "miniature.yaml").write_bytes((ROOT / "examples" / "miniature.yaml").read_bytes())
    salt(folder, "salt-data", "digits", "clips", "--clips", "1536", "--selection", "512", "--report", "1024")
    budgets = [f"--budget={flops}" for flops in ("40e9", "80e9", "160e9")]
    salt(folder, "salt-sweep", "plan", "examples/miniature.yaml", "--quick", *budgets)
    plan = read_plan(store, PLAN)
    killed = kill_in_training(folder, plan)
    salt(folder, "salt-sweep", "submit", "--on", "local", "--workers", "2")
    return Study(folder, store, plan, killed)


def kill_in_training(folder: Path, plan: Plan) -> Killed:
    """Submit, and kill -9 parent and workers as soon as a run is past its first checkpoint."""
    store = folder / "store"
    process = start(folder, "salt-sweep", "submit", PLAN, "--on", "local", "--workers", "2")
    while process.poll() is None:
        held = {run.run_id: read_claim(RunDir(store, run.run_id)) for run in plan.runs}
        holders = {name: state.holder.pid for name, state in held.items() if state and state.holder}
        for run_id in holders:
            sealed = sorted(RunDir(store, run_id).checkpoints.glob("step-*.json"))
            if sealed and not RunDir(store, run_id).artefact.exists():
                for pid in {process.pid, *holders.values()}:
                    os.kill(pid, signal.SIGKILL)
                process.communicate()
                return Killed(run_id, int(sealed[-1].stem.removeprefix("step-")))
        try:
            process.wait(timeout=0.05)
        except subprocess.TimeoutExpired:
            continue
    out, err = process.communicate()
    raise AssertionError(f"the study ended before it could be killed: {out[-2000:]}\n{err[-2000:]}")


def test_every_run_is_done_and_none_was_trained_twice(study: Study) -> None:
    out, _ = salt(study.folder, "salt-sweep", "status", "--json")
    assert json.loads(out)
    assert all(RunDir(study.store, run.run_id).is_complete(run.probe_ids) for run in study.plan.runs)
    assert not list((study.store / "runs").glob("*/*/error.json"))
    assert not list((study.store / "runs").glob("*/*/claim"))
    restarted = [
        run.run_id
        for run in study.plan.runs
        if len({row["attempt"] for row in read_metrics(RunDir(study.store, run.run_id).metrics)}) > 1
    ]
    assert 1 <= len(restarted) <= 2  # there were two workers


def test_the_killed_run_went_on_from_its_checkpoint(study: Study) -> None:
    rows = read_metrics(RunDir(study.store, study.killed.run_id).metrics)
    assert max(row["step"] for row in rows if row["attempt"] == 1) >= study.killed.checkpoint_step
    assert min(row["step"] for row in rows if row["attempt"] == 2) > study.killed.checkpoint_step


def test_the_killed_run_equals_one_that_was_not(study: Study, tmp_path: Path) -> None:
    run = RunDir(study.store, study.killed.run_id)
    assert run.read_spec().arm == "pixel"  # teachers come first; one needs nothing but its list
    alone = ("--store", str(tmp_path / "alone"), "--list", "clips/train.csv", "--json")
    out, _ = salt(study.folder, "salt-train", "run", str(run.spec), *alone)
    result = run.read_result()
    assert result is not None
    assert json.loads(out)["result"]["artefact_sha256"] == result.artefact_sha256


def test_submitting_again_sends_nothing_and_changes_nothing(study: Study) -> None:
    def contents() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (study.store / "runs").rglob("*") if path.is_file()}

    before = contents()
    out, err = salt(study.folder, "salt-sweep", "submit", PLAN)
    assert "nothing" in (out + err).lower()
    assert contents() == before


def test_budgets_are_met_and_parts_are_charged(study: Study) -> None:
    results = {run.run_id: RunDir(study.store, run.run_id).read_result() for run in study.plan.runs}
    for cell in study.plan.cells:
        if cell.budget_flops:
            spent = 0
            for run_id in filter(None, (cell.run_id, cell.teacher_run_id)):
                result = results[run_id]
                assert result is not None
                spent += result.cost.total_flops
            assert abs(spent / cell.budget_flops - 1) <= 0.01
            own = results[cell.run_id]
            assert own is not None
            assert ("teacher_forward" in own.cost.parts) == (cell.arm in ("salt", "vjepa"))
            if cell.arm == "salt":
                teacher = results[cell.teacher_run_id or ""]
                assert teacher is not None
                assert own.teacher_sha256 == teacher.artefact_sha256


def test_order_alone_carries_motion(study: Study) -> None:
    """Shuffled clips and single frames are at chance, for raw pixels, random and learned encoders."""
    table = gather(study.store, PLAN)
    motion = table[(table["label"] == "motion") & table["accuracy"].notna()]
    controls = motion[motion["frames"].isin(["shuffled", "first"])]
    assert {"raw", "random", "pixel", "salt", "vjepa"} <= set(controls["arm"])
    n = int(controls["n_report"].min())
    bound = 1 / 6 + 5 * math.sqrt(1 / 6 * 5 / 6 / n)
    # The supervised reference was trained on ordered clips of the label; it too must fall to chance.
    assert controls["accuracy"].max() < bound
    linear = motion[(motion["kind"] == "linear") & (motion["frames"] == "ordered")].set_index("arm")[
        "accuracy"
    ]
    assert linear[["pixel", "salt", "vjepa", "random"]].min() > bound  # the same probe, frames in order
    assert linear["supervised"] > linear[["pixel", "salt", "vjepa"]].max() + 0.05  # headroom


def test_figures_and_report_come_from_the_store(study: Study) -> None:
    out, _ = salt(study.folder, "salt-analyze", "pareto", "--json")
    answer: dict[str, Any] = json.loads(out)
    row = next(
        row
        for row in answer["configurations"]
        if (row["arm"], row["kind"], row["label"]) == ("vjepa", "linear", "motion")
    )
    cell = next(
        cell
        for cell in study.plan.cells
        if cell.arm == "vjepa" and cell.budget_flops == row["budget_flops"] and cell.student == row["student"]
    )
    planned = next(run for run in study.plan.runs if run.run_id == cell.run_id)
    probes = [RunDir(study.store, cell.run_id).read_probe(name) for name in planned.probe_ids]
    scores = [score for probe in probes if probe for score in probe.scores]
    (score,) = [s for s in scores if (s.kind, s.label, s.frames) == ("linear", "motion", "ordered")]
    assert math.isclose(row["mean"], score.accuracy)  # one seed: the mean is the value itself
    salt(study.folder, "salt-analyze", "weak-teacher")
    salt(study.folder, "salt-analyze", "report")
    folder = study.store / "reports" / PLAN
    assert (folder / "report.html").stat().st_size > 50_000
    names = {path.name for path in (folder / "figures").iterdir()}
    for kind in ("png", "pdf"):
        assert {f"pareto.{kind}", f"weak-teacher.{kind}", f"pareto-motion-linear.{kind}"} <= names
    assert {"pareto-runs.csv", "weak-teacher-pairs.csv"} <= names
