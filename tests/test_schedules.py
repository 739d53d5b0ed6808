"""Trunks with cooldowns, chains, and teachers on the way, on real clips and through the commands: what is
planned is what is trained, probed and gathered.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from analysis.gather import gather
from salt.artefact import read_about
from salt.metrics import read_metrics
from salt.plan_specs import Plan
from salt.plans import read_plan
from salt.store import RunDir
from tests.console import salt

STUDY = """
name: NAME
data: {train: clips/train.csv, selection: clips/selection.csv, report: clips/report.csv}
clip: {frames: 8, frame_stride: 1, store_px: 32, crop_px: 24, channels: 1, mean: 0.41666667, std: 0.07142857}
model:
  tubelet_frames: 2
  patch_px: 6
  predictor: {width: 32, depth: 1, heads: 2, mlp_width: 64}
masks: [{blocks: 8, scale: 0.15, visible_tokens: 8, target_tokens: 16}]
seeds: [0]
students: [nano]
optim: {batch_clips: 8, lr: 1e-3, lr_start: 0, lr_end: 0}
references: {random: false, raw: false}
probes:
  - {name: main, labels: [motion], kinds: [knn], train_clips: 64, selection_clips: 32, report_clips: 32}
execution: {checkpoint_every_steps: 40, log_every_steps: 10}
"""
TRUNKS = """
schedule: wsd
cooldown_share: 0.2
budgets_flops: [2e9, 4e9]
arms:
  pixel: {}
  vjepa: {}
  salt: {teachers: [nano], teacher_steps: [20]}
"""
CHAIN = """
budgets_flops: [7e9]
arms:
  salt:
    teachers: [nano]
    teacher_steps: [20, 40]
    teacher_runs: one
    chains: [[{teacher: nano, steps: 20}, {teacher: micro, share: 0.3}]]
"""


@dataclass(frozen=True)
class Done:
    store: Path
    plan: Plan
    table: pd.DataFrame

    def run(self, run_id: str) -> RunDir:
        return RunDir(self.store, run_id)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Done]:
    """Both studies, planned, submitted, gathered."""
    folder = tmp_path_factory.mktemp("schedules")
    salt(folder, "salt-data", "digits", "clips", "--clips", "256", "--selection", "32", "--report", "32")
    found = {}
    for name, text in (("trunks", TRUNKS), ("chain", CHAIN)):
        (folder / f"{name}.yaml").write_text(STUDY.replace("NAME", name) + text)
        salt(folder, "salt-sweep", "plan", f"{name}.yaml")
        salt(folder, "salt-sweep", "submit", name, "--on", "local", "--workers", "2")
        out, _ = salt(folder, "salt-sweep", "submit", name, "--on", "local", "--json")
        assert json.loads(out)["sent"] == 0
        store = folder / "store"
        assert (store / "plans" / name / "audit.json").exists()
        found[name] = Done(store, read_plan(store, name), gather(store, name))
    return found


def test_each_trunk_is_trained_once_and_every_cooldown_begins_in_it(done: dict[str, Done]) -> None:
    study = done["trunks"]
    runs = {run.run_id: run for run in study.plan.runs}
    trunks = [run for run in study.plan.runs if run.role == "trunk"]
    assert sorted(run.spec.arm for run in trunks) == ["pixel", "salt", "vjepa"]
    for cell in study.plan.cells:
        spec = runs[cell.run_id].spec
        assert spec.trunk is not None
        trunk = runs[spec.trunk.run_id].spec
        assert spec.trunk.step in trunk.keep_steps
        assert trunk.arm == cell.arm
        logged = [row["step"] for row in read_metrics(study.run(cell.run_id).metrics)]
        assert logged[0] > spec.trunk.step
        assert logged[-1] == spec.steps
        rates = [row["lr"] for row in read_metrics(study.run(cell.run_id).metrics)]
        assert rates == sorted(rates, reverse=True)
        assert read_about(study.run(cell.run_id)).trunk_sha256 is not None
    teacher = next(run for run in study.plan.runs if run.role == "teacher")
    assert teacher.spec.trunk is not None  # the teacher is a cooldown of the pixel arm's own trunk
    assert runs[teacher.spec.trunk.run_id].spec.arm == "pixel"


def test_cells_answer_for_their_whole_way(done: dict[str, Done]) -> None:
    for study in done.values():
        rows = study.table[study.table["role"] == "cell"]
        assert set(rows["state"]) == {"done"}
        assert ((rows["total_flops"] / rows["budget_flops"] - 1).abs() <= 0.01).all()
        assert (rows["own_flops"] + rows["teacher_flops"] == rows["total_flops"]).all()
    study = done["trunks"]
    spent = sum(run.cost.total_flops for run in study.plan.runs)
    charged = sum(cell.charged_flops for cell in study.plan.cells)
    assert spent < 0.8 * charged
    for run in study.plan.runs:
        result = study.run(run.run_id).read_result()
        assert result is not None
        assert result.cost == run.cost  # a cooldown's own spending leaves out its trunk


def test_a_chain_learns_from_its_last_stage_and_from_states_on_the_way(done: dict[str, Done]) -> None:
    study = done["chain"]
    cells = {cell.teacher_steps: cell for cell in study.plan.cells if not cell.stages}
    early, late = cells[20], cells[40]
    assert early.teacher_run_id == late.teacher_run_id
    assert (
        read_about(study.run(early.run_id)).teacher_sha256
        != read_about(study.run(late.run_id)).teacher_sha256
    )
    final = study.run(late.teacher_run_id or "").read_result()
    assert final is not None
    assert read_about(study.run(late.run_id)).teacher_sha256 == final.artefact_sha256
    chain = next(cell for cell in study.plan.cells if cell.stages)
    above = study.run(chain.teacher_run_id or "")
    assert above.read_spec().arm == "salt"
    assert above.read_spec().teacher is not None
    assert read_about(study.run(chain.run_id)).teacher_sha256 == read_about(above).weights_sha256
    # The probes saw the longest run's last weights: the early teacher has no accuracy of its own.
    known = study.table.set_index("cell_id")["teacher_accuracy"].notna()
    assert not known[early.cell_id]
    assert known[late.cell_id]
    assert known[chain.cell_id]
