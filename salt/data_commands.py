"""What the commands of `salt-data` do and print; `salt.data_cli` has their options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from salt.specs import ClipSpec
from salt.store import store_path

if TYPE_CHECKING:
    from salt.data_bench import DataBench
    from salt.duplicates import Duplicates
    from salt.pack import PackSize
    from salt.scan import ScanRow


def digits(arguments: argparse.Namespace) -> int:
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
        _print_json(result)
    else:
        total = settings.clips + settings.selection + settings.report
        what = f"{made} of {total} clips made" if made else f"nothing to do: all {total} clips are there"
        lists = ", ".join(str(arguments.out / f"{name}.csv") for name in ("train", "selection", "report"))
        print(f"{what}; lists: {lists}")
    return 0


def scan(arguments: argparse.Namespace) -> int:
    from salt.scan import check_clean_path, scan_list, write_clean_list

    if arguments.clean is not None:
        check_clean_path(arguments.list, arguments.clean)
    rows = scan_list(
        arguments.list,
        workers=arguments.workers,
        limit_s=arguments.limit_s,
        memory_bytes=int(arguments.limit_gb * 1e9),
        show_progress=not arguments.json,
    )
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("good", "flagged", "bad")}
    if arguments.json:
        result = {"list": str(arguments.list), "counts": counts, "rows": rows}
        _print_json(result)
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
    header = (
        "line",
        "verdict",
        "frames",
        "header",
        "fps",
        "size",
        "bytes",
        "turn",
        "codec",
        "path",
        "reason",
    )
    table = [header] + [
        (
            str(row.line),
            row.verdict,
            _text(row.decodable_frames),
            _text(row.header_frames),
            "-" if row.fps is None else f"{row.fps:g}",
            "-" if row.width_px is None else f"{row.width_px}x{row.height_px}",
            _text(row.size_bytes),
            _text(row.rotation_degrees),
            row.codec or "-",
            repr(row.path)[1:-1],
            row.reason or "",
        )
        for row in rows
    ]
    widths = [max(len(line[column]) for line in table) for column in range(len(header))]
    for line in table:
        cells = [
            cell.rjust(width) if 2 <= column <= 7 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def _text(number: int | None) -> str:
    return "-" if number is None else str(number)


def _print_json(result: object) -> None:
    print(msgspec.json.format(msgspec.json.encode(result), indent=2).decode())


def _cache(arguments: argparse.Namespace) -> Path:
    """The folder of decoded clips: `--out`, else that of the run store."""
    out: Path | None = getattr(arguments, "out", None)
    return out if out is not None else store_path(arguments.store) / "cache"


def clip_of_options(arguments: argparse.Namespace) -> ClipSpec:
    """The clip that `--frames`, `--stride` and so on describe."""
    return ClipSpec(
        frames=arguments.frames,
        frame_stride=arguments.stride,
        frame_rate_hz=arguments.rate_hz,
        clips_per_file=getattr(arguments, "clips_per_file", 1),
        store_px=arguments.px,
        crop_px=arguments.px,
        channels=arguments.channels,
        short_clips=arguments.short_clips,
    )


def pack(arguments: argparse.Namespace) -> int:
    from salt.pack import pack_list

    quiet = arguments.json
    done = pack_list(
        arguments.list,
        clip_of_options(arguments),
        _cache(arguments),
        workers=arguments.workers,
        limit_s=arguments.limit_s,
        max_bad_share=arguments.max_bad / 100,
        show_progress=not quiet,
        foretell=None if quiet else _print_size,
    )
    if quiet:
        _print_json(done)
        return 0
    for path, reason in done.skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if done.wall_s is None or done.clips_per_s is None:
        took = "nothing to do, it is there"
    else:
        took = f"{done.wall_s:.1f} s, {done.clips_per_s:.3g} clips/s"
    clips, files, skipped = (
        _count(number, what, "s")
        for number, what in ((done.clips, "clip"), (done.files, "file"), (len(done.skipped), "file"))
    )
    print(f"{clips} of {files}, {_bytes(done.pixel_bytes)}, {skipped} skipped: {took}")
    print(done.folder)
    return 0


def _print_size(size: PackSize) -> None:
    if not size.exists:
        print(
            f"{_count(size.files, 'file', 's')}, {_count(size.clips, 'clip', 's')}: "
            f"{_bytes(size.pixel_bytes)}; {_bytes(size.free_bytes)} are free",
            file=sys.stderr,
        )


def bench(arguments: argparse.Namespace) -> int:
    from salt.data_bench import bench_list

    needs = arguments.needs
    if arguments.step_s is not None:
        needs = arguments.batch / arguments.step_s
    found = bench_list(
        arguments.list,
        clip_of_options(arguments),
        _cache(arguments),
        workers=arguments.workers,
        needs_clips_per_s=needs,
        seconds=arguments.seconds,
        limit_s=arguments.limit_s,
        show_progress=not arguments.json,
    )
    if arguments.json:
        _print_json(found)
    else:
        _print_bench(found)
    return 0


def _print_bench(found: DataBench) -> None:
    for speed in found.streamed:
        failed = f", {speed.failed} failed" if speed.failed else ""
        print(
            f"decoding, {_count(speed.workers, 'process', 'es')}: {speed.clips_per_s:.3g} clips/s, "
            f"{speed.clips_per_s / speed.workers:.3g} each; files of {_bytes(speed.file_bytes_per_s)}/s, "
            f"{_bytes(speed.pixel_bytes_per_s)}/s of pixels ({speed.clips} clips{failed})"
        )
    if found.packed is None:
        print("stored: none of these clips; `salt-data pack` with the same options stores them")
    else:
        print(
            f"stored, 1 process: {found.packed.clips_per_s:.3g} clips/s, "
            f"{_bytes(found.packed.pixel_bytes_per_s)}/s of pixels ({found.packed.clips} clips)"
        )
    if found.needs_clips_per_s is not None and found.enough_workers is not None:
        how = "as measured" if found.measured else "if more processes add as much each"
        beyond = f"; this machine has {_count(found.cores, 'core', 's')}"
        print(
            f"{found.needs_clips_per_s:.3g} clips/s are needed: "
            f"{_count(found.enough_workers, 'decoding process', 'es')}, {how}"
            + (beyond if found.enough_workers > found.cores else "")
        )
        if found.packed is not None and found.packed.clips_per_s >= found.needs_clips_per_s:
            print("stored clips are quick enough in one process")


def duplicates(arguments: argparse.Namespace) -> int:
    from salt.duplicates import find_duplicates

    paths = [arguments.list, *([arguments.other] if arguments.other else [])]
    found = find_duplicates(
        paths,
        distance=arguments.distance,
        cache=_cache(arguments),
        workers=arguments.workers,
        limit_s=arguments.limit_s,
        show_progress=not arguments.json,
    )
    if arguments.json:
        _print_json(found)
    else:
        _print_duplicates(found, arguments.other is not None)
    return 1 if found.groups else 0


def _print_duplicates(found: Duplicates, two_lists: bool) -> None:
    for number, group in enumerate(found.groups):
        print(f"group {number + 1}" + (", in both lists" if number in found.across else ""))
        for item in group:
            print(f"  {item.list}:{item.line}  {item.path!r}  {_count(item.distance, 'bit', 's')} apart")
    for path, reason in found.skipped:
        print(f"skipped {path}: {reason}", file=sys.stderr)
    copies = sum(len(group) - 1 for group in found.groups)
    text = f"{found.files} files: {_count(len(found.groups), 'group', 's')}, {copies} files more than needed"
    if two_lists:
        text += f", {_count(len(found.across), 'group', 's')} in both lists"
    text += f"; {found.flat} too flat to compare, {len(found.skipped)} skipped"
    print(text + (" (frames of stored clips)" if found.packed else ""))


def _count(number: int, what: str, plural: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}{plural}"


def _bytes(number: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"
