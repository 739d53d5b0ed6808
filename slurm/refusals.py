"""What sbatch says when it refuses, and what to do about it."""

from __future__ import annotations

import re

#: Patterns of messages (Slurm 22.05 and 23.x), the more special ones first.
_WAYS_OUT = {
    r"invalid partition": "correct slurm: partition; `sinfo -s` lists those there are",
    r"invalid account|account/partition": (
        "correct slurm: account; `sacctmgr show assoc user=$USER` lists yours"
    ),
    r"invalid qos": "correct slurm: qos; `sacctmgr show qos` lists those there are",
    r"invalid feature": "correct slurm: constraint; `sinfo -o '%P %f'` lists the features there are",
    r"invalid node name": "correct slurm: exclude; `sinfo -N` lists the nodes there are",
    r"time limit": "lower slurm: time; `sinfo -o '%P %l'` shows what partitions allow",
    r"node configuration is not available": (
        "ask for less: slurm: cpus_per_run, memory_gib_per_run or gpu_type, or execution: processes; "
        "`sinfo -o '%P %c %m %G'` shows what nodes have"
    ),
    r"node count": "a run needs more nodes than the partition has: lower execution: processes",
    r"job array specification": (
        "set slurm: max_array_size to the cluster's MaxArraySize (`scontrol show config`)"
    ),
    r"QOSMaxSubmit|AssocMaxSubmit|AssocGrpSubmit|QOSGrpSubmit|accounting/QOS policy": (
        "the cluster takes no more jobs of yours now: submit again when some have ended, or set "
        "slurm: max_submit_jobs"
    ),
    r"generic resource|gres": (
        "correct slurm: gpu_type, or set gpus: false; `sinfo -o '%P %G'` lists the GPUs there are"
    ),
    r"unrecognized option|invalid option|invalid --": (
        "correct slurm: sbatch, whose keys are options of sbatch"
    ),
    r"unable to contact|connect failure": (
        "the controller does not answer: try again later (`scontrol ping`)"
    ),
    r"munge|authentication": "this machine is not let in: ask the cluster's staff about munge",
    r"not on this machine's PATH": "run this where jobs are submitted, or use --on local",
    r"configuration source|slurm.conf": "this machine knows no cluster: run this where jobs are submitted",
    r"disk|quota|no space": "make room in the store, and submit again",
}


def with_way_out(said: str) -> str:
    """What sbatch said, and what to do about it where that is known."""
    advice = next((way for pattern, way in _WAYS_OUT.items() if re.search(pattern, said, re.I)), None)
    return f"{said}; {advice}" if advice else said
