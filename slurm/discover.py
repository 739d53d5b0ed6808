"""What Slurm's own commands tell of a cluster, for a first site profile. Pure but for `ask_cluster`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from salt.specs import Spec
from slurm.scheduler import MUST_S, SchedulerSilent, ask

SINFO = ("sinfo", "--noheader", "--exact", "--format=%P|%a|%l|%D|%c|%m|%G")


class NodeKind(Spec, kw_only=True):
    """Nodes of a partition that are alike. `gpus` is type -> how many; the type "" has no name."""

    nodes: int
    cpus: int
    memory_mib: int
    gpus: dict[str, int] = {}

    @property
    def gpu_count(self) -> int:
        return sum(self.gpus.values())


class Partition(Spec, kw_only=True):
    """A partition, as far as it matters for sending jobs. `limit_minutes` None: no limit."""

    name: str
    default: bool
    up: bool
    limit_minutes: int | None
    kinds: tuple[NodeKind, ...]
    preempted: bool = False
    grace_s: int = 0
    qos: tuple[str, ...] | None = None  # that it takes; None: all

    @property
    def gpus(self) -> int:
        return sum(kind.nodes * kind.gpu_count for kind in self.kinds)


class ClusterFacts(Spec, kw_only=True):
    """What a profile is proposed from. Limits are None where nobody tells."""

    name: str
    version: str | None
    partitions: tuple[Partition, ...]
    max_array_size: int | None
    requeue: bool
    warns_of_preemption: bool
    accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()
    max_submit_jobs: int | None = None
    accounts_enforced: bool = False
    notes: tuple[str, ...] = ()  # what could not be asked


def ask_cluster() -> ClusterFacts:
    """Ask sinfo, scontrol and, where there is accounting, sacctmgr.

    Raises:
        SchedulerSilent: sinfo or scontrol do not answer.
    """
    sinfo = ask(SINFO, MUST_S)
    partitions = ask(["scontrol", "show", "partition", "--oneliner"], MUST_S)
    config = ask(["scontrol", "show", "config"], MUST_S)
    form = "format=Account,QOS,MaxSubmitJobs,GrpSubmitJobs"
    name = _settings(config).get("ClusterName")
    here = [] if name is None else [f"cluster={name}"]  # one database may serve several
    try:
        accounts = ask(
            ["sacctmgr", "--noheader", "--parsable2", "show", "associations", _user(), *here, form]
        )
        notes: tuple[str, ...] = () if accounts.strip() else ("accounting knows no account of yours",)
    except SchedulerSilent as silent:
        accounts, notes = "", (f"accounts and their limits are not known: {silent}",)
    return facts_of(sinfo, partitions, config, accounts, notes)


def _user() -> str:
    import os
    import pwd

    return f"user={pwd.getpwuid(os.getuid()).pw_name}"


def facts_of(
    sinfo: str, partitions: str, config: str, accounts: str, notes: tuple[str, ...] = ()
) -> ClusterFacts:
    """What the texts of these commands say, asked as `ask_cluster` does."""
    settings = _settings(config)
    details = {}
    for line in partitions.splitlines():
        fields = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if "PartitionName" in fields:
            details[fields["PartitionName"]] = fields
    size = settings.get("MaxArraySize", "")
    limits = [int(each) for line in accounts.splitlines() for each in line.split("|")[2:] if each.isdigit()]
    return ClusterFacts(
        name=settings.get("ClusterName", "cluster"),
        version=settings.get("SLURM_VERSION"),
        partitions=_partitions(sinfo, details, settings),
        max_array_size=int(size) if size.isdigit() else None,
        requeue=settings.get("JobRequeue", "1") == "1",
        warns_of_preemption="preempt_send_user_signal" in settings.get("SlurmctldParameters", ""),
        accounts=_each(line.split("|")[0] for line in accounts.splitlines()),
        qos=_each(name for line in accounts.splitlines() for name in (line.split("|") + [""])[1].split(",")),
        max_submit_jobs=min(limits) if limits else None,
        accounts_enforced=settings.get("AccountingStorageEnforce", "none") not in ("none", ""),
        notes=notes,
    )


def _settings(config: str) -> dict[str, str]:
    pairs = (line.split("=", 1) for line in config.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, value in pairs}


def _each(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for name in names if name))


def _partitions(
    sinfo: str, details: dict[str, dict[str, str]], settings: dict[str, str]
) -> tuple[Partition, ...]:
    lines: dict[str, list[list[str]]] = {}
    for line in sinfo.splitlines():
        fields = line.strip().split("|", 6)
        if len(fields) == 7:
            lines.setdefault(fields[0], []).append(fields)
    found = []
    for mark, rows in lines.items():
        name = mark.rstrip("*")
        more = details.get(name, {})
        kinds = tuple(
            NodeKind(
                nodes=_number(row[3]), cpus=_number(row[4]), memory_mib=_number(row[5]), gpus=gres(row[6])
            )
            for row in rows
        )
        mode = more.get("PreemptMode", settings.get("PreemptMode", "OFF"))
        preempts = settings.get("PreemptType", "preempt/none") not in ("preempt/none", "(null)")
        found.append(
            Partition(
                name=name,
                default=mark.endswith("*"),
                up=rows[0][1] == "up",
                limit_minutes=limit_minutes(rows[0][2]),
                kinds=kinds,
                preempted=preempts and mode not in ("OFF", "GANG"),
                grace_s=_number(more.get("GraceTime", "0")),
                qos=_allowed(more.get("AllowQos")),
            )
        )
    return tuple(found)


def _allowed(text: str | None) -> tuple[str, ...] | None:
    """`a,b` of `AllowQos=a,b`; None for `ALL`, and where nothing is said."""
    return None if text in (None, "ALL") else _each(str(text).split(","))


def _number(text: str) -> int:
    """`96`, `96+` of nodes that differ, `0`."""
    match = re.match(r"\d+", text)
    return int(match[0]) if match else 0


def gres(text: str) -> dict[str, int]:
    """GPUs of a node, type -> how many: `gpu:a100:8(S:0-1),nvme:1` -> {"a100": 8}; `gpu:4` -> {"": 4}."""
    found: dict[str, int] = {}
    for item in re.sub(r"\([^)]*\)", "", text).split(","):
        parts = item.strip().split(":")
        if parts[0] != "gpu" or len(parts) < 2 or not parts[-1].isdigit():
            continue
        kind = parts[1] if len(parts) > 2 else ""
        found[kind] = found.get(kind, 0) + int(parts[-1])
    return found


def limit_minutes(text: str) -> int | None:
    """A partition's time limit as sinfo writes it: `infinite`, `5:00`, `1-00:00:00`; seconds are rounded
    down.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if match is None:
        return None
    days, hours, minutes = (int(part or 0) for part in match.groups()[:3])
    return 1440 * days + 60 * hours + minutes
