"""What `submit --on slurm` sends, says and writes down, with a stand-in for Slurm that refuses on demand."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import sys
from pathlib import Path

import msgspec
import pytest

import salt_cli
from salt.plan_specs import Plan
from slurm.cluster import ClusterJob, PartlySent, submit_all
from slurm.lanes import Wishes
from slurm.profile import SlurmProfile
from slurm.proposal import Limits, Proposal, find_limits, propose
from slurm.records import Chunk, Lane, chunks, lanes_of, with_jobs
from slurm.scheduler import queue
from slurm.sending import NotSent
from slurm.states import assess
from slurm.submission import worker_environment
from sweeps.submit_cluster import _show_scripts
from tests.drain_kit import ROOT, plan, planned
from tests.examples import run_spec
from tests.fake_slurm import FakeSlurm, queued
from tests.slurm.study import Study, make_study

__all__ = ["plan"]  # a fixture

FAILED = "sbatch: error: Batch job submission failed"
PROFILE = SlurmProfile(time="1:00:00", gpus=False, local_store=True, lane_minutes=0)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    fake.answers("scontrol", "MaxArraySize            = 1001")
    sbatch(fake)
    return fake


def sbatch(fake: FakeSlurm, fails: int | None = None, error: str = "", keeps: bool = False) -> None:
    """Let sbatch number jobs from 101 on, keep environment and script, and fail from the n-th call on.

    With `keeps` a call that fails has made the job all the same.
    """
    folder = shlex.quote(str(fake.folder))
    count = f"{folder}/count"
    path = fake.folder / "sbatch"
    refuse = f"[ $n -ge {fails} ] && {{ echo {shlex.quote(error)} >&2; exit 1; }}" if fails else ""
    python = shlex.quote(sys.executable)
    path.write_text(
        f"#!/bin/sh\nn=0; [ -e {count} ] && read n < {count}; n=$((n+1)); echo $n > {count}\n"
        f'{python} -c "import os,json,sys; open(sys.argv[1],\\"w\\").write(json.dumps([dict(os.environ),'
        f'open(sys.argv[2]).read()]))" {folder}/sent-$n.json "$2"\n'
        + ("" if keeps else f"{refuse}\n")
        + (f"{refuse}\n" if keeps else "")
        + "echo $((100+n))\n"
    )
    path.chmod(0o755)


def sent(fake: FakeSlurm, number: int) -> tuple[dict[str, str], str]:
    """Environment and script of the n-th call of sbatch."""
    environment, script = json.loads((fake.folder / f"sent-{number}.json").read_text())
    return environment, script


def many(plan: Plan, count: int) -> Plan:
    spec = run_spec("vjepa", "nano")
    runs = tuple(planned(msgspec.structs.replace(spec, seed=seed), "student") for seed in range(count))
    return msgspec.structs.replace(plan, runs=runs, cells=(), name="many")


def proposal(store: Path, plan: Plan, limits: Limits | None = None) -> Proposal:
    tasks = queue()
    there = with_jobs(chunks(store, plan.name), tasks)
    found = limits or find_limits(PROFILE)
    return propose(store, plan, assess(store, plan), there, tasks, Wishes(), found)


def job(store: Path, plan: Plan, found: Proposal) -> ClusterJob:
    return ClusterJob(
        store=store, plan=plan, profile=PROFILE, processes_per_node=1, proposal=found, code=ROOT
    )


def test_2500_cells_and_a_controller_that_refuses_the_second_array(
    slurm: FakeSlurm, plan: Plan, tmp_path: Path
) -> None:
    """Case 26: the first array is recorded, the message says what is missing, the next submit sends that."""
    large = many(plan, 2500)
    found = proposal(tmp_path, large)
    assert [len(array.lanes) for array in found.arrays] == [1001, 1001, 498]
    sbatch(
        slurm, fails=2, error="sbatch: error: Batch job submission failed: Job violates accounting/QOS policy"
    )
    said: list[str] = []
    with pytest.raises(
        PartlySent, match=r"(?s)submit again.*1001 runs as job 101.*Not sent: 1499 runs"
    ) as caught:
        submit_all(job(tmp_path, large, found), said.append)
    assert large.runs[1001].run_id in str(caught.value), "the first cells that were not sent are named"
    assert said == ["sent job 101: 1001 lanes, 1001 runs"]
    there = chunks(tmp_path, "many")
    found_there = [(each.chunk.job, len(each.chunk.lanes)) for each in there]
    assert found_there == [("101", 1001), (None, 1001), (None, 498)]

    slurm.answers("squeue", *(queued(101, task, "PENDING", "Priority") for task in range(1001)))
    (slurm.folder / "count").unlink()
    sbatch(slurm)
    again = proposal(tmp_path, large)
    assert len(again.queued) == 1001
    assert [run.run_id for run in again.missing] == [run.run_id for run in large.runs[1001:]]
    assert [len(array.lanes) for array in again.arrays] == [1001, 498]
    submit_all(job(tmp_path, large, again), said.append)
    assert re.search(r"--array=0-1000%", sent(slurm, 1)[1]), "each array begins at 0"


def test_a_sender_killed_after_sbatch_is_found_out(slurm: FakeSlurm, plan: Plan, tmp_path: Path) -> None:
    """The job is in the queue, its line in our files is not: its comment says which lanes it has."""
    found = proposal(tmp_path, plan)
    submit_all(job(tmp_path, plan, found), lambda text: None)
    (folder,) = {each.folder for each in chunks(tmp_path, plan.name)}
    lines = (folder / "jobs.jsonl").read_text().splitlines(keepends=True)
    (folder / "jobs.jsonl").write_text(lines[0] + lines[1][:7])
    rows = []
    for number, each in enumerate(chunks(tmp_path, plan.name)):
        comment = f"salt {folder.name} {number}"
        rows += [
            queued(101 + number, task, "PENDING", "Dependency", comment=comment)
            for task in range(len(each.chunk.lanes))
        ]
    slurm.answers("squeue", *rows)
    assert not proposal(tmp_path, plan).missing
    slurm.answers("squeue")  # and when all of it is gone, all is missing again
    assert len(proposal(tmp_path, plan).missing) == len(plan.runs)


def test_a_busy_controller_that_took_the_job_all_the_same(
    slurm: FakeSlurm, plan: Plan, tmp_path: Path
) -> None:
    only = many(plan, 3)
    found = proposal(tmp_path, only)
    sbatch(
        slurm,
        fails=1,
        error="sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
    )
    (slurm.folder / "squeue").write_text(  # which has the job as soon as it was sent
        f"#!/bin/sh\nfor f in {tmp_path}/jobs/many/2*\n"
        'do echo "555|555|0|PENDING|None||salt ${f##*/} 0"; done\n'
    )
    (done,) = submit_all(job(tmp_path, only, found), lambda text: None)
    assert done.job == "555"
    assert {lane.job for lane in lanes_of(chunks(tmp_path, "many")).values()} == {"555"}


def test_limits_on_jobs_at_once_leave_the_rest_for_later(
    slurm: FakeSlurm, plan: Plan, tmp_path: Path
) -> None:
    slurm.answers("sacctmgr", "400|", "|")
    slurm.answers("squeue", *(queued(7, task, "RUNNING", node="n1") for task in range(100)))
    found = proposal(tmp_path, many(plan, 500))
    assert (len(found.lanes), len(found.left_out)) == (300, 200)
    slurm.absent("sacctmgr")
    assert not proposal(tmp_path, many(plan, 500)).left_out
    assert find_limits(msgspec.structs.replace(PROFILE, max_array_size=10, max_submit_jobs=20)) == Limits(
        array=10, jobs=20
    )


def test_what_is_sent_has_nothing_of_an_outer_job(
    slurm: FakeSlurm, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_MEM_PER_NODE", "SBATCH_TIMELIMIT", "SLURM_JOB_ID", "SRUN_DEBUG"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("SLURM_CONF", "/etc/here.conf")
    submit_all(job(tmp_path, plan, proposal(tmp_path, plan)), lambda text: None)
    environment, script = sent(slurm, 1)
    assert [name for name in environment if name.startswith(("SLURM_", "SBATCH_", "SRUN_"))] == ["SLURM_CONF"]
    assert f"export PYTHONPATH={ROOT}" in script
    for line in ("export PYTHONSAFEPATH=1", "export SALT_GRACE_S=100", "#SBATCH --requeue"):
        assert line in script


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_study(tmp_path_factory.mktemp("study"))


def sweep(study: Study, *arguments: str) -> int:
    options = ["--store", str(study.store), "--site", str(study.folder / "site.yaml")]
    return salt_cli.run("salt-sweep", [*arguments[:1], study.name, *options, *arguments[1:]])


@pytest.mark.parametrize(
    ("spelling", "limit", "meaning"),
    [
        ("90", "0-01:30:00", "1 h 30 min"),
        ("1:30:00", "0-01:30:00", "1 h 30 min"),
        ("2-00:00:00", "2-00:00:00", "2 days"),
    ],
)
def test_durations_are_what_a_person_expects(
    slurm: FakeSlurm,
    study: Study,
    capsys: pytest.CaptureFixture[str],
    spelling: str,
    limit: str,
    meaning: str,
) -> None:
    """Case 32."""
    assert sweep(study, "submit", "--on", "slurm", "--dry-run", "--slurm", f"time={spelling}") == 0
    out, told = capsys.readouterr()
    assert f"#SBATCH --time={limit}\n" in out
    assert f"at most {meaning}," in told
    assert not slurm.calls("sbatch")
    assert not (slurm.folder / "count").exists(), "nothing was sent"
    assert not chunks(study.store, study.name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--slurm", "time=1:30"), "1:30:00 is hours"),
        (("--slurm", "tiem=90"), "time"),
        (("--slurm", "time"), "KEY=VALUE"),
        (("--slurm", "signal_delay_s=3000"), "signal_delay_s"),
        (("--max-gpu-hours", "0.001"), "0.001"),
        (("--workers", "2"), "max_jobs"),
        (("--detach",), "--on local"),
    ],
)
def test_what_cannot_be_sent_is_refused_before_anything_is(
    slurm: FakeSlurm,
    study: Study,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    assert sweep(study, "submit", "--on", "slurm", *arguments) == 2
    assert said in capsys.readouterr().err
    assert not (slurm.folder / "count").exists()


def test_without_a_site_the_error_says_how_to_get_one(
    slurm: FakeSlurm, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["submit", study.name, "--store", str(study.store), "--on", "slurm"]
    assert salt_cli.run("salt-sweep", options) == 2
    assert "salt-sweep site init" in capsys.readouterr().err


def test_where_runs_go_if_nobody_says(
    slurm: FakeSlurm, study: Study, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To Slurm where a cluster is named, so that nothing trains on the machine that jobs are sent from."""
    assert sweep(study, "submit", "--dry-run") == 0
    assert "jobs are sent to Slurm" in capsys.readouterr().err
    plain = ["submit", study.name, "--store", str(study.store), "--dry-run"]
    assert salt_cli.run("salt-sweep", plain) == 0
    assert "on this machine" in capsys.readouterr().err
    monkeypatch.setenv("SALT_SITE", str(study.folder / "site.yaml"))
    assert salt_cli.run("salt-sweep", plain) == 0
    assert "jobs are sent to Slurm" in capsys.readouterr().err
    assert salt_cli.run("salt-sweep", [*plain, "--on", "local", "--workers", "1", "--json"]) == 0
    out, told = capsys.readouterr()
    assert "on this machine, 1 worker process\n" in told
    runs = len(study.plan.runs)
    facts = {"plan": study.name, "runs": runs, "to_do": runs, "workers": 1, "devices": [], "sent": 0}
    assert json.loads(out) == facts
    capped = [*plain, "--on", "local", "--max-gpu-hours"]  # by the site that SALT_SITE names
    assert salt_cli.run("salt-sweep", [*capped, "10"]) == 0
    assert salt_cli.run("salt-sweep", [*capped, "1e-6"]) == 2
    assert "would take about" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "jobs"), [("n\n", False), ("\n", False), ("y\n", True)])
def test_it_asks_on_a_terminal(
    slurm: FakeSlurm, study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str, jobs: bool
) -> None:
    fresh = make_study_again(study, tmp_path)
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert sweep(fresh, "submit", "--on", "slurm") == (0 if jobs else 1)
    assert bool(chunks(fresh.store, fresh.name)) is jobs
    assert (slurm.folder / "count").exists() is jobs


def test_a_terminal_gets_some_of_many_scripts_and_a_file_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    many = [(Chunk(number=number, lanes=(Lane(runs=()),)), "#!/bin/bash") for number in range(2000)]
    _show_scripts(many)
    assert capsys.readouterr().out.count("#!/bin/bash") == 2000
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    _show_scripts(many)
    lines = terminal.getvalue().splitlines()
    assert (lines[0], lines[-2:]) == (
        "# array 0: 1 task",
        ["#!/bin/bash", "# and 1995 arrays more: `... --dry-run > scripts.txt` keeps all"],
    )


def test_workers_find_the_code_from_any_folder() -> None:
    first = worker_environment(1, Path("store/jobs/.code/0000"))["PYTHONPATH"].split(os.pathsep)[0]
    assert first == str(Path.cwd() / "store/jobs/.code/0000")


def make_study_again(study: Study, folder: Path) -> Study:
    """The same plan in a store of its own."""
    (folder / "site.yaml").write_text((study.folder / "site.yaml").read_text())
    (folder / "store").mkdir()
    os.symlink(study.store / "plans", folder / "store" / "plans")
    return Study(folder, study.name)


def test_a_slurm_that_is_silent_ends_the_submission(
    slurm: FakeSlurm, study: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm.answers("squeue", code=1, error="slurm_load_jobs error: Unable to contact slurm controller")
    assert sweep(study, "submit", "--on", "slurm") == 2
    told = capsys.readouterr().err
    assert "nothing was sent" in told
    assert "scontrol ping" in told
    slurm.absent("squeue")
    assert sweep(study, "submit", "--on", "slurm") == 2
    assert "--on local" in capsys.readouterr().err


def test_retry_wants_classes_that_there_are(study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(study, "retry") == 2
    assert "--class oom,node" in capsys.readouterr().err
    assert sweep(study, "retry", "--class", "nonsense") == 2
    assert "diverged" in capsys.readouterr().err


def test_not_sent_is_said_with_the_runs(slurm: FakeSlurm, plan: Plan, tmp_path: Path) -> None:
    sbatch(slurm, fails=1, error="sbatch: error: invalid partition specified: nope")
    with pytest.raises(NotSent, match=r"(?s)sinfo -s.*Nothing was sent of 6 runs") as caught:
        submit_all(job(tmp_path, plan, proposal(tmp_path, plan)), lambda text: None)
    assert plan.runs[0].run_id in str(caught.value)
