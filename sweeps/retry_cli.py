"""`salt-sweep retry`: submit again, trying failed runs of named classes once more and no others."""

from __future__ import annotations

import argparse
from typing import Any

from salt.errors import UserError
from sweeps.command import STUDY_HELP, add_command


def add_retry(commands: Any) -> None:
    from slurm.causes import cause_lines

    parser = add_command(
        commands,
        "retry",
        _retry,
        "submit again, trying failed runs of named classes once more",
        "Like submit, but of the runs that failed only those of the named classes are tried again, also\n"
        "where they were given up or diverged. What was never begun is sent as well.\n\n"
        "class, whether it is retried by itself, and why:\n"
        + "\n".join(f"  {line}" for line in cause_lines()),
        [
            "salt-sweep retry study --class oom,node",
            "salt-sweep retry study --class node --on slurm --site cluster.yaml",
            "salt-sweep retry study --class code --on local --dry-run",
        ],
    )
    from sweeps.submit_cli import add_options

    parser.add_argument("study", nargs="?", metavar="STUDY", help=STUDY_HELP)
    parser.add_argument(
        "--class",
        dest="classes",
        action="append",
        metavar="CLASS",
        help="a class of the list above, or several with commas between; may be given several times",
    )
    add_options(parser)


def _retry(args: argparse.Namespace) -> int:
    from slurm.causes import check_classes
    from slurm.states import Retry
    from sweeps.submit_cli import submit

    names = [name.strip() for text in args.classes or () for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("retry: name what to try again, such as --class oom,node; `--help` lists the classes")
    return submit(args, Retry(kinds=check_classes(names)))
