"""What Slurm is told: the made-up nodes, the partitions, and how to do without systemd and cgroups."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

from salt.specs import Spec
from tests.slurm.hosts import LOOPBACK, own_names

#: Below the ports that the kernel hands out.
PORTS = range(20000, 30000)


class Layout(Spec, kw_only=True):
    """A cluster's shape, written into its folder when it is made. CPUs, MB and GPUs are those of one node."""

    host: str
    port: int  # slurmctld's; slurmdbd has the next one, then each node its own
    nodes: int
    cpus: int
    memory_mb: int
    gpus: int
    accounting: bool
    extra_conf: str

    @property
    def names(self) -> list[str]:
        return [f"n{number}" for number in range(1, self.nodes + 1)]


def new_layout(
    *, nodes: int, cpus: int, memory_mb: int, gpus: int, accounting: bool, extra_conf: str
) -> Layout:
    return Layout(
        host=own_names()[0],
        port=free_ports(nodes + 2),
        nodes=nodes,
        cpus=cpus,
        memory_mb=memory_mb,
        gpus=gpus,
        accounting=accounting,
        extra_conf=extra_conf,
    )


def free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that nobody listens on."""
    for _ in range(100):
        first = random.SystemRandom().randrange(PORTS.start, PORTS.stop - count)
        if all(map(_is_free, range(first, first + count))):
            return first
    raise RuntimeError(f"no {count} free ports in a row between {PORTS.start} and {PORTS.stop}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def listens(port: int) -> bool:
    """Whether somebody does, on loopback."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOOPBACK, port)) == 0


def write_all(folder: Path, layout: Layout) -> None:
    """All files of settings, munge's key, and the nodes' GPUs."""
    secret = folder / "munge"
    secret.mkdir(mode=0o700)
    _write(secret / "key", os.urandom(128))
    # Slurm wants character devices; on anything else it counts the GPU and sets no CUDA_VISIBLE_DEVICES.
    for number in range(layout.gpus):
        (folder / f"gpu{number}").symlink_to("/dev/null")
    _write(folder / "gres.conf", gres_conf(folder, layout).encode())
    # A plugin for cgroups is loaded though nothing uses one. Left to choose, slurmd may stop at once.
    _write(folder / "cgroup.conf", b"CgroupPlugin=cgroup/v1\n")
    if layout.accounting:
        _write(folder / "slurmdbd.conf", slurmdbd_conf(folder, layout).encode())
    _write(folder / "slurm.conf", slurm_conf(folder, layout).encode())


def _write(path: Path, content: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def gpu_type(layout: Layout, number: int) -> str:
    """The first half of the nodes, rounded up, has one type of GPU, the rest another."""
    return "a100" if 2 * number < layout.nodes else "v100"


def gres_conf(folder: Path, layout: Layout) -> str:
    if not layout.gpus:
        return ""
    files = f"{folder}/gpu[0-{layout.gpus - 1}]" if layout.gpus > 1 else f"{folder}/gpu0"
    return "".join(
        f"NodeName={name} Name=gpu Type={gpu_type(layout, number)} File={files}\n"
        for number, name in enumerate(layout.names)
    )


def slurmdbd_conf(folder: Path, layout: Layout) -> str:
    return f"""\
DbdHost={layout.host}
DbdAddr={LOOPBACK}
DbdPort={layout.port + 1}
CommunicationParameters=NoInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.own
"""


def slurm_conf(folder: Path, layout: Layout) -> str:
    nodes = ""
    for number, name in enumerate(layout.names):
        kind = gpu_type(layout, number)
        gres = f" Gres=gpu:{kind}:{layout.gpus}" if layout.gpus else ""
        nodes += (
            f"NodeName={name} NodeHostname={layout.host} NodeAddr={LOOPBACK} Port={layout.port + 2 + number} "
            f"CPUs={layout.cpus} RealMemory={layout.memory_mb} Feature={kind}{gres} State=UNKNOWN\n"
        )
    if layout.accounting:
        accounting = f"""\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={LOOPBACK}
AccountingStoragePort={layout.port + 1}
AccountingStoragePass={folder}/run/munge.sock
AccountingStorageTRES=gres/gpu"""
    else:
        accounting = "AccountingStorageType=accounting_storage/none"
    return f"""\
ClusterName=test
SlurmctldHost={layout.host}({LOOPBACK})
SlurmctldPort={layout.port}
# Nothing listens on other addresses than loopback.
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.sock
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.own
SlurmdPidFile={folder}/run/%n.own
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
MailProg=/bin/true
MpiDefault=none
{accounting}

# Without cgroups: processes are found by their parents, nothing is bound to CPUs, and memory is looked at
# each second; a step above what it asked for is killed.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill

# Nodes have what is said here, not what this machine has.
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={layout.memory_mb // layout.cpus}
EnforcePartLimits=ALL
DependencyParameters=kill_invalid_depend
MaxArraySize=1001

# Everything happens as soon as it can.
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1
KillWait=5
SlurmdTimeout=30
# A node that did not answer is back when it does; one that was set down when it is resumed.
ReturnToService=1

# `main` takes places away from `scavenge`: a job there gets its --signal, 10 s, and goes back into the queue.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
PartitionName=DEFAULT Nodes=ALL DefaultTime=60 MaxTime=INFINITE
PartitionName=main Default=YES PriorityTier=2 PreemptMode=OFF
PartitionName=scavenge PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=short PriorityTier=2 PreemptMode=OFF DefaultTime=1 MaxTime=5
{layout.extra_conf}
"""
