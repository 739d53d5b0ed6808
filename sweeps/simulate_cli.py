"""`salt-sweep simulate`: which differences a plan could show, before anything is spent on it."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from salt.errors import UserError
from salt.store import store_path
from sweeps.command import add_command, choose, print_json, print_tables

if TYPE_CHECKING:
    from analysis.noise import MeasuredNoise
    from analysis.power import Noise
    from salt.plan_specs import Plan

#: Points of accuracy for which power is shown.
DIFFERENCES = (0.5, 1.0, 2.0, 3.0, 5.0)
#: Points: what is taken where nothing is said and nothing measured.
SEED_SD, CORRELATION, ACCURACY, SHARE_LOSS = 1.0, 0.0, 50.0, 0.4


def add_simulate(commands: Any) -> None:
    parser = add_command(
        commands,
        "simulate",
        _simulate,
        "which differences a plan could show, before anything is spent on it",
        "From the plan's arms, shares, sizes and seeds, and from the noise between seeds that you expect or\n"
        "have measured: the smallest differences that would be seen (power 80 %, 5 % after Holm's\n"
        "correction over all comparisons of a question), how many seeds one point needs, the chance to find\n"
        "the best teacher share and to get the order of arms right. Writes nothing. A study file is planned\n"
        "on the fly. All numbers are in points of accuracy; docs/power.md has the formulas.",
        [
            "salt-sweep simulate study.yaml --seed-sd 0.5",
            "salt-sweep simulate paper --seed-sd 0.3 --report-clips 20000 --accuracy 75",
            "salt-sweep simulate paper --noise-from miniature --label motion --kind linear",
            "salt-sweep simulate paper --seed-sd 0.3 --json",
        ],
    )
    parser.add_argument(
        "study",
        nargs="?",
        metavar="STUDY",
        help="a study file, or the name of a plan of the store (default: the newest plan)",
    )
    parser.add_argument("--quick", action="store_true", help="of a study file, its section `quick`")
    parser.add_argument(
        "--seed-sd",
        type=float,
        metavar="POINTS",
        help=f"standard deviation of accuracy between seeds of one configuration (default: {SEED_SD:g})",
    )
    parser.add_argument(
        "--pair-correlation",
        type=float,
        metavar="R",
        help=f"correlation of two arms at equal seed (default: {CORRELATION:g}, pairing helps nothing)",
    )
    parser.add_argument(
        "--report-clips",
        type=int,
        metavar="N",
        help="add the binomial error of a probe on N clips, where --seed-sd does not hold it yet",
    )
    parser.add_argument(
        "--accuracy",
        type=float,
        metavar="PERCENT",
        help=f"with --report-clips: the accuracy (default: {ACCURACY:g}, where the error is largest)",
    )
    parser.add_argument("--noise-from", metavar="PLAN", help="measure both on the results of another plan")
    parser.add_argument("--label", help="with --noise-from: this label (default: the noisiest)")
    parser.add_argument("--kind", help="with --noise-from: linear, knn or attentive (default: the noisiest)")
    parser.add_argument(
        "--share-loss",
        type=float,
        default=SHARE_LOSS,
        metavar="POINTS",
        help="what a teacher share twice or half the best one costs; four times that at the next doubling "
        f"(default: {SHARE_LOSS:g}, about that of the SALT paper's runs of 240k steps)",
    )
    parser.add_argument("--rng", type=int, default=0, metavar="SEED", help="of the simulation (default: 0)")


def _simulate(args: argparse.Namespace) -> int:
    _refuse(args)
    store = store_path(args.store)
    plan = _plan(args, store)
    noise, measured = _noise(args, store)
    from sweeps.simulate_show import answer, answer_json, answer_tables

    found = answer(plan, noise, args.share_loss, DIFFERENCES, args.rng)
    if args.json:
        print_json(answer_json(found, measured))
    else:
        print_tables(answer_tables(found, measured))
    return 0


def _plan(args: argparse.Namespace, store: Path) -> Plan:
    from salt.plans import read_plan

    path = Path(args.study or "")
    if path.suffix in (".yaml", ".yml"):
        from sweeps.plan import build_plan
        from sweeps.study import load_study

        return build_plan(load_study(path, quick=args.quick))
    if args.quick:
        raise UserError("--quick: only a study file has such a section; name it, or the plan NAME-quick")
    return read_plan(store, choose(store, args.study))


def _refuse(args: argparse.Namespace) -> None:
    """Raise `UserError` for numbers that mean nothing, and for options that contradict each other."""
    checks = (
        ("--seed-sd", args.seed_sd, lambda x: x >= 0, "a standard deviation in points, 0 or more"),
        ("--pair-correlation", args.pair_correlation, lambda x: -1 <= x < 1, "-1 or more and below 1"),
        ("--report-clips", args.report_clips, lambda x: x >= 1, "1 clip or more"),
        ("--accuracy", args.accuracy, lambda x: 0 < x < 100, "percent, above 0 and below 100"),
        ("--share-loss", args.share_loss, lambda x: x > 0, "points, above 0"),
        ("--rng", args.rng, lambda x: x >= 0, "a whole number, 0 or more"),
    )
    for option, value, good, wanted in checks:
        if value is not None and not (math.isfinite(value) and good(value)):
            raise UserError(f"{option} {value:g}: give {wanted}")
    if args.noise_from is not None:
        for option, value in (
            ("--seed-sd", args.seed_sd),
            ("--pair-correlation", args.pair_correlation),
            ("--report-clips", args.report_clips),
        ):
            if value is not None:
                raise UserError(
                    f"{option} {value:g} and --noise-from {args.noise_from}: that study's results say it "
                    "already, its probes' error included; give one of them"
                )
    else:
        for option, name in (("--label", args.label), ("--kind", args.kind)):
            if name is not None:
                raise UserError(
                    f"{option} {name}: it chooses among the results of --noise-from; name a plan there"
                )
    if args.accuracy is not None and args.report_clips is None:
        raise UserError(f"--accuracy {args.accuracy:g}: it needs --report-clips N beside it")


def _noise(args: argparse.Namespace, store: Path) -> tuple[Noise, MeasuredNoise | None]:
    """The noise that the options say, and what it was measured on, if it was."""
    from analysis.power import Noise, probe_sd

    if args.noise_from is not None:
        measured = _measured(args, store)
        correlation = measured.correlation or 0.0
        if correlation >= 1:
            raise UserError(
                f"--noise-from {args.noise_from}: all arms moved alike from seed to seed, so differences "
                "show no noise there; give --seed-sd and --pair-correlation"
            )
        return Noise(seed_sd=measured.seed_sd, correlation=correlation), measured
    if args.seed_sd is None:
        print(
            f"no noise given: taking {SEED_SD:g} point between seeds; measure it with --noise-from PLAN, or "
            "give --seed-sd",
            file=sys.stderr,
        )
    seed_sd = SEED_SD if args.seed_sd is None else args.seed_sd
    correlation = CORRELATION if args.pair_correlation is None else args.pair_correlation
    accuracy = ACCURACY if args.accuracy is None else args.accuracy
    clips = 0.0 if args.report_clips is None else probe_sd(accuracy, args.report_clips)
    if seed_sd == 0 and clips == 0:
        raise UserError("--seed-sd 0: without any noise every difference is seen; give --report-clips N too")
    return Noise(seed_sd=seed_sd, correlation=correlation, probe_sd=clips), None


def _measured(args: argparse.Namespace, store: Path) -> MeasuredNoise:
    from analysis.gather import gather
    from analysis.noise import measured_noise

    name = args.noise_from
    found = measured_noise(gather(store, name))
    if not found:
        raise UserError(
            f"--noise-from {name}: no configuration of it has results of two seeds or more; give --seed-sd"
        )
    for option, wanted, field in (("--label", args.label, "label"), ("--kind", args.kind, "kind")):
        known = sorted({getattr(each, field) for each in found})
        if wanted is not None and wanted not in known:
            raise UserError(f"{option} {wanted}: {name} has results of several seeds for {', '.join(known)}")
        found = [each for each in found if wanted in (None, getattr(each, field))]
    if not found:
        raise UserError(
            f"--noise-from {name}: no results of label {args.label} and probe {args.kind} together"
        )
    return found[0]
