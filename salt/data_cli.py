"""`salt-data`: make the miniature's clips; scan, pack and measure lists of videos; find duplicates."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from salt import __version__, data_commands
from salt.errors import UserError, shown

_EXAMPLES = """examples:
  salt-data digits clips/                     the miniature's clips and lists, about 50 MB
  salt-data scan clips/train.csv              table of bad and flagged files
  salt-data scan list.csv --clean good.csv    the same, and a list without the bad ones
  salt-data pack list.csv --store runs        decode once, ahead of a study
  salt-data bench list.csv --needs 300        how many decoding processes a model needs
  salt-data duplicates train.csv --other report.csv
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
at (flagged), and why. A file whose decoder crashes, hangs or takes too much memory
costs the scan nothing else: another decoder tries it, else it is bad. The clean list
has two columns more, `frames` that decode and `bytes`, by which training knows where
a file ends as long as it is the same. A list is CSV with a header, `path,label...`; relative paths are
relative to the list's folder."""

_SCAN_EXAMPLES = """examples:
  salt-data scan clips/train.csv
  salt-data scan web.csv --workers 16 --limit-s 30 --clean web-good.csv
  salt-data scan web.csv --json | jq '.rows[] | select(.verdict == "bad")'

exit code: 0 all good or flagged, 1 some bad, 2 the list cannot be read
"""

_PACK = """Decode every clip of a list once and store its pixels, memory-mapped and tied to the
list's content: training and probes read them at once. Studies do this by themselves
when they are submitted; here it can be done ahead, on another machine. A pack is
whole or absent; after Ctrl-C or a kill the same command goes on where it stopped."""

_PACK_EXAMPLES = """examples:
  salt-data pack clips/train.csv --px 64 --channels 1
  salt-data pack web.csv --store /scratch/store --workers 32 --max-bad 10
  salt-data pack report.csv --clips-per-file 4 --rate-hz 4 --json

exit code: 0 packed or there already, 2 too many bad files, no room, or a bad list
"""

_BENCH = """Measure how many clips per second a list gives on this machine: decoded at random
places by 1, 2, ... processes, and read from stored clips where `salt-data pack`
has made them with the same options. Decoding alone is timed: no crops, no model."""

_BENCH_EXAMPLES = """examples:
  salt-data bench web.csv --workers 1,4,16
  salt-data bench web.csv --needs 300             clips/s that the model takes
  salt-data bench web.csv --step-s 0.8 --batch 256 --json

exit code: 0 measured, 2 the list cannot be read or nothing in it decodes
"""

_DUPLICATES = """Find files that show the same footage, encoded, scaled or named otherwise: in one
list, or also across two (does the report list leak into training?). Each file
gets 192 bits from three frames; files within a distance in bits are alike. Cuts,
mirrored and cropped copies are not found. Stored clips are used where all lists
have them."""

_DUPLICATES_EXAMPLES = """examples:
  salt-data duplicates web.csv
  salt-data duplicates train.csv --other report.csv --workers 16
  salt-data duplicates web.csv --distance 6 --json | jq '.groups[][].path'

exit code: 0 none, 1 some found, 2 a list cannot be read
"""


def main(argv: Sequence[str]) -> int:
    """Run `salt-data` with these arguments; the exit code."""
    parser = _parser()
    arguments = parser.parse_args(list(argv))
    if arguments.command == "bench":
        if (arguments.step_s is None) != (arguments.batch is None):
            parser.error("--step-s and --batch go together")
        if arguments.needs is not None and arguments.step_s is not None:
            parser.error("--needs says what --step-s and --batch say: give one of them")
    try:
        return int(getattr(data_commands, arguments.command)(arguments))
    except UserError as error:
        print(f"error: {shown(error)}", file=sys.stderr)
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
    scan.add_argument(
        "--limit-gb", type=_seconds, default=4.0, metavar="GB", help="memory for one file (default 4)"
    )
    scan.add_argument("--all", action="store_true", help="show good files too")
    scan.add_argument("--json", action="store_true", help="print all rows as JSON")
    _add_pack(commands)
    _add_bench(commands)
    _add_duplicates(commands)
    return parser


def _add_pack(commands: Any) -> None:
    pack = commands.add_parser(
        "pack",
        help="decode a list once and store it",
        description=_PACK,
        epilog=_PACK_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_list(pack)
    place = pack.add_mutually_exclusive_group()
    _add_store(place)
    place.add_argument("--out", type=Path, metavar="FOLDER", help="another cache folder than the store's")
    _add_clip(pack)
    pack.add_argument(
        "--clips-per-file",
        type=_count,
        default=1,
        metavar="N",
        help="clips spread over each file (default 1)",
    )
    pack.add_argument(
        "--max-bad", type=_percent, default=5.0, metavar="PERCENT", help="bad files to accept (default 5)"
    )
    _add_work(pack, "print what was packed as JSON")


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure how fast a list gives clips",
        description=_BENCH,
        epilog=_BENCH_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_list(bench)
    _add_store(bench)
    _add_clip(bench)
    bench.add_argument("--needs", type=_seconds, metavar="CLIPS_PER_S", help="what the model takes")
    bench.add_argument("--step-s", type=_seconds, metavar="S", help="or: seconds of a step, with --batch")
    bench.add_argument("--batch", type=_count, metavar="B", help="clips of a step")
    bench.add_argument(
        "--workers",
        type=_counts,
        default=(1, 2),
        metavar="N,N",
        help="numbers of processes to try (default 1,2)",
    )
    bench.add_argument(
        "--seconds", type=_seconds, default=5.0, metavar="S", help="time of each measurement (default 5)"
    )
    _add_limit(bench)
    bench.add_argument("--json", action="store_true", help="print what was measured as JSON")


def _add_duplicates(commands: Any) -> None:
    duplicates = commands.add_parser(
        "duplicates",
        help="find near-duplicate files",
        description=_DUPLICATES,
        epilog=_DUPLICATES_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_list(duplicates)
    duplicates.add_argument("--other", type=Path, metavar="LIST", help="a second list to compare with")
    duplicates.add_argument(
        "--distance",
        type=_natural,
        default=16,
        metavar="BITS",
        help="bits of 192 that may differ (default 16)",
    )
    _add_store(duplicates)
    _add_work(duplicates, "print the groups as JSON")


def _add_list(command: Any) -> None:
    command.add_argument("list", type=Path, metavar="LIST", help="the CSV list")


def _add_store(command: Any) -> None:
    command.add_argument(
        "--store", metavar="STORE", help="run store (default $SALT_STORE, else ./salt-store)"
    )


def _add_work(command: Any, json_help: str) -> None:
    command.add_argument(
        "--workers", type=_count, default=2, metavar="N", help="decoding processes (default 2)"
    )
    _add_limit(command)
    command.add_argument("--json", action="store_true", help=json_help)


def _add_limit(command: Any) -> None:
    command.add_argument(
        "--limit-s", type=_seconds, default=60.0, metavar="S", help="time for one file (default 60)"
    )


def _add_clip(command: Any) -> None:
    """Options of a clip; the defaults are those of studies."""
    add = command.add_argument
    add("--frames", type=_count, default=16, metavar="N", help="frames of a clip (default 16)")
    add("--stride", type=_count, default=4, metavar="N", help="frames from one to the next (default 4)")
    add("--rate-hz", type=_seconds, metavar="HZ", help="instead of --stride: frames per second, by time")
    add("--px", type=_count, default=256, metavar="N", help="side of stored frames in pixels (default 256)")
    add("--channels", type=int, choices=(1, 3), default=3, help="1: luma alone (default 3)")
    add(
        "--short-clips",
        choices=("skip", "repeat-last", "loop", "shrink-stride"),
        default="skip",
        help="what to do with files shorter than a clip (default skip)",
    )


def _natural(text: str) -> int:
    return _at_least(0, text)


def _count(text: str) -> int:
    return _at_least(1, text)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(_count(part) for part in text.split(","))


def _at_least(least: int, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < least:
        raise argparse.ArgumentTypeError(f"{text} is below {least}")
    return number


def _percent(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a percentage")
    return number


def _seconds(text: str) -> float:
    number = _number(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
