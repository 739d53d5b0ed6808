"""`python -m tests.slurm.disturb`: a study on a real Slurm that is given no rest, held to the inline one.

Preemptions, time limits, a node that goes down, controller and accounting stopped and started again, the same
plan submitted while it runs. What came out is printed, with the numbers that docs/reliability.md has.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from salt.attempts import read_attempts
from salt.store import RunDir
from slurm.records import chunks
from tests.slurm.cluster import Cluster
from tests.slurm.conftest import enter
from tests.slurm.study import Study, make_study, numbers, run_inline

#: Seconds between two disturbances, and after which all of it is given up.
PAUSE_S, LIMIT_S = 10.0, 1500.0


def main(argv: list[str]) -> int:
    """0 if every number is that of the inline run and nothing was trained twice, else 1."""
    import pytest

    parser = argparse.ArgumentParser(prog="tests.slurm.disturb", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="of 16 runs each, about (default: 5)")
    args = parser.parse_args(argv)
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="salt-disturbed-") as folder,
        Cluster(extra_conf="MaxArraySize=6") as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        enter(patch, cluster)
        study = make_study(
            Path(folder),
            "disturbed",
            budgets="[20e9, 30e9]",
            seeds=str(list(range(args.seeds))),
            students="[nano, micro]",
            references=True,
        )
        say(f"{len(study.plan.runs)} runs planned; first inline, for the truth")
        run_inline(study)
        (study.store / "cache").symlink_to(study.folder / "truth" / "cache")
        found = disturbed(cluster, study)
        found["seconds"] = round(time.monotonic() - began)
    print(json.dumps(found, indent=2))
    return 0 if not found["problems"] else 1


def disturbed(cluster: Cluster, study: Study) -> dict[str, Any]:
    """Submit, disturb until all is done, and say what happened."""
    said = study.submit("--slurm", "time=2", "--slurm", "signal_delay_s=50", "--json")
    sent = json.loads(said)
    say(f"sent {sent['sent_runs']} runs in {sent['lanes']} lanes, {sent['arrays']} arrays")
    began, happened = time.monotonic(), Counter[str]()
    ways, hurry = _ways(cluster, study, happened), Hurry(cluster)
    due = began + PAUSE_S
    while study.states() != {"done": len(study.plan.runs)} and time.monotonic() - began < LIMIT_S:
        hurry()
        if time.monotonic() > due:
            next(ways)
            due = time.monotonic() + PAUSE_S
        if not cluster.states() and study.states() != {"done": len(study.plan.runs)}:
            say(f"holes: {dict(study.states())}")
            happened["submitted again"] += 1
            study.submit("--slurm", "time=2", "--slurm", "signal_delay_s=50")
        time.sleep(1.0)
    took_s = round(time.monotonic() - began)
    jobs = cluster.run("sacct", "-X", "-D", "-n", "-P", "-S", "now-1days", "-o", "JobName,State").split("\n")
    ends = Counter(line.split("|")[1].split()[0] for line in jobs if line.startswith("salt-"))
    return {
        "runs": len(study.plan.runs),
        "lanes": sent["lanes"],
        "arrays": sent["arrays"],
        "largest_array": max(len(each.chunk.lanes) for each in chunks(study.store, study.name)),
        "disturbed_s": took_s,
        "happened": dict(happened),
        "slurm_says": dict(ends),
        **_judge(study),
    }


def _ways(cluster: Cluster, study: Study, happened: Counter[str]) -> Iterator[None]:
    """One disturbance after another, for ever."""

    def preempt(nodes: int) -> None:
        cluster.submit("--partition=main", f"--nodes={nodes}", "--exclusive", wrap="sleep 4")

    def node_down() -> None:
        cluster.node_down("n3")
        time.sleep(5.0)
        cluster.node_resume("n3")

    def restart(name: str) -> None:
        cluster.stop(name)
        time.sleep(5.0)
        for tried in range(3):  # a busy machine: a daemon may not find its port free at once
            try:
                cluster.restart(name)
                return
            except AssertionError:
                log = (cluster.folder / "log" / f"{name}.log").read_text()
                say(f"{name} did not start: {log[-500:]}")
                if tried == 2:
                    raise
                time.sleep(2.0)

    def submit_again() -> None:
        answer = json.loads(study.submit("--slurm", "time=2", "--slurm", "signal_delay_s=50", "--json"))
        happened["runs sent twice"] += answer["sent_runs"]

    ways: dict[str, Callable[[], None]] = {
        "preempted two nodes": lambda: preempt(2),
        "node set down": node_down,
        "submitted while it ran": submit_again,
        "controller restarted": lambda: restart("slurmctld"),
        "preempted four nodes": lambda: preempt(4),
        "accounting restarted": lambda: restart("slurmdbd"),
    }
    while True:
        for name, way in ways.items():
            say(f"{name}: {dict(study.states())}")
            way()
            happened[name] += 1
            yield


class Hurry:
    """Slurm lets a task that is queued again wait for two minutes; tests do not.

    A node refuses the start of a job that it ended within the same second, so two pass before.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.since_s: dict[str, float] = {}

    def __call__(self) -> None:
        now = time.monotonic()
        lines = self.cluster.run("squeue", "-h", "-r", "-t", "PENDING", "-o", "%i|%r").splitlines()
        waiting = {line.split("|")[0] for line in lines if line.endswith("|BeginTime")}
        self.since_s = {name: self.since_s.get(name, now) for name in waiting}
        for name, since_s in self.since_s.items():
            if now - since_s > 2.0:
                self.cluster.attempt("scontrol", "update", f"jobid={name}", "StartTime=now")


def _judge(study: Study) -> dict[str, Any]:
    """What differs from the truth, and what was done more than once."""
    here, truth = numbers(study.store, study.plan), numbers(study.folder / "truth", study.plan)
    problems = [
        f"{name}: not the numbers of the inline run: {differences(here[name], truth[name])}"
        for name in truth
        if here[name] != truth[name]
    ]
    problems += [f"states: {dict(study.states())}"] if study.states() != {"done": len(truth)} else []
    ends: Counter[str] = Counter()
    burnt = []
    for run in study.plan.runs:
        folder = RunDir(study.store, run.run_id)
        own = [str(attempt["ended"]) for attempt in read_attempts(folder)]
        ends.update(own)
        if own.count("done") != 1:
            problems.append(f"{run.run_id}: ended as {own}")
        result = folder.read_result()
        burnt.append(0 if result is None or result.burnt_steps is None else result.burnt_steps)
    interval = study.plan.execution.checkpoint_every_steps
    steps = sum(run.spec.steps for run in study.plan.runs)
    return {
        "attempts": dict(ends),
        "steps": steps,
        "steps_trained_twice": sum(burnt),
        "most_of_one_run": max(burnt),
        "checkpoint_every_steps": interval,
        "problems": problems,
    }


def differences(here: dict[str, Any], truth: dict[str, Any]) -> list[str]:
    """Which of a run's numbers differ, for people."""
    found = [key for key in ("weights", "probes") if here[key] != truth[key]]
    mine, others = ({row["step"]: row for row in side["lines"]} for side in (here, truth))
    found += [f"step {step} is logged on one side alone" for step in sorted(mine.keys() ^ others.keys())]
    if len(mine) != len(here["lines"]):
        found.append("a step is logged twice")
    for step in sorted(mine.keys() & others.keys()):
        found += [
            f"step {step}: {key} {mine[step].get(key)} and not {value}"
            for key, value in others[step].items()
            if mine[step].get(key) != value
        ]
    return found


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
