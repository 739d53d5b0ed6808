"""Nodes on which runs keep ending are told from the attempts in files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import msgspec

from salt.attempts import Attempt, Environment
from salt.claim import Claim
from salt.plan_specs import Plan
from salt.store import RunDir, pretty_json, write_atomically
from slurm.nodes import bad_nodes, node_table
from tests.drain_kit import plan

__all__ = ["plan"]  # a fixture

ECC = "RuntimeError: CUDA error: uncorrectable ECC error encountered"


def note(store: Path, plan: Plan, *attempts: tuple[int, str, str | None, str | None]) -> list[str]:
    """Attempts as (place of the run in the plan, node, how it ended, message), in the order of time."""
    by_run: dict[int, list[Attempt]] = {}
    for second, (place, node, ended, message) in enumerate(attempts):
        about = {"began_unix_s": str(1000 + second), "host": node, "ended": ended, "message": message}
        by_run.setdefault(place, []).append(about)
    for place, found in by_run.items():
        run = RunDir(store, plan.runs[place].run_id)
        write_atomically(run.env, pretty_json(Environment(attempts=found)))
    return [run.run_id for run in plan.runs]


def test_a_node_where_several_runs_end_badly_in_a_row_is_bad(plan: Plan, tmp_path: Path) -> None:
    names = note(
        tmp_path, plan,
        (0, "gpu3", "done", None),
        (1, "gpu3", None, None), (2, "gpu3", "code", ECC), (3, "gpu3", "killed", "SIGKILL"),
        (1, "gpu4", None, None), (2, "gpu4", "killed", "SIGKILL"), (3, "gpu4", "stopped", None),
        (1, "gpu5", "ranks", "lost"), (2, "gpu5", "data", "no clips"), (3, "gpu5", None, None),
        (4, "gpu6", "oom", "CUDA out of memory"), (5, "gpu6", "disk", "no space is left (ENOSPC)"),
        (4, "gpu7", "disk", "the disk reports a fault (EIO)"), (5, "gpu7", "disk", "lost the file (ESTALE)"),
    )  # fmt: skip
    bad = bad_nodes(tmp_path, plan, 3)
    assert list(bad) == ["gpu3"]  # gpu4 and gpu5 have done their part meanwhile, gpu6 has no part in it
    assert bad["gpu3"].runs == (names[1], names[2], names[3])
    assert bad["gpu3"].attempts == 3
    assert bad["gpu3"].reasons == ("killed: SIGKILL", f"code: {ECC}", "ended without a word")
    assert list(bad_nodes(tmp_path, plan, 2)) == ["gpu3", "gpu7"]
    assert bad_nodes(tmp_path, plan, 4) == bad_nodes(tmp_path, plan, 0) == {}
    lines = node_table(bad, dict(zip(names, ["a", "teacher", "c", "d\x1b[2J", "e", "f"], strict=True)))
    assert lines[0] == r"gpu3: the last 3 attempts there ended badly, of teacher, c, d\x1b[2J"
    assert lines[1:] == ["  killed: SIGKILL", f"  code: {ECC}", "  ended without a word"]


def test_one_run_alone_speaks_against_a_node_only_if_it_succeeded_elsewhere(
    plan: Plan, tmp_path: Path
) -> None:
    alone = [(0, "gpu3", None, None)] * 3
    note(tmp_path, plan, *alone)
    assert bad_nodes(tmp_path, plan, 3) == {}
    note(tmp_path, plan, (0, "gpu4", "stopped", None), *alone)  # earlier: it may have broken since
    assert bad_nodes(tmp_path, plan, 3) == {}
    note(tmp_path, plan, *alone, (0, "gpu4", "done", None))
    assert list(bad_nodes(tmp_path, plan, 3)) == ["gpu3"]


def test_an_attempt_that_is_under_way_has_not_ended(plan: Plan, tmp_path: Path) -> None:
    note(tmp_path, plan, (0, "gpu3", None, None), (1, "gpu3", None, None))
    assert list(bad_nodes(tmp_path, plan, 2)) == ["gpu3"]
    with Claim.acquire(RunDir(tmp_path, plan.runs[1].run_id)):
        assert bad_nodes(tmp_path, plan, 2) == {}
    write_atomically(RunDir(tmp_path, plan.runs[0].run_id).env, b"{")  # damaged: the status tells of it
    assert bad_nodes(tmp_path, plan, 1) == {}


def test_the_scheduler_s_name_of_a_node_comes_first(plan: Plan, tmp_path: Path) -> None:
    for place in (0, 1):
        about = {"began_unix_s": "1000", "host": f"host-{place}", "node": "gpu3", "ended": "killed"}
        env = RunDir(tmp_path, plan.runs[place].run_id).env
        write_atomically(env, pretty_json(Environment(attempts=[about])))
    assert bad_nodes(tmp_path, plan, 2)["gpu3"].reasons == ("killed",)


def test_ten_thousand_runs_are_looked_at_in_a_moment(plan: Plan, tmp_path: Path) -> None:
    runs = tuple(
        msgspec.structs.replace(plan.runs[0], run_id=f"{number:016x}"[::-1]) for number in range(10_000)
    )
    large = msgspec.structs.replace(plan, runs=runs)
    env = msgspec.json.encode(
        Environment(
            attempts=[
                {"host": f"gpu{n}", "began_unix_s": "1.5", "ended": "done", "message": "x" * 200}
                for n in range(3)
            ]
        )
    )
    for run in runs:
        path = RunDir(tmp_path, run.run_id).env
        os.makedirs(path.parent)
        path.write_bytes(env)
    began = time.process_time()
    assert bad_nodes(tmp_path, large, 3) == {}
    took_s = time.process_time() - began
    assert took_s < 4.0  # 0.6 s where the target of 1 s was measured
