"""Two reports side by side: texts of the page, cells of data files, pixels of pictures."""

from __future__ import annotations

import csv
import hashlib
from collections import defaultdict
from dataclasses import dataclass
from html.parser import HTMLParser
from itertools import zip_longest
from pathlib import Path

#: Elements whose text is one entry of a block.
_ENTRIES = frozenset(
    {"p", "li", "dt", "dd", "td", "th", "h1", "h2", "h3", "caption", "figcaption", "summary"}
)
#: Headers of columns that hold run ids.
_RUNS = ("run_id", "run_ids", "run ids")
NOTHING = "nothing"


@dataclass(frozen=True)
class Difference:
    """Where: a file, or a place in the page or a table; what the report says, and what is computed now.

    `runs` are the ids beside the number.
    """

    file: str
    place: str
    report: str
    now: str
    runs: str = ""

    def __str__(self) -> str:
        place = f"{self.file}: {self.place}" if self.place else self.file
        runs = f" (runs {self.runs})" if self.runs else ""
        return f"{place}: the report has {_short(self.report)}, now it is {_short(self.now)}{runs}"


def _short(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:157]}..."


class _Page(HTMLParser):
    """(block, entry within it) -> text; pictures by the hash of their data, hover texts with their place."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.texts: dict[tuple[str, str], str] = {}
        self._blocks: list[tuple[str, str]] = []  # (tag, key) of those that are open
        self._counts: dict[tuple[str, str], int] = defaultdict(int)
        self._open: list[tuple[str, str]] = []  # (tag, entry)
        self._row = self._column = 0
        self._depth: dict[str, int] = defaultdict(int)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        key = values.get("data-block")
        if key is not None:
            self._blocks.append((tag, key))
            self._depth[key] = 0
            self._row = 0
        elif self._blocks and self._blocks[-1][0] == tag:
            self._depth[self._blocks[-1][1]] += 1
        if tag == "tr":
            self._row, self._column = self._row + 1, 0
        if tag == "img":
            data = hashlib.sha256((values.get("src") or "").encode()).hexdigest()[:12]
            self._put(self._entry("picture"), f"picture {data}; {values.get('alt')}")
        if tag == "div" and "point" in (values.get("class") or "").split():
            self._open.append((tag, self._entry("hover")))
            self._put(self._open[-1][1], f"at {values.get('style')}: ")
        elif tag in _ENTRIES:
            if tag in ("td", "th"):
                self._column += 1
                entry = (
                    f"row {self._row - 1}, column {self._column}" if tag == "td" else f"header {self._column}"
                )
            else:
                entry = self._entry(tag)
            self._open.append((tag, entry))
            self._put(entry, "")

    def _entry(self, tag: str) -> str:
        place = (self._block(), tag)
        self._counts[place] += 1
        return f"{tag} {self._counts[place]}"

    def _block(self) -> str:
        return self._blocks[-1][1] if self._blocks else "page"

    def _put(self, entry: str, text: str) -> None:
        place = (self._block(), entry)
        self.texts[place] = self.texts.get(place, "") + text

    def handle_data(self, data: str) -> None:
        if self._open:
            self._put(self._open[-1][1], data)
        elif data.strip() and self._blocks or data.strip():
            self._put("text", " ".join(data.split()) + " ")

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1][0] == tag:
            self._open.pop()
        if self._blocks and self._blocks[-1][0] == tag:
            key = self._blocks[-1][1]
            if self._depth[key]:
                self._depth[key] -= 1
            else:
                self._blocks.pop()


def page_differences(mine: str, other: str) -> tuple[list[Difference], int]:
    """Texts of two pages that differ, in the order of the page, and how many texts there are."""
    pages = []
    for text in (mine, other):
        page = _Page()
        page.feed(text)
        page.close()
        pages.append(page.texts)
    found = []
    for place in dict.fromkeys([*pages[0], *pages[1]]):
        was, now = pages[0].get(place), pages[1].get(place)
        if was != now:
            found.append(_difference(*place, was, now, pages[1]))
    if not found and mine != other:
        found.append(Difference("report.html", "outside of its texts", "other bytes", "others"))
    return found, len(pages[1])


def _told(text: str | None) -> str:
    return NOTHING if text is None else repr(text)


def _difference(
    block: str, entry: str, was: str | None, now: str | None, texts: dict[tuple[str, str], str]
) -> Difference:
    """A difference in the page: `row 3 (motion, linear, salt), 'accuracy %'` with the runs of the row, where
    the entry is a cell of a table.
    """
    place, runs = entry, ""
    if entry.startswith("row "):
        row, _, column = entry.partition(", column ")
        headers = {number: texts[block, f"header {number}"] for number in _numbers(block, texts)}
        cells = {number: texts.get((block, f"{row}, column {number}"), "").strip() for number in headers}
        names = ", ".join(filter(None, (cells.get(number) for number in (1, 2, 3))))
        place = f"{row} ({names}), {headers.get(int(column), f'column {column}')!r}"
        runs = " ".join(" ".join(cells[number].split()) for number, head in headers.items() if head in _RUNS)
    return Difference("report.html", f"{block}, {place}", _told(was), _told(now), runs)


def _numbers(block: str, texts: dict[tuple[str, str], str]) -> list[int]:
    """The columns of a table that have a header."""
    found: list[int] = []
    while (block, f"header {len(found) + 1}") in texts:
        found.append(len(found) + 1)
    return found


def csv_differences(name: str, mine: Path, other: Path) -> tuple[list[Difference], int]:
    """Cells of two CSV files that differ, and how many cells there are."""
    if mine.read_bytes() == other.read_bytes():
        with open(other, newline="") as file:
            return [], sum(len(row) for row in csv.reader(file))
    rows: list[tuple[list[str], list[str]]]
    with open(mine, newline="") as one, open(other, newline="") as two:
        rows = list(zip_longest(csv.reader(one), csv.reader(two), fillvalue=[]))
    header = rows[0][1] if rows else []
    found: list[Difference] = []
    cells = 0
    for number, (was, now) in enumerate(rows):
        cells += len(now)
        for column, (a, b) in enumerate(zip_longest(was, now)):
            if a != b:
                title = header[column] if column < len(header) else f"column {column + 1}"
                runs = [value for head, value in zip(header, now, strict=False) if head in _RUNS]
                place = f"row {number}, {title!r}"
                found.append(Difference(name, place, _told(a), _told(b), " ".join(runs)))
    return found, cells


def picture_difference(name: str, mine: Path, other: Path) -> list[Difference]:
    """Whether two PNG files show other pixels, and how many."""
    if mine.read_bytes() == other.read_bytes():
        return []
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(mine) as one, Image.open(other) as two:
            a, b = (np.asarray(each.convert("RGBA")) for each in (one, two))
    except (OSError, UnidentifiedImageError) as error:
        return [Difference(name, "", f"no picture: {error}", "a picture")]
    if a.shape != b.shape:
        return [Difference(name, "", f"{a.shape[1]} x {a.shape[0]} pixels", f"{b.shape[1]} x {b.shape[0]}")]
    differing = int((a != b).any(axis=2).sum())
    if not differing:  # other bytes, the same picture
        return []
    return [
        Difference(
            name, "", f"a picture that differs in {differing:,} of {a[..., 0].size:,} pixels", "another"
        )
    ]
