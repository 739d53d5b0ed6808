"""What all figures share: one look, names that cannot break the drawing, and writing to disk without a
display.

Figures are made from matplotlib's objects, on the file backend, without pyplot's global state. Arms
differ by colour (Okabe and Ito's palette, safe for colour-blind readers), marker and line style, so that
they read in grey.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backend_bases import FigureCanvasBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from salt.store import write_atomically

COLUMN_IN = 3.5  # single-column print width in inches
PAGE_IN = 7.2  # full page width in inches
DPI = 200


class Look(NamedTuple):
    """How an arm is drawn."""

    colour: str
    marker: str
    line: Any


LOOKS: dict[str, Look] = {
    "pixel": Look("#0072B2", "s", (0, (4, 1.5))),
    "salt": Look("#D55E00", "o", "-"),
    "external": Look("#882255", "p", (0, (3, 1, 1, 1, 1, 1))),
    "hybrid": Look("#332288", "d", (0, (7, 1.5))),
    "vjepa": Look("#117755", "^", (0, (1, 1.2))),
}
#: For arms of other projects, in the order in which they are met.
_OTHER_LOOKS = (
    Look("#CC79A7", "D", (0, (3, 1, 1, 1))),
    Look("#000000", "v", (0, (5, 1))),
    Look("#56B4E9", "P", (0, (2, 1))),
    Look("#996600", "X", (0, (6, 1, 1, 1, 1, 1))),
)
ARM_NAMES = {
    "pixel": "pixel",
    "salt": "SALT (frozen teacher)",
    "external": "external teacher",
    "hybrid": "hybrid (latents + pixels)",
    "vjepa": "V-JEPA (EMA teacher)",
}
#: Reference lines: colour and line style, distinct in grey by their dashes.
REFERENCES: dict[str, tuple[str, Any]] = {
    "chance": ("#666666", (0, (1, 2))),
    "raw": ("#666666", (0, (6, 2, 1, 2))),
    "supervised": ("#222222", (0, (8, 2))),
    "external": ("#882255", (0, (1, 1))),
}
RANDOM_BAND = "#BBBBBB"
PROBE_NAMES = {"linear": "linear probe", "knn": "k-nearest neighbours", "attentive": "attentive probe"}


def looks_of(arms: Sequence[str]) -> dict[str, Look]:
    """How each of these arms is drawn; arms that are not ours take the other looks in turn."""
    others = [arm for arm in arms if arm not in LOOKS]
    return {arm: LOOKS.get(arm) or _OTHER_LOOKS[others.index(arm) % len(_OTHER_LOOKS)] for arm in arms}


_STYLE: Any = {
    "font.family": ["DejaVu Sans"],
    "font.size": 7.5,
    "axes.titlesize": 8,
    "axes.labelsize": 7.5,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "lines.linewidth": 1.2,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "text.usetex": False,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}
#: Characters of a file's name without its ending; file systems take 255 bytes, ours write beside first.
_LONGEST_NAME = 200
#: Behind notes that lie on lines or points.
NOTE_BOX: dict[str, Any] = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.0}
#: Fonts with East Asian glyphs, tried in this order where the machine has them.
_WIDE_FONTS = ("Noto Sans CJK JP", "Noto Sans JP", "IPAGothic", "WenQuanYi Zen Hei", "Droid Sans Fallback")


@contextmanager
def style() -> Iterator[None]:
    """The look of all figures, without touching the caller's settings."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["font.family"] = ["DejaVu Sans", *_wide_fonts()]
        yield


@cache
def _wide_fonts() -> tuple[str, ...]:
    known = {font.name for font in font_manager.fontManager.ttflist}
    return tuple(name for name in _WIDE_FONTS if name in known)


@cache
def _glyphs() -> frozenset[int]:
    found: set[int] = set()
    for name in ("DejaVu Sans", *_wide_fonts()):
        path = font_manager.findfont(name, fallback_to_default=False)
        found |= set(font_manager.get_font(path).get_charmap())
    return frozenset(found)


def printable(text: object) -> str:
    """A name as it can be drawn: `$` is a dollar and not mathematics, and a glyph that no font has is spelt
    out.

    Control characters become blanks; a character without a glyph becomes its code point, as in `U+6F22`.
    """
    drawn = []
    for character in str(text):
        if unicodedata.category(character) in ("Cc", "Cf", "Cs"):
            drawn.append(" ")
        elif ord(character) in _glyphs():
            drawn.append("\\$" if character == "$" else character)
        else:
            drawn.append(f"[U+{ord(character):04X}]")
    return "".join(drawn)


def panel_title(axes: Axes, label: str, kind: str) -> None:
    """`label, probe` above a panel, cut and made smaller where a long name would run into its neighbour."""
    text = f"{printable(textwrap.shorten(label, 24, placeholder='…'))}, {PROBE_NAMES.get(kind, kind)}"
    axes.set_title(text, loc="left", fontsize=max(5.0, min(8.0, 8.0 * 34 / len(text))))


def few_log_labels(axes: Axes) -> None:
    """Labels of a logarithmic x axis that keep apart: of decades, or of 1, 2 and 5 of each."""
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    steps = (1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=steps))
    if decades < 0.4:  # 1, 2 and 5 need not be inside, and more ticks would be told as the same number
        axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _scientific(value, decades)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _scientific(value: float, decades: float) -> str:
    mantissa, exponent = f"{value:.{0 if decades >= 0.4 else 2}e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def wrapped(text: str, width_in: float) -> str:
    """A caption of 6 points in lines that fit a figure's width."""
    return "\n".join(textwrap.wrap(text, int(width_in * 22.5)))


def empty_note(axes: Axes, text: str) -> None:
    """Say in the middle of the axes why nothing is drawn."""
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize=7.5, color="#444444"
    )


class Hover(NamedTuple):
    """A place in a figure, in percent of its width and height from the upper left, and what is there."""

    left: float
    top: float
    text: str

    @property
    def side(self) -> str:
        """Where the text finds room: to the left of a point in the right half, below one near the top."""
        return (" back" if self.left > 50 else "") + (" under" if self.top < 25 else "")


_HOVER = "salt-hover:"


def hover(points: Any, texts: Sequence[str]) -> None:
    """Keep a text for each point of a scatter, in their order. Nothing of it is drawn."""
    points.set_gid(_HOVER + json.dumps(list(texts)))


def hovers(figure: Figure) -> tuple[Hover, ...]:
    """The places of all points that have a text, as the figure is drawn to a file; overlaying ones too."""
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    width, height = figure.bbox.width, figure.bbox.height
    found = []
    for points in figure.findobj(PathCollection):
        kept = points.get_gid() or ""
        if not kept.startswith(_HOVER):
            continue
        places = points.get_offset_transform().transform(points.get_offsets())
        for (x, y), text in zip(places, json.loads(kept.removeprefix(_HOVER)), strict=True):
            found.append(Hover(round(100 * x / width, 2), round(100 * (1 - y / height), 2), text))
    return tuple(found)


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file of 200 dpi, without a date, so that equal figures are equal files."""
    return _rendered(FigureCanvasAgg(figure), "png", {"Software": None})


def write_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """`<name>.png` at 200 dpi and `<name>.pdf`, each written whole or not at all."""
    dates = {"CreationDate": None, "ModDate": None}
    parts = {".png": png_bytes(figure), ".pdf": _rendered(FigureCanvasPdf(figure), "pdf", dates)}
    for suffix, data in parts.items():
        write_atomically(folder / f"{name}{suffix}", data)
    return [folder / f"{name}{suffix}" for suffix in parts]


def _rendered(canvas: FigureCanvasBase, kind: str, metadata: dict[str, None]) -> bytes:
    data = io.BytesIO()
    canvas.print_figure(data, format=kind, dpi=DPI, metadata=metadata)
    return data.getvalue()


def file_name(*parts: str) -> str:
    """A safe file name from names of labels and probes: letters, digits, dashes, underscores; the rest as
    code points. A name that no file system would take is cut, and ends in a hash of the whole.
    """
    text = "-".join(parts)
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else f"u{ord(c):04x}" for c in text)
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[: _LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
