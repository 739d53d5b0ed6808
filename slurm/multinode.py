"""One run trained over several nodes of a job: how its processes are started there.

The worker that holds the run's claim is on the job's first node. It starts a step over all nodes, either one
task for each process (layout `srun`) or one task a node that starts the node's share (`torchrun`). Both give
the processes torchrun's variables, so that training sees no difference.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from salt.specs import ExecSpec

#: Says to workers of a lane over several nodes how its runs are laid out; `slurm.lane` sets it.
LAYOUT_VARIABLE = "SALT_LAYOUT"


def nodes_of_job(environment: Mapping[str, str]) -> int:
    """Nodes that a run of this worker spreads over; 1 outside of a lane over several."""
    return int(environment["SLURM_JOB_NUM_NODES"]) if LAYOUT_VARIABLE in environment else 1


def step_command(job: Path, execution: ExecSpec, environment: Mapping[str, str], leader: str) -> list[str]:
    """The srun that starts all processes of a run; `leader` is `<pid>:<start>` of the worker, on node 0.

    A process that fails ends the others at once: it has written down why.
    """
    nodes = nodes_of_job(environment)
    each = execution.processes // nodes
    by_node = environment[LAYOUT_VARIABLE] == "torchrun"
    tasks = nodes if by_node else execution.processes
    command = ["srun", "--overlap", f"--nodes={nodes}", f"--ntasks={tasks}"]
    command += [f"--ntasks-per-node={tasks // nodes}", "--cpu-bind=none", "--kill-on-bad-exit=1"]
    command += ["--input=none", sys.executable, "-u", "-P", "-m", "slurm.ranks", str(job)]
    command += ["--leader", leader]
    return [*command, "--share", str(each)] if by_node else command


def meeting_point(host: str) -> dict[str, str]:
    """Where the processes of a run find each other: at this host, at a port of it that was free just now."""
    with socket.socket() as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    return {"MASTER_ADDR": host, "MASTER_PORT": str(port)}


def this_node(environment: Mapping[str, str]) -> str:
    """The name by which other nodes of the job reach this one."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


def own_rank(environment: Mapping[str, str]) -> dict[str, str]:
    """torchrun's variables for a task of srun that is one process of a run."""
    return {"RANK": environment["SLURM_PROCID"], "LOCAL_RANK": environment["SLURM_LOCALID"]}


def first_rank(environment: Mapping[str, str], share: int) -> int:
    """The rank of the first process that the task of this node starts."""
    return int(environment["SLURM_NODEID"]) * share


def is_first_node(environment: Mapping[str, str]) -> bool:
    return environment.get("SLURM_NODEID", "0") == "0"


def leader_name() -> str:
    """This process, as others on its machine can tell whether it lives."""
    from salt.processes import start_of

    return f"{os.getpid()}:{start_of(os.getpid()) or ''}"
