"""Which runs a status lists, in which order, by which score: `--where`, `--failed`, `--sort`, `--best`."""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from salt.errors import UserError
from salt.plan_specs import Plan
from salt.store import DamagedFile, RunDir
from slurm.names import flops_text, run_names
from slurm.run_status import PlanStatus, RunStatus
from slurm.states import STUCK, State

#: Key of `--where` -> what it looks at. States and classes of errors need not be there to be asked for.
_WHERE: dict[str, Callable[[RunStatus], object]] = {
    "arm": lambda run: run.arm,
    "student": lambda run: run.student,
    "teacher": lambda run: run.teacher,
    "state": lambda run: str(run.state),
    "seed": lambda run: run.seed,
    "budget": lambda run: run.budget_flops or None,
    "kind": lambda run: run.kind,
    "job": lambda run: run.job,
    "node": lambda run: run.node,
}
#: Key of `--sort` -> value; numbers come largest first, names by the alphabet, what is not known last.
_SORT: dict[str, Callable[[RunStatus], Any]] = {
    "name": lambda run: run.name,
    "state": lambda run: list(State).index(run.state),
    "step": lambda run: run.step,
    "rate": lambda run: run.rate_steps_per_s,
    "left": lambda run: run.eta_s,
    "hours": lambda run: run.gpu_hours_done,
    "burnt": lambda run: run.gpu_hours_burnt,
    "flops": lambda run: run.planned_flops,
    "budget": lambda run: run.budget_flops,
    "heartbeat": lambda run: run.heartbeat_age_s,
    "attempts": lambda run: run.attempts,
    "job": lambda run: run.job,
}
#: Keys whose values come and go: seen when the status is read.
_SEEN_LATE = ("kind", "job", "node")
_ASCENDING = ("name", "state", "job")
#: The most telling probe first.
_KINDS = ("attentive", "linear", "knn")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One number of each run: never two suites, kinds or labels beside each other."""

    probe_id: str
    kind: str
    label: str
    frames: str

    def __str__(self) -> str:
        return f"suite {self.probe_id}, {self.kind} probe of {self.label}, frames {self.frames}"


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was asked for on the command line, checked against the plan."""

    where: tuple[tuple[str, str], ...] = ()
    failed: bool = False
    sort: str | None = None
    best: int | None = None
    score: Score | None = None
    again: bool = False  # looked at again and again: jobs, nodes and errors may come and go meanwhile

    @classmethod
    def of(cls, args: argparse.Namespace, plan: Plan) -> Choice:
        """Raises `UserError` for a key or value that is none; the message names what there is."""
        if args.sort is not None and args.sort not in _SORT:
            raise UserError(f"--sort {args.sort}: there is no such key; there are {', '.join(_SORT)}")
        if args.best is not None and args.best < 1:
            raise UserError(f"--best {args.best}: give at least 1")
        for option in ("probe", "kind", "label"):
            if getattr(args, option) is not None and args.best is None:
                raise UserError(f"--{option} {getattr(args, option)}: it is for --best N")
        return cls(
            where=tuple(_conditions(args.where, plan)),
            failed=args.failed,
            sort=args.sort,
            best=args.best,
            score=None if args.best is None else _score(args, plan),
            again=args.watch is not None,
        )

    @property
    def lists_runs(self) -> bool:
        return bool(self.where or self.failed or self.sort or self.best)

    def runs(self, status: PlanStatus) -> list[RunStatus]:
        """The chosen runs in their order; `--best` apart. Raises `UserError` for a value that no run has."""
        found = list(status.runs)
        for key in dict.fromkeys(key for key, _ in self.where):
            values = [value for each, value in self.where if each == key]
            wanted = {run.run_id for value in values for run in self._having(status.runs, key, value)}
            found = [run for run in found if run.run_id in wanted]
        if self.failed:
            found = [run for run in found if run.state in STUCK]
        if self.sort is not None:
            found = _sorted(found, self.sort)
        return found

    def _having(self, runs: Sequence[RunStatus], key: str, value: str) -> list[RunStatus]:
        found = _having(runs, key, value)
        if not found and key in _SEEN_LATE and not self.again:
            there = list(dict.fromkeys(str(_WHERE[key](run)) for run in runs if _WHERE[key](run) is not None))
            some = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
            raise UserError(f"--where {key}={value}: there is none; there are {some or 'none at all'}")
        return found

    def ranked(self, store: Path, plan: Plan, status: PlanStatus) -> tuple[list[RunStatus], dict[str, float]]:
        """The chosen runs, by accuracy where `--best` asks for it, and the accuracies."""
        runs = self.runs(status)
        if self.score is None or self.best is None:
            return runs, {}
        scores = _accuracies(store, plan, runs, self.score)
        scored = sorted((run for run in runs if run.run_id in scores), key=lambda run: -scores[run.run_id])
        best = scored[: self.best]
        return (best if self.sort is None else _sorted(best, self.sort)), scores

    def tables(self, store: Path, plan: Plan, status: PlanStatus) -> list[Any]:
        """The chosen runs as a table, and a line that says what they are."""
        from rich.text import Text

        from slurm.status_tables import run_table

        runs, scores = self.ranked(store, plan, status)
        hours_of = "GPU" if status.totals is None else status.totals.hours_of
        lines = [f"plan {status.plan}: {len(runs)} of {len(status.runs)} runs"]
        if self.score is not None:
            chosen = len(self.runs(status))
            have = f"{len(scores)} of {chosen} runs have it"
            lines = [f"plan {status.plan}: best {len(runs)} by {self.score}; {have}"]
        table = run_table(runs, hours_of, scores if self.score is not None else None)
        return [*map(Text, lines), *([table] if runs else [])]

    def data(self, store: Path, plan: Plan, status: PlanStatus) -> Any:
        """The status as plain data: all of it, with the chosen runs alone where some were chosen."""
        if not self.lists_runs:
            return msgspec.to_builtins(status)
        runs, scores = self.ranked(store, plan, status)
        found = msgspec.to_builtins(msgspec.structs.replace(status, runs=tuple(runs)))
        if self.score is not None:
            found["score"] = vars(self.score)
            for row in found["runs"]:
                row["accuracy"] = scores.get(row["run_id"])
        return found


def _conditions(texts: Sequence[str], plan: Plan) -> list[tuple[str, str]]:
    found = []
    for text in texts:
        for part in text.split(","):
            key, sign, value = part.partition("=")
            if not sign or key.strip() not in _WHERE:
                raise UserError(
                    f"--where {part!r}: give KEY=VALUE, several with commas between; keys are "
                    + ", ".join(_WHERE)
                )
            found.append((key.strip(), value.strip()))
    for key, value in found:
        _check(key, value, plan)
    return found


def _check(key: str, value: str, plan: Plan) -> None:
    """Refuse a value that no run of the plan can have."""
    names = run_names(plan).values()
    there: list[str]
    if key == "state":
        there = [str(state) for state in State]
    elif key == "budget":
        there = list(dict.fromkeys(f"{name.budget_flops:.3g}" for name in names if name.budget_flops))
        if _number(value) is not None and any(
            _same_budget(name.budget_flops, value) for name in names if name.budget_flops
        ):
            return
    elif key in ("arm", "seed", "teacher"):
        there = list(
            dict.fromkeys(str(each) for each in (getattr(name, key) for name in names) if each is not None)
        )
    elif key == "student":
        there = list(dict.fromkeys(name.size for name in names))
    else:
        return
    if value not in there:
        raise UserError(f"--where {key}={value}: plan {plan.name} has {key} {', '.join(there) or 'nowhere'}")


def _having(runs: Sequence[RunStatus], key: str, value: str) -> list[RunStatus]:
    look = _WHERE[key]
    if key == "budget":
        return [run for run in runs if run.budget_flops and _same_budget(run.budget_flops, value)]
    if key == "job":  # all lanes of an array, too
        return [run for run in runs if run.job is not None and value in (run.job, run.job.partition("_")[0])]
    return [run for run in runs if str(look(run)) == value]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _same_budget(flops: int, text: str) -> bool:
    """Whether a budget is the one that was typed, to the three digits that are printed."""
    number = _number(text)
    return number is not None and math.isfinite(number) and flops_text(flops) == flops_text(number)


def _sorted(runs: list[RunStatus], key: str) -> list[RunStatus]:
    look = _SORT[key]
    known = [run for run in runs if look(run) is not None]
    unknown = [run for run in runs if look(run) is None]
    return sorted(known, key=look, reverse=key not in _ASCENDING) + unknown


def _score(args: argparse.Namespace, plan: Plan) -> Score:
    """The score that is asked for, else the commonest suite's first label by its most telling probe."""
    uses = Counter(probe_id for run in plan.runs for probe_id in run.probe_ids)
    if not uses:
        raise UserError(f"--best {args.best}: plan {plan.name} has no probes")
    suites = [name for name in uses if args.probe is None or name.startswith(args.probe)]
    if not suites or (args.probe is not None and len(suites) > 1 and args.probe not in suites):
        what = "several suites" if suites else "no suite"
        raise UserError(
            f"--probe {args.probe}: {what} of plan {plan.name} begin so; there are {', '.join(uses)}"
        )
    probe_id = args.probe if args.probe in suites else max(suites, key=lambda name: uses[name])
    spec = plan.probes[probe_id]
    kind = args.kind or next((each for each in _KINDS if each in spec.kinds), spec.kinds[0])
    if kind not in spec.kinds:
        raise UserError(f"--kind {kind}: suite {probe_id} has {', '.join(spec.kinds)}")
    label = args.label or spec.labels[0]
    if label not in spec.labels:
        raise UserError(f"--label {label}: suite {probe_id} has {', '.join(spec.labels)}")
    frames = "ordered" if "ordered" in spec.frames else spec.frames[0]
    return Score(probe_id=probe_id, kind=kind, label=label, frames=frames)


def _accuracies(store: Path, plan: Plan, runs: Sequence[RunStatus], score: Score) -> dict[str, float]:
    """run_id -> accuracy on the reported clips, of the runs that have it."""
    suites = {run.run_id: run.probe_ids for run in plan.runs}
    found = {}
    for run in runs:
        if score.probe_id not in suites[run.run_id]:
            continue
        try:
            result = RunDir(store, run.run_id).read_probe(score.probe_id)
        except DamagedFile:
            continue  # the status tells of files that stand in the way of a run
        for each in result.scores if result is not None else ():
            same = (each.kind, each.label, each.frames) == (score.kind, score.label, score.frames)
            if same and math.isfinite(each.accuracy):
                found[run.run_id] = each.accuracy
    return found
