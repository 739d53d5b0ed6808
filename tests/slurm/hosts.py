"""Names in /etc/hosts: made-up nodes have to resolve, for programs that dial them.

The file is changed in place, since in a container it is mounted and cannot be replaced, and under a lock on
itself, since several clusters may come and go at once. Each has one line, tagged with its folder.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

HOSTS = Path("/etc/hosts")
LOOPBACK = "127.0.0.1"
TAG = "# salt test cluster"


def own_names() -> list[str]:
    """This machine's name, short as Slurm uses it, and in full."""
    full = socket.gethostname()
    return list(dict.fromkeys((full.split(".")[0], full)))


def address(name: str) -> str | None:
    """The IPv4 address that a name resolves to first."""
    try:
        return str(socket.getaddrinfo(name, None, socket.AF_INET)[0][4][0])
    except socket.gaierror:
        return None


def with_line(text: str, folder: Path, nodes: Sequence[str], own: Sequence[str] = ()) -> str:
    """The text of a hosts file with the line of a cluster.

    `own` are this machine's names, to be given if they do not resolve to loopback: the line then comes before
    those that name them, as the first one counts. They are given also if another cluster's line gives them,
    which may go away before this one. Else the line comes last: the first line of an address is its own name.
    """
    lines = without_line(text, folder).splitlines()
    naming = [n for n, line in enumerate(lines) if set(own) & set(line.split("#")[0].split()[1:])]
    line = f"{LOOPBACK} {' '.join((*own, *nodes))} {TAG} {folder}"
    lines.insert(naming[0] if naming else len(lines), line)
    return "\n".join(lines) + "\n"


def without_line(text: str, folder: Path) -> str:
    """The text of a hosts file without the line of a cluster; unchanged if it has none."""
    return "".join(line for line in text.splitlines(True) if not line.rstrip().endswith(f"{TAG} {folder}"))


def names_given(text: str) -> set[str]:
    """All names in the lines of test clusters."""
    tagged = (line.split("#")[0].split()[1:] for line in text.splitlines() if TAG in line)
    return {name for names in tagged for name in names}


def edit(change: Callable[[str], str], path: Path = HOSTS) -> None:
    """Put what `change` makes of the file's text in its place, alone among those who use this function."""
    with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = file.read()
        after = change(before.decode()).encode()
        if after != before:
            file.seek(0)
            file.write(after)
            file.truncate()


def add(folder: Path, nodes: Sequence[str], may_name_host: bool) -> None:
    """Make the nodes' names resolve to loopback, and this machine's too if they do not.

    The latter needs permission: else, or if it has no effect, this raises `RuntimeError`.
    """
    short = own_names()[0]
    found = address(short)
    if found != LOOPBACK and not may_name_host:
        raise RuntimeError(
            f"this machine's name, {short}, resolves to {found}; Slurm's steps hang unless it is {LOOPBACK}: "
            f"say so in {HOSTS}, or set SALT_TEST_INSTALL=1 to have it said while a cluster is up"
        )

    def change(text: str) -> str:
        needed = found != LOOPBACK or short in names_given(without_line(text, folder))
        return with_line(text, folder, nodes, own_names() if needed else ())

    edit(change)
    if address(short) != LOOPBACK:
        remove(folder)
        raise RuntimeError(
            f"{short} resolves to {address(short)}, whatever {HOSTS} says; it has to be {LOOPBACK}"
        )


def remove(folder: Path) -> None:
    edit(lambda text: without_line(text, folder))
