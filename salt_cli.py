"""The one entry module: finds our four packages, refuses foreign ones of the same name, and dispatches.

`salt`, `sweeps`, `slurm` and `analysis` are also the names of other people's packages. Which one Python would
import depends on the path, so it is checked before anything is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import sys
from pathlib import Path

PACKAGES = ("salt", "sweeps", "slurm", "analysis")
COMMANDS = {
    "salt-sweep": "sweeps.cli",
    "salt-analyze": "analysis.cli",
    "salt-train": "salt.train_cli",
    "salt-data": "salt.data_cli",
}


def sweep() -> int:
    """`salt-sweep`"""
    return run("salt-sweep", sys.argv[1:])


def analyze() -> int:
    """`salt-analyze`"""
    return run("salt-analyze", sys.argv[1:])


def train() -> int:
    """`salt-train`"""
    return run("salt-train", sys.argv[1:])


def data() -> int:
    """`salt-data`"""
    return run("salt-data", sys.argv[1:])


def run(command: str, argv: list[str]) -> int:
    """Run a command line and return its exit code: 2 for a user's mistake, 1 for a failed run, 130 for
    Ctrl-C.
    """
    own_packages_first()
    _print_anything()
    errors = importlib.import_module("salt.errors")
    try:
        code: int = importlib.import_module(COMMANDS[command]).main(argv)
        sys.stdout.flush()
        return code
    except errors.UserError as error:
        print(f"error: {errors.shown(error)}", file=sys.stderr)
        return 2
    except errors.RunFailed as error:
        # A write that fails is a `RunFailed` too, and says itself what could not be written. Only where a run
        # is what was asked for did one fail: a plan or a report has none.
        lone_write = isinstance(error, OSError) and (command, argv[:1]) != ("salt-train", ["run"])
        head = "" if lone_write else f"the run failed ({error.kind}): "
        print(f"error: {head}{errors.shown(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone, as in `| head`. Nothing more can be said there, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # A file that went, or may not be read or written, where nobody had reason to look first.
        if error.filename is None:
            raise
        place, why = errors.shown(error.filename), error.strerror or type(error).__name__
        print(f"error: {place}: {why}; see that it is there and that you may use it", file=sys.stderr)
        return 2


def _print_anything() -> None:
    """Names that the terminal's encoding lacks are spelt out, and end no command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def own_packages_first() -> None:
    """Make sure that our packages are those beside this file; else put this folder first and say so."""
    root = Path(__file__).resolve().parent
    intruders = [(name, place) for name in PACKAGES if (place := _foreign_place(name, root)) is not None]
    if not intruders:
        return
    sys.path.insert(0, str(root))
    importlib.invalidate_caches()
    for name, place in intruders:
        for module in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
            del sys.modules[module]
        print(
            f"warning: another package named {name!r} is first on the path ({place}); using {root / name}",
            file=sys.stderr,
        )
        if (place := _foreign_place(name, root)) is not None:
            raise SystemExit(
                f"error: our package {name!r} is not beside {__file__} but {place}; reinstall salt-scaling"
            )


def _foreign_place(name: str, root: Path) -> str | None:
    """Where a package would be imported from, if that is not beside this file."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return "nowhere"
    places = list(spec.submodule_search_locations or [spec.origin or ""])
    return None if any(Path(place).resolve() == root / name for place in places) else places[0]


if __name__ == "__main__":
    name = Path(sys.argv[0]).name
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python {name} {{{','.join(COMMANDS)}}} ...")
    sys.exit(run(sys.argv[1], sys.argv[2:]))
