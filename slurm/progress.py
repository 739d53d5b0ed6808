"""Progress of a plan on stderr: bars and the runs in progress on a terminal, a plain line now and then
elsewhere.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

from slurm.console import console
from slurm.names import flops_text
from slurm.pace import Pace
from slurm.run_status import PlanStatus
from slurm.states import ACTIVE, STUCK, State

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

#: Seconds between plain lines, and the least between two of them when runs end quickly.
LINE_EVERY_S = 20.0
BUSY_LINE_EVERY_S = 5.0


class Display:
    """Shows a `PlanStatus` again and again. Use as a context manager."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._last_line_s = float("-inf")
        self._last_done = -1
        self._live: Live | None = None

    def __enter__(self) -> Display:
        if sys.stderr.isatty():
            from rich.live import Live

            self._live = Live(console=console(sys.stderr), refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._live is not None:
            self._live.console.print(text, highlight=False, markup=False)
        else:
            print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    def show(self, status: PlanStatus, last: bool = False) -> None:
        """Show where the plan stands; `last` makes sure that it is shown."""
        if self._live is not None:
            self._live.update(self._table(status), refresh=last)
            return
        now = time.monotonic()
        done = status.counts.get(str(State.DONE), 0)
        wait_s = LINE_EVERY_S if done == self._last_done else BUSY_LINE_EVERY_S
        if last or now - self._last_line_s >= wait_s:
            self._last_line_s, self._last_done = now, done
            active = [
                f"{run.name} {run.step or 0}/{run.total_steps}" for run in status.runs if run.state in ACTIVE
            ]
            self.say("  ".join([self._summary(status), *(["now: " + "; ".join(active)] if active else [])]))

    def _summary(self, status: PlanStatus) -> str:
        done = status.counts.get(str(State.DONE), 0)
        text = f"{status.plan}: {done}/{len(status.runs)} runs done, "
        text += f"{flops_text(status.done_flops)} of {flops_text(status.planned_flops)}"
        stuck = [f"{status.counts[name]} {name}" for name in map(str, STUCK) if status.counts.get(name)]
        return ", ".join([text, *stuck, *self._time_left(status)])

    def _time_left(self, status: PlanStatus) -> list[str]:
        left_s = self._pace.seconds_left(status)
        return [] if left_s is None or status.complete else [f"about {left_s / 60:.1f} min left"]

    def _table(self, status: PlanStatus) -> Table:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        table = Table.grid(padding=(0, 2))
        table.add_row(
            self._summary(status), ProgressBar(max(status.planned_flops, 1), status.done_flops, width=30)
        )
        for run in status.runs:
            if run.state in ACTIVE:
                bar = ProgressBar(max(run.total_steps, 1), run.step or 0, width=30)
                table.add_row(f"  {run.state} {run.name}, step {run.step or 0}/{run.total_steps}", bar)
        return table
