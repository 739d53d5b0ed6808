"""`salt-sweep schema`: the JSON Schema of a study file or a site profile."""

from __future__ import annotations

import argparse
from typing import Any

from sweeps.command import add_command, print_json


def add_schema(commands: Any) -> None:
    parser = add_command(
        commands,
        "schema",
        _schema,
        "JSON Schema of study files and site profiles, for editors",
        "Print the JSON Schema of a kind of YAML file. Editors with a YAML language server complete and "
        "check\n"
        "a file that names it in its first line: `# yaml-language-server: $schema=study.schema.json`.",
        ["salt-sweep schema study > study.schema.json", "salt-sweep schema site > site.schema.json"],
        store=False,
    )
    parser.add_argument("kind", choices=("study", "site"), help="which file")


def _schema(args: argparse.Namespace) -> int:
    from sweeps.schema import schema

    print_json(schema(args.kind))
    return 0
