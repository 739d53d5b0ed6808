"""What one lane asks of Slurm: nodes, processors, memory, GPUs and time, and the lines before its command."""

from __future__ import annotations

import math
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from salt.attempts import ATTEMPTS_VARIABLE
from salt.errors import UserError
from salt.plan_specs import Plan
from salt.signals import GRACE_VARIABLE
from salt.specs import NonNegativeInt, PositiveFloat, PositiveInt, Spec
from slurm.durations import slurm_time
from slurm.profile import SlurmProfile

#: Tells a task which array of its submission it is of.
ARRAY_VARIABLE = "SALT_ARRAY"
#: Of the time between the warning and the end, this is for the lane itself: to stop its workers and to have
#: itself queued again.
LANE_S = 20.0
LEAST_GRACE_S = 5.0


class LaneRequest(Spec, kw_only=True):
    """Resources of one lane. `processes` train one run together, `workers` runs are trained at once."""

    processes: PositiveInt
    workers: PositiveInt
    nodes: PositiveInt
    gpus_per_node: NonNegativeInt
    cpus_per_node: PositiveInt
    memory_mib_per_node: PositiveInt | None
    minutes: PositiveInt
    grace_s: PositiveFloat

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node


def lane_request(
    plan: Plan, profile: SlurmProfile, processes_per_node: int, workers: int = 1, *, training: bool = True
) -> LaneRequest:
    """What each lane of a plan asks for; `processes_per_node` is the site's `gpus_per_node`.

    Without `training`: what decoding the plan's clips asks for, which needs no GPU.

    Raises:
        UserError: a run over several nodes and several runs at once.
    """
    execution = plan.execution
    processes = execution.processes if training else 1
    nodes = math.ceil(processes / processes_per_node)
    if nodes > 1 and workers > 1:
        raise UserError(
            f"slurm: runs_per_gpu {workers} with runs over {nodes} nodes: set it to 1, or give a run fewer "
            "processes (execution: processes)"
        )
    if processes % nodes:
        raise UserError(
            f"execution: processes {processes} at {processes_per_node} a node are {nodes} nodes, which have "
            f"unequal shares: take {processes // nodes * nodes} or {(processes // nodes + 1) * nodes}"
        )
    local = processes // nodes
    streamed = any(run.spec.clip.source == "streamed" for run in plan.runs)
    cpus = profile.cpus_per_run
    if cpus is None:
        cpus = processes * (execution.threads + (execution.decode_workers if streamed else 0))
    memory = profile.memory_gib_per_run
    gpus = local if training and profile.gpus and execution.device.startswith("cuda") else 0
    return LaneRequest(
        processes=processes,
        workers=workers,
        nodes=nodes,
        gpus_per_node=gpus,
        cpus_per_node=max(1, math.ceil(cpus / nodes)) * workers,
        memory_mib_per_node=None if memory is None else math.ceil(1024 * memory / nodes) * workers,
        minutes=profile.minutes,
        grace_s=max(LEAST_GRACE_S, profile.signal_delay_s - LANE_S),
    )


def sbatch_parameters(
    request: LaneRequest,
    profile: SlurmProfile,
    *,
    name: str,
    comment: str,
    number: int,
    code: Path,
    store: Path,
    tasks: int,
    dependency: str | None = None,
    exclude: Sequence[str] = (),
) -> dict[str, Any]:
    """Parameters of submitit's executor for one array, `map_count` included."""
    more: dict[str, Any] = {"time": slurm_time(request.minutes)}
    if profile.requeue:
        more["requeue"] = True
    else:
        more["no-requeue"] = True
    if profile.reservation is not None:
        more["reservation"] = profile.reservation
    if request.gpus_per_node:
        kind = "" if profile.gpu_type is None else f"{profile.gpu_type}:"
        more["gpus-per-node"] = f"{kind}{request.gpus_per_node}"
    if request.memory_mib_per_node is not None:
        more["mem"] = f"{request.memory_mib_per_node}M"
    given = {
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "dependency": dependency,
        "exclude": ",".join(dict.fromkeys([*profile.exclude, *exclude])) or None,
    }
    return {
        "job_name": job_name(name),
        "nodes": request.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": request.cpus_per_node,
        "signal_delay_s": profile.signal_delay_s,
        "comment": comment,
        "array_parallelism": tasks,  # a cap over all arrays is kept by dependencies
        "map_count": tasks,
        "wckey": None,
        "setup": setup_lines(request, profile, code, store, number),
        # One leader for each lane, on its first node; it starts what runs on the others.
        "srun_args": ["--nodes=1", "--ntasks=1"] if request.nodes > 1 else [],
        "additional_parameters": {**more, **profile.sbatch},
        **{key: value for key, value in given.items() if value is not None},
    }


def setup_lines(
    request: LaneRequest, profile: SlurmProfile, code: Path, store: Path, number: int
) -> list[str]:
    """Lines of the batch script before its command: the site's own, then all that salt relies on."""
    own = {
        "SALT_STORE": str(store.absolute()),
        ARRAY_VARIABLE: str(number),
        GRACE_VARIABLE: f"{request.grace_s:g}",
        # What runs is the snapshot, whatever folder the job starts in.
        "PYTHONSAFEPATH": "1",
        # srun takes the number of processors from here only, since Slurm 22.05.
        "SRUN_CPUS_PER_TASK": str(request.cpus_per_node),
        # With `--export=NONE` srun would pass nothing on.
        "SLURM_EXPORT_ENV": "ALL",
    }
    if ATTEMPTS_VARIABLE in os.environ:
        own[ATTEMPTS_VARIABLE] = os.environ[ATTEMPTS_VARIABLE]
    settings: Mapping[str, str] = {**profile.environment, **own}
    lines = [*profile.setup]
    lines += [f"export {key}={shlex.quote(value)}" for key, value in settings.items()]
    return [*lines, f"export PYTHONPATH={shlex.quote(str(code.absolute()))}${{PYTHONPATH:+:$PYTHONPATH}}"]


def job_name(plan: str) -> str:
    """`salt-<plan>`, with what a file or a table of Slurm could trip over left out."""
    return "salt-" + re.sub(r"[^\w.-]", "_", plan)


def refuse_place(store: Path, profile: SlurmProfile) -> None:
    """Raise `UserError` for a store that the nodes would not find, or whose name Slurm reads as a pattern."""
    place = store.absolute()
    if any(character in str(place) for character in "%\\\n'\""):
        raise UserError(
            f"the store {place}: Slurm reads %, backslashes and quotes in the names of logs; choose another "
            "folder (--store)"
        )
    for local in ("/tmp", "/var/tmp", "/dev/shm"):
        if place.is_relative_to(local) and not profile.local_store:
            raise UserError(
                f"the store {place} is in {local}, which each node has of its own: choose a shared folder "
                "(--store), or set slurm: local_store: true in the site profile if all nodes see this one"
            )


def python() -> str:
    """The interpreter that jobs start, as the shell reads it."""
    return shlex.quote(sys.executable)
