"""A small study of real runs for the cluster: planned, run inline as the truth, and compared with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from salt.metrics import read_metrics
from salt.plan_specs import Plan
from salt.plans import read_plan
from salt.store import RunDir, file_sha256
from slurm.states import assess

STUDY = """
name: {name}
question: Does a cluster give the runs that one process gives?
data: {{train: clips/train.csv, selection: clips/selection.csv, report: clips/report.csv}}
clip:
  {{frames: 8, frame_stride: 1, store_px: 32, crop_px: 24, channels: 1, mean: 0.41666667, std: 0.07142857}}
model:
  tubelet_frames: 2
  patch_px: 6
  init: xavier
  position: {{rope: true, rope_base: 100, sincos: true, sincos_base: 1000, sincos_scale: 1.5}}
  predictor: {{width: 32, depth: 2, heads: 2, mlp_width: 128}}
masks:
  - {{blocks: 8, scale: 0.15, aspect_min: 0.75, aspect_max: 1.5, visible_tokens: 8, target_tokens: 32}}
budgets_flops: {budgets}
seeds: {seeds}
students: {students}
arms:
{arms}
references: {{random: {references}, raw: {references}}}
minimum_steps: 5
optim: {{batch_clips: 16, lr_start: 0, lr: 1e-3, lr_end: 0, clip_norm: 1.0}}
objective: {{pixel_norm: none, ema_start: 0.9}}
probes:
  - {{name: main, labels: [motion], kinds: [linear], train_clips: 32, selection_clips: 32, report_clips: 32}}
execution: {{threads: 1, checkpoint_every_steps: 10, log_every_steps: 5, processes: {processes}}}
"""

ARMS = {"pixel": "{}", "vjepa": "{}", "salt": "{teachers: [nano], teacher_share: [0.3]}"}

#: What runs take there is about 15 s by this, so that lanes of a minute hold four.
SITE = """
name: test
gpu: CPU
gpus_total: 16
gpus_per_node: {per_node}
memory_gib: 8
reserve_gib: 1
peak_flops: {{fp32: 2e10}}
precision: fp32
utilisation: {{default: 0.1}}
slurm:
  time: 1:00:00
  partition: {partition}
  gpus: false
  memory_gib_per_run: 1.5
  signal_delay_s: 60
  lane_minutes: {lane_minutes}
  local_store: true
"""


@dataclass(frozen=True)
class Study:
    """A folder with clips, site, study and a store with its plan."""

    folder: Path
    name: str

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def plan(self) -> Plan:
        return read_plan(self.store, self.name)

    def sweep(self, *arguments: str, code: int = 0) -> str:
        """Output of `salt-sweep`, run in the study's folder; it must end with this code."""
        return salt(self.folder, "sweep", *arguments, code=code)

    def submit(self, *arguments: str, code: int = 0) -> str:
        """`salt-sweep submit --on slurm` with the study's site."""
        options = ["--on", "slurm", "--site", "site.yaml", *arguments]
        return self.sweep("submit", self.name, "--store", "store", *options, code=code)

    def status(self, *arguments: str) -> Any:
        """`salt-sweep status --json`."""
        return json.loads(self.sweep("status", self.name, "--store", "store", "--json", *arguments))

    def states(self) -> dict[str, int]:
        """How many runs are in each state, by their files."""
        return Counter(str(each.state) for each in assess(self.store, self.plan).values())


def salt(folder: Path, command: str, *arguments: str, code: int = 0) -> str:
    """Output of a command line of salt, run in a folder; both streams are in the message if it fails."""
    process = start(folder, command, *arguments)
    out, errors = process.communicate(timeout=600)
    assert process.returncode == code, f"{arguments}: {process.returncode}\n{out}\n{errors}"
    return out if "--json" in arguments else out + errors


def start(folder: Path, command: str, *arguments: str) -> subprocess.Popen[str]:
    """A command line of salt, under way in a folder."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", call(command), *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def call(command: str) -> str:
    """Python code that is a command of salt, whether or not its script is on the path."""
    return f"import sys, salt_cli; sys.exit(salt_cli.{command}())"


def make_study(
    folder: Path,
    name: str = "small",
    *,
    budgets: str = "[20e9]",
    seeds: str = "[0]",
    students: str = "[nano]",
    arms: tuple[str, ...] = tuple(ARMS),
    references: bool = False,
    processes: int = 1,
    per_node: int = 4,
    partition: str = "scavenge",
    lane_minutes: int = 1,
) -> Study:
    """Make clips, site and study, and plan it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "clips").exists():
        salt(folder, "data", "digits", "clips", "--clips", "32", "--selection", "32", "--report", "32")
    text = STUDY.format(
        name=name,
        budgets=budgets,
        seeds=seeds,
        students=students,
        arms="\n".join(f"  {arm}: {ARMS[arm]}" for arm in arms),
        references=str(references).lower(),
        processes=processes,
    )
    (folder / f"{name}.yaml").write_text(text)
    site = SITE.format(per_node=per_node, partition=partition, lane_minutes=lane_minutes)
    (folder / "site.yaml").write_text(site)
    study = Study(folder, name)
    study.sweep("plan", f"{name}.yaml", "--store", "store")
    return study


def run_inline(study: Study) -> Path:
    """The same plan run in one process; its store."""
    truth = study.folder / "truth"
    study.sweep("plan", f"{study.name}.yaml", "--store", "truth")
    study.sweep("submit", study.name, "--store", "truth", "--on", "inline")
    return truth


def numbers(store: Path, plan: Plan) -> dict[str, Any]:
    """All that a run computed, by run: weights, every number logged but times, probes.

    A run that was asked to stop logs one line more, of the step that it stopped after.
    """
    found = {}
    for run in plan.runs:
        folder = RunDir(store, run.run_id)
        lines = [
            {key: value for key, value in row.items() if not _is_of_attempts(key)}
            for row in read_metrics(folder.metrics)
            if row["step"] % plan.execution.log_every_steps == 0 or row["step"] == run.spec.steps
        ]
        probes = {name: folder.read_probe(name) for name in run.probe_ids}
        found[run.run_id] = {
            "weights": file_sha256(folder.artefact) if folder.artefact.exists() else None,
            "lines": lines,
            "probes": {name: None if probe is None else probe.scores for name, probe in probes.items()},
        }
    return found


def _is_of_attempts(key: str) -> bool:
    """Whether a column tells how the run went and not what it computed."""
    return key.endswith(("_s", "_per_s")) or key.startswith(("burnt", "attempt", "data_", "save"))
