"""`salt-sweep recipe`: list the recipes, show one's rules and values, compare it with the papers' tables."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from salt.errors import UserError
from salt.sizes import SIZES
from salt.specs import ARMS, Arm, OptimSpec, Spec, VitSpec
from sweeps.command import add_command, print_json, print_tables
from sweeps.document import unknown_name
from sweeps.recipe import (
    DEFAULT_RECIPE,
    PUBLISHED_BATCH_CLIPS,
    RECIPES,
    Recipe,
    find_recipe,
    number_text,
    warmup_warning,
)
from sweeps.recipe_tables import PUBLISHED, DiffRow, diff, value_text

if TYPE_CHECKING:
    from rich.table import Table

#: Columns that every table here fits in.
WIDTH = 120


class Point(Spec, kw_only=True):
    """Where a recipe's rules are evaluated: arm, encoder, global batch in clips, length in steps."""

    arm: Arm
    student: str
    batch_clips: int
    steps: int

    @property
    def size(self) -> VitSpec:
        return SIZES[self.student]

    def __str__(self) -> str:
        return f"arm {self.arm}, {self.student}, batch {self.batch_clips:,} clips, {self.steps:,} steps"


def add_recipe(commands: Any) -> None:
    """Register `recipe` among the subcommands of `salt-sweep`."""
    parser = add_command(
        commands,
        "recipe",
        run_recipe,
        "hyperparameters of a recipe, their sources, and how they differ from the papers",
        "list: every recipe. show: the rules of one with their sources, and what they give for an arm, an\n"
        "encoder size, a batch and a length. diff: the same beside the papers' tables.",
        [
            "salt-sweep recipe list",
            "salt-sweep recipe show salt@1 --batch 768 --steps 20000",
            "salt-sweep recipe diff salt --arm vjepa              # beside all published tables",
            "salt-sweep recipe diff salt --against vjepa2 --json",
        ],
        store=False,
    )
    parser.add_argument(
        "action", choices=("list", "show", "diff"), metavar="list|show|diff", help="what to do"
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="a recipe; without @version the newest one")
    parser.add_argument("--arm", choices=ARMS, default="salt", help="the arm to train (default: salt)")
    parser.add_argument("--student", default="vit_l", metavar="SIZE", help="encoder size (default: vit_l)")
    parser.add_argument(
        "--batch",
        type=int,
        default=PUBLISHED_BATCH_CLIPS,
        metavar="CLIPS",
        help=f"global batch in clips (default: {PUBLISHED_BATCH_CLIPS}, that of the papers)",
    )
    parser.add_argument(
        "--steps", type=int, metavar="N", help="length of the run (default: that of the recipe's source)"
    )
    parser.add_argument(
        "--against", choices=tuple(PUBLISHED), help="for diff: one published table, with notes (default: all)"
    )


def run_recipe(args: argparse.Namespace) -> int:
    """Run one command line; returns 0.

    Raises:
        UserError: an unknown recipe or size, a number out of range, an argument the action does not take.
    """
    if args.action == "list":
        if args.name is not None:
            raise UserError(f"recipe list {args.name}: list takes no name; use `recipe show {args.name}`")
        return _list(args.json)
    if args.name is None:
        raise UserError(f"recipe {args.action}: name a recipe, one of {', '.join(RECIPES)}")
    if args.against is not None and args.action != "diff":
        raise UserError(f"--against {args.against}: only for `recipe diff`")
    recipe = find_recipe(args.name)
    point = _point(args, recipe)
    return _show(recipe, point, args.json) if args.action == "show" else _diff(recipe, point, args)


def _point(args: argparse.Namespace, recipe: Recipe) -> Point:
    if args.student not in SIZES:
        raise UserError(unknown_name("--student", args.student, list(SIZES)))
    if args.batch < 1:
        raise UserError(f"--batch {args.batch}: give at least 1 clip")
    if args.steps is not None and args.steps < 1:
        raise UserError(f"--steps {args.steps}: give at least 1 step")
    return Point(
        arm=args.arm,
        student=args.student,
        batch_clips=args.batch,
        steps=args.steps or recipe.published_steps,
    )


def _table(*columns: tuple[str, int], title: str | None = None) -> Table:
    """A table of fixed column widths, so that it fits `WIDTH` on any console; longer text goes on below."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name, width in columns:
        table.add_column(name, width=width, overflow="fold")
    return table


def _paragraph(text: str) -> str:
    import textwrap

    return textwrap.fill(text, WIDTH, subsequent_indent="  ")


# --- list -----------------------------------------------------------------------------------------


def _list(as_json: bool) -> int:
    if as_json:
        print_json(
            [
                {
                    "name": recipe.name,
                    "summary": recipe.summary,
                    "for_new_studies": recipe.name == DEFAULT_RECIPE,
                    "schedule": recipe.schedule,
                    "published_steps": recipe.published_steps,
                    "depends_on_steps": recipe.depends_on_steps,
                }
                for recipe in RECIPES.values()
            ]
        )
        return 0
    table = _table(("recipe", 20), ("schedule", 8), ("steps", 7), ("what it is", 69))
    for recipe in RECIPES.values():
        default = " (for new studies)" if recipe.name == DEFAULT_RECIPE else ""
        table.add_row(recipe.name, recipe.schedule, f"{recipe.published_steps:,}", recipe.summary + default)
    print_tables([table])
    return 0


# --- show -----------------------------------------------------------------------------------------


def _show(recipe: Recipe, point: Point, as_json: bool) -> int:
    optim = recipe.optim(point.arm, point.size, point.batch_clips, point.steps)
    objective = recipe.objective(point.arm, point.size, point.batch_clips, point.steps)
    warning = warmup_warning(OptimSpec(warmup_share=optim["warmup_share"]), point.steps)
    if as_json:
        print_json(
            {
                "recipe": recipe.name,
                "schedule": recipe.schedule,
                "depends_on_steps": recipe.depends_on_steps,
                **_point_json(point),
                "optim": optim,
                "objective": objective,
                "warning": warning,
                "rules": [
                    {"field": rule.field, "rule": rule.text, "citation": rule.citation}
                    for rule in recipe.rules
                    if rule.arms is None or point.arm in rule.arms
                ],
            }
        )
        return 0
    values = {f"optim.{name}": value for name, value in optim.items()}
    values |= {f"objective.{name}": value for name, value in objective.items()}
    table = _table(("field", 24), ("value", 9), ("rule", 26), ("source", 48), title=f"{recipe.name}: {point}")
    for rule in recipe.rules:
        if rule.field in values:
            table.add_row(rule.field, number_text(values[rule.field]), rule.text, rule.citation)
    lines = [f"schedule: {recipe.schedule}; {recipe.summary}", *([f"warning: {warning}"] if warning else [])]
    print_tables([table, *map(_paragraph, lines)])
    return 0


def _point_json(point: Point) -> dict[str, Any]:
    return {
        "arm": point.arm,
        "student": point.student,
        "batch_clips": point.batch_clips,
        "steps": point.steps,
    }


# --- diff -----------------------------------------------------------------------------------------


def _diff(recipe: Recipe, point: Point, args: argparse.Namespace) -> int:
    tables = [PUBLISHED[args.against]] if args.against else list(PUBLISHED.values())
    rows = {
        table.key: diff(
            recipe,
            table,
            arm=point.arm,
            size=point.size,
            batch_clips=point.batch_clips,
            steps=point.steps,
        )
        for table in tables
    }
    if args.json:
        print_json({"recipe": recipe.name, **_point_json(point), "against": _diff_json(rows)})
        return 0
    title = f"{recipe.name}: {point}"
    if args.against:
        printed = _one_table(rows[args.against], tables[0].title, title)
    else:
        printed = _all_tables(rows, title)
    legend = "* differs; - not stated, or not ruled by a recipe"
    print_tables([printed, legend, *(_paragraph(f"{table.title}: {table.citation}") for table in tables)])
    return 0


def _diff_json(rows: dict[str, tuple[DiffRow, ...]]) -> dict[str, Any]:
    return {
        key: {
            "citation": PUBLISHED[key].citation,
            "differing": sum(row.differs is True for row in table),
            "rows": [{name: getattr(row, name) for name in DiffRow.__struct_fields__} for row in table],
        }
        for key, table in rows.items()
    }


def _one_table(rows: tuple[DiffRow, ...], published: str, title: str) -> Table:
    table = _table(("field", 20), ("ours", 10), (published, 14), ("note", 63), title=title)
    for row in rows:
        table.add_row(row.field, value_text(row.ours), _marked(row), row.note)
    return table


def _all_tables(rows: dict[str, tuple[DiffRow, ...]], title: str) -> Table:
    titles = [(PUBLISHED[key].title, 15) for key in rows]
    table = _table(("field", 20), ("ours", 12), *titles, title=title)
    for line in zip(*rows.values(), strict=True):
        table.add_row(line[0].field, value_text(line[0].ours), *(_marked(row) for row in line))
    return table


def _marked(row: DiffRow) -> str:
    return value_text(row.published) + (" *" if row.differs else "")
