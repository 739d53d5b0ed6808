"""`salt-sweep ledger`: where the FLOPs of one run go, under both conventions, before any study is written.

The setting is the SALT paper's (arXiv 2509.24317, tables 4 and 5) unless told otherwise; docs/flops.md
explains what the numbers mean. Totals are sums of the integers that `--json` prints.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any, cast

from salt.errors import UserError
from salt.sizes import SIZES, check_model, grid
from salt.specs import (
    ARMS,
    Arm,
    ClipSpec,
    DataSpec,
    MaskSpec,
    ModelSpec,
    OptimSpec,
    RunSpec,
    TeacherRef,
    VitSpec,
)
from sweeps.command import add_command, print_json, print_tables
from sweeps.config import MaskConfig
from sweeps.document import unknown_name
from sweeps.ledger_show import Ledger, audit_json, audit_tables, ledger_json, ledger_tables
from sweeps.mask_config import mask_spec
from sweeps.study import views_of

#: Predictor and pixel decoder of the SALT paper (table 4). The number of heads changes no FLOP.
PREDICTOR = VitSpec(width=384, depth=12, heads=16, mlp_width=1536)
#: Blocks and their scale in the published short- and long-range mask.
MASKS = ((8, 0.15), (2, 0.7))

#: Videos of V-3.6M (arXiv 2509.24317, table 2).
PUBLISHED_CLIPS = 3_626_129


def add_ledger(commands: Any) -> None:
    """The subcommand `ledger`."""
    parser = add_command(
        commands,
        "ledger",
        run_ledger,
        "where the FLOPs of a run go, under both conventions",
        "Break one run down by part and kind of product, in closed form, beside the SALT paper's own count.\n"
        "The setting is the paper's unless told otherwise: 224 px, 16 frames, patches of 2 x 16 x 16,\n"
        "predictor of 12 blocks of width 384, batch 3072, one short-range and one long-range mask.\n"
        "Without --arm: salt if --teacher is given, else pixel and vjepa. Nothing is read or written.",
        [
            "salt-sweep ledger --arm salt --teacher vit_l --student vit_g",
            "salt-sweep ledger --teacher vit_l --student vit_l --steps 160000 --teacher-steps 80000",
            "salt-sweep ledger --arm vjepa --student vit_l --crop 256 --steps 240000",
            "salt-sweep ledger --teacher vit_l --steps 160000 --targets 'cached(views=2)' --json",
            "salt-sweep ledger --arm pixel --student vit_b --visible 152 --target 1416 --audit",
        ],
        store=False,
    )
    parser.add_argument(
        "--arm", action="append", metavar="ARM", help=f"{', '.join(ARMS)}; may be given several times"
    )
    parser.add_argument(
        "--student",
        action="append",
        metavar="SIZE",
        help=f"encoder that is trained: {', '.join(SIZES)} (default: vit_l); may be given several times",
    )
    parser.add_argument("--teacher", metavar="SIZE", help="the frozen teacher of the salt arm")
    parser.add_argument("--crop", type=int, default=224, metavar="PX", help="side of a clip (default: 224)")
    parser.add_argument("--frames", type=int, default=16, metavar="N", help="frames of a clip (default: 16)")
    parser.add_argument(
        "--batch", type=int, default=3072, metavar="CLIPS", help="clips of a step (default: 3072)"
    )
    parser.add_argument("--steps", type=int, metavar="N", help="length of the run: adds its total")
    for name, what in (("--visible", "visible to the encoder"), ("--target", "predicted")):
        parser.add_argument(
            name,
            type=int,
            action="append",
            metavar="TOKENS",
            help=f"tokens {what}, once for each mask (default: mean of the published sampler's two masks)",
        )
    _add_teacher_options(parser)
    parser.add_argument(
        "--audit",
        action="store_true",
        help="count the built modules too; exit code 1 above 1 %% disagreement",
    )


def _add_teacher_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--targets",
        default="online",
        metavar="HOW",
        help="online: the teacher encodes every batch; cached(views=V): V views of each clip, once",
    )
    parser.add_argument(
        "--clips",
        type=int,
        default=PUBLISHED_CLIPS,
        metavar="N",
        help=f"clips of the list, for cached targets (default: {PUBLISHED_CLIPS}, V-3.6M)",
    )
    parser.add_argument(
        "--teacher-steps", type=int, metavar="N", help="length of the teacher's own run, on the pixel arm"
    )
    parser.add_argument(
        "--charge",
        choices=("full", "shared", "none"),
        help="how the run pays for its teacher's training (default: full with --teacher-steps, else none)",
    )
    parser.add_argument(
        "--students-per-teacher", type=int, metavar="K", help="students that share it, for --charge shared"
    )


def run_ledger(args: argparse.Namespace) -> int:
    """Print the ledgers; 1 if a counter disagrees with one by more than the audit's limit, else 0."""
    ledgers = ledgers_of(args)
    if not args.audit:
        if args.json:
            print_json({"ledgers": [ledger_json(ledger) for ledger in ledgers]})
        else:
            print_tables([table for ledger in ledgers for table in ledger_tables(ledger)])
        return 0
    from salt.audit import AUDIT_TOLERANCE, audit

    audits = [audit(ledger.spec, fvcore=True) for ledger in ledgers]
    both = list(zip(ledgers, audits, strict=True))
    if args.json:
        print_json({"ledgers": [ledger_json(a) | {"audit": audit_json(b)} for a, b in both]})
    else:
        print_tables([table for a, b in both for table in ledger_tables(a) + audit_tables(b)])
    return int(any(result.worst > AUDIT_TOLERANCE for result in audits))


# --- what was asked for ---------------------------------------------------------------------------


def ledgers_of(args: argparse.Namespace) -> list[Ledger]:
    """One ledger for every arm and student of the command line.

    Raises:
        UserError: a size, arm or number that cannot be; options that do not go together.
    """
    for name in ("crop", "frames", "batch", "clips", "steps", "teacher_steps", "students_per_teacher"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: give a whole number of at least 1")
    arms = args.arm or (["salt"] if args.teacher else ["pixel", "vjepa"])
    for arm in arms:
        _known("--arm", arm, list(ARMS))
    students = args.student or ["vit_l"]
    for name, size in [("--student", size) for size in students] + [("--teacher", args.teacher)]:
        if size is not None:
            _known(name, size, list(SIZES))
    views = _views(args.targets)
    _check_together(args, arms, views)
    if not args.arm and not args.teacher:
        print("without --arm and --teacher: the arms pixel and vjepa", file=sys.stderr)
    return [_ledger(args, arm, student, views) for arm in _once(arms) for student in _once(students)]


def _known(option: str, name: str, valid: list[str]) -> None:
    if name not in valid:
        raise UserError(unknown_name(option, name, valid))


def _once(names: list[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _views(text: str) -> int | None:
    try:
        return views_of(text)
    except ValueError as error:
        raise UserError(f"--targets {error}") from error


def _check_together(args: argparse.Namespace, arms: list[str], views: int | None) -> None:
    """Options that need each other, or exclude each other."""
    if "salt" in arms and args.teacher is None:
        raise UserError("--arm salt: it needs a frozen teacher; add --teacher SIZE (the paper's is vit_l)")
    frozen = {"--teacher": args.teacher, "--teacher-steps": args.teacher_steps, "--charge": args.charge}
    frozen["--targets"] = None if views is None else args.targets
    for option, value in frozen.items():
        if value is not None and "salt" not in arms:
            raise UserError(
                f"{option} {value} with --arm {' --arm '.join(_once(arms))}: only the salt arm has a frozen "
                f"teacher; leave {option} out or add --arm salt"
            )
    if args.teacher_steps is not None and args.steps is None:
        raise UserError(
            f"--teacher-steps {args.teacher_steps}: the teacher's training is charged to a whole run; "
            "add its length, --steps N"
        )
    if args.charge in ("full", "shared") and args.teacher_steps is None:
        raise UserError(f"--charge {args.charge}: say how long the teacher trains, --teacher-steps N")
    if (args.charge == "shared") != (args.students_per_teacher is not None):
        raise UserError("--charge shared and --students-per-teacher K go together: give both or neither")


def _ledger(args: argparse.Namespace, arm: str, student: str, views: int | None) -> Ledger:
    teacher = args.teacher if arm == "salt" else None
    model = ModelSpec(encoder=SIZES[student], predictor=PREDICTOR)
    clip = ClipSpec(frames=args.frames, crop_px=args.crop, store_px=max(256, args.crop))
    problems = check_model(model, clip, ())
    if problems:
        raise UserError("; ".join(problems) + " (--crop and --frames)")
    masks = _masks(args, grid(model, clip))
    problems = check_model(model, clip, masks)
    if problems:
        raise UserError("; ".join(problems) + " (--visible and --target)")

    def run(arm: str, size: str, steps: int | None, ref: TeacherRef | None = None) -> RunSpec:
        return RunSpec(
            arm=cast(Arm, arm),
            seed=0,
            steps=steps or 0,
            model=ModelSpec(encoder=SIZES[size], predictor=PREDICTOR),
            clip=clip,
            data=DataSpec(name="ledger", fingerprint="none", clips=args.clips),
            masks=masks,
            optim=OptimSpec(batch_clips=args.batch),
            teacher=ref,
            cached_views=views if ref is not None else None,
        )

    ref = None
    if teacher is not None:
        ref = TeacherRef(run_id="none", step=args.teacher_steps or 0, encoder=SIZES[teacher])
    known = teacher is not None and args.teacher_steps is not None
    return Ledger(
        student=student,
        teacher=teacher,
        spec=run(arm, student, args.steps, ref),
        teacher_run=run("pixel", args.teacher, args.teacher_steps) if known else None,
        charge=(args.charge or "full") if known else "none",
        students_per_teacher=(args.students_per_teacher or 1) if known else 1,
        tokens_from="given" if args.visible else "published sampler's mean",
    )


def _masks(args: argparse.Namespace, token_grid: tuple[int, int, int]) -> tuple[MaskSpec, ...]:
    visible, target = args.visible or [], args.target or []
    if len(visible) != len(target):
        raise UserError(
            f"--visible is given {len(visible)} and --target {len(target)} times: give both once a mask"
        )
    for option, counts in (("--visible", visible), ("--target", target)):
        for count in counts:
            if count < 1:
                raise UserError(f"{option} {count}: a mask has at least 1 such token")
    if visible:
        return tuple(
            MaskSpec(visible_tokens=v, target_tokens=t) for v, t in zip(visible, target, strict=True)
        )
    configs = (MaskConfig(blocks=blocks, scale=scale) for blocks, scale in MASKS)
    return tuple(mask_spec(config, token_grid) for config in configs)
