"""Arrays to Slurm through submitit: their scripts, their task, and sbatch's answer with a way out.

submitit makes the script and runs the task on the node; its own handling of signals, requeues and states is
not used: `slurm.lane` and `slurm.queue_state` do that.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from salt.errors import UserError
from slurm.node import TASK_FILE
from slurm.refusals import with_way_out
from slurm.request import python
from slurm.scheduler import MUST_S, SchedulerSilent, ask, queue

#: Tries of an sbatch whose controller was too busy to answer, and the seconds between them.
TRIES = 4
PAUSE_S = 2.0
#: After these the job may be in the queue all the same.
_BUSY = re.compile(r"did not answer|timed out|temporarily|Resource temporarily|try again", re.IGNORECASE)


class NotSent(UserError):
    """sbatch refused, or nobody knows what it did; the message says what and what to do."""


class Sender:
    """Sends the arrays of one submission; submitit's files go to `logs`."""

    def __init__(self, logs: Path) -> None:
        import submitit

        class Arrays(submitit.SlurmExecutor):
            """submitit's script for an array, with a command of ours that lets no signal come too early."""

            @property
            def _submitit_command_str(self) -> str:
                return f"{python()} -u -P -m slurm.node {shlex.quote(str(logs.absolute()))}"

            def text(self) -> str:
                text: str = self._make_submission_file_text(self._submitit_command_str, "")
                return text

        self.logs = logs
        self._executor = Arrays(folder=logs.absolute())

    def prepare(self, task: Any) -> None:
        """Write down what every task of every array calls: they differ in what Slurm tells them alone."""
        from submitit.core.utils import DelayedSubmission

        self.logs.mkdir(parents=True, exist_ok=True)
        DelayedSubmission(task).dump(self.logs / TASK_FILE)

    def script(self, parameters: Mapping[str, Any]) -> str:
        """The batch script of an array. Raises ValueError for a parameter that submitit does not know."""
        own = {**parameters}
        count = own.pop("map_count")
        self._executor.parameters.clear()  # those of the array before
        self._executor.update_parameters(**own)
        self._executor.parameters["map_count"] = count
        return self._executor.text()

    def send(self, parameters: Mapping[str, Any]) -> str:
        """Send an array; the id of its job.

        Raises:
            NotSent: nothing was sent, as far as can be told.
        """
        comment = str(parameters["comment"])
        batch = self.logs / f"array-{comment.rpartition(' ')[2]}.sh"
        batch.write_text(self.script(parameters))
        return _sbatch(batch, comment)


def _sbatch(batch: Path, comment: str) -> str:
    """Run sbatch, again where the controller was busy: unless the job turns out to be in the queue."""
    for tried in range(TRIES):
        try:
            answer = ask(["sbatch", "--parsable", str(batch)], MUST_S)
        except SchedulerSilent as silent:
            if not _BUSY.search(str(silent)):
                raise NotSent(with_way_out(str(silent))) from silent
            if (job := _already_there(comment)) is not None:
                return job
            if tried + 1 == TRIES:
                raise NotSent(with_way_out(f"{silent}, {TRIES} times")) from silent
            time.sleep(PAUSE_S * 2**tried)
            continue
        found = re.match(r"(\d+)", answer.strip().splitlines()[-1] if answer.strip() else "")
        if found is None:
            if (job := _already_there(comment)) is not None:
                return job
            raise NotSent(f"sbatch did not say which job it made: {answer.strip()!r}; see `squeue --me`")
        return found[1]
    raise AssertionError("unreachable")


def _already_there(comment: str) -> str | None:
    """The job that carries a comment, if one is in the queue and the queue can be asked."""
    try:
        tasks = queue(MUST_S)
    except SchedulerSilent as silent:
        raise NotSent(with_way_out(f"whether the job was made is not known: {silent}")) from silent
    return next((task.job for task in tasks if task.comment == comment), None)
