"""`salt-sweep plan`: price and check a study's grid and write its plan."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from salt.errors import UserError
from salt.store import store_path
from salt.writable import make_folder
from sweeps.command import add_command, print_json, print_tables


def add_plan(commands: Any) -> None:
    parser = add_command(
        commands,
        "plan",
        _plan,
        "price and check a study's grid and write its plan",
        "Solve the steps of every cell so that teacher, teacher inference and student together cost the\n"
        "budget within 1 %, check that all of it can be built, show the prices, and write the plan.\n"
        "Without a study, plan the question of the SALT paper at the given budgets: students L, H, g, G,\n"
        "teachers B, L, H at 5 to 40 % of the budget, against V-JEPA and pixel reconstruction.\n"
        "Nothing is written if a cell is bad, unless the study says `bad_cells: leave_out`.",
        [
            "salt-sweep plan --budget 1e21           # the paper's question, as the plan `paper`",
            "salt-sweep plan --budget 1e19:1e21:5    # the same at five budgets",
            "salt-sweep plan study.yaml",
            "salt-sweep plan study.yaml --budget 1e20,1e21 --charge shared --site cluster.yaml",
            "salt-sweep plan study.yaml --quick      # the study's own small version, as <name>-quick",
            "salt-sweep plan paper --budget 3e21     # a plan of the store at another budget",
        ],
    )
    parser.add_argument(
        "study",
        nargs="?",
        metavar="STUDY",
        help="a study file, or the name of a plan of the store (default: the built-in study, with --budget)",
    )
    parser.add_argument(
        "--budget",
        action="append",
        metavar="C",
        help="what a cell may cost, instead of the file's: 1e21, a list 1e21,3e21, or a range 1e19:1e21:5 "
        "(evenly spaced logarithms); in FLOPs, or in the unit of --match; may be given several times",
    )
    parser.add_argument(
        "--match", choices=("flops", "steps", "gpu-hours"), help="what cells of one budget have in common"
    )
    parser.add_argument(
        "--charge",
        choices=("full", "shared", "none"),
        help="each student pays for its whole teacher; a teacher's students share it; it is there already",
    )
    parser.add_argument(
        "--targets", metavar="T", help="online, or cached(views=V): teachers encode V views once"
    )
    parser.add_argument(
        "--convention", choices=("matmul", "paper"), help="how FLOPs are counted: docs/flops.md"
    )
    parser.add_argument("--site", metavar="SITE.yaml", help="a site profile, or `default`: docs/hardware.md")
    parser.add_argument("--quick", action="store_true", help="lay the file's section `quick` over it")
    parser.add_argument(
        "--rows", type=int, default=None, metavar="N", help="lines of the table (default: 200)"
    )
    parser.add_argument("--layout", action="store_true", help="also show memory, micro-batch and GPUs")
    parser.add_argument(
        "--audit",
        action="store_true",
        help="count every kind of run with torch first; refuse a plan 1 %% off",
    )


def _plan(args: argparse.Namespace) -> int:
    from sweeps.design import warnings_of
    from sweeps.hours import layout_table
    from sweeps.plan import draft_plan, require_lists_decode, write_plan
    from sweeps.show import ROWS, plan_json, plan_tables

    if args.rows is not None and args.rows < 1:
        raise UserError(f"--rows {args.rows}: give at least 1")
    store = store_path(args.store)
    study = _study(args, store)
    draft = draft_plan(study)
    require_lists_decode(draft)
    if args.audit:
        from sweeps.auditing import audit_bases

        audit_bases(draft)
    make_folder(store / "plans", "the store's folder")
    written = write_plan(store, draft)
    if args.audit:
        from sweeps.auditing import record_audit

        record_audit(written.folder, written.sha256)
    warnings = warnings_of(draft)
    if args.json:
        data = {**plan_json(draft), "warnings": warnings, "store": str(store), "folder": str(written.folder)}
        print_json({**data, "written": written.outcome, "sha256": written.sha256})
        return 0
    layout = layout_table(draft) if args.layout else None
    tables = plan_tables(draft, args.rows or ROWS)
    print_tables([*tables, *([layout] if layout is not None else [])])
    for warning in warnings:
        print(f"warning: {warning}")
    print(written)
    return 0


def _study(args: argparse.Namespace, store: Path) -> Any:
    """The study that the command line means, its options laid over it."""
    from salt.plans import plan_dir, read_plan
    from sweeps.budgets import parse_budgets
    from sweeps.default_study import PATH, default_study
    from sweeps.study import load_study

    budgets = parse_budgets(args.budget) if args.budget else None
    if args.study is None:
        if budgets is None:
            raise UserError("plan: give a study file, or --budget 1e21 for the built-in study")
        if args.quick or args.match not in (None, "flops"):
            raise UserError("plan: --quick and --match need a study file; start from the one in plans/paper/")
        return load_study(PATH, data=default_study(budgets), changes=_changes(args, None, "flops"))
    path = Path(args.study)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        # Budgets are in the unit that the file matches, so that is looked up first.
        match = "flops" if budgets is None else str(_written(path, args.quick).get("match", "flops"))
        return load_study(path, quick=args.quick, changes=_changes(args, budgets, match))
    plan = read_plan(store, args.study)
    path = plan_dir(store, args.study) / "study.yaml"
    folder = Path(plan.execution.folder or path.parent)
    changes = plan.overrides | _changes(args, budgets, plan.match)
    quick = args.quick or plan.name != _written(path, quick=False).get("name")
    return load_study(path, quick=quick, changes=changes, folder=folder)


def _changes(args: argparse.Namespace, budgets: tuple[float, ...] | None, match: str) -> dict[str, Any]:
    """Keys of the study file that the options replace; `match` is what the file says."""
    changes = {
        name: getattr(args, name)
        for name in ("match", "charge", "targets", "convention")
        if getattr(args, name) is not None
    }
    if args.site is not None:
        changes["site"] = args.site if args.site == "default" else str(Path(args.site).absolute())
    if budgets is not None:
        from sweeps.study_checks import BUDGET_KEYS

        # Where the file has no such `match`, decoding it says so.
        key = BUDGET_KEYS.get(args.match or match, "budgets_flops")
        changes |= dict.fromkeys(BUDGET_KEYS.values(), ())
        changes[key] = [
            int(value) if key == "budgets_steps" and not value % 1 else value for value in budgets
        ]
    return changes


def _written(path: Path, quick: bool) -> dict[str, Any]:
    """The keys of a study file before they are decoded; none of one that loading will refuse."""
    from sweeps.document import overlay, parse_yaml

    try:
        raw = parse_yaml(path.read_bytes(), path)
    except OSError:
        return {}
    section = raw.get("quick")
    return overlay(raw, section) if quick and isinstance(section, dict) else raw
