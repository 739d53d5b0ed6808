"""What all of `salt-sweep`'s subcommands share: their parser's form, the store, and how they print."""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from pathlib import Path
from typing import Any

#: A line that begins an entry of its own, such as `init: ...`.
_ENTRY = re.compile(r"\w+: ")
STORE_HELP = "the run store (default: $SALT_STORE, else ./salt-store)"
STUDY_HELP = "a plan's name or its study file (default: the newest plan of the store)"


class Help(argparse.RawDescriptionHelpFormatter):
    """Paragraphs are filled to the width of the terminal; indented lines stay lines of their own, and one
    that is a command stays whole, for copying.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        lines: list[str] = []
        for line in text.splitlines():
            own = not line or line.startswith(" ") or _ENTRY.match(line)
            if own or not lines or not lines[-1] or lines[-1].startswith(" "):
                lines.append(line)
            else:
                lines[-1] += f" {line}"
        return "\n".join(_filled(line, width) for line in lines)


def _filled(line: str, width: int) -> str:
    if len(line) <= width or line.lstrip().startswith("salt-"):
        return line
    hanging = "      " if line.startswith(" ") else ""
    return textwrap.fill(line, width, subsequent_indent=hanging, break_on_hyphens=False)


def add_command(
    commands: Any,
    name: str,
    run: Any,
    summary: str,
    description: str,
    examples: list[str],
    *,
    store: bool = True,
) -> argparse.ArgumentParser:
    """A subcommand with `--json` and examples, and `--store` if it reads or writes one.

    `run(args)` returns the exit code.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog="\n".join(["examples:", *(f"  {example}" for example in examples)]),
        formatter_class=Help,
    )
    parser.set_defaults(run=run)
    if store:
        parser.add_argument("--store", help=STORE_HELP)
    parser.add_argument("--json", action="store_true", help="print plain data instead of tables")
    return parser


def choose(store: Path, name: str | None) -> str:
    """The wanted plan's name, that of the study in a study file included; says which one was taken when none
    was named.
    """
    import sys

    from salt.plans import choose_plan

    path = Path(name or "")
    if path.suffix in (".yaml", ".yml") and path.is_file():
        from salt.plain_yaml import parse_yaml

        name = str(parse_yaml(path.read_bytes(), path).get("name", path.stem))
    chosen = choose_plan(store, name)
    if name is None:
        print(f"taking the newest plan of {store}: {chosen}", file=sys.stderr)
    return chosen


def print_tables(tables: list[Any]) -> None:
    """Print rich tables as they are: `[red]` in a name or a message is text, not a colour."""
    from rich.text import Text

    from slurm.console import console

    out = console()
    for table in tables:
        for part in ("title", "caption"):
            text = getattr(table, part, None)  # of a table, not of a line of text
            if isinstance(text, str):
                setattr(table, part, Text(text, style=f"table.{part}"))
        out.print(table, markup=False)


def print_json(data: object) -> None:
    print(json.dumps(data, indent=2, allow_nan=False))
