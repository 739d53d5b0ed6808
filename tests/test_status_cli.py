"""`salt-sweep status`, with a stand-in for Slurm."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from salt.plan_specs import Plan
from salt.reached import Reached
from salt.result_specs import ProbeResult, ProbeScore
from salt.specs import DataSpec, ExecSpec, ProbeSpec
from salt.store import RunDir, pretty_json, write_atomically
from slurm.records import jobs_folder, read_record, write_record
from slurm.worker import record_error
from tests.drain_kit import finish, holder
from tests.fake_slurm import FakeSlurm
from tests.queue_kit import plan, save, slurm, store, sweep

__all__ = ["plan", "slurm", "store"]  # fixtures

SITE = """
name: here
gpu: a GPU
gpus_total: 8
gpus_per_node: 8
memory_gib: 80
peak_flops: {fp32: 1.0e+12}
precision: fp32
utilisation: {default: 0.5}
price_per_gpu_hour: 2.0
currency: EUR
"""


def status(store: Path, *options: str) -> dict:  # type: ignore[type-arg]
    found = json.loads(sweep(store, "status", "small", "--json", *options))
    assert isinstance(found, dict)
    return found


# --- what was paid, what is left -------------------------------------------------------------------


def test_hours_and_money_done_burnt_and_left(store: Path, plan: Plan, tmp_path: Path) -> None:
    plan = msgspec.structs.replace(plan, execution=ExecSpec(device="cuda", processes=4))
    save(store, plan)
    finish(store, plan.runs[0])
    result = RunDir(store, plan.runs[0].run_id).read_result()
    assert result is not None
    changed = msgspec.structs.replace(
        result, train_wall_s=3500.0, probe_wall_s=100.0, burnt_wall_s=900.0, burnt_flops=10**6
    )
    write_atomically(RunDir(store, plan.runs[0].run_id).result, pretty_json(changed))
    half = RunDir(store, plan.runs[1].run_id)
    half.path.mkdir(parents=True)
    half.metrics.write_text(
        '{"step": 1, "attempt": 1, "wall_s": 1}\n'
        '{"step": 3, "attempt": 2, "wall_s": 300.0}\n{"step": 5, "attempt": 2, "wall_s": 500.0}\n'
    )
    reached = Reached(attempt=2, step=5, wall_s=500.0, saved_step=4, burnt_steps=2, burnt_wall_s=90.0)
    half.reached.write_bytes(msgspec.json.encode(reached))
    write_atomically(half.claim, msgspec.json.encode(holder()))
    site = tmp_path / "site.yaml"
    site.write_text(SITE)
    found = status(store, "--site", str(site))
    done, running = found["runs"][:2]
    assert (done["gpu_hours_done"], done["gpu_hours_burnt"]) == (4.0, 1.0)
    assert running["rate_steps_per_s"] == pytest.approx(0.01)
    assert running["eta_s"] == pytest.approx(500.0)
    assert running["gpu_hours_done"] == pytest.approx(500 * 4 / 3600)
    assert running["burnt_flops"] == plan.runs[1].cost.total_flops * 2 // 10
    totals = found["totals"]
    hours = 4.0 + 500 * 4 / 3600
    assert totals["done"] == {
        "flops": found["done_flops"], "gpu_hours": pytest.approx(hours), "money": pytest.approx(2 * hours)
    }  # fmt: skip
    assert totals["burnt"]["gpu_hours"] == pytest.approx(1.0 + 0.1)
    left_flops = found["planned_flops"] - found["done_flops"]
    left = 3500.0 * 4 / 3600 * left_flops / plan.runs[0].cost.total_flops
    assert totals["left"]["flops"] == left_flops
    assert totals["left"]["gpu_hours"] == pytest.approx(left)
    assert totals["left"]["money"] == pytest.approx(2 * left)
    assert (totals["hours_of"], totals["currency"], totals["unknown_runs"]) == ("GPU", "EUR", 0)
    text = sweep(store, "status", "small", "--site", str(site))
    assert f"{hours:.4g} GPU-hours, {2 * hours:,.2f} EUR" in text
    assert "(by what runs took that have finished)" in text


def test_what_is_not_trained_burns_nothing(store: Path, plan: Plan) -> None:
    finish(store, plan.runs[0])
    folder = RunDir(store, plan.runs[0].run_id)
    result = folder.read_result()
    assert result is not None
    changed = msgspec.structs.replace(result, steps=0, burnt_wall_s=None)
    write_atomically(folder.result, pretty_json(changed))
    found = status(store)
    assert found["runs"][0]["gpu_hours_burnt"] == found["totals"]["burnt"]["gpu_hours"] == 0.0
    write_atomically(folder.result, pretty_json(msgspec.structs.replace(changed, steps=5)))
    assert status(store)["totals"]["burnt"]["gpu_hours"] is None


def test_before_anything_has_finished_the_site_tells_what_is_left(store: Path, tmp_path: Path) -> None:
    assert status(store)["totals"]["left"]["gpu_hours"] is None
    site = tmp_path / "site.yaml"
    site.write_text(SITE)
    totals = status(store, "--site", str(site))["totals"]
    assert totals["left"]["gpu_hours"] > 0
    assert (totals["left_by"], totals["hours_of"]) == ("the site's speed", "device")
    assert totals["done"]["gpu_hours"] == totals["burnt"]["money"] == 0.0


def test_runs_that_share_a_gpu_pay_their_part_of_it(store: Path, plan: Plan) -> None:
    save(store, msgspec.structs.replace(plan, execution=ExecSpec(device="cuda")))
    finish(store, plan.runs[0])
    folder = jobs_folder(store, "small") / "20260101-000000-aaaaaa"
    write_record(folder, msgspec.structs.replace(read_record(folder), workers=2))
    assert status(store)["runs"][0]["gpu_hours_done"] == pytest.approx(1.0 / 3600 / 2)


# --- choosing --------------------------------------------------------------------------------------


def test_where_failed_and_sort_choose_runs(store: Path, plan: Plan) -> None:
    free = RunDir(store, plan.runs[5].run_id)
    free.path.mkdir(parents=True)
    record_error(free, "data", "no clips at all")
    finish(store, plan.runs[0])

    def ids(*options: str) -> list[str]:
        return [row["run_id"] for row in status(store, *options)["runs"]]

    assert ids("--failed") == [free.run_id]
    assert ids("--where", "state=failed,arm=vjepa") == ids("--where", "kind=data") == [free.run_id]
    assert ids("--where", "arm=teacher", "--where", "state=done") == [plan.runs[0].run_id]
    assert ids("--where", "state=failed,state=done") == [plan.runs[0].run_id, free.run_id]
    assert ids("--where", "job=7_2") == [plan.runs[4].run_id, plan.runs[5].run_id]
    assert len(ids("--where", "budget=1e9")) == len(ids("--where", "seed=0")) == 6
    by_cost = sorted(plan.runs, key=lambda run: -run.cost.total_flops)
    assert ids("--sort", "flops") == [run.run_id for run in by_cost]
    text = sweep(store, "status", "small", "--failed")
    assert "1 of 6 runs" in text
    assert "no clips at all" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--where", "colour=red"], "keys are arm, student, teacher, state"),
        (["--where", "arm"], "give KEY=VALUE"),
        (["--where", "arm=slat"], "has arm teacher, salt, vjepa"),
        (["--where", "state=dead"], "has state done, running, probing, lost"),
        (["--where", "seed=1"], "has seed 0"),
        (["--where", "budget=2e9"], "has budget 1e+09"),
        (["--where", "job=9"], "there are 7_0, 7_1, 7_2"),
        (["--sort", "beauty"], "there are name, state, step"),
        (["--best", "0"], "give at least 1"),
        (["--best", "3"], "has no probes"),
        (["--kind", "linear"], "it is for --best N"),
        (["--watch", "0"], "give at least 1 seconds"),
    ],
)
def test_what_cannot_be_chosen_is_refused_with_what_there_is(
    store: Path, options: list[str], words: str
) -> None:
    assert words in sweep(store, "status", "small", *options, code=2)


def test_best_runs_are_of_one_suite_and_kind(store: Path, plan: Plan) -> None:
    data = DataSpec(name="list", fingerprint="0" * 64, clips=4)
    suite = ProbeSpec(
        labels=("motion", "shape"), kinds=("linear", "attentive"), train=data, selection=data, report=data,
        train_clips=1, selection_clips=1, report_clips=1,
    )  # fmt: skip
    probes = {"p1": suite, "p2": suite}
    runs = [
        msgspec.structs.replace(run, probe_ids=("p2",) if place == 0 else ("p1",))
        for place, run in enumerate(plan.runs)
    ]
    save(store, msgspec.structs.replace(plan, probes=probes, runs=tuple(runs)))
    accuracies = [0.99, 0.3, 0.8, 0.9, 0.5]
    for run, accuracy in zip(runs, accuracies, strict=False):
        scores = [
            ProbeScore(
                kind=kind, label=label, frames="ordered", accuracy=value, n_report=1, n_train=1,
                n_selection=1, classes=2, chance=0.5, selection_accuracy=value, selected={}, flops=1,
            )
            for kind, label, value in (
                ("attentive", "motion", accuracy),
                ("linear", "motion", 1 - accuracy),
                ("attentive", "shape", 1.0),
            )
        ]  # fmt: skip
        result = ProbeResult(
            probe_id=run.probe_ids[0], run_id=run.run_id, encoder_sha256="0", branch="student",
            scores=tuple(scores), feature_flops=1, wall_s=1.0,
        )  # fmt: skip
        write_atomically(RunDir(store, run.run_id).probe(run.probe_ids[0]), pretty_json(result))
    RunDir(store, runs[3].run_id).probe("p1").write_text("{")  # damaged: it has no score
    found = status(store, "--best", "2")
    assert [(row["run_id"], row["accuracy"]) for row in found["runs"]] == [
        (runs[2].run_id, 0.8),
        (runs[4].run_id, 0.5),
    ]
    assert found["score"] == {"probe_id": "p1", "kind": "attentive", "label": "motion", "frames": "ordered"}
    text = sweep(store, "status", "small", "--best", "2", "--kind", "linear")
    assert "best 2 by suite p1, linear probe of motion, frames ordered; 3 of 6 runs have it" in text
    assert text.index("0.7000") < text.index("0.5000")
    assert status(store, "--best", "9", "--probe", "p2")["runs"][0]["accuracy"] == 0.99
    assert "there are p2, p1" in sweep(store, "status", "small", "--best", "1", "--probe", "p", code=2)


def test_no_queue_asks_nobody_and_still_says_what_was_sent(store: Path, slurm: FakeSlurm) -> None:
    found = status(store, "--no-queue")
    assert slurm.calls("squeue") == slurm.calls("sacct") == []
    assert found["runs"][5]["reason"] == "sent as 7_2; the queue was not asked"
    assert found["notes"] == []


def test_watching_ends_when_all_is_done_or_at_ctrl_c(store: Path, plan: Plan) -> None:
    root = Path(__file__).parents[1]
    command = [sys.executable, str(root / "salt_cli.py"), "salt-sweep", "status", "small", "--watch", "1"]
    process = subprocess.Popen(
        [*command, "--store", str(store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "small: 3 waiting, 3 pending; 0 of" in line
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    for run in plan.runs:
        finish(store, run)
    assert "small: 6 done" in sweep(store, "status", "small", "--watch", "1")
    # What is on a node now may be on none at the next look.
    text = sweep(store, "status", "small", "--watch", "1", "--where", "node=n1", "--where", "job=7_1")
    assert "plan small: 0 of 6 runs" in text


def test_ctrl_c_does_not_wait_for_a_silent_scheduler(store: Path, slurm: FakeSlurm) -> None:
    slurm.hangs("squeue")
    root = Path(__file__).parents[1]
    command = [sys.executable, str(root / "salt_cli.py"), "salt-sweep", "status", "small", "--watch"]
    process = subprocess.Popen(
        [*command, "--store", str(store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not slurm.calls("squeue"):
        assert process.poll() is None
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
    assert time.monotonic() - began < 3
