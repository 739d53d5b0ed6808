"""Which code this is: the files of our packages and one hash over them."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

PACKAGES = ("salt", "slurm", "sweeps", "analysis")
ENTRY = "salt_cli.py"


def code_root() -> Path:
    """The folder that our packages were imported from."""
    return Path(__file__).resolve().parent.parent


def code_files(root: Path) -> list[tuple[str, Path]]:
    """(name in `root`, path) of every file of our packages there, sorted by name; caches are left out."""
    found = [(ENTRY, root / ENTRY)] if (root / ENTRY).is_file() else []
    for package in PACKAGES:
        for path in (root / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                found.append((path.relative_to(root).as_posix(), path))
    return sorted(found)


def tree_sha256(root: Path) -> str:
    """One hash over names and contents of `code_files`."""
    total = hashlib.sha256()
    for name, path in code_files(root):
        data = path.read_bytes()
        total.update(f"{name}\0{len(data)}\0".encode())
        total.update(data)
    return total.hexdigest()


@cache
def code_sha256() -> str:
    """The hash of the code that this process imports from, as it was when first asked for."""
    return tree_sha256(code_root())
