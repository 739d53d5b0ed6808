"""`python -m tests.crash`: disturb a small study in every way, and say what it survived.

Exit code 0 when nothing was found, 1 when something was. Which moment of the work a kill hits depends on the
machine; when it comes, and everything else, follows from `--seed`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash", description="Disturb a small study.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=300, help="kills at random moments")
    parser.add_argument("--every", type=int, default=1, help="of the writes only every so many, in turn")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of submitters at once")
    parser.add_argument("--disks", type=int, default=24, help="disk sizes for each way of being full")
    parser.add_argument("--only", default="", help="only cases whose name begins with this")
    parser.add_argument("--short", action="store_true", help="half a minute's choice of cases")
    parser.add_argument("--lanes", type=int, help="cases at once (default: one for each core)")
    parser.add_argument(
        "--folder", type=Path, help="where stores are made, and stay (default: a temporary one)"
    )
    parser.add_argument("--json", type=Path, help="write figures and problems there")
    args = parser.parse_args(argv)
    # Decoders import this module again: whatever is heavy comes only now.
    from tests.crash.program import run_all

    return run_all(args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
