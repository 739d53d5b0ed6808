"""`python -m slurm.node FOLDER`: submitit's entry on a node, with signals held back until salt hears them.

A warning that comes while Python loads would else end the job: Slurm sends it to every process of a step.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

#: What every task of a submission calls, in submitit's folder.
TASK_FILE = "lane.pkl"


def main(folder: str) -> None:
    """Run this job's task as submitit does, which looks for it in a file with the task's own name."""
    from submitit.core.job_environment import JobEnvironment
    from submitit.core.submission import process_job

    os.environ["SUBMITIT_FOLDER"] = folder
    own = JobEnvironment().paths.submitted_pickle
    with suppress(FileExistsError):  # of an earlier start of this task
        Path(own).symlink_to(TASK_FILE)
    process_job(folder)


if __name__ == "__main__":
    held = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
    signal.pthread_sigmask(signal.SIG_BLOCK, held)  # `salt.signals.install` lets them through
    main(sys.argv[1])
