"""`salt-sweep site`: propose a profile of the cluster at hand, and check one against it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from salt.errors import UserError, shown
from sweeps.command import add_command, print_json

if TYPE_CHECKING:
    from slurm.discover import ClusterFacts
    from slurm.profile import SlurmProfile
    from sweeps.site import SiteSpec


def add_site(commands: Any) -> None:
    parser = add_command(
        commands,
        "site",
        _site,
        "propose a profile of the cluster at hand, or check one",
        "init: propose a site profile from sinfo, scontrol and sacctmgr; guesses are marked in it.\n"
        "check: say what a profile means, and hold it against the cluster where there is one.",
        [
            "salt-sweep site init                              # to the terminal",
            "salt-sweep site init --partition gpu --write cluster.yaml",
            "salt-sweep site check cluster.yaml",
        ],
        store=False,
    )
    parser.add_argument("what", choices=("init", "check"), help="what to do")
    parser.add_argument("file", nargs="?", type=Path, help="check: the profile")
    parser.add_argument("--write", type=Path, metavar="FILE", help="init: write the profile there")
    parser.add_argument("--partition", metavar="P", help="init: for this partition")


def _site(args: argparse.Namespace) -> int:
    if args.what == "check":
        if args.file is None or args.write is not None or args.partition is not None:
            raise UserError("site check: give the profile, as in `salt-sweep site check cluster.yaml`")
        return _check(args)
    if args.file is not None:
        raise UserError(f"site init {args.file}: to write the profile there, say --write {args.file}")
    return _init(args)


def _facts() -> ClusterFacts:
    from slurm.discover import ask_cluster
    from slurm.refusals import with_way_out
    from slurm.scheduler import SchedulerSilent

    try:
        return ask_cluster()
    except SchedulerSilent as silent:
        raise UserError(f"site: {with_way_out(str(silent))}") from silent


def _init(args: argparse.Namespace) -> int:
    from sweeps.site import site_yaml
    from sweeps.site_proposal import proposed_site, proposed_text

    if args.write is not None and args.write.exists():
        raise _there_already(args.write)
    facts = _facts()
    site, guesses = proposed_site(facts, args.partition)
    text = proposed_text(facts, site_yaml(site), guesses)
    if args.write is not None:
        try:
            with open(args.write, "x", encoding="utf-8") as out:
                out.write(text)
        except FileExistsError as error:  # a link to nowhere, or someone was faster
            raise _there_already(args.write) from error
    if args.json:
        print_json({"site": msgspec.to_builtins(site), "guesses": guesses, "written": _name(args.write)})
    elif args.write is None:
        print(text, end="")
    else:
        print(
            f"written: {args.write}; look at the {len(guesses)} guesses in it, then: "
            f"salt-sweep site check {args.write}"
        )
    return 0


def _there_already(path: Path) -> UserError:
    return UserError(f"--write {path}: there is a file already; name another, or move it away")


def _name(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _check(args: argparse.Namespace) -> int:
    from slurm.discover import ask_cluster
    from slurm.scheduler import SchedulerSilent
    from sweeps.site import load_site
    from sweeps.site_proposal import contradictions

    site = load_site(args.file)
    lines = _meaning(site)
    problems: list[str] = []
    if site.slurm is not None:
        try:
            facts = ask_cluster()
            problems = contradictions(site, facts)
            verdict = "it fits" if not problems else "it does not fit"
            lines.append(f"held against cluster {facts.name}: {verdict}")
            lines += [f"not checked: {note}" for note in facts.notes]
        except SchedulerSilent as silent:
            lines.append(f"not held against a cluster: {silent}")
    if args.json:
        print_json({"site": msgspec.to_builtins(site), "meaning": lines, "problems": problems})
    else:
        print("\n".join(map(shown, lines)))
    for problem in problems:
        print(f"error: {args.file}: {shown(problem)}", file=sys.stderr)
    return 2 if problems else 0


def _request(site: SiteSpec, profile: SlurmProfile) -> str:
    """What a job asks for, as far as it does not depend on the plan."""
    gpu = f"a GPU ({profile.gpu_type})" if profile.gpu_type else "a GPU"
    cpus, memory = profile.cpus_per_run, profile.memory_gib_per_run
    per_run = [
        f"{cpus} CPUs" if cpus else "CPUs for its threads and decoders",
        f"{memory:g} GiB" if memory else "what memory the cluster gives by itself",
    ]
    gpus = f"{gpu} for each process, {site.gpus_per_node} at most on a node" if profile.gpus else "no GPU"
    return f"{gpus}; for each run {' and '.join(per_run)}"


def _meaning(site: SiteSpec) -> list[str]:
    """What a profile says, in words."""
    from slurm.durations import spoken
    from slurm.profile_checks import lane_minutes

    lines = [
        f"site {site.name}: {site.gpus_total} x {site.gpu}, {site.gpus_per_node} a node, "
        f"{site.memory_gib:g} GiB each"
    ]
    profile = site.slurm
    if profile is None:
        return [*lines, "no section slurm: plans can be priced for it, not sent to it"]
    where = f"partition {profile.partition}" if profile.partition else "the default partition"
    lines.append(f"jobs: in {where}, at most {spoken(profile.minutes)} ({profile.time}) each")
    lines.append(f"asks for: {_request(site, profile)}")
    then = "saved and queued again" if profile.requeue else "saved; submitting again sends them on"
    lines.append(f"warned {profile.signal_delay_s} s before they end; then {then}")
    minutes = lane_minutes(profile)
    lines.append(
        "each run has a job of its own"
        if not minutes
        else f"short runs share a job until it is about {spoken(minutes)} long"
    )
    caps = [f"{profile.max_jobs} jobs"] if profile.max_jobs else []
    caps += [f"{site.max_gpus} GPUs"] if site.max_gpus else []
    lines.append(f"at once: {', '.join(caps)}" if caps else "at once: as many as Slurm lets run")
    return lines
