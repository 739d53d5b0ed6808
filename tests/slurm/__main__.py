"""`eval "$(python -m tests.slurm up DIR)"`, and `python -m tests.slurm down DIR`: a cluster by hand."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from tests.slurm import guard
from tests.slurm.cluster import Cluster


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.slurm", description="A Slurm cluster to try things on."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser(
        "up", help="start one, or what has died of it; prints what a shell has to export"
    )
    up.add_argument("folder", type=Path)
    up.add_argument("--nodes", type=int, default=4)
    up.add_argument("--cpus", type=int, default=4, help="of each node")
    up.add_argument("--memory-mb", type=int, default=8000, help="of each node")
    up.add_argument("--gpus", type=int, default=2, help="of each node")
    up.add_argument("--no-accounting", action="store_true", help="no database, so that sacct fails")
    up.add_argument("--conf", action="append", default=[], metavar="LINE", help="a line for slurm.conf")
    down = commands.add_parser("down", help="end it and its jobs, and remove its folder")
    down.add_argument("folder", type=Path)
    watch = commands.add_parser("guard", help="for the tests: take it down when their process has died")
    watch.add_argument("folder", type=Path)
    watch.add_argument("owner", type=int)
    args = parser.parse_args(argv)
    if args.command == "guard":
        guard.watch(args.folder, args.owner)
        return 0
    if args.command == "down":
        Cluster(args.folder).down()
        return 0
    cluster = Cluster(
        args.folder,
        nodes=args.nodes,
        cpus=args.cpus,
        memory_mb=args.memory_mb,
        gpus=args.gpus,
        accounting=not args.no_accounting,
        extra_conf="\n".join(args.conf),
    )
    try:
        cluster.up(guarded=False)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    print(*(f"export {name}={shlex.quote(value)}" for name, value in cluster.environment().items()), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
