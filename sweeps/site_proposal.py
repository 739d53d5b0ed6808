"""A site profile proposed from what a cluster tells, and one held against it."""

from __future__ import annotations

import math
import re

from salt.errors import UserError
from slurm.discover import ClusterFacts, NodeKind, Partition
from slurm.durations import slurm_time, spoken
from slurm.profile import SlurmProfile
from sweeps.document import unknown_name
from sweeps.site import DEFAULT, DEFAULT_SITE, Precision, SiteSpec

#: GPUs by a word in the name of their type: precision, dense peaks in FLOP/s, GiB that a card of the usual
#: size leaves. From NVIDIA's data sheets of the V100 SXM2, A100, H100 SXM and H200 SXM; fp32 without TF32. A
#: V100 has no bfloat16.
KNOWN: dict[str, tuple[Precision, dict[Precision, float], float]] = {
    "v100": ("fp32", {"fp32": 15.7e12}, 31.0),
    "a100": ("bf16", {"bf16": 312e12, "fp32": 19.5e12}, 79.0),
    "h100": ("bf16", {"bf16": 989e12, "fp32": 67e12}, 79.0),
    "h200": ("bf16", {"bf16": 989e12, "fp32": 67e12}, 139.0),
}
#: Cards that are slower than those of `KNOWN`, and slices of one (MIG).
_LESSER = re.compile(r"pcie|nvl|\dg\.")
#: A day: long enough for most runs, short enough to be let in between others.
USUAL_MINUTES = 1440
#: FLOP/s of one processor core, of the order of what server CPUs reach in float32.
CORE_PEAK = 1e11


def proposed_site(facts: ClusterFacts, wanted: str | None = None) -> tuple[SiteSpec, list[str]]:
    """A profile for a partition, and which of its values are guesses.

    Raises:
        UserError: there is no such partition, or none at all.
    """
    partition = _partition(facts, wanted)
    kind = max(partition.kinds, key=lambda each: (each.gpu_count, each.nodes))
    guesses: list[str] = []
    if kind.gpu_count:
        site = _with_gpus(facts, partition, kind, guesses)
    else:
        site = _without_gpus(facts, partition, kind, guesses)
    return site, guesses


def _partition(facts: ClusterFacts, wanted: str | None) -> Partition:
    by_name = {partition.name: partition for partition in facts.partitions}
    if wanted is not None:
        if wanted not in by_name:
            raise UserError(unknown_name("--partition", wanted, list(by_name)))
        return by_name[wanted]
    up = [partition for partition in facts.partitions if partition.up]
    if not up:
        raise UserError("site init: sinfo shows no partition that is up; try again later, or name one")
    with_gpus = [partition for partition in up if partition.gpus]
    # One that takes jobs of every length, and whose jobs are not taken away, is the safer first choice.
    return max(
        with_gpus or up,
        key=lambda each: (not each.preempted, each.default, each.limit_minutes or 10**9, each.gpus),
    )


def _profile(facts: ClusterFacts, partition: Partition, **more: object) -> SlurmProfile:
    minutes = min(USUAL_MINUTES, partition.limit_minutes or USUAL_MINUTES)
    return SlurmProfile(
        time=slurm_time(minutes),
        partition=partition.name,
        account=facts.accounts[0] if facts.accounts_enforced and len(facts.accounts) == 1 else None,
        signal_delay_s=min(120, 60 * minutes // 4),
        max_array_size=facts.max_array_size,
        max_submit_jobs=facts.max_submit_jobs,
        **more,  # type: ignore[arg-type]
    )


def _with_gpus(facts: ClusterFacts, partition: Partition, kind: NodeKind, guesses: list[str]) -> SiteSpec:
    name = max(kind.gpus, key=lambda each: kind.gpus[each])
    known = next((each for word, each in KNOWN.items() if word in name.lower()), None)
    if known is None:
        guesses += ["gpu, memory_gib, peak_flops: the cluster does not say which GPUs these are; the A100's"]
    elif _LESSER.search(name.lower()):
        guesses.append(f"memory_gib, peak_flops: of the whole SXM card; {name} has less")
    precision, peaks, memory = known or KNOWN["a100"]
    guesses.append("memory_gib: of the card's usual size; `nvidia-smi` tells")
    guesses.append("utilisation: assumed; measure with `salt-sweep benchmark --write`")
    nodes = sum(each.nodes for each in partition.kinds if name in each.gpus)
    per_node = kind.gpus[name]
    return SiteSpec(
        name=f"{facts.name}-{partition.name}",
        gpu=name or "GPU",
        gpus_total=sum(each.nodes * each.gpus[name] for each in partition.kinds if name in each.gpus),
        gpus_per_node=per_node,
        memory_gib=memory,
        peak_flops=peaks,
        precision=precision,
        utilisation=DEFAULT_SITE.utilisation,
        note=f"{nodes} nodes of {kind.cpus} CPUs and {kind.memory_mib / 1024:.0f} GiB",
        slurm=_profile(
            facts,
            partition,
            gpu_type=name or None,
            cpus_per_run=max(1, kind.cpus // per_node),
            memory_gib_per_run=max(1.0, kind.memory_mib // per_node // 1024),
        ),
    )


def _without_gpus(facts: ClusterFacts, partition: Partition, kind: NodeKind, guesses: list[str]) -> SiteSpec:
    guesses.append("peak_flops, utilisation: of one processor core; measure with `salt-sweep benchmark`")
    memory = math.floor(100 * kind.memory_mib / 1024 / max(1, kind.cpus)) / 100
    return SiteSpec(
        name=f"{facts.name}-{partition.name}",
        gpu="CPU, 1 thread",
        gpus_total=max(1, sum(each.nodes * each.cpus for each in partition.kinds)),
        gpus_per_node=max(1, kind.cpus),
        memory_gib=max(0.1, memory),
        reserve_gib=0.0,
        peak_flops={"fp32": CORE_PEAK},
        precision="fp32",
        utilisation={DEFAULT: 0.2},
        note=f"{kind.nodes} nodes of {kind.cpus} CPUs and {kind.memory_mib / 1024:.0f} GiB, without GPUs",
        slurm=_profile(facts, partition, gpus=False, memory_gib_per_run=max(0.1, memory)),
    )


def proposed_text(facts: ClusterFacts, yaml: str, guesses: list[str]) -> str:
    """The profile with comments: what is guessed, and what else there is."""
    version = f", Slurm {facts.version}" if facts.version else ""
    lines = [
        f"# Proposed from what cluster {facts.name} tells{version}; docs/cluster.md explains every key.",
        "#",
        "# Guesses, to be corrected:",
        *(f"#   {guess}" for guess in guesses),
        "#",
        "# Partitions:",
        *(f"#   {_described(partition)}" for partition in facts.partitions),
    ]
    if facts.accounts:
        lines.append(f"# Your accounts: {', '.join(facts.accounts)}; qos: {', '.join(facts.qos) or 'none'}")
    if any(partition.preempted for partition in facts.partitions) and not facts.warns_of_preemption:
        lines.append(
            "# Preempted jobs get no warning here (no preempt_send_user_signal) but SIGTERM, then GraceTime."
        )
    lines += [f"# {note}" for note in facts.notes]
    return "\n".join([*lines, "", yaml.rstrip("\n"), ""])


def _described(partition: Partition) -> str:
    limit = "no limit" if partition.limit_minutes is None else spoken(partition.limit_minutes) or "no time"
    kinds = "; ".join(
        f"{kind.nodes} nodes of {kind.cpus} CPUs, {kind.memory_mib / 1024:.0f} GiB"
        + "".join(f", {count} {name or 'GPU'}" for name, count in kind.gpus.items())
        for kind in partition.kinds
    )
    marks = [", the default" if partition.default else "", "" if partition.up else ", not up"]
    marks.append(f", preempted after {partition.grace_s} s" if partition.preempted else "")
    return f"{partition.name}{''.join(marks)}: {limit}; {kinds}"


def contradictions(site: SiteSpec, facts: ClusterFacts) -> list[str]:
    """What a profile asks for that this cluster does not have."""
    profile = site.slurm
    assert profile is not None
    by_name = {partition.name: partition for partition in facts.partitions}
    names = ", ".join(by_name) or "none"
    found = []
    wanted = [name for name in (profile.partition or "").split(",") if name]
    found += [unknown_name("slurm: partition", name, list(by_name)) for name in wanted if name not in by_name]
    used = [by_name[name] for name in wanted if name in by_name]
    if not wanted:
        used = [each for each in facts.partitions if each.default]
        if not used:
            found.append(f"slurm: partition: this cluster has no default; name one of these: {names}")
    for partition in used:
        found += _beyond(site, profile, partition)
    for key, there in (("account", facts.accounts), ("qos", facts.qos)):
        value = getattr(profile, key)
        if value is not None and there and value not in there:
            found.append(unknown_name(f"slurm: {key}", value, list(there)))
        elif key == "qos" and value is not None:
            found += [
                f"slurm: qos {value}: partition {each.name} takes {', '.join(each.qos) or 'none'}"
                for each in used
                if each.qos is not None and value not in each.qos
            ]
    size = profile.max_array_size
    if size is not None and facts.max_array_size is not None and size > facts.max_array_size:
        found.append(f"slurm: max_array_size {size}: the cluster's is {facts.max_array_size}")
    return found


def _beyond(site: SiteSpec, profile: SlurmProfile, partition: Partition) -> list[str]:
    """What one partition does not give."""
    found = []
    name, limit = partition.name, partition.limit_minutes
    if limit is not None and profile.minutes > limit:
        found.append(f"slurm: time {profile.time}: partition {name} allows {spoken(limit) or 'less'}")
    kinds = partition.kinds
    if profile.gpus:
        types = sorted({each for kind in kinds for each in kind.gpus})
        if profile.gpu_type is not None and profile.gpu_type not in types:
            there = ", ".join(each or "GPUs without a type" for each in types) or "no GPUs"
            found.append(f"slurm: gpu_type {profile.gpu_type}: partition {name} has {there}")
        else:
            fitting = [kind for kind in kinds if profile.gpu_type in (None, *kind.gpus)]
            counts = (
                kind.gpu_count if profile.gpu_type is None else kind.gpus[profile.gpu_type]
                for kind in fitting
            )
            most = max(counts, default=0)
            if site.gpus_per_node > most:
                found.append(f"gpus_per_node {site.gpus_per_node}: nodes of {name} have {most}")
            kinds = tuple(fitting)
    cpus = max((kind.cpus for kind in kinds), default=0)
    if profile.cpus_per_run is not None and profile.cpus_per_run > cpus:
        found.append(f"slurm: cpus_per_run {profile.cpus_per_run}: nodes of {name} have {cpus}")
    memory = max((kind.memory_mib for kind in kinds), default=0) / 1024
    if profile.memory_gib_per_run is not None and profile.memory_gib_per_run > memory:
        found.append(
            f"slurm: memory_gib_per_run {profile.memory_gib_per_run:g}: nodes of {name} have {memory:.4g} GiB"
        )
    return found
