"""The Debian packages that a test cluster is made of: which are missing, and installing them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

SBIN = "/usr/sbin"
#: Command -> the package that has it.
SLURM = {"munged": "munge", "slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client"}
DATABASE = {"slurmdbd": "slurmdbd", "mariadbd": "mariadb-server-core"}
#: What a package's installation asks before it starts a service.
POLICY = Path("/usr/sbin/policy-rc.d")
INSTALL_LIMIT_S = 300


def search_path() -> str:
    """PATH, with the folder of Slurm's daemons, which a plain user's PATH lacks."""
    found = os.environ.get("PATH", "/usr/bin:/bin")
    return found if SBIN in found.split(":") else f"{found}:{SBIN}"


def missing(accounting: bool = True) -> list[str]:
    """Names of the packages that a cluster needs and that are not installed."""
    wanted = SLURM | (DATABASE if accounting else {})
    path = search_path()
    return [package for command, package in wanted.items() if shutil.which(command, path=path) is None]


def in_ci() -> bool:
    return os.environ.get("CI", "") not in ("", "0", "false")


def may_change_machine() -> bool:
    """Whether tests may install packages and say what this machine's own name resolves to."""
    return in_ci() or os.environ.get("SALT_TEST_INSTALL", "") not in ("", "0")


def refusal(accounting: bool = True) -> str | None:
    """Why no cluster can be started here, and what to do about it; None if one can."""
    if os.geteuid() != 0:
        return "a test cluster of Slurm has to be started by root"
    lacking = missing(accounting)
    if lacking and not may_change_machine():
        names = " ".join(lacking)
        return f"not installed: {names}; apt-get install them, or set SALT_TEST_INSTALL=1 to have it done"
    if lacking and shutil.which("apt-get") is None:
        return f"not installed: {' '.join(lacking)}; and there is no apt-get to install them with"
    return None


def install(packages: list[str]) -> None:
    """Install packages without starting their services. Raises `RuntimeError` with apt-get's last lines."""
    held = not POLICY.exists()
    if held:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", *command],
                env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=INSTALL_LIMIT_S,
                check=False,
            )
            if done.returncode:
                last = "\n".join(done.stdout.splitlines()[-8:])
                raise RuntimeError(f"apt-get {' '.join(command)} failed with code {done.returncode}:\n{last}")
    finally:
        if held:
            POLICY.unlink()
