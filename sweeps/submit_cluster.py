"""`salt-sweep submit --on slurm`: what will be sent, what it costs, what is skipped; then the arrays."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from salt.errors import UserError
from sweeps.command import print_json

if TYPE_CHECKING:
    from salt.plan_specs import Plan
    from slurm.cluster import ClusterJob
    from slurm.profile import SlurmProfile
    from slurm.submission import Submission
    from sweeps.estimates import Estimate
    from sweeps.site import SiteSpec

#: Batch scripts that a dry run shows on a terminal.
SHOWN_SCRIPTS = 5


def submit_to_cluster(
    args: argparse.Namespace, submission: Submission, only: frozenset[str] | None = None
) -> int:
    """Send what is missing, and return at once: 0, also when there was nothing to send."""
    from slurm.cluster import scripts, submit_all, submit_lock
    from slurm.prepare import refuse_runs
    from sweeps.auditing import audit_plan
    from sweeps.submit_cli import agreed

    store, plan = submission.store, submission.plan
    site, profile = profile_of(args, store, plan)
    refuse_runs(plan)
    with submit_lock(store, plan.name, _say):
        job = _prepare(args, submission, site, profile, only)
        facts = _facts(job)
        if not args.json or args.dry_run:
            for line in _lines(job, facts):
                _say(line)
        if args.dry_run:
            if args.json:
                print_json({**facts, "scripts": [text for _, text in scripts(job)]})
            else:
                _show_scripts(scripts(job))
            return 0
        if not job.proposal.lanes:
            _print(args, facts, [])
            return 0
        if not args.yes and not agreed(f"send {facts['lanes']} jobs?"):
            _say("nothing was sent")
            return 1
        audit_plan(store, plan)
        sent = submit_all(job, _say)
    _print(args, facts, [str(chunk.job) for chunk in sent])
    return 0


def _show_scripts(scripts: Sequence[tuple[Any, str]]) -> None:
    """All of them, but on a terminal only some: those of a large plan differ in little."""
    from slurm.cluster import counted

    some = SHOWN_SCRIPTS if sys.stdout.isatty() else len(scripts)
    for chunk, text in scripts[:some]:
        print(f"# array {chunk.number}: {counted(len(chunk.lanes), 'task')}\n{text}")
    if some < len(scripts):
        print(f"# and {len(scripts) - some} arrays more: `... --dry-run > scripts.txt` keeps all")


def profile_of(args: argparse.Namespace, store: Path, plan: Plan) -> tuple[SiteSpec, SlurmProfile]:
    """The site and how jobs are sent there, with `--slurm KEY=VALUE` laid over it.

    Raises:
        UserError: no site is named, it has no section `slurm:`, or an option is none of its keys.
    """
    from sweeps.estimates import site_of_plan
    from sweeps.site import check_slurm

    site, where = site_of_plan(store, plan, args.site or os.environ.get("SALT_SITE") or None)
    if site is None or site.slurm is None:
        what = f"{where}: no section `slurm:`" if site is not None else "no site profile is named"
        raise UserError(
            f"--on slurm: {what}: `salt-sweep site init --write site.yaml` proposes one; then --site "
            "site.yaml, or SALT_SITE, or `site:` in the study file"
        )
    if not args.slurm:
        return site, site.slurm
    changed = check_slurm(site, dict(_setting(text) for text in args.slurm), "--slurm")
    return changed, changed.slurm or site.slurm


def _setting(text: str) -> tuple[str, Any]:
    from salt.plain_yaml import parse_yaml

    key, sign, value = text.partition("=")
    if not sign:
        raise UserError(f"--slurm {text!r}: give KEY=VALUE, such as time=4:00:00")
    return key, parse_yaml(f"value: {value}".encode(), Path(f"--slurm {key}"))["value"]


def _prepare(
    args: argparse.Namespace,
    submission: Submission,
    site: SiteSpec,
    profile: SlurmProfile,
    only: frozenset[str] | None,
) -> ClusterJob:
    """Everything that is known before anything is sent."""
    from slurm.cluster import ClusterJob
    from slurm.lanes import Wishes
    from slurm.nodes import bad_nodes
    from slurm.prepare import clips_ready
    from slurm.profile_checks import lane_minutes
    from slurm.proposal import find_limits, propose
    from slurm.records import chunks, with_jobs
    from slurm.refusals import with_way_out
    from slurm.scheduler import MUST_S, SchedulerSilent, queue
    from slurm.snapshot import snapshots_folder, take_snapshot
    from slurm.states import assess
    from sweeps.estimates import estimate, refuse_hours

    store, plan = submission.store, submission.plan
    workers = _workers(store, plan, profile, site)
    try:
        tasks = queue(MUST_S)
        limits = find_limits(profile)
    except SchedulerSilent as silent:
        raise UserError(f"plan {plan.name}: nothing was sent: {with_way_out(str(silent))}") from silent
    standings = assess(store, plan, submission.retry)
    expected = estimate(store, plan, site)
    wishes = Wishes(
        seconds=expected.seconds,
        lane_s=60.0 * lane_minutes(profile),
        workers=workers,
        slots=_slots(site, profile, plan, workers),
    )
    proposal = propose(
        store,
        plan,
        standings,
        with_jobs(chunks(store, plan.name), tasks),
        tasks,
        wishes,
        limits,
        clips_ready=clips_ready(store, plan),
        only=only,
    )
    hours = _hours(expected, proposal.lanes, plan)
    if args.max_gpu_hours is not None:
        refuse_hours(hours, args.max_gpu_hours, f"{len(proposal.missing)} runs of plan {plan.name}")
    bad = bad_nodes(store, plan, profile.exclude_after)
    return ClusterJob(
        store=store,
        plan=plan,
        profile=profile,
        processes_per_node=site.gpus_per_node,
        proposal=proposal,
        code=snapshots_folder(store) / "SNAPSHOT" if args.dry_run else take_snapshot(store).folder,
        bad_nodes=bad,
        workers=workers,
        retry=submission.retry,
        gpu_hours=hours,
    )


def _workers(store: Path, plan: Plan, profile: SlurmProfile, site: SiteSpec) -> int:
    """Runs that share a GPU."""
    if profile.runs_per_gpu != "auto":
        return profile.runs_per_gpu
    from slurm.packing import runs_that_fit

    return runs_that_fit(store, plan, plan.runs, site.usable_bytes)


def _slots(site: SiteSpec, profile: SlurmProfile, plan: Plan, workers: int) -> int | None:
    """Lanes that may run at once: `max_jobs`, and as many as `max_gpus` of the site are enough for."""
    caps = [profile.max_jobs] if profile.max_jobs is not None else []
    if site.max_gpus is not None:
        fits = site.max_gpus // plan.execution.processes
        if fits < 1:
            raise UserError(
                f"max_gpus {site.max_gpus} of site {site.name} is less than the {plan.execution.processes} "
                "processes of one run: raise it, or lower execution: processes"
            )
        caps.append(fits)
    return min(caps) if caps else None


def _hours(expected: Estimate, lanes: Sequence[Any], plan: Plan) -> float:
    """Device-hours of the lanes. Runs that were begun count whole: what they still lack is less."""
    seconds = sum(expected.seconds[name] for planned in lanes for name in planned.lane.runs)
    return seconds * plan.execution.processes / 3600


def _facts(job: ClusterJob) -> dict[str, Any]:
    """A proposal as plain data."""
    proposal = job.proposal
    sent = [name for planned in proposal.lanes for name in planned.lane.runs]
    cost = {run.run_id: run.cost.total_flops for run in job.plan.runs}
    return {
        "plan": job.plan.name,
        "runs": len(job.plan.runs),
        "done": proposal.done,
        "queued": len(proposal.queued),
        "busy": len(proposal.busy),
        "stuck": len(proposal.stuck),
        "left_out": len(proposal.left_out),
        "sent_runs": len(sent),
        "lanes": len(proposal.lanes),
        "arrays": len(proposal.arrays) + proposal.prepares,
        "planned_flops": sum(cost[name] for name in sent),
        "gpu_hours": job.gpu_hours,
        "excluded_nodes": sorted(job.bad_nodes),
        "request": msgspec.to_builtins(job.request()),
    }


def _lines(job: ClusterJob, facts: dict[str, Any]) -> list[str]:
    """What will be sent, what it costs, what is skipped."""
    from collections import Counter

    from slurm.cluster import counted, meaning
    from slurm.names import flops_text

    proposal = job.proposal
    skipped = [f"{facts['done']} done"] if facts["done"] else []
    skipped += [f"{facts['queued']} in the queue"] if facts["queued"] else []
    skipped += [f"{facts['busy']} running elsewhere"] if facts["busy"] else []
    kinds = Counter(str(standing.state) for standing in proposal.stuck.values())
    skipped += [f"{count} {state}" for state, count in kinds.items()]
    lines = []
    if skipped:
        lines.append(f"plan {job.plan.name}: of {facts['runs']} runs skipped: {', '.join(skipped)}")
    if not proposal.lanes:
        more = f"; {facts['left_out']} runs wait for room in the queue" if facts["left_out"] else ""
        return [*lines, f"plan {job.plan.name}: nothing to send{more}"]
    what = f"{counted(facts['sent_runs'], 'run')} in {counted(facts['lanes'], 'lane')}"
    lines.append(
        f"plan {job.plan.name}: {what}, {counted(facts['arrays'], 'array')}: "
        f"{flops_text(facts['planned_flops'])} of training, about {facts['gpu_hours']:.3g} GPU-hours by the "
        "site's speed (no probes, no queues)"
    )
    lines.append(meaning(job.request(), job.profile))
    if proposal.prepares:
        lines.append("a job without GPUs decodes the clips first")
    if facts["left_out"]:
        lines.append(
            f"{facts['left_out']} runs are left out: the cluster takes no more jobs of yours at once; submit "
            "again when some have ended"
        )
    return lines + _nodes(job)


def _nodes(job: ClusterJob) -> list[str]:
    """Which nodes are left out after failures, and what happened there."""
    from slurm.names import run_names
    from slurm.nodes import node_table

    if not job.bad_nodes:
        return []
    names = {name: str(each) for name, each in run_names(job.plan).items()}
    return ["left out after failures:", *node_table(job.bad_nodes, names)]


def _print(args: argparse.Namespace, facts: dict[str, Any], jobs: list[str]) -> None:
    from slurm.cluster import counted

    if args.json:
        print_json({**facts, "jobs": jobs})
    elif jobs:
        print(
            f"plan {facts['plan']}: sent {counted(facts['sent_runs'], 'run')} as job {', '.join(jobs)}; "
            f"`salt-sweep status {facts['plan']}` follows them"
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
