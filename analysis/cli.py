"""`salt-analyze`: what a study means. Heavy imports come after parsing."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module

import salt
from analysis.command import Command, Job

#: Modules of `analysis.commands`, in the order of the help.
COMMANDS = (
    "gather",
    "pareto",
    "weak_teacher",
    "allocation",
    "fit",
    "isoflop",
    "loss_accuracy",
    "compare",
    "suggest",
    "report",
    "verify",
    "export",
    "import_",
)


def commands() -> list[Command]:
    """All commands. Their modules import nothing heavy before they run."""
    return [import_module(f"analysis.commands.{name}").COMMAND for name in COMMANDS]


def parser() -> argparse.ArgumentParser:
    """The command line, as data: tests read it."""
    top = argparse.ArgumentParser(
        prog="salt-analyze",
        description="What a study means: frontiers, laws, students against teachers, a report.",
        epilog="examples:\n  salt-analyze pareto\n  salt-analyze weak-teacher\n  salt-analyze report",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"salt {salt.__version__}")
    adder = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in commands():
        added = adder.add_parser(
            command.name,
            help=command.text,
            description=command.text,
            epilog="\n  ".join(["examples:", *command.examples]),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if command.common:
            _common(added)
        if command.arguments is not None:
            command.arguments(added)
        added.set_defaults(run=command.run, common=command.common)
    return top


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "study", nargs="?", metavar="STUDY", help="name of a plan (default: the newest of the store)"
    )
    parser.add_argument("--store", metavar="DIR", help="run store (default: $SALT_STORE, else ./salt-store)")
    parser.add_argument(
        "--out", metavar="DIR", help="where files go (default: STORE/reports/STUDY, or TABLE-analysis)"
    )
    parser.add_argument(
        "--table",
        metavar="FILE",
        help="in place of a study: results of any other project, CSV or Parquet, or salt2025, the published "
        "numbers of the SALT paper",
    )
    parser.add_argument(
        "--columns",
        metavar="A=B,...",
        help="what the columns of --table are called, such as compute=C,size=N,data=D,loss=val_loss",
    )
    parser.add_argument("--label", action="append", metavar="NAME", help="only this label; may be repeated")
    parser.add_argument(
        "--probe", action="append", metavar="KIND", help="only this probe: linear, knn or attentive"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code. `UserError` is raised before anything is written."""
    options = parser().parse_args(argv)
    if options.common and options.table and options.study:
        parser().error("give either STUDY or --table, not both")
    if options.common and options.columns and not options.table:
        parser().error("--columns says what the columns of --table are called: name that file too")
    return options.run(Job(options)) or 0
