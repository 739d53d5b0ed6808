"""How long `salt-sweep status` takes for many runs, against its limit: `python benchmarks/status_speed.py`.

Makes a store of one plan in a temporary folder: most runs done, some training on other machines, some failed,
the rest queued, all sent as arrays of one run a task. A stand-in for squeue answers with the lanes that are
left, one for sacct with those that ended; in the last case both hang. Prints the environment, seconds of the
whole command, and the share of each part.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.environment import environment  # noqa: E402 - found from any folder

LIMIT_S = 10.0
#: Of each hundred runs.
DONE, RUNNING, FAILED, LOST = 70, 5, 3, 2
TASKS_OF_ARRAY = 1000


def make_store(folder: Path, count: int) -> Path:
    """A store with a plan of `count` runs, most of them done, and records of a submission to Slurm."""
    import msgspec

    from salt.plan_specs import Cell, Plan
    from salt.plans import encode_plan, plan_dir
    from salt.specs import ExecSpec, spec_id
    from salt.store import pretty_json
    from slurm.records import Chunk, Lane, SubmissionRecord, jobs_folder
    from tests.drain_kit import planned
    from tests.examples import run_spec

    store = folder / "store"
    base = run_spec("vjepa", "micro")
    first = planned(base, "student")
    runs = []
    for seed in range(count):
        spec = msgspec.structs.replace(base, seed=seed)
        runs.append(msgspec.structs.replace(first, run_id=spec_id(spec), spec=spec))
    cells = tuple(
        Cell(
            cell_id=f"cell{number}", budget=1e9, budget_flops=10**9, arm=run.spec.arm, student="micro",
            teacher=None, teacher_share=None, teacher_steps=None, seed=number, run_id=run.run_id,
            teacher_run_id=None, teacher_students=0, teacher_cost=None, cost=run.cost,
            charged_flops=run.cost.total_flops, residual=0.0,
        )
        for number, run in enumerate(runs)
    )  # fmt: skip
    plan = Plan(
        name="many", study_sha256="0", convention="matmul", charge="full", match="flops",
        execution=ExecSpec(), probes={}, runs=tuple(runs), cells=cells,
    )  # fmt: skip
    _write(plan_dir(store, "many") / "plan.jsonl", encode_plan(plan))
    for number, run in enumerate(runs):
        _write_run(store, run, number % 100)
    jobs = jobs_folder(store, "many") / "20260101-000000-aaaaaa"
    record = SubmissionRecord(
        submission=jobs.name, plan="many", on="slurm", unix_s=time.time(), host="login",
        command=("salt-sweep",), code=None, since_ns=0,
    )  # fmt: skip
    starts = range(0, count, TASKS_OF_ARRAY)
    chunks = [
        Chunk(
            number=place, job=str(1000 + place), sent_unix_s=time.time(),
            lanes=tuple(Lane(runs=(run.run_id,)) for run in runs[start : start + TASKS_OF_ARRAY]),
        )
        for place, start in enumerate(starts)
    ]  # fmt: skip
    _write(jobs / "submission.json", pretty_json(record))
    _write(jobs / "lanes.json", msgspec.json.encode(chunks))
    _write_commands(folder / "bin", count)
    return store


def _write_run(store: Path, run: object, place: int) -> None:
    """The files that a run in this place of a hundred has."""
    import msgspec

    from salt.claim import Holder
    from salt.plan_specs import PlannedRun
    from salt.reached import Reached
    from salt.result_specs import RunError, RunResult
    from salt.store import RunDir, pretty_json

    assert isinstance(run, PlannedRun)
    folder = RunDir(store, run.run_id)
    if place >= DONE + RUNNING + FAILED + LOST:
        return
    _write(folder.spec, pretty_json(run.spec))
    attempt = {"began_unix_s": "1", "from": "step 0", "ended": None, "host": "n1"}
    _write(folder.env, pretty_json({"attempts": [attempt]}))
    line = '{"step": %d, "attempt": 1, "loss": 0.5, "wall_s": %d.0}\n'
    _write(folder.metrics, "".join(line % (step, step) for step in range(1, 9)).encode())
    reached = Reached(attempt=1, step=8, wall_s=8.0, saved_step=5, burnt_steps=0, burnt_wall_s=0.0)
    _write(folder.reached, msgspec.json.encode(reached))
    if place < DONE:
        _write(folder.artefact, b"weights")
        result = RunResult(
            run_id=run.run_id, arm=run.spec.arm, steps=run.spec.steps, cost=run.cost, final_loss=0.5,
            artefact_sha256="0", teacher_sha256=None, attempts=1, train_wall_s=100.0, probe_wall_s=1.0,
            clips_seen=1, unique_clips=1, epochs=1.0, burnt_wall_s=0.0, burnt_steps=0, burnt_flops=0,
        )  # fmt: skip
        _write(folder.result, pretty_json(result))
    elif place < DONE + RUNNING or place >= DONE + RUNNING + FAILED:
        holder = Holder(
            host="n1", machine="n1/boot/ns", pid=1, started="1", token=run.run_id, claimed_unix_s=1.0
        )
        _write(folder.claim, msgspec.json.encode(holder))
        if place >= DONE + RUNNING + FAILED:
            os.utime(folder.claim, (1.0, 1.0))
    else:
        error = RunError(run_id=run.run_id, kind="data", message="no clips", attempt=1, step=8, host="n1")
        _write(folder.error, pretty_json(error))


def _write(path: Path, data: bytes) -> None:
    """Without the flushes to disk of real runs: this is thrown away."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _write_commands(folder: Path, count: int) -> None:
    """Stand-ins for squeue and sacct: every run in progress has a node, every tenth of the others is gone."""
    queued, ended = [], []
    for number in range(count):
        place = number % 100
        job, task = 1000 + number // TASKS_OF_ARRAY, number % TASKS_OF_ARRAY
        if DONE <= place < DONE + RUNNING:
            queued.append(f"{job}|{job}|{task}|RUNNING|None|n1|salt")
        elif place >= DONE + RUNNING + FAILED and place % 10:
            queued.append(f"{job}|{job}|{task}|PENDING|Priority||salt")
        else:
            ended.append(f"{job}_{task}|TIMEOUT|0:0|n1|60")
    for name, lines in (("squeue", queued), ("sacct", ended)):
        _write(folder / f"{name}.txt", "\n".join([*lines, ""]).encode())
        script = folder / name
        _write(script, f"#!/bin/sh\nexec cat '{folder / name}.txt'\n".encode())
        script.chmod(0o755)


PARTS = """
import sys, time
from pathlib import Path
store = Path(sys.argv[1])
marks = [("", time.perf_counter())]
def mark(name):
    marks.append((name, time.perf_counter()))
from salt.plans import read_plan
from slurm.queue_state import QueueQuestion
from slurm.states import State, assess
from slurm.status import StatusReader, status_tables
from sweeps.command import print_json, print_tables
mark("imports")
plan = read_plan(store, "many")
mark("reading the plan")
reader = StatusReader(store, plan)
mark("names of runs")
question = QueueQuestion(store, plan)
question._answer.result()
mark("records and squeue")
standings = reader._assess()
mark("states from files")
facts = reader._facts(standings)
mark("times and steps of runs")
view = question.view({name for name, each in standings.items() if each.state is State.DONE})
mark("sacct")
status = reader._merge(standings, facts, view)
mark("rows and totals")
print_tables(status_tables(status))
mark("tables")
reader.ask()
mark("second look of --watch")
print(status.counts, status.notes, file=sys.stderr)
for (_, before), (name, after) in zip(marks, marks[1:]):
    share = (after - before) / (marks[-2][1] - marks[0][1])
    print(f"{name:<24} {after - before:6.2f} s  {share:5.0%}", file=sys.stderr)
"""


def main() -> int:
    """Exit code 1 when the limit is missed."""
    parser = argparse.ArgumentParser(description="How long a status takes.")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--profile", action="store_true", help="by function instead")
    args = parser.parse_args()
    print(environment())
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        began = time.perf_counter()
        store = make_store(folder, args.runs)
        print(f"made a store of {args.runs} runs in {time.perf_counter() - began:.1f} s")
        path = os.pathsep.join([str(folder / "bin"), os.environ.get("PATH", "")])
        variables = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        if args.profile:
            command = [sys.executable, "-m", "cProfile", "-s", "tottime", str(ROOT / "salt_cli.py")]
            done = subprocess.run(
                [*command, "salt-sweep", "status", "many", f"--store={store}"],
                env=variables, capture_output=True, text=True, check=True,
            )  # fmt: skip
            text = done.stdout
            print("\n".join(text[text.index("function calls") - 40 :].splitlines()[:40]))
            return 0
        subprocess.run(
            [sys.executable, "-c", PARTS, str(store)], env=variables, check=True, stdout=subprocess.DEVNULL
        )
        worst = 0.0
        for options, hangs in (([], False), (["--json"], False), (["--failed"], False), ([], True)):
            if hangs:
                for name in ("squeue", "sacct"):
                    (folder / "bin" / name).write_text("#!/bin/sh\nexec sleep 60\n")
            began = time.perf_counter()
            command = [sys.executable, str(ROOT / "salt_cli.py"), "salt-sweep", "status", "many"]
            subprocess.run(
                [*command, f"--store={store}", *options], env=variables, check=True, stdout=subprocess.DEVNULL
            )
            taken = time.perf_counter() - began
            worst = max(worst, taken)
            name = " ".join(["status", *options, *(["(Slurm hangs)"] if hangs else [])])
            print(f"{name:<24} {taken:6.2f} s, limit {LIMIT_S:g} s: {taken / LIMIT_S:.2f}")
    return 0 if worst <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
