"""`salt-sweep tune`: tune every arm's recipe with the same effort, inside one cell."""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from salt.errors import UserError
from salt.store import store_path
from sweeps.command import add_command, print_json, print_tables

if TYPE_CHECKING:
    from sweeps.study import Study
    from sweeps.tune_config import TuneConfig


#: Of a range: what a trial at either may cost.
ENDS: tuple[Literal["low", "high"], ...] = ("low", "high")


def add_tune(commands: Any) -> None:
    parser = add_command(
        commands,
        "tune",
        _tune,
        "tune every arm's recipe with the same number of trials",
        "Search learning rate, weight decay, EMA momentum and masks inside one cell (one student size, one\n"
        "budget, one seed that the study does not use), as many trials for every arm, chosen on the\n"
        "selection split. Trials are runs of the store. The same command again goes on where it stopped:\n"
        "a trial that was killed is the same trial, from its checkpoint. Start it as often as you like, on\n"
        "as many machines as share the store: they work together.",
        [
            "salt-sweep tune study.yaml --cell student=micro,budget=3e11 --trials 12 --workers 2",
            "salt-sweep tune study.yaml --space space.yaml --trials 40 --prune --objective loss",
            "salt-sweep tune study.yaml --objective accuracy,flops --space space.yaml",
            "salt-sweep tune study.yaml --recipe tuned.yaml     # write what was found; studies: "
            "recipe: tuned.yaml",
            "salt-sweep tune study.yaml --show",
        ],
    )
    parser.add_argument("study", metavar="STUDY", help="a study file, or the name of a plan of the store")
    parser.add_argument(
        "--cell",
        metavar="WHAT",
        help="the cell, such as student=micro,budget=3e11,teacher=nano,share=0.3 (default: the study's first "
        "student, its smallest budget, first teacher and share); student may be any size: a proxy",
    )
    parser.add_argument("--arms", metavar="A,B", help="which arms (default: all of the study)")
    parser.add_argument("--trials", type=int, default=None, metavar="N", help="for each arm (default: 12)")
    parser.add_argument("--seed", type=int, metavar="N", help="default: one more than the study's largest")
    parser.add_argument("--space", metavar="FILE", help="YAML: fields with their ranges (docs/tuning.md)")
    parser.add_argument(
        "--objective",
        default="accuracy",
        metavar="WHAT",
        help="accuracy (selection split), loss, or accuracy,flops (default: accuracy)",
    )
    parser.add_argument("--label", metavar="NAME", help="of the accuracy (default: the first probe's)")
    parser.add_argument("--probe", metavar="KIND", help="linear, knn or attentive (default: the first)")
    parser.add_argument(
        "--prune", action="store_true", help="stop trials whose loss is worse than the median's"
    )
    parser.add_argument("--name", metavar="NAME", help="of the tuning (default: STUDY-tuning)")
    parser.add_argument("--seed-from", metavar="OLD", help="begin with the finished trials of another tuning")
    parser.add_argument("--workers", type=int, default=1, metavar="W", help="processes here (default: 1)")
    parser.add_argument("--quick", action="store_true", help="lay the file's section `quick` over it")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, price a trial, write nothing"
    )
    parser.add_argument("--show", action="store_true", help="say what has been found, without working")
    parser.add_argument("--recipe", metavar="FILE", help="write the best values as a recipe file")


def _tune(args: argparse.Namespace) -> int:
    from sweeps.tune_config import write_config
    from sweeps.tune_journal import GRACE_S
    from sweeps.tune_results import tuned_recipe, write_recipe, write_summary
    from sweeps.tune_run import run_workers, seeded

    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: give at least 1")
    store = store_path(args.store)
    study, data = _study(args, store)
    config = _config(args, study, data)
    priced = _priced(study, config, data)
    if args.dry_run:
        print_json(priced) if args.json else print_tables([_price_table(priced)])
        return 0
    config = write_config(store, config, data)
    if args.seed_from:
        print_note(
            args, f"{seeded(store, config, args.seed_from)} finished trials of {args.seed_from} taken over"
        )
    if not args.show:
        run_workers(store, config, args.workers)
    told = write_summary(store, config, GRACE_S)
    if args.recipe:
        path = Path(args.recipe)
        write_recipe(path, tuned_recipe(config, study, told, f"{path.stem}@1"))
    if args.json:
        print_json(told | ({"recipe": args.recipe} if args.recipe else {}))
        return 0
    print_tables([_result_table(config, told)])
    if args.recipe:
        print(f"recipe: {args.recipe}; a study takes it with `recipe: {args.recipe}`")
    return 0


def print_note(args: argparse.Namespace, text: str) -> None:
    import sys

    print(text, file=sys.stderr)


def _study(args: argparse.Namespace, store: Path) -> tuple[Study, bytes]:
    """The study and the bytes of its file."""
    from salt.plans import plan_dir, read_plan
    from sweeps.study import load_study

    path = Path(args.study)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        study = load_study(path, quick=args.quick)
        return study, study.data
    plan = read_plan(store, args.study)
    if plan.overrides:
        raise UserError(
            f"plan {args.study} was planned with options laid over its file "
            f"({', '.join(plan.overrides)}): write "
            "them into a study file, and tune that"
        )
    path = plan_dir(store, args.study) / "study.yaml"
    study = load_study(path, folder=Path(plan.execution.folder or path.parent), quick=args.quick)
    return study, study.data


def _config(args: argparse.Namespace, study: Study, data: bytes) -> TuneConfig:
    from salt.specs import CELL_ARMS
    from sweeps.tune_config import DIRECTIONS, TuneConfig, check_objectives
    from sweeps.tune_space import default_space, parse_space

    file = study.file
    known: list[str] = [name for name in CELL_ARMS if getattr(file.arms, name) is not None]
    arms = [name.strip() for name in args.arms.split(",")] if args.arms else known
    for arm in arms:
        if arm not in known:
            raise UserError(f"--arms {args.arms}: the study has no arm {arm!r}: it has {', '.join(known)}")
    cell = _cell(args.cell, study, arms)
    if args.trials is not None and args.trials < 1:
        raise UserError(f"--trials {args.trials}: give at least 1")
    objectives: Any = tuple(part.strip() for part in args.objective.split(","))
    for each in objectives:
        if each not in DIRECTIONS:
            raise UserError(f"--objective {args.objective}: {each!r} is none of {', '.join(DIRECTIONS)}")
    if args.space:
        from salt.plain_yaml import parse_yaml

        path = Path(args.space)
        if not path.is_file():
            raise UserError(f"--space {path} is not there")
        space = parse_space(parse_yaml(path.read_bytes(), path), study, str(path))
    else:
        space = default_space(study, arms, cell["student"])
    check_objectives(objectives, args.prune, space, tuple(arms))
    if ("accuracy" in objectives) and not file.probes:
        raise UserError(f"--objective accuracy: {study.path} has no probes; add one, or tune for loss")
    label, kind = _decides(args, study) if "accuracy" in objectives else (None, None)
    if args.prune and file.execution.processes > 1:
        raise UserError("--prune: a run of several processes cannot be stopped by one of them; leave it out")
    seeds = {*file.seeds, *(seed for extra in file.extra_seeds for seed in extra.seeds)}
    seed = max(seeds) + 1 if args.seed is None else args.seed
    if seed in seeds:
        raise UserError(f"--seed {seed} is one of the study's own: what is tuned on it is not tested on it")
    return TuneConfig(
        name=args.name or f"{study.name}-tuning",
        study=study.name,
        study_sha256=hashlib.sha256(data).hexdigest(),
        folder=str(study.folder),
        quick=args.quick,
        arms=tuple(arms),
        seed=seed,
        space=space,
        objectives=objectives,
        label=label,
        probe=kind,
        prune=args.prune,
        trials=args.trials or 12,
        **cell,
    )


def _decides(args: argparse.Namespace, study: Study) -> tuple[str, str]:
    """Label and kind of the probe whose accuracy is tuned for: the study's first, unless named."""
    known = [(label, kind) for probe in study.file.probes for label in probe.labels for kind in probe.kinds]
    for label, kind in known:
        if args.label in (None, label) and args.probe in (None, kind):
            return label, kind
    asked = ", ".join(f"--{name} {value}" for name in ("label", "probe") if (value := getattr(args, name)))
    names = ", ".join(f"{label}/{kind}" for label, kind in dict.fromkeys(known))
    raise UserError(f"{asked}: the study's probes are {names}")


def _cell(text: str | None, study: Study, arms: list[str]) -> dict[str, Any]:
    """Student, budget, teacher and share of the cell that is tuned in."""
    found: dict[str, str] = {}
    for part in (text or "").split(",") if text else ():
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in ("student", "budget", "teacher", "share"):
            raise UserError(
                f"--cell {text!r}: {part!r} is no condition: write student=NAME, budget=FLOPS, "
                "teacher=NAME, share=0.3"
            )
        found[name] = value
    numbers: dict[str, float] = {}
    for name in ("budget", "share"):
        if name in found:
            try:
                numbers[name] = float(found[name])
            except ValueError:
                raise UserError(f"--cell {text!r}: {name}={found[name]} is no number") from None
    student = found.get("student", study.file.students[0])
    for name in (student, found.get("teacher", student)):
        if name not in study.sizes and name not in study.external:
            raise UserError(f"--cell {text!r}: unknown size {name!r} (known: {', '.join(study.sizes)})")
    frozen = study.file.arms.salt if "salt" in arms else study.file.arms.hybrid if "hybrid" in arms else None
    teacher, share = found.get("teacher"), numbers.get("share")
    if frozen is not None and not frozen.chains:
        teacher = teacher or (frozen.teachers[0] if frozen.teachers else None)
        share = share if share is not None else (frozen.teacher_share[0] if frozen.teacher_share else None)
    return {
        "student": student,
        "budget": numbers.get("budget", min(study.budgets)),
        "teacher": teacher,
        "share": share,
    }


def _priced(study: Study, config: TuneConfig, data: bytes) -> dict[str, Any]:
    """Plan both ends of every arm's space: what a trial costs. Raises `UserError` where none can be made."""
    import tempfile

    from sweeps.tune_config import STUDY, tuning_dir
    from sweeps.tune_space import of_arm
    from sweeps.tune_train import Trainer

    arms = {}
    with tempfile.TemporaryDirectory(prefix="salt-tune-") as folder:
        place = tuning_dir(Path(folder), config.name)
        place.mkdir(parents=True)
        (place / STUDY).write_bytes(data)
        trainer = Trainer(Path(folder), config)
        for arm in config.arms:
            ends: list[dict[str, Any]] = []
            for end in ENDS:
                ends.append({name: axis.end(end) for name, axis in of_arm(config.space, arm).items()})
            try:
                cells = [trainer.planned(arm, values)[1] for values in ends]
            except UserError as error:
                raise UserError(str(error).replace(str(place / STUDY), str(study.path))) from error
            arms[arm] = {"trials": config.trials, "flops_of_a_trial": [cell.charged_flops for cell in cells]}
    return {"name": config.name, "student": config.student, "seed": config.seed, "arms": arms}


def _price_table(priced: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title=f"Tuning {priced['name']}: student {priced['student']}, seed {priced['seed']}")
    for name in ("arm", "trials", "FLOPs of a trial, teacher included"):
        table.add_column(name)
    for arm, row in priced["arms"].items():
        low, high = row["flops_of_a_trial"]
        table.add_row(arm, str(row["trials"]), f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}")
    return table


def _result_table(config: TuneConfig, told: dict[str, Any]) -> Any:
    from rich.table import Table

    from sweeps.tune_work import values_text

    what = ", ".join(config.objectives)
    of = "" if config.label is None else f" of {config.label}, {config.probe}"
    table = Table(title=f"Tuning {config.name}: {what}{of}, {told['split']} split, seed {config.seed}")
    for name in ("arm", "complete", "pruned", "failed", "open", "best", what, "run"):
        table.add_column(name)
    for arm, row in told["arms"].items():
        counts = [str(row[name]) for name in ("complete", "pruned", "failed", "open")]
        for place, top in enumerate(row["best"] or [None]):
            head = [arm, *counts] if place == 0 else [""] * 5
            if top is None:
                table.add_row(*head, "–", "–", "–")
                continue
            scores = ", ".join(f"{top[each]:.6g}" for each in config.objectives)
            table.add_row(*head, values_text(top["values"]), scores, str(top["run_id"]))
    return table
