"""Profiles of clusters: what is refused, what is proposed from Slurm's words, what is held against them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

import salt_cli
from salt.errors import UserError
from slurm.discover import facts_of, gres, limit_minutes
from slurm.durations import minutes_of, slurm_time, spoken
from slurm.profile import SlurmProfile
from slurm.profile_checks import lane_minutes, problems
from sweeps.site import check_slurm, load_site, site_yaml
from sweeps.site_proposal import contradictions, proposed_site, proposed_text
from tests.drain_kit import ROOT
from tests.fake_slurm import FakeSlurm

PATH = os.environ["PATH"]
EXAMPLES = sorted((ROOT / "examples" / "sites").glob("*.yaml"))

#: As Slurm 22.05 wrote them: four made-up nodes, three partitions.
SINFO = """main*|up|infinite|2|4|8000|gpu:a100:2
main*|up|infinite|2|4|8000|gpu:v100:2
scavenge|up|infinite|4|4|8000|gpu:a100:2
short|up|5:00|4|4|8000|gpu:a100:2
"""
PARTITIONS = """PartitionName=main Default=YES GraceTime=0 MaxTime=UNLIMITED PreemptMode=OFF State=UP
PartitionName=scavenge Default=NO GraceTime=10 MaxTime=UNLIMITED PreemptMode=REQUEUE State=UP
PartitionName=short Default=NO GraceTime=0 MaxTime=00:05:00 PreemptMode=OFF State=UP
"""
CONFIG = """Configuration data as of 2026-01-01T00:00:00
AccountingStorageEnforce = none
ClusterName             = test
JobRequeue              = 1
MaxArraySize            = 1001
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SlurmctldParameters     = preempt_send_user_signal
SLURM_VERSION           = 22.05.8
"""
#: Another kind of cluster, by hand: GPUs on sockets, other resources, unlike nodes, limits on jobs.
OTHER_SINFO = """cpu*|up|7-00:00:00|120|128+|256000+|(null)
gpu|up|2-00:00:00|40|96|1031000|gpu:h100:8(S:0-1),nvme:1
debug|up|30:00|2|64|512000|gpu:4
old|down|infinite|10|40|190000|gpu:v100:4(S:0-1)
"""
OTHER_CONFIG = """AccountingStorageEnforce = associations,limits,qos
ClusterName             = big
JobRequeue              = 0
MaxArraySize            = 10001
PreemptType             = preempt/none
SlurmctldParameters     = (null)
SLURM_VERSION           = 23.11.4
"""
ACCOUNTS = "vision|long,normal|2000|\n"


def profile(**changes: Any) -> SlurmProfile:
    return msgspec.convert({"time": "1:00:00", **changes}, SlurmProfile)


@pytest.mark.parametrize(
    ("value", "minutes", "slurm", "words"),
    [
        ("90", 90, "0-01:30:00", "1 h 30 min"),
        (90, 90, "0-01:30:00", "1 h 30 min"),
        ("1:30:00", 90, "0-01:30:00", "1 h 30 min"),
        ("2-00:00:00", 2880, "2-00:00:00", "2 days"),
        ("1-12", 2160, "1-12:00:00", "1 day 12 h"),
        ("0:00:01", 1, "0-00:01:00", "1 min"),
    ],
)
def test_durations(value: str | int, minutes: int, slurm: str, words: str) -> None:
    assert minutes_of(value, "time") == minutes
    assert slurm_time(minutes) == slurm
    assert spoken(minutes) == words
    assert minutes_of(slurm, "time") == minutes


@pytest.mark.parametrize("value", ["1:30", "0", "", "1h", "1:70:00", "-5", "1:2:3:4", "0:00:00"])
def test_durations_that_are_none(value: str) -> None:
    with pytest.raises(UserError, match="time"):
        minutes_of(value, "time")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"time": "1:30"}, "1:30:00 is hours"),
        ({"signal_delay_s": 1800}, "at most 1799"),
        ({"lane_minutes": "soon"}, "lane_minutes"),
        ({"partition": "gpu #x"}, "partition"),
        ({"account": "a\nb"}, "account"),
        ({"exclude": ["n1 n2"]}, "exclude"),
        ({"gpu_type": "a100 h100"}, "gpu_type"),
        ({"setup": ["a\nb"]}, "one line of shell"),
        ({"environment": {"2X": "1"}}, "no name of a variable"),
        ({"environment": {"SLURM_MEM": "1"}}, "leave it out"),
        ({"environment": {"A": "1\n2"}}, "one line"),
        ({"sbatch": {"--mail-type": "ALL"}}, "without dashes"),
        ({"sbatch": {"array": "0-3"}}, "salt needs it itself"),
        ({"sbatch": {"partition": "x"}}, "use slurm: partition"),
        ({"sbatch": {"exclusive": False}}, "leave it out"),
        ({"sbatch": {"export": "NONE"}}, "salt needs it itself"),
        ({"sbatch": {"mem-per-cpu": "2G"}, "memory_gib_per_run": 4.0}, "leave one of them out"),
        ({"sbatch": {"gres": "gpu:a100:1"}}, "use slurm: gpu_type"),
        ({"sbatch": {"mail_type": "ALL"}}, "without dashes"),
        ({"environment": {"é": "1"}}, "no name of a variable"),
        ({"environment": {"SUBMITIT_PREEMPT_SIGNAL": "USR1"}}, "leave it out"),
        ({"setup": ["#SBATCH --time=1"]}, "write it under slurm: sbatch"),
        ({"signal_delay_s": 70000, "time": "7-00:00:00"}, "at most 65535"),
    ],
)
def test_values_that_slurm_would_refuse_or_misread(changes: dict[str, Any], said: str) -> None:
    found = problems(profile(**changes))
    assert said in found[0]
    assert len(found) == 1 or changes == {"time": "1:30"}, "nothing else is wrong"


def test_values_that_slurm_takes() -> None:
    assert not problems(
        profile(
            partition="gpu,long",
            constraint="[rack1|rack2]&nvlink",
            exclude=["gpu[01-04,7]"],
            setup=["module load cuda # 12", "echo '$HOME'"],
            environment={"NCCL_DEBUG": "a b # c", "PYTHONPATH_EXTRA": "x"},
            sbatch={"mem-per-cpu": "2G", "gres": "nvme:1", "exclusive": True, "mail-type": "FAIL,END"},
        )
    )


def test_lanes_end_before_their_job_does() -> None:
    assert lane_minutes(profile(lane_minutes="0")) == 0
    assert lane_minutes(profile(lane_minutes="2:00:00", time="1-00:00:00")) == 120
    assert lane_minutes(profile(lane_minutes=60, time=60, signal_delay_s=120)) == 46
    assert lane_minutes(profile(lane_minutes=60, time=2, signal_delay_s=50)) == 1


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_load_and_survive_being_written(path: Path, tmp_path: Path) -> None:
    site = load_site(path)
    copy = tmp_path / "site.yaml"
    copy.write_text(site_yaml(site))
    assert load_site(copy) == site


def test_every_key_survives_being_written_and_is_explained(tmp_path: Path) -> None:
    keys: dict[str, Any] = {
        "partition": "a,b",
        "account": "null",
        "qos": "1e3",
        "constraint": "x|y",
        "reservation": "yes",
        "gpus": False,
        "cpus_per_run": 3,
        "memory_gib_per_run": 1.5,
        "signal_delay_s": 61,
        "requeue": False,
        "lane_minutes": 0,
        "runs_per_gpu": "auto",
        "max_jobs": 4,
        "max_array_size": 5,
        "max_submit_jobs": 6,
        "layout": "torchrun",
        "exclude": ["n[1-2]", "n4"],
        "exclude_after": 0,
        "setup": ["module load a: b", "  x 'y' # z " * 20],
        "environment": {"A": "1", "B": "a: #b"},
        "sbatch": {"exclusive": True, "begin": "16:00"},
        "local_store": True,
    }
    site = msgspec.structs.replace(load_site(EXAMPLES[0]), slurm=profile(**keys))
    copy = tmp_path / "site.yaml"
    copy.write_text(site_yaml(site))
    assert load_site(copy) == site
    names = {field.name for field in msgspec.structs.fields(SlurmProfile)}
    assert names - set(keys) == {"time", "gpu_type"}
    example = (ROOT / "examples" / "sites" / "cluster.yaml").read_text()
    table = (ROOT / "docs" / "cluster.md").read_text().partition("## Lanes")[0]
    assert [name for name in sorted(names) if f" {name}: " not in example] == []
    assert [name for name in sorted(names) if f"`{name}`" not in table] == []


def test_a_file_with_a_bad_section_is_refused_by_key(tmp_path: Path) -> None:
    text = (ROOT / "examples" / "sites" / "cluster.yaml").read_text()
    bad = tmp_path / "bad.yaml"
    bad.write_text(text.replace("partition: gpu", "partitoin: gpu"))
    with pytest.raises(UserError, match="partitoin.*partition"):
        load_site(bad)
    bad.write_text(text.replace("1-00:00:00", "1:30"))
    with pytest.raises(UserError, match=r"bad.yaml: slurm: time '1:30'"):
        load_site(bad)
    site = load_site(EXAMPLES[0].with_name("cluster.yaml"))
    assert check_slurm(site, {"time": "4:00:00"}, "--slurm").slurm == msgspec.structs.replace(
        site.slurm, time="4:00:00"
    )
    with pytest.raises(UserError, match="--slurm: slurm.tiem"):
        check_slurm(site, {"tiem": 90}, "--slurm")


def test_words_of_slurm() -> None:
    assert gres("gpu:a100:8(S:0-1),nvme:1") == {"a100": 8}
    assert gres("gpu:4") == {"": 4}
    assert gres("gpu:a100:2,gpu:v100:2") == {"a100": 2, "v100": 2}
    assert gres("(null)") == {}
    assert [limit_minutes(text) for text in ("infinite", "5:00", "1:30:00", "7-00:00:00", "n/a")] == [
        None,
        5,
        90,
        10080,
        None,
    ]


def test_a_profile_of_the_test_cluster() -> None:
    facts = facts_of(SINFO, PARTITIONS, CONFIG, "root|normal|||\n")
    site, guesses = proposed_site(facts)
    assert (site.gpu, site.gpus_total, site.gpus_per_node) == ("a100", 4, 2)
    assert site.peak_flops["bf16"] == 312e12
    assert site.slurm is not None
    assert (site.slurm.partition, site.slurm.gpu_type, site.slurm.time) == ("main", "a100", "1-00:00:00")
    assert not contradictions(site, facts)
    assert any("utilisation" in guess for guess in guesses)
    short, _ = proposed_site(facts, "short")
    assert short.slurm is not None
    assert (short.slurm.minutes, short.slurm.signal_delay_s) == (5, 75)
    assert not problems(short.slurm)
    with pytest.raises(UserError, match="scavenge"):
        proposed_site(facts, "scavange")


def test_a_profile_of_a_large_cluster(tmp_path: Path) -> None:
    facts = facts_of(OTHER_SINFO, "", OTHER_CONFIG, ACCOUNTS)
    site, guesses = proposed_site(facts)
    profile = site.slurm
    assert profile is not None
    assert (site.gpus_total, site.gpus_per_node, site.peak_flops["bf16"]) == (320, 8, 989e12)
    assert (profile.partition, profile.account, profile.max_submit_jobs) == ("gpu", "vision", 2000)
    assert (profile.cpus_per_run, profile.memory_gib_per_run) == (12, 125)
    text = proposed_text(facts, site_yaml(site), guesses)
    written = tmp_path / "site.yaml"
    written.write_text(text)
    assert load_site(written) == site
    assert "# Guesses" in text
    assert "old, not up" in text
    cpus, _ = proposed_site(facts, "cpu")
    assert cpus.slurm is not None
    assert not cpus.slurm.gpus
    assert (cpus.gpus_total, cpus.gpus_per_node, cpus.precision) == (15360, 128, "fp32")
    unknown, guesses = proposed_site(facts, "debug")
    assert any("does not say which GPUs" in guess for guess in guesses)
    assert unknown.slurm is not None
    assert unknown.slurm.gpu_type is None
    assert not any("has less" in guess for guess in guesses)
    sliced = facts_of(OTHER_SINFO.replace("h100:8", "a100_3g.20gb:16"), "", OTHER_CONFIG, ACCOUNTS)
    assert any("a100_3g.20gb has less" in guess for guess in proposed_site(sliced)[1])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"partition": "gpus", "gpu_type": None, "gpus": False}, "did you mean 'gpu'"),
        ({"time": "3-00:00:00"}, "allows 2 days"),
        ({"gpu_type": "a100"}, "has h100"),
        ({"account": "visoin"}, "did you mean 'vision'"),
        ({"qos": "longer"}, "qos"),
        ({"cpus_per_run": 97}, "have 96"),
        ({"max_array_size": 20000}, "10001"),
        ({"memory_gib_per_run": 1007.0}, "have 1007 GiB"),
        ({"account": "other"}, "did you mean 'vision'"),
        ({"qos": "long"}, "partition gpu takes normal, high"),
        ({"partition": None, "gpus": False, "gpu_type": None}, "no default; name one of these: cpu, gpu"),
    ],
)
def test_what_a_cluster_does_not_have_is_named(changes: dict[str, Any], said: str) -> None:
    no_default = OTHER_SINFO.replace("cpu*", "cpu")
    gates = "PartitionName=gpu AllowQos=normal,high\n"
    facts = facts_of(no_default, gates, OTHER_CONFIG, ACCOUNTS)
    site, _ = proposed_site(facts, "gpu")
    assert not contradictions(site, facts)
    (problem,) = contradictions(check_slurm(site, changes, "x"), facts)
    assert said in problem


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeSlurm(tmp_path / "bin", monkeypatch)
    fake.answers("sinfo", *SINFO.splitlines())
    cat = shutil.which("cat", path=PATH)
    (fake.folder / "scontrol").write_text(f"#!/bin/sh\nexec {cat} {fake.folder}/$2\n")
    (fake.folder / "config").write_text(CONFIG)
    (fake.folder / "partition").write_text(PARTITIONS)
    fake.absent("sacctmgr")
    file = tmp_path / "site.yaml"
    assert salt_cli.run("salt-sweep", ["site", "init", "--write", str(file)]) == 0
    assert "sacctmgr is not on this machine's PATH" in file.read_text()
    before = file.read_text()
    assert salt_cli.run("salt-sweep", ["site", "init", "--write", str(file)]) == 2
    assert file.read_text() == before
    link = tmp_path / "link.yaml"
    link.symlink_to(tmp_path / "nowhere.yaml")
    assert salt_cli.run("salt-sweep", ["site", "init", "--write", str(link)]) == 2
    assert "there is a file already" in capsys.readouterr().err
    assert not (tmp_path / "nowhere.yaml").exists()
    assert salt_cli.run("salt-sweep", ["site", "check", str(file)]) == 0
    said = capsys.readouterr().out
    assert "at most 1 day" in said
    assert "a GPU (a100) for each process, 2 at most on a node; for each run 2 CPUs and 3 GiB" in said
    assert "not checked: accounts and their limits" in said
    file.write_text(before.replace("partition: main", "partition: mian"))
    assert salt_cli.run("salt-sweep", ["site", "check", str(file)]) == 2
    assert "did you mean 'main'" in capsys.readouterr().err
    fake.absent("sinfo")
    assert salt_cli.run("salt-sweep", ["site", "init"]) == 2
    assert "sinfo is not on this machine's PATH" in capsys.readouterr().err
    assert salt_cli.run("salt-sweep", ["site", "check", str(file)]) == 0, (
        "what a profile means, it says anywhere"
    )
