"""What sending 1,000 runs to Slurm takes beyond the sbatch calls: `python benchmarks/submit_speed.py`.

A stand-in for sbatch answers at once. One plan of runs without teachers, in one array; one in which each ten
students have a teacher of their own, so that there are many arrays. Prints the environment, the seconds of
sbatch, those of all else (proposal, lanes, scripts, records), and their limit.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from salt.plan_specs import Plan, PlannedRun

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.environment import environment  # noqa: E402 - found from any folder

RUNS, LIMIT_S, REPEATS = 1000, 0.2, 5
STUDENTS_OF_A_TEACHER = 10
SBATCH = '#!/bin/sh\nn=$(cat "$0.n" 2>/dev/null || echo 0)\nn=$((n + 1))\necho $n > "$0.n"\necho $n\n'


def make_plan(teachers: bool) -> Plan:
    """1,000 runs: all alone, or in families of a teacher and ten students."""
    import msgspec

    from salt.plan_specs import Plan
    from salt.specs import ExecSpec, spec_id
    from tests.drain_kit import planned
    from tests.examples import run_spec

    alone = planned(run_spec("vjepa", "micro"), "student")
    pixel = planned(run_spec("pixel", "nano"), "teacher")
    taught = planned(run_spec("salt", "micro", teacher="nano"), "student")
    runs: list[PlannedRun] = []
    teacher = ""
    for seed in range(RUNS):
        kind = alone if not teachers else taught if seed % (STUDENTS_OF_A_TEACHER + 1) else pixel
        spec = msgspec.structs.replace(kind.spec, seed=seed)
        if kind is taught:
            above = msgspec.structs.replace(spec.teacher, run_id=teacher, step=pixel.spec.steps)
            spec = msgspec.structs.replace(spec, teacher=above)
        runs.append(msgspec.structs.replace(kind, run_id=spec_id(spec), spec=spec))
        if kind is pixel:
            teacher = runs[-1].run_id  # of the students that follow
    return Plan(
        name="many", study_sha256="0", convention="matmul", charge="full", match="flops",
        execution=ExecSpec(), probes={}, runs=tuple(runs), cells=(),
    )  # fmt: skip


def measure(folder: Path, teachers: bool) -> tuple[float, float, int]:
    """Seconds of sbatch, of all else, and how many arrays there were."""
    import slurm.sending as sending
    from slurm.cluster import ClusterJob, submit_all
    from slurm.lanes import Wishes
    from slurm.profile import SlurmProfile
    from slurm.proposal import Limits, propose
    from slurm.states import assess

    plan = make_plan(teachers)
    spent = 0.0
    original = sending.ask

    def ask(command: Sequence[str], timeout_s: float) -> str:
        nonlocal spent
        began = time.perf_counter()
        try:
            return original(command, timeout_s)
        finally:
            spent += time.perf_counter() - began

    sending.ask = ask
    began = time.perf_counter()
    found = propose(
        folder, plan, assess(folder, plan), [], [], Wishes(), Limits(array=1001, jobs=None), clips_ready=True
    )
    job = ClusterJob(
        store=folder, plan=plan, profile=SlurmProfile(time="1:00:00", local_store=True),
        processes_per_node=8, proposal=found, code=ROOT,
    )  # fmt: skip
    sent = submit_all(job, lambda text: None)
    took = time.perf_counter() - began
    sending.ask = original
    assert sum(len(lane.runs) for chunk in sent for lane in chunk.lanes) == RUNS
    return spent, took - spent, len(sent)


def main() -> int:
    import submitit  # noqa: F401 - a command imports it once

    print(environment())
    for teachers in (False, True):
        results = []
        for _ in range(REPEATS):
            with tempfile.TemporaryDirectory(prefix="salt-bench-") as folder:
                sbatch = Path(folder) / "bin" / "sbatch"
                sbatch.parent.mkdir()
                sbatch.write_text(SBATCH)
                sbatch.chmod(0o755)
                srun = sbatch.with_name("srun")  # submitit wants to see one
                srun.write_text("#!/bin/sh\n")
                srun.chmod(0o755)
                os.environ["PATH"] = f"{sbatch.parent}{os.pathsep}{os.environ['PATH']}"
                results.append(measure(Path(folder) / "store", teachers))
        calls, rest, arrays = min(results, key=lambda result: result[1])
        what = "with teachers" if teachers else "without teachers"
        print(
            f"{RUNS} runs {what}, {arrays} arrays: {rest:.3f} s beyond the {calls:.3f} s of sbatch, least of "
            f"{REPEATS}; limit {LIMIT_S} s, ratio {rest / LIMIT_S:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
