"""A plan of small runs, a stand-in that executes them, and processes that hold claims."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest

from salt.claim import Holder
from salt.flops import run_cost
from salt.plan_specs import Cell, Plan, PlannedRun
from salt.result_specs import RunResult
from salt.specs import ExecSpec, ProbeSpec, RunSpec, spec_id
from salt.store import RunDir, pretty_json, write_atomically
from slurm.states import Retry, State, assess
from slurm.worker import Drain
from tests.examples import run_spec

ROOT = Path(__file__).parent.parent
Execute = Callable[[Path, PlannedRun, Mapping[str, ProbeSpec], ExecSpec], None]


def planned(spec: RunSpec, role: str) -> PlannedRun:
    fields = {"run_id": spec_id(spec), "role": role, "spec": spec, "cost": run_cost(spec), "probe_ids": ()}
    return msgspec.convert(fields, PlannedRun)


@pytest.fixture
def plan() -> Plan:
    """Two teachers; two students of the first and one of the second; one run without a teacher."""
    first, second = run_spec("pixel", "nano"), run_spec("pixel", "tiny")
    students = [
        run_spec("salt", student, teacher=size, teacher_run=spec_id(teacher))
        for student, size, teacher in (
            ("micro", "nano", first),
            ("tiny", "nano", first),
            ("micro", "tiny", second),
        )
    ]
    runs = [planned(spec, "teacher") for spec in (first, second)]
    runs += [planned(spec, "student") for spec in (*students, run_spec("vjepa", "micro"))]
    by_id = {run.run_id: run for run in runs}
    cells = []
    for number, run in enumerate(runs[2:]):
        above = None if run.spec.teacher is None else by_id[run.spec.teacher.run_id]
        cells.append(
            Cell(
                cell_id=f"cell{number}",
                budget=1e9,
                budget_flops=10**9,
                arm=run.spec.arm,
                student="student",
                teacher=None if above is None else "teacher",
                teacher_share=None if above is None else 0.3,
                teacher_steps=None if above is None else above.spec.steps,
                seed=0,
                run_id=run.run_id,
                teacher_run_id=None if above is None else above.run_id,
                teacher_students=0 if above is None else 1,
                teacher_cost=None if above is None else above.cost,
                cost=run.cost,
                charged_flops=run.cost.total_flops + (0 if above is None else above.cost.total_flops),
                residual=0.0,
            )
        )
    return Plan(
        name="small",
        study_sha256="0",
        convention="matmul",
        charge="full",
        match="flops",
        execution=ExecSpec(),
        probes={},
        runs=tuple(runs),
        cells=tuple(cells),
    )


def finish(store: Path, run: PlannedRun) -> None:
    """What a run leaves behind when it is done."""
    folder = RunDir(store, run.run_id)
    write_atomically(folder.artefact, b"weights")
    result = RunResult(
        run_id=run.run_id,
        arm=run.spec.arm,
        steps=run.spec.steps,
        cost=run.cost,
        final_loss=0.5,
        artefact_sha256="0",
        teacher_sha256=None,
        attempts=1,
        train_wall_s=1.0,
        probe_wall_s=0.0,
        clips_seen=1,
        unique_clips=1,
        epochs=1.0,
    )
    write_atomically(folder.result, pretty_json(result))


class StandIn:
    """Executes runs by writing their results; `faults` maps a run to what it raises."""

    def __init__(self, faults: dict[str, Exception] | None = None) -> None:
        self.faults = faults or {}
        self.executed: list[str] = []

    def __call__(
        self, store: Path, run: PlannedRun, probes: Mapping[str, ProbeSpec], execution: ExecSpec
    ) -> None:
        self.executed.append(run.run_id)
        if run.spec.teacher is not None:
            assert RunDir(store, run.spec.teacher.run_id).artefact.exists(), "ran before its teacher"
        if run.run_id in self.faults:
            raise self.faults[run.run_id]
        finish(store, run)


def drain(store: Path, plan: Plan, execute: Execute, since_ns: int = 0, diverged: bool = False) -> Drain:
    return Drain(
        store,
        plan,
        execute=execute,
        retry=Retry(since_ns=since_ns, diverged=diverged),
        poll_s=0.005,
        report=lambda text: None,
    )


def states(store: Path, plan: Plan) -> list[State]:
    return [standing.state for standing in assess(store, plan).values()]


#: Claims a run, says so, and holds it until its input ends (or it is killed).
CLAIMANT = """
import sys
from pathlib import Path
from salt.claim import Claim, ClaimHeld
from salt.store import RunDir
print("ready", flush=True)
sys.stdin.readline()
try:
    claim = Claim.acquire(RunDir(Path(sys.argv[1]), "ab"))
except ClaimHeld as held:
    print("held", held, flush=True)
else:
    print("won", flush=True)
    sys.stdin.read()
    claim.release()
"""


class Claimant:
    """A process that claims the run `ab` when told to."""

    def __init__(self, store: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLAIMANT, str(store)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def outcome(self) -> str:
        return self._line()

    def kill(self) -> None:
        """End it as `kill -9` does, and wait until it is gone."""
        self.process.kill()
        self.process.communicate()

    def leave(self) -> None:
        self.process.communicate()
        assert self.process.returncode == 0


def race(store: Path, count: int) -> list[str]:
    claimants = [Claimant(store) for _ in range(count)]
    for claimant in claimants:
        claimant.tell()
    outcomes = [claimant.outcome() for claimant in claimants]
    for claimant in claimants:
        claimant.leave()
    return outcomes


def holder(**changes: object) -> Holder:
    """A holder that is this very process, but for the changes."""
    started = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    machine = f"{socket.gethostname()}/{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}"
    machine += f"/{os.readlink('/proc/self/ns/pid')}"
    fields = {
        "host": socket.gethostname(),
        "machine": machine,
        "pid": os.getpid(),
        "started": started,
        "token": "other",
        "claimed_unix_s": 0.0,
    }
    return msgspec.convert({**fields, **changes}, Holder)
