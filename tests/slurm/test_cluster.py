"""The test cluster itself: what the tests of salt's Slurm lane rest on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from slurm.scheduler import SchedulerSilent, configuration, past, queue
from tests.slurm import hosts, packages
from tests.slurm.cluster import Cluster
from tests.slurm.daemons import MARK, environment_of
from tests.slurm.guard import ROOT
from tests.slurm.waiting import wait_for

EPOCH = "2000-01-01T00:00:00"


def finished(cluster: Cluster, job: str) -> bool:
    return set(cluster.states(job).values()) == {"COMPLETED"}


def test_an_array_runs_on_its_nodes_and_accounting_knows(slurm: Cluster, tmp_path: Path) -> None:
    line = f"echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES > {tmp_path}/$SLURM_ARRAY_TASK_ID"
    job = slurm.submit("--array=0-2", "--gpus-per-node=2", "--constraint=a100", wrap=line)
    wait_for(lambda: finished(slurm, job), what="the array's end")
    said = {path.name: path.read_text().split() for path in tmp_path.iterdir()}
    assert said.keys() == {"0", "1", "2"}
    assert {node for node, _ in said.values()} <= {"n1", "n2"}
    assert {devices for _, devices in said.values()} == {"0,1"}
    # salt's own commands, which find the cluster by this process's environment
    wait_for(lambda: len(past([job], EPOCH)) == 3, what="sacct's three lines")
    assert {(task.job, task.task): task.state for task in past([job], EPOCH).values()} == {
        (job, number): "COMPLETED" for number in range(3)
    }
    assert configuration()["MaxArraySize"] == "1001"


def test_main_takes_the_place_of_scavenge_which_starts_again(slurm: Cluster, tmp_path: Path) -> None:
    place = ("--nodelist=n2", "--cpus-per-task=4")
    line = f"echo start $SLURM_RESTART_COUNT >> {tmp_path}/said; sleep 60 & wait"
    trap = "trap 'scontrol requeue $SLURM_JOB_ID' USR1"
    options = ("--partition=scavenge", "--requeue", "--signal=B:USR1@30")
    low = slurm.submit(*options, *place, wrap=f"{trap}; {line}")
    wait_for(lambda: (tmp_path / "said").exists(), what="the low job's start")
    high = slurm.submit(*place, wrap="true")
    slurm.hurry(low)
    wait_for(lambda: finished(slurm, high), what="the high job's end")
    wait_for(
        lambda: (tmp_path / "said").read_text().splitlines() == ["start", "start 1"], what="another start"
    )


def test_a_job_of_a_lost_node_is_queued_again(slurm: Cluster) -> None:
    job = slurm.submit("--array=5", "--nodelist=n3", "--requeue", wrap="sleep 60")
    wait_for(lambda: slurm.state(f"{job}_5") == "RUNNING", what="start")
    slurm.node_down("n3")
    wait_for(lambda: slurm.state(f"{job}_5") == "PENDING", what="back in the queue")
    assert slurm.node_states()["n3"].startswith("down")
    assert [(task.job, task.task, task.state) for task in queue()] == [(job, 5, "PENDING")]
    slurm.node_resume("n3")
    slurm.hurry(f"{job}_5")
    wait_for(lambda: slurm.state(f"{job}_5") == "RUNNING", what="another start")


def test_the_queue_outlives_the_controller(slurm: Cluster) -> None:
    running = slurm.submit(wrap="sleep 60")
    waiting = slurm.submit("--begin=now+1hour", wrap="true")
    wait_for(lambda: slurm.state(running) == "RUNNING", what="start")
    slurm.stop("slurmctld")
    with pytest.raises(SchedulerSilent):
        queue(timeout_s=1)
    slurm.restart("slurmctld")
    assert slurm.states() == {running: "RUNNING", waiting: "PENDING"}


def test_between_tests_all_is_as_before(slurm: Cluster) -> None:
    stubborn = slurm.submit("--array=0-1", wrap="trap '' TERM; sleep 60 & wait; sleep 60")
    wait_for(lambda: set(slurm.states(stubborn).values()) == {"RUNNING"}, what="start")
    slurm.stop("n4")
    slurm.node_down("n1")
    slurm.calm()
    assert slurm.states() == {}
    assert slurm.daemons.jobs() == []
    assert slurm.node_states() == dict.fromkeys(("n1", "n2", "n3", "n4"), "idle")


def test_a_small_cluster_without_accounting(
    other_slurm: Callable[..., Cluster], running_slurm: Cluster
) -> None:
    small = other_slurm(accounting=False, nodes=2, gpus=0, extra_conf="MaxArraySize=5")
    assert small.folder != running_slurm.folder
    with pytest.raises(SchedulerSilent, match="accounting storage is disabled"):
        past(["1"], EPOCH)
    refused = small.attempt("sbatch", "--array=0-5", "--wrap=true")
    assert refused.returncode == 1
    assert "Invalid job array specification" in refused.stderr
    job = small.submit("--array=0-4", wrap="true")
    wait_for(lambda: finished(small, job), what="the array's end")
    # a node dies, and with it what runs there
    lost = small.submit("--nodelist=n1", "--requeue", wrap="sleep 60")
    wait_for(lambda: small.state(lost) == "RUNNING", what="start")
    wait_for(lambda: len(small.daemons.jobs("n1")) > 1, what="its processes")
    small.kill_node("n1")
    assert small.daemons.jobs() == []
    small.node_down("n1")
    wait_for(lambda: small.state(lost) == "PENDING", what="back in the queue")
    small.calm()
    assert set(small.node_states().values()) == {"idle"}


def test_nothing_is_left_of_a_cluster_whose_owner_was_killed(running_slurm: Cluster, tmp_path: Path) -> None:
    program = (
        "import os, signal; from tests.slurm.cluster import Cluster; "
        "cluster = Cluster(accounting=False, nodes=1); cluster.up(); cluster.submit(wrap='sleep 60'); "
        "print(cluster.folder, flush=True); signal.pause()"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    with owner, owner.stdout:
        folder = Path(owner.stdout.readline().strip())
        assert str(folder) in hosts.HOSTS.read_text()
        owner.send_signal(signal.SIGKILL)
    wait_for(lambda: not folder.exists(), what="its folder's end")
    assert str(folder) not in hosts.HOSTS.read_text()
    left = [p for p in psutil.process_iter() if environment_of(p).get(MARK) == str(folder)]
    assert left == []
    assert running_slurm.run("scontrol", "ping").count("UP") == 1


def test_lines_of_hosts_files() -> None:
    docker = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost\n172.17.0.2\tbox.example box"
    first, second = Path("/tmp/slurm.a"), Path("/tmp/slurm.ab")
    text = hosts.with_line(docker, first, ["n1", "n2"], ["box"])
    assert text.splitlines() == [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost",
        "127.0.0.1 box n1 n2 # salt test cluster /tmp/slurm.a",
        "172.17.0.2\tbox.example box",
    ]
    assert hosts.names_given(text) == {"box", "n1", "n2"}
    both = hosts.with_line(text, second, ["n1"])
    assert both.splitlines()[-1] == "127.0.0.1 n1 # salt test cluster /tmp/slurm.ab"
    assert hosts.with_line(both, second, ["n1"]) == both
    assert hosts.without_line(hosts.without_line(both, second), first) == docker + "\n"


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(packages, "search_path", lambda: "/nowhere")
    for name in ("CI", "SALT_TEST_INSTALL"):
        monkeypatch.delenv(name, raising=False)
    reason = packages.refusal(accounting=False)
    assert reason is not None
    assert reason.startswith("not installed: munge slurmctld slurmd slurm-client; apt-get install them")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert packages.refusal() == "a test cluster of Slurm has to be started by root"
