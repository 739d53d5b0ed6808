"""What processes leave in a run's folder that were killed after its result."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from salt.claim import Claim, ClaimHeld
from salt.disk import remove_leftovers
from salt.store import RunDir


def tidy(store: Path, run_ids: Iterable[str]) -> None:
    """Remove dead claims and temporaries of runs that are done, which no attempt will clean up any more."""
    for run_id in run_ids:
        run = RunDir(store, run_id)
        if not run.claim.exists():  # whoever was killed had one
            continue
        try:
            with Claim.acquire(run):
                remove_leftovers(run.path)
        except ClaimHeld:
            continue  # its worker is just about to give it back
