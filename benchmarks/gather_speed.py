"""How long gathering many runs takes, against its limits: `python benchmarks/gather_speed.py`.

Makes a store of one plan in a temporary folder: all runs done, each with a result, the provenance of an
attempt and one to three probe suites. Each call of `gather` is in a process of its own and timed without
imports. Cold: no kept table (the files themselves are in the system's memory). Warm: one is there. Prints the
environment and seconds, best and median; the exit code is 1 where the best is over its limit.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.environment import environment  # noqa: E402 - found from any folder

LIMITS_S = {"cold": 1.0, "warm": 0.2}
#: Per seed and budget: students of two sizes by two arms, and of six teachers by five shares; the teachers.
RUNS_OF_A_BUDGET = 49
SEEDS = 12

TIMED = """
import sys, time
from pathlib import Path
import pandas
from analysis.gather import gather
began = time.perf_counter()
table = gather(Path(sys.argv[1]), "many")
print(time.perf_counter() - began, len(table))
"""

ATTEMPT = {
    "host": "node1", "node": "node1", "slurm_job": "12_3", "pid": "77", "python": "3.11.7", "torch": "2.13.0",
    "started": "2026-01-01T00:00:00+0000", "machine": "x86_64", "numpy": "2.4.6", "gpu_driver": "580.1",
    "git_commit": "0" * 40, "code_sha256": "0" * 64, "hardware": "NVIDIA H100, 80 GiB", "processes": "1",
    "micro_batch_clips": "16", "recompute": "false", "sharding": "none", "began_unix_s": "1700000000.123",
    "from": "0", "ended": "done",
}  # fmt: skip


def make_store(folder: Path, count: int) -> tuple[Path, int]:
    """A store with a plan of about `count` runs, all done; (its path, runs)."""
    from salt.store import RunDir
    from tests.synthetic import make_study

    budgets = tuple(int(200e9 * 1.2**i) for i in range(max(1, round(count / RUNS_OF_A_BUDGET / SEEDS))))
    shares = (0.1, 0.2, 0.3, 0.4, 0.5)
    study = make_study(folder / "store", "many", seeds=range(SEEDS), budgets=budgets, shares=shares)
    environment_file = json.dumps({"attempts": [ATTEMPT]}, indent=2)
    for run in study.plan.runs:
        RunDir(study.store, run.run_id).env.write_text(environment_file)
    return study.store, len(study.plan.runs)


def gather_once(store: Path) -> tuple[float, int]:
    """Seconds of one call, and rows of the table."""
    done = subprocess.run(
        [sys.executable, "-c", TIMED, str(store)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds, rows = done.stdout.split()
    return float(seconds), int(rows)


def main() -> int:
    """Time it and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    print(environment())
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        store, runs = make_store(Path(folder), options.runs)
        gather_once(store)  # compiles our modules, and the files come into the system's memory
        for case, limit_s in LIMITS_S.items():
            times = []
            for _ in range(options.repeat):
                if case == "cold":
                    shutil.rmtree(store / "cache", ignore_errors=True)
                seconds, rows = gather_once(store)
                times.append(seconds)
            best = min(times)
            failed |= best > limit_s
            print(
                f"{case}: {best:.3f} s (median {statistics.median(times):.3f} s of {len(times)}; limit "
                f"{limit_s:g} s), {runs:,} runs, {rows:,} rows"
            )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
