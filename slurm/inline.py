"""Run a plan inside this process, one run after another: for small studies, debuggers and machines without
processes to spare.
"""

from __future__ import annotations

import sys
import time

from slurm.states import State, assess
from slurm.submission import Submission
from slurm.worker import Drain


def run_inline(submission: Submission) -> int:
    """Run what the plan lacks; 0 when every run is done, 1 when some are not."""
    Drain(
        submission.store,
        submission.plan,
        retry=submission.retry,
        report=lambda text: print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True),
    ).run()
    standings = assess(submission.store, submission.plan)
    return 0 if all(standing.state is State.DONE for standing in standings.values()) else 1
