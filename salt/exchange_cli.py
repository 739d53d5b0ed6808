"""`salt-train export` and `salt-train import`: runs to and from folders of other programs."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from salt.errors import UserError
from salt.specs import ClipSpec
from salt.store import RunDir, read_json

if TYPE_CHECKING:
    from salt.exchange import ExportNote

_EXAMPLES = """examples:
  salt-train export 3f2a --out vjepa2-mine             a folder for VJEPA2Model.from_pretrained
  salt-train import vjepa2-vitl --frames 16 --px 224   a finished run: probe it, or let it teach
  salt-train import vjepa2-vitl --clip clip.json       with the clip of a study, as in <run>/spec.json
"""


def _numbers(text: str) -> float | list[float]:
    """One number, or several between commas."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: one number, or three between commas") from None
    if not all(math.isfinite(value) for value in values):
        raise argparse.ArgumentTypeError(f"{text!r}: must be finite")
    return values[0] if len(values) == 1 else values


#: Options of `import` that replace a field of the clip.
_CLIP_OPTIONS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "frames": ("frames", int, "frames of a clip"),
    "px": ("crop_px", int, "side of a clip's square in pixels"),
    "frame_stride": ("frame_stride", int, "distance of frames in the video"),
    "store_px": ("store_px", int, "side of the square that is decoded"),
    "mean": (
        "mean",
        _numbers,
        "mean of pixels in [0, 1] that is taken off, or three of them: 0.485,0.456,0.406",
    ),
    "std": ("std", _numbers, "deviation that pixels are divided by, or three of them"),
}


def add_parsers(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Put `export` and `import` among the commands of `salt-train`."""
    raw = argparse.RawDescriptionHelpFormatter
    export = commands.add_parser(
        "export",
        help="write a finished run's encoder, and predictor, for another program",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    export.add_argument("run", metavar="RUN", help="a run id of the store, or its beginning")
    export.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write")
    importer = commands.add_parser(
        "import",
        help="make a finished run of weights that were trained elsewhere",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    importer.add_argument(
        "folder", type=Path, metavar="FOLDER", help="config.json and safetensors of a model"
    )
    importer.add_argument("--name", help="what to call the weights in the run's env.json")
    importer.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="PREFIX",
        help="leave out weights whose names begin so; may be repeated",
    )
    importer.add_argument(
        "--clip",
        type=Path,
        metavar="FILE",
        help="JSON of a clip, or of a run's spec (default: what config.json says, the rest as in `ClipSpec`)",
    )
    for option, (_, kind, words) in _CLIP_OPTIONS.items():
        importer.add_argument(f"--{option.replace('_', '-')}", type=kind, help=words)
    for command in (export, importer):
        command.add_argument(
            "--format", choices=("hf",), default="hf", help="hf: transformers' VJEPA2Model (default)"
        )
        command.add_argument("--store", help="run store (default: $SALT_STORE, else ./salt-store)")
        command.add_argument("--json", action="store_true", help="one JSON object instead of text")


def run_export(arguments: argparse.Namespace, store: Path) -> int:
    """Do `salt-train export`; the exit code."""
    from salt.exchange import export_run

    run = _find(store, arguments.run)
    exported = export_run(run, arguments.out)
    note = exported.note
    found = {
        "run_id": note.run_id,
        "folder": str(exported.folder),
        "branch": note.branch,
        "weights_sha256": note.weights_sha256,
        "predictor": note.predictor is None,
        "predictor_left_out": note.predictor,
    }
    _print(found, _export_text(exported.folder, note), arguments.json)
    return 0


def _export_text(folder: Path, note: ExportNote) -> str:
    lines = [f"{folder}: encoder of run {note.run_id}, branch {note.branch}, step {note.step}"]
    if note.predictor is None:
        lines.append("its predictor is there too")
    else:
        lines.append(f"without a predictor: {note.predictor}")
        lines.append("transformers will say that weights of `predictor.` are new: do not use that part")
    return "\n".join(lines)


def run_import(arguments: argparse.Namespace, store: Path) -> int:
    """Do `salt-train import`; the exit code."""
    from salt.exchange import import_clip, import_folder

    base = None if arguments.clip is None else _read_clip(arguments.clip)
    clip = _with_options(import_clip(arguments.folder, base), arguments)
    done = import_folder(store, arguments.folder, clip, name=arguments.name, drop=arguments.drop)
    assert done.spec.external is not None
    for remark in done.remarks:
        print(f"warning: {remark}", file=sys.stderr)
    found = {
        "run_id": done.run.run_id,
        "folder": str(done.run.path),
        "already_there": done.already_there,
        "weights_sha256": done.spec.external.weights_sha256,
        "remarks": list(done.remarks),
    }
    state = "is already there, with the same weights and clip" if done.already_there else "made"
    text = f"run {done.run.run_id} {state}: {done.run.path}"
    _print(found, text, arguments.json)
    return 0


def _read_clip(path: Path) -> ClipSpec:
    """A clip from its own JSON, or from that of the run spec that it is part of."""
    try:
        data = msgspec.json.decode(path.read_bytes(), type=dict[str, msgspec.Raw])
    except OSError as error:
        raise UserError(f"--clip {path}: cannot be read ({error.strerror})") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"--clip {path}: not a JSON object: {error}") from error
    if "clip" not in data:
        return read_json(path, ClipSpec)
    try:
        return msgspec.json.decode(data["clip"], type=ClipSpec)
    except msgspec.DecodeError as error:
        raise UserError(f"--clip {path}: its clip is not valid: {error}") from error


def _with_options(clip: ClipSpec, arguments: argparse.Namespace) -> ClipSpec:
    """The clip with what was given on the command line; values out of range are a `UserError`."""
    given = {
        field: value
        for option, (field, _, _) in _CLIP_OPTIONS.items()
        if (value := getattr(arguments, option)) is not None
    }
    try:
        return msgspec.convert(msgspec.to_builtins(clip) | given, ClipSpec)
    except msgspec.ValidationError as error:
        raise UserError(f"clip: {error}") from error


def _find(store: Path, prefix: str) -> RunDir:
    names = sorted(path.name for path in (store / "runs").glob("*/*") if path.name.startswith(prefix))
    if len(names) != 1:
        which = ", ".join(names[:5]) or "none"
        raise UserError(f"run {prefix!r}: {store} must have exactly one run beginning so, it has {which}")
    return RunDir(store, names[0])


def _print(found: dict[str, Any], text: str, as_json: bool) -> None:
    if as_json:
        sys.stdout.buffer.write(msgspec.json.encode(found) + b"\n")
        sys.stdout.flush()
    else:
        print(text)
