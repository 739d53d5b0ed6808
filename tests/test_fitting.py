"""Runs that lack memory go on in less of it, as the same runs; GPUs, and how many runs share one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

import salt.train
from salt import run as running
from salt.attempts import begin_attempt, fruitless, read_attempts
from salt.errors import RunFailed, UserError
from salt.metrics import read_metrics
from salt.optim import rates
from salt.plan_specs import Plan, PlannedRun
from salt.plans import read_plan
from salt.smaller import known_to_fit, need_of, smaller
from salt.specs import ExecSpec, RunSpec, spec_id
from salt.store import RunDir, pretty_json, write_atomically
from slurm import gpus
from slurm.fitting import execute_within_memory
from slurm.packing import CONTEXT_BYTES, runs_that_fit
from slurm.states import State, assess
from slurm.worker import Drain
from tests.arms_kit import GROUPED, Store, data_of, run_spec, write_clips
from tests.drain_kit import finish, planned

MIB = 2**20


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("videos") / "clips")


def spec_of(videos: Path, **fields: Any) -> RunSpec:
    return run_spec("vjepa", data_of(videos), **fields)


@contextmanager
def room_for(clips: int, *, recomputed: int = 0, from_step: int = 0) -> Iterator[None]:
    """Memory for that many clips in one pass, or for `recomputed` where blocks are; from a step on."""
    cut = salt.train.micro_batches
    largest, recompute = 0, False

    def noted(spec: RunSpec, execution: ExecSpec, mine: range) -> list[range]:
        nonlocal largest, recompute
        pieces = cut(spec, execution, mine)
        largest, recompute = max(len(piece) for piece in pieces), execution.recompute
        return pieces

    def lacks(spec: RunSpec, step: int) -> Any:
        if step >= from_step and largest > (recomputed if recompute else clips):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return rates(spec, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(salt.train, "micro_batches", noted)
        patch.setattr(salt.train, "rates", lacks)
        yield


def fitted(store: Store, spec: RunSpec, **execution: Any) -> tuple[RunDir, list[str]]:
    """A run by `execute_within_memory` with the real trainer, and what it reported."""
    store.plan("one", [spec], **execution)
    plan, told = read_plan(store.path, "one"), list[str]()
    execute_within_memory(running.execute, store.path, plan.runs[0], {}, plan.execution, told.append)
    return RunDir(store.path, spec_id(spec)), told


def same(ours: Any, theirs: Any, atol: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=atol, rtol=0, msg=name)


def test_a_run_that_lacks_memory_ends_as_one_that_never_did(videos: Path, tmp_path: Path) -> None:
    spec = spec_of(videos)  # batches of 8 clips
    ours = Store(tmp_path / "ours", (videos,))
    with room_for(2):
        run, told = fitted(ours, spec)
    lacked = "lacked memory with micro_batch_clips"
    assert told == [
        f"{run.run_id} {lacked} 8; again with micro_batch_clips 4",
        f"{run.run_id} {lacked} 4; again with micro_batch_clips 2",
    ]
    attempts = read_attempts(run)
    assert [each["micro_batch_clips"] for each in attempts] == ["8", "4", "2"]
    assert [each["ended"] for each in attempts] == ["oom", "oom", "done"]
    assert [each.get("smaller") for each in attempts] == ["micro_batch_clips 4", "micro_batch_clips 2", None]
    assert {each["hardware"] for each in attempts} == {"cpu"}
    assert not run.error.exists()
    result = run.read_result()
    assert result is not None
    assert result.attempts == 3
    assert 20 * MIB < (result.peak_memory_bytes or 0) < 2**40

    undisturbed = Store(tmp_path / "two", (videos,)).run(spec, micro_batch_clips=2)
    whole = Store(tmp_path / "whole", (videos,)).run(spec)
    mine = ours.command(ours.arguments(spec, "one"), spec).weights
    same(mine, undisturbed.weights, atol=0.0)  # bit for bit
    same(mine, whole.weights, atol=1e-5)
    assert any((mine[name] != whole.weights[name]).any() for name in mine)  # micro-batches do round otherwise


def test_it_goes_on_from_its_checkpoint_and_the_next_attempt_begins_with_what_fits(
    videos: Path, tmp_path: Path
) -> None:
    """A lack of memory in the middle costs no step before the checkpoint; blocks are recomputed last."""
    spec = spec_of(videos, steps=7)
    store = Store(tmp_path / "store", (videos,))
    with room_for(0, recomputed=1, from_step=4):
        run, told = fitted(store, spec)
    assert len(told) == 4
    assert told[-1].endswith(
        "lacked memory with micro_batch_clips 1; again with micro_batch_clips 1 with recompute"
    )
    attempts = read_attempts(run)
    assert [each["from"] for each in attempts] == ["step 0", *["step 3"] * 4]
    assert [row["attempt"] for row in read_metrics(run.metrics)] == [1, 1, 1, 5, 5, 5, 5]
    plain = Store(tmp_path / "plain", (videos,)).run(spec)
    same(store.command(store.arguments(spec, "one"), spec).weights, plain.weights, atol=1e-5)

    fits = known_to_fit(run, spec, ExecSpec())
    assert (fits.micro_batch_clips, fits.recompute) == (1, True)
    assert known_to_fit(run, spec, ExecSpec(), hardware="another GPU") == ExecSpec()
    assert known_to_fit(run, spec, ExecSpec(processes=2)).micro_batch_clips is None  # never tried
    later = int(float(attempts[-1]["began_unix_s"] or 0) * 1e9) + 10**9
    assert known_to_fit(run, spec, ExecSpec(), since_ns=later) == ExecSpec()


def test_with_nothing_smaller_left_it_says_what_was_tried_and_counts_once(
    videos: Path, tmp_path: Path
) -> None:
    spec = spec_of(videos)
    store = Store(tmp_path / "store", (videos,))
    run = RunDir(store.path, spec_id(spec))
    ladder = (
        "settings tried: micro_batch_clips 8, then micro_batch_clips 4, then micro_batch_clips 2, "
        "then micro_batch_clips 1, then micro_batch_clips 1 with recompute; no smaller one helps"
    )
    with room_for(0):
        with pytest.raises(RunFailed) as failed:
            fitted(store, spec)
        assert failed.value.kind == "oom"
        assert failed.value.__cause__ is failed.value.__context__ is None  # a traceback would hold tensors
        assert ladder in str(failed.value)
        error = run.read_error()
        assert error is not None
        assert (error.kind, error.attempt, error.message) == ("oom", 5, str(failed.value))
        assert fruitless(run).count == 1
        # Told again to run, it begins at the smallest, which then counts.
        with pytest.raises(RunFailed, match="no smaller one helps"):
            fitted(store, spec)
    assert len(read_attempts(run)) == 6
    assert fruitless(run).count == 2


def test_a_worker_lets_a_run_shrink_and_goes_on_after_one_that_cannot(videos: Path, tmp_path: Path) -> None:
    spec = spec_of(videos, steps=2)
    for room, state in ((4, State.DONE), (0, State.FAILED)):
        store = Store(tmp_path / str(room), (videos,))
        store.plan("one", [spec])
        plan, told = read_plan(store.path, "one"), list[str]()
        with room_for(room):
            Drain(store.path, plan, execute=running.execute, report=told.append).run()
        standing = assess(store.path, plan)[spec_id(spec)]
        assert standing.state == state, told  # one lack of memory at the smallest is not yet given up
        if standing.error is not None:
            assert standing.error.restarts_without_progress == 1
            assert standing.error.message.count("then micro_batch_clips 1 with recompute") == 1


def test_what_no_smaller_setting_helps_is_not_tried_again(tmp_path: Path, videos: Path) -> None:
    """Probes of a trained run, the host's memory beside a GPU, and errors of other kinds."""
    run = planned(spec_of(videos), "student")
    folder = RunDir(tmp_path, run.run_id)
    calls: list[ExecSpec] = []

    def attempt(message: str, execution: ExecSpec, kind: str = "oom") -> str:
        calls.clear()

        def execute(store: Path, planned: PlannedRun, probes: Any, given: ExecSpec) -> None:
            calls.append(given)
            raise RunFailed(kind, message)

        with pytest.raises(RunFailed) as failed:
            execute_within_memory(execute, tmp_path, run, {}, execution, pytest.fail)
        assert calls == [execution]
        return str(failed.value)

    host = attempt("DefaultCPUAllocator: can't allocate memory", ExecSpec(device="cuda"))
    assert host.endswith("settings tried: micro_batch_clips 8; no smaller one helps")
    assert attempt("loss is not finite", ExecSpec(), "diverged") == "loss is not finite"
    write_atomically(folder.artefact, b"weights")
    assert "probes take no smaller setting" in attempt("CUDA out of memory", ExecSpec())


def test_the_rule_halves_to_one_clip_then_recomputes(videos: Path) -> None:
    def ladder(spec: RunSpec, execution: ExecSpec) -> list[tuple[int, bool]]:
        found, step = [], smaller(spec, execution)
        while step is not None:
            assert need_of(spec, execution).at_least(need_of(spec, step))
            found.append((need_of(spec, step).micro_batch_clips, step.recompute))
            step = smaller(spec, step)
        return found

    spec = spec_of(videos, optim={"batch_clips": 24})
    assert ladder(spec, ExecSpec()) == [
        (12, False),
        (6, False),
        (3, False),
        (2, False),
        (1, False),
        (1, True),
    ]
    assert ladder(spec, ExecSpec(micro_batch_clips=100)) == ladder(spec, ExecSpec())
    assert ladder(spec, ExecSpec(processes=8)) == [(2, False), (1, False), (1, True)]
    assert ladder(spec, ExecSpec(micro_batch_clips=2, recompute=True)) == [(1, True)]
    grouped = spec_of(videos, masks=(GROUPED,))  # groups of four clips, whatever the bound
    assert ladder(grouped, ExecSpec(micro_batch_clips=8)) == [(4, True)]


# --- GPUs -----------------------------------------------------------------------------------------


def test_gpus_are_those_that_the_variable_or_nvidia_smi_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(gpus.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.visible_gpus() == []
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "0, GPU-aa, 81559 MiB"\necho "1, GPU-bb, [N/A]"\n')
    tool.chmod(0o755)
    assert gpus.visible_gpus() == ["GPU-aa", "GPU-bb"]
    assert gpus.least_memory_bytes(["GPU-aa", "0"]) == 81559 * MIB
    assert gpus.least_memory_bytes(["0", "1"]) is None
    for text, names in {"": [], "2,GPU-7": ["2", "GPU-7"], "3, -1,4": ["3"]}.items():
        monkeypatch.setenv(gpus.VARIABLE, text)
        assert gpus.visible_gpus() == names
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'\nexit 9\n")
    monkeypatch.delenv(gpus.VARIABLE)
    assert gpus.visible_gpus() == []


def test_each_worker_gets_gpus_of_its_own_unless_told_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gpus.VARIABLE, "0,1,2,3")
    four = gpus.visible_gpus()
    assert gpus.groups(four, 1, 3) == ["0", "1", "2"]
    assert gpus.groups(four, 2, 2) == ["0,1", "2,3"]
    assert gpus.groups(four, 2, 5, share=True) == ["0,1", "2,3", "0,1", "2,3", "0,1"]
    for have, per_worker, share, way_out in (
        (four, 1, False, "start at most 4 workers"),
        (four, 8, True, "lower execution: processes to 4"),
        ([], 1, True, "set execution: device to cpu"),
    ):
        with pytest.raises(
            UserError, match=f"5 workers .* need {5 * per_worker}, and .* gives {len(have)}"
        ) as no:
            gpus.groups(have, per_worker, 5, share=share)
        assert way_out in str(no.value)


# --- packing --------------------------------------------------------------------------------------


def measured(store: Path, run: PlannedRun, peak_bytes: int | None, execution: ExecSpec, **about: str) -> None:
    """A finished run whose only attempt took that much."""
    finish(store, run)
    folder = RunDir(store, run.run_id)
    result = folder.read_result()
    write_atomically(
        folder.result, pretty_json(msgspec.structs.replace(result, peak_memory_bytes=peak_bytes))
    )
    write_atomically(folder.spec, pretty_json(run.spec))
    begin_attempt(folder, {"hardware": "H100, 80 GiB", **need_of(run.spec, execution).about(), **about})


def test_runs_share_a_gpu_by_the_largest_measured_peak_of_their_kind(videos: Path, tmp_path: Path) -> None:
    execution = ExecSpec(device="cuda", micro_batch_clips=4)
    old = [planned(spec_of(videos, steps=steps), "student") for steps in (2, 3, 4, 5, 6)]
    new = [planned(spec_of(videos, steps=steps), "student") for steps in (7, 8)]
    plan = Plan(
        name="packed", study_sha256="0", convention="matmul", charge="full", match="flops",
        execution=execution, probes={}, runs=tuple(new), cells=(),
    )  # fmt: skip
    gpu = 40 * 2**30
    assert runs_that_fit(tmp_path, plan, new, gpu) == 1  # nothing was measured
    measured(tmp_path, old[0], 5 * 2**30, execution)
    measured(tmp_path, old[1], 7 * 2**30, execution)
    measured(tmp_path, old[2], 30 * 2**30, ExecSpec())  # another micro-batch
    measured(tmp_path, old[3], 30 * 2**30, execution, hardware="cpu")
    measured(tmp_path, old[4], None, execution)
    assert CONTEXT_BYTES == 2**30
    assert runs_that_fit(tmp_path, plan, new, gpu) == 5
    raw = planned(run_spec("raw", data_of(videos)), "reference")  # takes no steps
    assert runs_that_fit(tmp_path, plan, [*new, raw], gpu) == 5
    assert runs_that_fit(tmp_path, plan, new, gpu, reserve_bytes=1) == 4
    assert runs_that_fit(tmp_path, plan, new, 6 * 2**30) == 1
    wider = planned(run_spec("pixel", data_of(videos)), "student")
    assert runs_that_fit(tmp_path, plan, [*new, wider], gpu) == 1  # one kind was never measured
