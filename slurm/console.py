"""Where tables go: the terminal's own width, or a fixed wide one where output is a file or a pipe."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

#: Columns of text that goes into a file: wide enough for every table here.
FILE_WIDTH = 140


def console(stream: TextIO | None = None) -> Console:
    """A rich console on `stream` (default: stdout). `COLUMNS` sets the width of files and pipes.

    Text is shown as it is: `[red]` and `:x:` in a name or a message are neither colour nor picture.
    """
    from rich.console import Console

    stream = stream or sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else FILE_WIDTH
    return Console(file=stream, width=width, highlight=False, markup=False, emoji=False)
