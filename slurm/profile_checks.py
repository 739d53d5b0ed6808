"""Whether the section `slurm:` of a site profile makes sense, before anything is sent."""

from __future__ import annotations

import re

from salt.errors import UserError
from slurm.durations import minutes_of
from slurm.profile import SlurmProfile

#: Names that Slurm takes as one word.
_WORD = re.compile(r"[^\s#'\"`$;|<>]+")
_FEATURES = re.compile(r"[^\s#'\"`$;<>]+")  # `a100|h100`: one feature or another
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FOREIGN = re.compile(r"(SLURM|SBATCH|SRUN|SALT|SUBMITIT)_.*|PYTHONPATH|PYTHONSAFEPATH")
#: What sbatch takes in `--signal=USR1@...`, in seconds.
_LONGEST_DELAY_S = 65535
_OPTION = re.compile(r"[a-z][a-z0-9-]*")
#: Options of sbatch that salt sets: the key that they have here, or why they have none.
_SET_BY_SALT = {
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "reservation": "reservation",
    "time": "time",
    "exclude": "exclude",
    "signal": "signal_delay_s",
    "requeue": "requeue",
    "no-requeue": "requeue",
    "gpus": "gpu_type",
    "gpus-per-node": "gpu_type",
    "gpus-per-task": "gpu_type",
    "cpus-per-task": "cpus_per_run",
    "cpus-per-gpu": "cpus_per_run",
    "mem": "memory_gib_per_run",
    "array": None,
    "output": None,
    "error": None,
    "open-mode": None,
    "job-name": None,
    "comment": None,
    "dependency": None,
    "chdir": None,
    "wckey": None,
    "export": None,
    "nodes": None,
    "ntasks": None,
    "ntasks-per-node": None,
    "wait": None,
    "wrap": None,
    "parsable": None,
    "test-only": None,
}


#: Lanes are planned to end within this share of their time: estimates are no promises.
_SHARE = 0.8


def lane_minutes(profile: SlurmProfile) -> int:
    """How long lanes are made, in minutes; 0: each run has its own.

    At most what a job's time leaves before the warning: a lane that takes longer is queued again.
    """
    if str(profile.lane_minutes).strip() == "0":
        return 0
    wished = minutes_of(profile.lane_minutes, "slurm: lane_minutes")
    most = int(_SHARE * (profile.minutes - profile.signal_delay_s / 60))
    return max(1, min(wished, most))


def problems(profile: SlurmProfile) -> list[str]:
    """Every value that Slurm would refuse or misread, with the way out."""
    found = _times(profile)
    for key in ("partition", "account", "qos", "constraint", "reservation", "gpu_type"):
        value = getattr(profile, key)
        form = _FEATURES if key == "constraint" else _WORD
        if value is not None and not form.fullmatch(value):
            found.append(f"slurm: {key} {value!r}: give one word, as Slurm's own commands show it")
    found += [
        f"slurm: exclude {name!r}: give names of nodes, such as gpu07 or gpu[01-04]"
        for name in profile.exclude
        if not _WORD.fullmatch(name)
    ]
    if profile.gpu_type is not None and not profile.gpus:
        found.append(f"slurm: gpu_type {profile.gpu_type} with gpus: false: leave one of them out")
    found += [
        f"slurm: setup {line!r}: each entry is one line of shell"
        for line in profile.setup
        if "\n" in line or "\0" in line
    ]
    found += [
        f"slurm: setup {line!r}: sbatch would read this as an option: write it under slurm: sbatch"
        for line in profile.setup
        if line.startswith("#SBATCH")
    ]
    return found + _environment(profile) + _options(profile)


def _times(profile: SlurmProfile) -> list[str]:
    found = []
    try:
        limit_s = 60 * profile.minutes
        if 2 * profile.signal_delay_s >= limit_s:
            found.append(
                f"slurm: signal_delay_s {profile.signal_delay_s}: a job of {profile.time} would be warned in "
                f"its first half; give at most {limit_s // 2 - 1}, or more time"
            )
        elif profile.signal_delay_s > _LONGEST_DELAY_S:
            found.append(
                f"slurm: signal_delay_s {profile.signal_delay_s}: sbatch takes at most {_LONGEST_DELAY_S}"
            )
        lane_minutes(profile)
    except UserError as error:
        found.append(str(error))
    return found


def _environment(profile: SlurmProfile) -> list[str]:
    found = []
    for name, value in profile.environment.items():
        if not _VARIABLE.fullmatch(name):
            found.append(f"slurm: environment: {name!r} is no name of a variable")
        elif _FOREIGN.fullmatch(name):
            found.append(f"slurm: environment: {name} is set by Slurm or by salt: leave it out")
        if "\n" in value or "\0" in value:
            found.append(f"slurm: environment: {name}: a value is one line")
    return found


def _options(profile: SlurmProfile) -> list[str]:
    found = []
    for name, value in profile.sbatch.items():
        if not _OPTION.fullmatch(name):
            found.append(
                f"slurm: sbatch: {name!r}: write a long option of sbatch without dashes in front, such as "
                "mail-type"
            )
        elif name in _SET_BY_SALT:
            key = _SET_BY_SALT[name]
            way_out = "salt needs it itself: leave it out" if key is None else f"use slurm: {key}"
            found.append(f"slurm: sbatch: {name}: {way_out}")
        elif name in ("mem-per-cpu", "mem-per-gpu") and profile.memory_gib_per_run is not None:
            found.append(f"slurm: sbatch: {name} with memory_gib_per_run: leave one of them out")
        elif name == "gres" and str(value).startswith("gpu") and profile.gpus:
            found.append("slurm: sbatch: gres: use slurm: gpu_type for GPUs")
        if value is False:
            found.append(f"slurm: sbatch: {name}: false would be ignored: leave it out, or give a value")
        if isinstance(value, str) and ("\n" in value or "\0" in value):
            found.append(f"slurm: sbatch: {name}: a value is one line")
    return found
