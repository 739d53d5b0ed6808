"""`salt-sweep submit --on slurm` on a real Slurm: sent, disturbed, refused, filled up."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from salt.attempts import read_attempts
from salt.store import RunDir
from slurm.records import chunks, lanes_of
from slurm.states import State, assess
from tests.slurm.cluster import Cluster
from tests.slurm.study import Study, call, make_study, numbers, run_inline, start
from tests.slurm.waiting import wait_for


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Four runs, a teacher among them, and the truth about them beside."""
    study = make_study(tmp_path_factory.mktemp("study"))
    run_inline(study)
    return study


@pytest.fixture
def study(made: Study, tmp_path: Path) -> Study:
    """The same with a store of its own, in which nothing has been run; clips are decoded."""
    for name in ("clips", "truth"):
        (tmp_path / name).symlink_to(made.folder / name)
    fresh = make_study(tmp_path, made.name)
    (fresh.store / "cache").symlink_to(made.folder / "truth" / "cache")
    audit = Path("plans") / made.name / "audit.json"  # of the same plan: its FLOPs have been counted
    shutil.copyfile(made.folder / "truth" / audit, fresh.store / audit)
    return fresh


def lanes(study: Study) -> dict[str, str]:
    """run_id -> job_task."""
    return {name: str(lane) for name, lane in lanes_of(chunks(study.store, study.name)).items()}


def finished(study: Study) -> bool:
    return study.states() == {"done": len(study.plan.runs)}


def step(study: Study, run_id: str) -> int:
    """The step that a run is at, by its log; -1 before the first line."""
    metrics = RunDir(study.store, run_id).metrics
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("}")), default=-1)


def test_a_disturbed_study_computes_what_one_process_does(slurm: Cluster, study: Study) -> None:
    """Preempted, sent twice at once, a node down: every number is that of the inline run, bit for bit."""
    options = ("--store", "store", "--on", "slurm", "--site", "site.yaml", "--slurm", "lane_minutes=0")
    both = [start(study.folder, "sweep", "submit", study.name, *options, "--json") for _ in range(2)]
    said = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert sorted(each["sent_runs"] for each in said) == [0, len(study.plan.runs)], "each run in one lane"
    of_run = lanes(study)
    assert len(set(of_run.values())) == len(study.plan.runs)

    first = next(run.run_id for run in study.plan.runs if run.role == "student" and run.spec.steps > 30)
    wait_for(lambda: step(study, first) >= 5, 90, "the first steps")
    slurm.submit("--partition=main", "--nodes=4", "--exclusive", wrap="sleep 3")
    wait_for(lambda: slurm.state(of_run[first]) == "PENDING", 60, "the preempted task is queued again")
    assert read_attempts(RunDir(study.store, first))[-1]["ended"] == "stopped"
    _until_done(slurm, study)
    assert numbers(study.store, study.plan) == numbers(study.folder / "truth", study.plan)
    for run in study.plan.runs:
        folder = RunDir(study.store, run.run_id)
        ends = Counter(attempt["ended"] for attempt in read_attempts(folder))
        assert ends["done"] == 1
        assert set(ends) <= {"done", "stopped"}
        result = folder.read_result()
        assert result is not None
        assert not result.burnt_steps, "a warning came in time to save"
    assert "nothing to send" in study.submit()


def _until_done(slurm: Cluster, study: Study) -> None:
    """Wait for the study, letting tasks that were queued again start at once."""

    def look() -> bool:
        for name, state in slurm.states().items():
            if state == "PENDING" and "BeginTime" in slurm.run("squeue", "-h", "-j", name, "-o", "%r"):
                slurm.hurry(name)
        return finished(study)

    wait_for(look, 240, "the study is done")


def test_a_cancelled_lane_is_a_hole_that_submit_fills(slurm: Cluster, study: Study) -> None:
    study.submit("--slurm", "lane_minutes=0", "--slurm", "partition=main")
    of_run = lanes(study)
    run_id = next(run.run_id for run in study.plan.runs if run.role == "student" and run.spec.steps > 30)
    wait_for(lambda: step(study, run_id) >= 5, 90, "the first steps")
    slurm.run("scancel", of_run[run_id])
    wait_for(lambda: of_run[run_id] not in slurm.run("squeue", "-h", "-r", "-o", "%i"), 60, "it is gone")
    (row,) = [row for row in study.status()["runs"] if row["run_id"] == run_id]
    assert row["state"] == "stopped"
    wait_for(lambda: not slurm.run("squeue", "-h"), 120, "all others")
    again = study.submit("--slurm", "partition=main")
    assert "1 run in 1 lane" in again
    wait_for(lambda: finished(study), 90, "the hole is filled")
    assert numbers(study.store, study.plan) == numbers(study.folder / "truth", study.plan)


def test_students_of_a_failed_teacher_are_blocked_and_never_pending(slurm: Cluster, study: Study) -> None:
    """Case 27: the teacher's lane fails; its students' lanes end at once, and status says why."""
    teacher = next(run for run in study.plan.runs if run.role == "teacher")
    students = [run.run_id for run in study.plan.runs if run.spec.teacher is not None]
    folder = RunDir(study.store, teacher.run_id)
    folder.path.mkdir(parents=True)
    folder.spec.write_text('{"arm": "pixel"}')  # not what is planned under this name
    study.submit("--slurm", "partition=main")
    wait_for(lambda: not slurm.run("squeue", "-h"), 120, "nothing is left in the queue")
    standings = assess(study.store, study.plan)
    assert standings[teacher.run_id].state is State.FAILED
    rows = {row["run_id"]: row for row in study.status()["runs"]}
    for run_id in students:
        assert rows[run_id]["state"] == "blocked"
        assert f"teacher {teacher.run_id} failed: " in rows[run_id]["reason"]
        assert not RunDir(study.store, run_id).env.exists(), "it was never begun"
    folder.spec.unlink()
    assert "2 runs" in study.submit("--slurm", "partition=main"), "the teacher and its student, in order"
    wait_for(lambda: finished(study), 120, "mended")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"partition": "nope"}, r"partition.*`sinfo -s`"),
        ({"partition": "short"}, r"time limit.*lower slurm: time"),
        ({"memory_gib_per_run": "900"}, r"not available.*memory_gib_per_run"),
        ({"constraint": "h100"}, r"feature.*constraint"),
        ({"max_array_size": "5000", "lane_minutes": "0", "partition": "nope"}, "partition"),
        ({"sbatch": "{nonsense: '1'}"}, r"unrecognized option.*sbatch"),
    ],
)
def test_a_refusal_names_the_runs_and_the_way_out(
    slurm: Cluster, study: Study, settings: dict[str, str], said: str
) -> None:
    options = [word for key, value in settings.items() for word in ("--slurm", f"{key}={value}")]
    answer = study.submit(*options, code=2)
    assert re.search(said, answer), answer
    assert "Nothing was sent of 4 runs" in answer
    assert str(study.plan.runs[0].run_id) in answer
    assert "4 runs" in study.submit("--dry-run"), "nothing counts as sent"
    assert not slurm.states()


def test_arrays_keep_to_the_clusters_limit_and_lanes_to_the_cap(
    other_slurm: Callable[..., Cluster], study: Study
) -> None:
    """Case 26, and one cap over all arrays, without accounting."""
    cluster = other_slurm(accounting=False, extra_conf="MaxArraySize=2")
    study.submit("--slurm", "lane_minutes=0", "--slurm", "max_jobs=2")
    sizes = [len(each.chunk.lanes) for each in chunks(study.store, study.name)]
    assert max(sizes) <= 2
    assert sum(sizes) == len(study.plan.runs)
    most = 0

    def look() -> bool:
        nonlocal most
        running = cluster.run("squeue", "-h", "-r", "-t", "running", "-o", "%i").split()
        most = max(most, len(running))
        return finished(study)

    wait_for(look, 240, "the study is done")
    assert most == 2
    assert numbers(study.store, study.plan) == numbers(study.folder / "truth", study.plan)


def test_a_submission_from_inside_a_job_is_not_bent_by_it(slurm: Cluster, study: Study) -> None:
    """An outer job's SLURM_* and SBATCH_* variables are options of nothing that is sent."""
    line = (
        f"cd {study.folder} && SBATCH_TIMELIMIT=7 {sys.executable} -P -c '{call('sweep')}' "
        f"submit {study.name} --store store --on slurm --site site.yaml > inner.log 2>&1"
    )
    outer = slurm.submit("--mem=2G", "--partition=main", wrap=line)
    wait_for(lambda: slurm.state(outer) == "COMPLETED", 90, "the outer job has submitted")
    assert "sent 4 runs" in (study.folder / "inner.log").read_text()
    limits = set(slurm.run("squeue", "-h", "-r", "-n", f"salt-{study.name}", "-o", "%l").split())
    assert limits == {"1:00:00"}
    wait_for(lambda: finished(study), 180, "the study is done")


@pytest.mark.parametrize("layout", ["srun", "torchrun"])
def test_a_run_over_two_nodes(slurm: Cluster, made: Study, tmp_path: Path, layout: str) -> None:
    (tmp_path / "clips").symlink_to(made.folder / "clips")
    study = make_study(tmp_path, "wide", arms=("vjepa",), processes=2, per_node=1, partition="main")
    study.submit("--slurm", f"layout={layout}")
    wait_for(lambda: finished(study), 120, "the study is done")
    local = make_study(tmp_path / "local", "wide", arms=("vjepa",), processes=2)
    local.sweep("submit", "wide", "--store", "store", "--on", "local", "--workers", "1")
    assert numbers(study.store, study.plan) == numbers(local.store, local.plan)
    nodes = slurm.run("sacct", "-X", "-n", "-P", "-o", "JobName,NNodes").split()
    assert f"salt-{study.name}|2" in nodes


def test_two_runs_at_once_in_a_lane(slurm: Cluster, study: Study) -> None:
    """As where several share a GPU: two workers of one job, and the numbers of runs that were alone."""
    study.submit("--slurm", "runs_per_gpu=2", "--slurm", "partition=main")
    first, *_ = chunks(study.store, study.name)
    assert len(first.chunk.lanes[0].runs) == 3
    wait_for(lambda: finished(study), 120, "the study is done")
    assert numbers(study.store, study.plan) == numbers(study.folder / "truth", study.plan)
    logs = sorted(path.name for path in (first.folder / "workers").glob(f"{first.chunk.job}_0-*.log"))
    assert logs == [f"{first.chunk.job}_0-1.log", f"{first.chunk.job}_0-2.log"]
    assert all("start" in (first.folder / "workers" / name).read_text() for name in logs)
