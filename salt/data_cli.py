"""`salt-data`: make the miniature's clips, and scan lists of videos."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from salt import __version__
from salt.errors import UserError

if TYPE_CHECKING:
    from salt.scan import ScanRow

_EXAMPLES = """examples:
  salt-data digits clips/                     the miniature's clips and lists, about 50 MB
  salt-data scan clips/train.csv              table of bad and flagged files
  salt-data scan list.csv --clean good.csv    the same, and a list without the bad ones
"""

_DIGITS = """Moving handwritten digits (scikit-learn's) as H.264 files, with lists
train.csv, selection.csv and report.csv. Two label columns: `motion` (signed
speed on a torus, which the order of frames alone carries) and `appearance`
(which digit). No source digit is in two lists. Run again, it makes only what
is missing."""

_DIGITS_EXAMPLES = """examples:
  salt-data digits clips/
  salt-data digits small/ --clips 512 --selection 128 --report 128
  salt-data digits clips/ --seed 7 --force    replace clips made with other settings
"""

_SCAN = """Decode every file of a list to its end and say which are bad, which to look
at (flagged), and why. A file that crashes or hangs its decoder is bad; the scan
goes on. A list is CSV with a header, `path,label...`; relative paths are relative
to the list's folder."""

_SCAN_EXAMPLES = """examples:
  salt-data scan clips/train.csv
  salt-data scan web.csv --workers 16 --limit-s 30 --clean web-good.csv
  salt-data scan web.csv --json | jq '.rows[] | select(.verdict == "bad")'

exit code: 0 all good or flagged, 1 some bad, 2 the list cannot be read
"""


def main(argv: Sequence[str]) -> int:
    """Run `salt-data` with these arguments; the exit code."""
    arguments = _parser().parse_args(list(argv))
    try:
        if arguments.command == "digits":
            return _digits(arguments)
        return _scan(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="salt-data", description="Clips and lists of clips.", epilog=_EXAMPLES, formatter_class=raw
    )
    parser.add_argument("--version", action="version", version=f"salt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    digits = commands.add_parser(
        "digits",
        help="make the miniature's clips",
        description=_DIGITS,
        epilog=_DIGITS_EXAMPLES,
        formatter_class=raw,
    )
    digits.add_argument("out", type=Path, metavar="OUT", help="folder for clips and lists")
    digits.add_argument(
        "--clips", type=_count, default=8192, metavar="N", help="training clips (default 8192)"
    )
    digits.add_argument(
        "--selection", type=_count, default=1024, metavar="N", help="selection clips (default 1024)"
    )
    digits.add_argument(
        "--report", type=_count, default=2048, metavar="N", help="report clips (default 2048)"
    )
    digits.add_argument("--seed", type=_natural, default=0, help="another seed gives other clips (default 0)")
    digits.add_argument(
        "--workers", type=_count, default=2, metavar="N", help="encoding processes (default 2)"
    )
    digits.add_argument(
        "--force", action="store_true", help="replace clips of other settings, or use a folder in use"
    )
    digits.add_argument("--json", action="store_true", help="print what was made as JSON")

    scan = commands.add_parser(
        "scan", help="find bad files of a list", description=_SCAN, epilog=_SCAN_EXAMPLES, formatter_class=raw
    )
    scan.add_argument("list", type=Path, metavar="LIST", help="the CSV list")
    scan.add_argument("--clean", type=Path, metavar="OUT.csv", help="write a list without the bad files")
    scan.add_argument("--workers", type=_count, default=2, metavar="N", help="decoding processes (default 2)")
    scan.add_argument(
        "--limit-s", type=_seconds, default=60.0, metavar="S", help="time for one file (default 60)"
    )
    scan.add_argument("--all", action="store_true", help="show good files too")
    scan.add_argument("--json", action="store_true", help="print all rows as JSON")
    return parser


def _natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a time in seconds")
    return number


def _digits(arguments: argparse.Namespace) -> int:
    from salt.digits import DigitSettings
    from salt.digits_files import make_digits

    settings = DigitSettings(
        clips=arguments.clips, selection=arguments.selection, report=arguments.report, seed=arguments.seed
    )
    made = make_digits(
        arguments.out,
        settings,
        workers=arguments.workers,
        force=arguments.force,
        show_progress=not arguments.json,
    )
    if arguments.json:
        result = {"out": str(arguments.out), "made": made, "settings": settings}
        print(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    else:
        total = settings.clips + settings.selection + settings.report
        what = f"{made} of {total} clips made" if made else f"nothing to do: all {total} clips are there"
        lists = ", ".join(str(arguments.out / f"{name}.csv") for name in ("train", "selection", "report"))
        print(f"{what}; lists: {lists}")
    return 0


def _scan(arguments: argparse.Namespace) -> int:
    from salt.scan import check_clean_path, scan_list, write_clean_list

    if arguments.clean is not None:
        check_clean_path(arguments.list, arguments.clean)
    rows = scan_list(
        arguments.list, workers=arguments.workers, limit_s=arguments.limit_s, show_progress=not arguments.json
    )
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("good", "flagged", "bad")}
    if arguments.json:
        result = {"list": str(arguments.list), "counts": counts, "rows": rows}
        print(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())
    else:
        shown = rows if arguments.all else [row for row in rows if row.verdict != "good"]
        if shown:
            _print_table(shown)
        print(f"{arguments.list}: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    if arguments.clean is not None:
        kept = write_clean_list(arguments.list, rows, arguments.clean)
        print(f"wrote {kept} rows to {arguments.clean}", file=sys.stderr)
    return 1 if counts["bad"] else 0


def _print_table(rows: Sequence[ScanRow]) -> None:
    """Columns as wide as their text, the reason last: it may be long, and nothing is cut."""
    header = ("line", "verdict", "frames", "header", "fps", "size", "bytes", "path", "reason")
    table = [header] + [
        (
            str(row.line),
            row.verdict,
            _text(row.decodable_frames),
            _text(row.header_frames),
            "-" if row.fps is None else f"{row.fps:g}",
            "-" if row.width_px is None else f"{row.width_px}x{row.height_px}",
            _text(row.size_bytes),
            repr(row.path)[1:-1],
            row.reason or "",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    for line in table:
        cells = [
            cell.rjust(width) if 2 <= column <= 6 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _text(number: int | None) -> str:
    return "-" if number is None else str(number)
