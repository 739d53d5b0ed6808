"""How jobs are sent to a cluster: the section `slurm:` of a site profile. Nothing here changes a number."""

from __future__ import annotations

from typing import Literal

from salt.specs import NonNegativeInt, PositiveFloat, PositiveInt, Spec
from slurm.durations import minutes_of


class SlurmProfile(Spec, kw_only=True):
    """What `sbatch` is asked for. Times are `90` (minutes), `1:30:00` (hours) or `2-00:00:00` (days).

    A job is a lane: one array task that works through a list of runs. `time` is its limit; runs that take
    longer save, are queued again and go on. `signal_delay_s` is how long before the limit, or before a
    preemption, the job is told; a save must fit into it. Lanes are made `lane_minutes` long where runs are
    shorter than that, by the site's estimates; `0` gives each run a lane of its own. `runs_per_gpu` runs
    share a GPU, or as many as fit by the memory that finished runs of the kind took (`auto`).

    `max_jobs` caps the jobs of a plan that run at once, over all arrays. `max_array_size` (Slurm's
    MaxArraySize, one more than the highest index) and `max_submit_jobs` are read from `scontrol` and
    `sacctmgr` where they are not given. With `gpus: false` no GPU is asked for.

    `layout` is for runs over several nodes: one task for each process (`srun`), or one task a node that
    starts the processes there with torchrun's variables (`torchrun`). `setup` lines run in the batch script
    before anything else, `environment` is set on top of what the submitting shell has, `sbatch` are further
    options of that command. A node on which `exclude_after` runs in a row ended without a word is left out.
    `local_store` lets the store be in /tmp, which on a real cluster each node has of its own.
    """

    time: str | int  # limit of one job
    partition: str | None = None  # one or several, with commas; none: the cluster's
    account: str | None = None  # whom the hours are charged to
    qos: str | None = None  # Slurm's quality of service
    constraint: str | None = None  # features of nodes
    reservation: str | None = None  # Slurm's
    gpus: bool = True  # false: ask for none
    gpu_type: str | None = None  # as in `--gpus-per-node=a100:1`
    cpus_per_run: PositiveInt | None = None  # None: threads of all processes, and decoders of streamed clips
    memory_gib_per_run: PositiveFloat | None = None  # None: what the site gives by itself
    signal_delay_s: PositiveInt = 120  # warned so long before the end
    requeue: bool = True  # false: jobs may not be queued again
    lane_minutes: str | int = 30  # shorter runs share a job until it is so long
    runs_per_gpu: PositiveInt | Literal["auto"] = 1  # at once; auto: by memory
    max_jobs: PositiveInt | None = None  # of a plan, at once
    max_array_size: PositiveInt | None = None  # none: ask scontrol
    max_submit_jobs: PositiveInt | None = None  # none: ask sacctmgr
    layout: Literal["srun", "torchrun"] = "srun"  # of runs over several nodes
    exclude: tuple[str, ...] = ()  # nodes that are never used
    exclude_after: NonNegativeInt = 2  # 0: never
    setup: tuple[str, ...] = ()  # lines of shell before anything else
    environment: dict[str, str] = {}  # variables on top of the shell's
    sbatch: dict[str, str | bool] = {}  # further options of that command
    local_store: bool = False  # the store may be in /tmp

    @property
    def minutes(self) -> int:
        """The time limit of a job in minutes."""
        return minutes_of(self.time, "slurm: time")
