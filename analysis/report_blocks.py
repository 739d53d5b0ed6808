"""What a report is made of: sections, and in them paragraphs, findings, tables and pictures.

Every block has a name within the report, under which its text stands in the page and can be found again.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from analysis.findings import Finding
from analysis.plots import Hover
from analysis.tables import Table


@dataclass(frozen=True)
class Prose:
    """Paragraphs under one name."""

    kind: ClassVar[str] = "prose"
    name: str
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Pairs:
    """Names and what they are, as in a list of definitions."""

    kind: ClassVar[str] = "pairs"
    name: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Found:
    """A finding with the runs behind it."""

    kind: ClassVar[str] = "found"
    finding: Finding

    @property
    def name(self) -> str:
        return self.finding.topic


@dataclass(frozen=True)
class Said:
    """Sentences on one thing, one a line, with the runs behind them."""

    kind: ClassVar[str] = "said"
    name: str
    lines: tuple[str, ...]
    run_ids: tuple[str, ...]


@dataclass(frozen=True)
class Shown:
    """A table; with `folded`, what stands on the line that opens it. `name` is also that of its files."""

    kind: ClassVar[str] = "shown"
    name: str
    table: Table
    folded: str = ""


@dataclass(frozen=True)
class Picture:
    """A PNG file, what a reader who cannot see it is told, a caption, and what the pointer shows where."""

    kind: ClassVar[str] = "picture"
    file: Path
    alt: str
    caption: str
    hovers: tuple[Hover, ...] = ()
    column: bool = False  # drawn for a single column: as wide as that, beside others

    @property
    def name(self) -> str:
        return self.file.stem

    @property
    def data(self) -> str:
        """The file in base64."""
        return base64.b64encode(self.file.read_bytes()).decode()


Block = Prose | Pairs | Found | Said | Shown | Picture


@dataclass(frozen=True)
class Section:
    """A heading with an id for links, and its blocks."""

    id: str
    title: str
    blocks: tuple[Block, ...] = field(default=())

    def tables(self) -> list[Shown]:
        return [block for block in self.blocks if isinstance(block, Shown)]


def found(findings: list[Finding]) -> tuple[Found, ...]:
    """Findings as blocks."""
    return tuple(Found(each) for each in findings)
