"""`salt-sweep status`: what is done, running, queued, failed, blocked; what was paid and is left to pay."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.errors import UserError, shown
from salt.plans import read_plan
from salt.store import store_path
from sweeps.command import STUDY_HELP, add_command, choose, print_json, print_tables

if TYPE_CHECKING:
    from salt.plan_specs import Plan
    from slurm.run_status import PlanStatus
    from slurm.status import StatusReader
    from sweeps.status_choice import Choice

#: Seconds between two looks of `--watch`; less would keep a cluster's controller busy for nothing.
WATCH_EVERY_S = 10.0
LEAST_WATCH_S = 1.0


def add_status(commands: Any) -> None:
    parser = add_command(
        commands,
        "status",
        _status,
        "what is done, running, queued, failed, blocked; what is left to pay",
        "Read the state of every run from the store's files, then from the queue where runs were sent to\n"
        "Slurm. Changes nothing. A scheduler that does not answer costs a few seconds and a note.",
        [
            "salt-sweep status study",
            "salt-sweep status            # the newest plan",
            "salt-sweep status study --watch 30",
            "salt-sweep status study --failed",
            "salt-sweep status study --where arm=salt,student=vit_g,state=failed",
            "salt-sweep status study --best 10",
            "salt-sweep status study --json",
        ],
    )
    parser.add_argument("study", nargs="?", metavar="STUDY", help=STUDY_HELP)
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=WATCH_EVERY_S,
        metavar="S",
        help=f"look again every S seconds until all is done or Ctrl-C (default: {WATCH_EVERY_S:g})",
    )
    parser.add_argument("--failed", action="store_true", help="only runs that failed or cannot begin")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="KEY=VALUE,...",
        help="only runs with arm, student, teacher, state, seed, budget, kind, job or node so; a key given "
        "twice takes either value",
    )
    parser.add_argument("--sort", metavar="KEY", help="list runs by a key, such as step or left")
    parser.add_argument("--best", type=int, metavar="N", help="the N runs with the best probe accuracy")
    parser.add_argument(
        "--probe", metavar="SUITE", help="with --best: the suite's id (default: the commonest)"
    )
    parser.add_argument(
        "--kind", help="with --best: linear, knn or attentive (default: the suite's best one)"
    )
    parser.add_argument("--label", help="with --best: the label (default: the suite's first)")
    parser.add_argument("--no-queue", action="store_true", help="ask no scheduler: files only")
    parser.add_argument("--site", metavar="SITE.yaml", help="a site profile, for money and hours left")


def _status(args: argparse.Namespace) -> int:
    from slurm.status import StatusReader
    from sweeps.status_choice import Choice

    if args.watch is not None and not args.watch >= LEAST_WATCH_S:
        raise UserError(f"--watch {args.watch:g}: give at least {LEAST_WATCH_S:g} seconds")
    store = store_path(args.store)
    plan = read_plan(store, choose(store, args.study))
    choice = Choice.of(args, plan)
    site, seconds, notes = _site(args, store, plan)
    reader = StatusReader(
        store,
        plan,
        seconds=seconds,
        price_per_gpu_hour=None if site is None else site.price_per_gpu_hour,
        currency=None if site is None else site.currency,
    )
    for note in notes:
        _say(note)
    if args.watch is not None:
        return _watch(args, store, plan, reader, choice)
    status = reader.ask(slurm=not args.no_queue)
    if args.json:
        print_json(choice.data(store, plan, status))
    else:
        print_tables(_shown(store, plan, status, choice))
    return 0


def _shown(store: Path, plan: Plan, status: PlanStatus, choice: Choice) -> list[Any]:
    """What is printed: tables, and lines as text."""
    from rich.text import Text

    from slurm.status import status_tables
    from slurm.status_tables import total_lines, waiting_lines

    if choice.lists_runs:
        parts: list[Any] = choice.tables(store, plan, status)
    else:
        parts = [*status_tables(status), *map(Text, waiting_lines(status)), *map(Text, total_lines(status))]
    return [*parts, *(Text(f"note: {shown(note)}") for note in status.notes)]


def _site(
    args: argparse.Namespace, store: Path, plan: Plan
) -> tuple[Any, Callable[[], dict[str, float]] | None, list[str]]:
    """The site, how to know what runs take there, and what is wrong with one that was not asked for."""
    from sweeps.estimates import estimate, site_of_plan

    try:
        site, _ = site_of_plan(store, plan, args.site or os.environ.get("SALT_SITE") or None)
    except UserError as error:
        if args.site is not None:
            raise
        return None, None, [f"no money and hours left by the site's speed: {shown(error)}"]
    if site is None:
        return None, None, []
    return site, cache(lambda: estimate(store, plan, site).seconds), []


# --- again and again ------------------------------------------------------------------------------


def _watch(args: argparse.Namespace, store: Path, plan: Plan, reader: StatusReader, choice: Choice) -> int:
    """Look again and again; 0 when all is done, or at Ctrl-C."""
    try:
        if args.json or not sys.stdout.isatty():
            return _watch_plainly(args, store, plan, reader, choice)
        from rich.console import Group
        from rich.live import Live

        from slurm.console import console

        with Live(console=console(), auto_refresh=False, vertical_overflow="crop") as live:
            while True:
                status = reader.ask(slurm=not args.no_queue)
                seen = time.strftime("%H:%M:%S")
                live.update(Group(*_shown(store, plan, status, choice), seen), refresh=True)
                if status.complete:
                    return 0
                time.sleep(args.watch)
    except KeyboardInterrupt:
        return 0


def _watch_plainly(
    args: argparse.Namespace, store: Path, plan: Plan, reader: StatusReader, choice: Choice
) -> int:
    """A line for each look, the table of the runs that were chosen, or an object of JSON."""
    import json

    said: set[str] = set()
    while True:
        status = reader.ask(slurm=not args.no_queue)
        if args.json:
            print(json.dumps(choice.data(store, plan, status), allow_nan=False), flush=True)
        else:
            print(f"{time.strftime('%H:%M:%S')} {_line(status)}", flush=True)
            if choice.lists_runs:
                print_tables(choice.tables(store, plan, status))
            for note in status.notes:
                if note not in said:
                    _say(f"note: {shown(note)}")
            said = set(status.notes)
        if status.complete:
            return 0
        time.sleep(args.watch)


def _line(status: PlanStatus) -> str:
    from slurm.names import flops_text
    from slurm.states import ACTIVE, State
    from slurm.status_tables import time_text

    counts = ", ".join(f"{status.counts[str(each)]} {each}" for each in State if str(each) in status.counts)
    active = [run for run in status.runs if run.state in ACTIVE]
    now = "; ".join(
        f"{run.name} {run.step or 0}/{run.total_steps}"
        + (f", {time_text(run.eta_s)} left" if run.eta_s is not None else "")
        for run in active[:5]
    )
    more = f"; and {len(active) - 5} more" if len(active) > 5 else ""
    paid = f"{flops_text(status.done_flops)} of {flops_text(status.planned_flops)}"
    return f"{status.plan}: {counts}; {paid}" + (f"; now: {now}{more}" if active else "")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
