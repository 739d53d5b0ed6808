"""Which processes live, told by number, start and machine; names of files that a process makes for itself."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from functools import cache
from pathlib import Path

#: Temporaries: `.<name>.<machine>-<process number>.tmp`; before, without the machine.
_TEMPORARY = re.compile(r"\..+\.(?:([0-9a-f]{8})-)?(\d+)\.tmp")


def machine() -> str:
    """Host, boot and process namespace: only within one of these does a process number mean anything."""
    boot = _read_text(Path("/proc/sys/kernel/random/boot_id"))
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()}/{boot or ''}/{namespace}"


def lives(pid: int, started: str | None) -> bool:
    """Whether a process of that number, which began at that time (`start_of`), runs on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # gone, or a number that no process has
        return False
    except PermissionError:
        pass  # somebody else's process has the number: its start time decides below
    now_started = start_of(pid)
    if now_started == "zombie":
        return False
    return started is None or now_started is None or started == now_started


def start_of(pid: int) -> str | None:
    """Start time of a process in clock ticks since boot; "zombie" for one that ended; None where unknown."""
    text = _read_text(Path(f"/proc/{pid}/stat"))
    if text is None:
        return None
    fields = text.rpartition(")")[2].split()  # the name in brackets may hold spaces
    return "zombie" if fields[0] in "ZX" else fields[19]


def temporary(path: Path) -> Path:
    """A name beside `path` that no other process uses: containers on a shared disk have equal numbers."""
    return path.with_name(f".{path.name}.{_machine_hash()}-{os.getpid()}.tmp")


def may_be_in_use(name: str) -> bool | None:
    """Whether the maker of a temporary of that name may live; None if the name is not one of a temporary.

    A process of another machine cannot be asked, so it may; one of this machine and number is no other.
    """
    match = _TEMPORARY.fullmatch(name)
    if match is None:
        return None
    pid = int(match[2])
    if match[1] not in (None, _machine_hash()):
        return True
    return pid != os.getpid() and lives(pid, None)


@cache
def _machine_hash() -> str:
    return hashlib.sha256(machine().encode()).hexdigest()[:8]


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
