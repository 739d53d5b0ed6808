"""`salt-sweep init`: a commented study file and site profile to begin with, and their schemas."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from salt.errors import UserError
from sweeps.command import add_command, print_json

TEMPLATES = Path(__file__).with_name("templates")


def add_init(commands: Any) -> None:
    parser = add_command(
        commands,
        "init",
        _init,
        "write a commented study file and site profile to begin with",
        "Write study.yaml, site.yaml, and the JSON Schemas by which editors complete them, into a "
        "folder. The\n"
        "study plans as it is: its lists are only declared. Files that are there are never written over.",
        ["salt-sweep init", "salt-sweep init my-study/"],
        store=False,
    )
    parser.add_argument("folder", nargs="?", default=".", metavar="DIR", help="where (default: here)")


def _init(args: argparse.Namespace) -> int:
    import json

    from salt.writable import make_folder
    from sweeps.schema import KINDS, schema

    folder = Path(args.folder)
    texts = {f"{kind}.yaml": (TEMPLATES / f"{kind}.yaml").read_text() for kind in KINDS}
    texts |= {f"{kind}.schema.json": json.dumps(schema(kind), indent=2) + "\n" for kind in KINDS}
    there = [name for name in texts if (folder / name).exists() or (folder / name).is_symlink()]
    if there:
        raise UserError(
            f"{folder / there[0]} is there already, and nothing was written: name another folder, as in "
            "`salt-sweep init my-study/`, or move it away"
        )
    make_folder(folder, "the study's folder")
    for name, text in texts.items():
        with open(folder / name, "x", encoding="utf-8") as file:
            file.write(text)
    study = folder / "study.yaml"
    if args.json:
        print_json({"folder": str(folder), "files": sorted(texts)})
        return 0
    print(f"written: {', '.join(str(folder / name) for name in texts)}")
    print(f"next: name your lists in {study}, then `salt-sweep plan {study} --layout`")
    return 0
