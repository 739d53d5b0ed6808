"""`python -m slurm.node FOLDER`: submitit's entry on a node, with signals held back until salt hears them.

A warning that comes while Python loads would else end the job: Slurm sends it to every process of a step.
"""

import signal

signal.pthread_sigmask(
    signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
)  # `salt.signals.install` lets them through

if __name__ == "__main__":
    from submitit.core.submission import submitit_main

    submitit_main()
