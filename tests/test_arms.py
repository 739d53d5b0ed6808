"""Every arm and every kind of mask, loss, source and crop, from video files to `result.json`.

Each case is trained three times through `salt-train run`: as it is; in a fresh store with recomputed blocks
and another number of decoders, to the same bits; and in small micro-batches, to rounding.
"""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from salt import collapse
from salt.checkpoint import load_newest
from salt.flops import encode_flops, run_cost, step_cost
from salt.learner import Learner, Outcome
from salt.metrics import last_row, read_metrics
from salt.shard import recompilations
from salt.sizes import SIZES
from salt.specs import RunSpec, spec_id
from salt.store import RunDir, pretty_json
from tests.arms_kit import (
    BATCH,
    CAUSAL,
    CLIP,
    GROUPED,
    LONG,
    NARROW,
    SHORT,
    TUBE,
    Counted,
    Ended,
    Store,
    data_of,
    mixture,
    run_spec,
    write_clips,
)
from tests.video_kit import write_video


def changed(value: Any, **fields: Any) -> Any:
    return msgspec.structs.replace(value, **fields)


STREAMED = changed(CLIP, source="streamed", crop="random_resized", flip=True)
RESIZED = changed(CLIP, crop="random_resized", flip=True, clips_per_file=2, channels=1)
TIMED = changed(
    CLIP, source="streamed", frame_rate_hz=15.0, clips_per_file=2, short_clips="loop",
    mean=(0.4, 0.45, 0.5), std=(0.2, 0.25, 0.3),
)  # fmt: skip


@dataclass(frozen=True)
class Lists:
    """Twelve videos; and six with four pictures."""

    videos: Path
    mixed: Path

    def case(self, name: str) -> list[RunSpec]:
        """The runs of a case in the order in which they can be made; the last one is the one meant."""
        made: list[RunSpec] = CASES[name](self)
        return made


def pixel_and_salt(lists: Lists, pixel: dict[str, Any], *students: dict[str, Any]) -> list[RunSpec]:
    """A pixel run, and a student of each run before."""
    data = pixel.pop("data", data_of(lists.videos))
    runs = [run_spec("pixel", data, **pixel)]
    for student in students:
        runs.append(run_spec("salt", data, teacher=runs[-1], clip=runs[0].clip, **student))
    return runs


WIDE: dict[str, Any] = {"size": SIZES["micro"]}
CASES: dict[str, Callable[[Lists], list[RunSpec]]] = {
    "pixel, one tube, of each patch": lambda lists: pixel_and_salt(
        lists, {"masks": (TUBE,), "objective": {"pixel_norm": "patch", "pixel_loss": "l1"}}
    ),
    "pixel, streamed mixture with pictures": lambda lists: [
        run_spec(
            "pixel",
            mixture({lists.videos: 2.0, lists.mixed: 1.0}),
            clip=STREAMED,
            masks=(CAUSAL, SHORT),
            model={"mask_token": "per_mask"},
        )
    ],
    "salt, wider teacher, two tubes": lambda lists: pixel_and_salt(
        lists, {**WIDE}, {"masks": (TUBE, TUBE), "model": {"mask_token": "per_mask"}}
    ),
    "salt, cached views": lambda lists: pixel_and_salt(
        lists, {**WIDE}, {"cached_views": 2, "objective": {"latent_loss": "smooth_l1"}}
    ),
    "salt, a chain of two, causal": lambda lists: pixel_and_salt(
        lists,
        {**WIDE},
        {"masks": (TUBE, TUBE), "model": {"mask_token": "per_mask"}},
        {"masks": (CAUSAL, SHORT, LONG), "objective": {"latent_loss": "cosine"}},
    ),
    "salt, narrower teacher and pixels, groups": lambda lists: pixel_and_salt(
        lists,
        {"size": NARROW, "clip": STREAMED, "objective": {"pixel_norm": "none"}},
        {
            "masks": (GROUPED, GROUPED),
            "objective": {"pixel_weight": 0.5, "latent_loss": "l2", "pixel_loss": "l1"},
        },
    ),
    "salt, one layer of a random teacher": lambda lists: [
        teacher := run_spec("random", data_of(lists.mixed), clip=RESIZED, size=SIZES["micro"]),
        run_spec(
            "salt",
            data_of(lists.mixed),
            clip=RESIZED,
            teacher=teacher,
            objective={"teacher_layer": 1, "target_layer_norm": False},
            optim={"clip_scope": "module", "clip_in_warmup": False},
        ),
    ],
    "salt, cached views of two clips a file": lambda lists: [
        teacher := run_spec("random", data_of(lists.mixed), clip=RESIZED, size=SIZES["micro"]),
        run_spec(
            "salt",
            data_of(lists.mixed),
            clip=RESIZED,
            teacher=teacher,
            cached_views=2,
            objective={"pixel_weight": 0.5},
        ),
    ],
    "vjepa, short and long": lambda lists: [run_spec("vjepa", data_of(lists.videos))],
    "vjepa and pixels, streamed by time": lambda lists: [
        run_spec(
            "vjepa",
            data_of(lists.mixed),
            clip=TIMED,
            masks=(CAUSAL, TUBE),
            objective={"pixel_weight": 0.5, "latent_loss": "smooth_l1", "pixel_norm": "patch"},
            optim={"clip_norm": None},
        )
    ],
    "vjepa, bfloat16, groups": lambda lists: [
        run_spec(
            "vjepa",
            mixture({lists.videos: 1.0, lists.mixed: 1.0}),
            masks=(GROUPED,),
            clip=changed(CLIP, flip=True),
            objective={"latent_loss": "cosine"},
            optim={"precision": "bfloat16"},
        )
    ],
    "supervised, resized": lambda lists: [
        run_spec("supervised", data_of(lists.mixed), clip=RESIZED, label="motion", masks=())
    ],
    "random": lambda lists: [run_spec("random", data_of(lists.videos))],
}
#: Cases whose mask counts are what a plan expects on average.
ON_AVERAGE = {name for name in CASES if "groups" in name}


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Lists:
    folder = tmp_path_factory.mktemp("lists")
    return Lists(
        videos=write_clips(folder / "videos"),
        mixed=write_clips(folder / "mixed", clips=6, images=4, first=20),
    )


@pytest.fixture(scope="module")
def stores(lists: Lists, tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Store, Store]:
    """Where runs go as they are, again to the same bits, and in micro-batches."""
    folder = tmp_path_factory.mktemp("stores")
    plain, again, micro = (Store(folder / name, (lists.videos, lists.mixed)) for name in ("a", "b", "c"))
    return plain, again, micro


def trained(store: Store, runs: list[RunSpec], **execution: Any) -> Ended:
    """Train what is missing of these runs; how the last one ended."""
    for spec in runs[:-1]:
        if not RunDir(store.path, spec_id(spec)).result.exists():
            store.run(spec, **execution)
    return store.run(runs[-1], **execution)


@pytest.mark.parametrize("name", CASES)
def test_a_case_from_files_to_result(
    name: str, lists: Lists, stores: tuple[Store, Store, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, again, micro = stores
    runs = lists.case(name)
    spec = runs[-1]
    first = trained(plain, runs)
    assert_whole(first, spec)

    second = trained(again, runs, recompute=True, decode_workers=0 if spec.clip.source == "stored" else 2)
    assert second.losses == first.losses
    assert second.norms == first.norms
    assert_same(second, first, 0.0)

    monkeypatch.setattr(collapse, "_rank", lambda sample: 1.0)  # its products are not the run's
    with Counted() as counted:
        pieces = micro.take(plain, *runs[:-1]).run(spec, micro_batch_clips=3)
    tolerance = 1e-2 if spec.optim.precision == "bfloat16" else 1e-5
    np.testing.assert_allclose(pieces.losses, first.losses, atol=tolerance, rtol=0)
    assert_same(pieces, first, tolerance)
    assert_cost(pieces, spec, counted.get_total_flops(), name)


def assert_whole(ended: Ended, spec: RunSpec) -> None:
    """All files of a finished run are there and say the same."""
    result, inputs = ended.run.read_result(), ended.run.read_inputs()
    assert result is not None
    assert ended.shown is not None
    assert ended.shown["done"] is True
    assert ended.shown["result"] == json.loads(pretty_json(result))
    assert ended.shown["error"] is None
    assert ended.run.read_spec() == spec
    assert len(ended.losses) == spec.steps
    assert all(math.isfinite(loss) for loss in ended.losses)
    assert (result.steps, result.attempts, result.clips_seen) == (spec.steps, 1, spec.steps * BATCH)
    if spec.steps == 0:
        assert inputs is None
        return
    assert result.final_loss == ended.losses[-1]
    if spec.arm != "supervised":
        assert ended.losses[-1] < ended.losses[0]
    assert inputs is not None
    parts = spec.data.parts or (spec.data,)
    each = spec.clip.clips_per_file
    assert [(item.fingerprint, item.clips) for item in inputs.lists] == [
        (part.fingerprint, part.clips * each) for part in parts
    ]
    assert [item.mask for item in inputs.masks] == list(spec.masks)
    drawn = {item.name: item for item in result.lists}
    assert set(drawn) == {part.name for part in parts}
    assert sum(item.clips_seen for item in drawn.values()) == result.clips_seen


def assert_cost(ended: Ended, spec: RunSpec, counted_flops: int, name: str) -> None:
    """The plan's number is what torch counted while the run trained."""
    result = ended.run.read_result()
    assert result is not None
    assert result.cost == run_cost(spec)
    planned = result.cost.total_flops if name not in ON_AVERAGE else drawn_flops(spec)
    if spec.arm == "supervised":  # its classifier is not part of the convention: forward and backward
        planned += 3 * spec.steps * BATCH * 2 * spec.model.encoder.width * 3
    if spec.cached_views is not None:  # rows that are encoded once more to check them
        assert spec.teacher is not None
        planned += 3 * encode_flops(spec.teacher.encoder, spec.model, spec.clip)
    assert counted_flops == planned


def drawn_flops(spec: RunSpec) -> int:
    """FLOPs of all steps with the counts that each group of clips really had."""
    learner, size, flops = Learner(spec), spec.masks[0].keep_clips, 0
    for step in range(spec.steps):
        for first in range(0, BATCH, size):
            drawn = learner.masks(step, range(first, first + size))
            assert drawn is not None
            counts = [
                (v.shape[1], t.shape[1])
                for v, t in zip(drawn.visible, drawn.target, strict=True)
                for _ in range(len(v) // size)
            ]
            masks = tuple(
                changed(mask, visible_tokens=visible, target_tokens=target)
                for mask, (visible, target) in zip(spec.masks, counts, strict=True)
            )
            small = changed(spec, masks=masks, optim=changed(spec.optim, batch_clips=size))
            flops += step_cost(small).total_flops
    return flops


def assert_same(ended: Ended, other: Ended, tolerance: float) -> None:
    ours, theirs = ended.weights, other.weights
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(
            tensor, theirs[name], atol=tolerance, rtol=0, msg=lambda said, name=name: f"{name}: {said}"
        )


LONGER = 40


@pytest.mark.parametrize("name", ["vjepa and pixels, streamed by time", "salt, cached views"])
def test_a_killed_process_leaves_a_run_that_ends_the_same(
    name: str, lists: Lists, stores: tuple[Store, Store, Store], tmp_path: Path
) -> None:
    """SIGKILL past step 17; workers that decode end too, and the next attempt goes on from step 10."""
    runs = lists.case(name)
    *teachers, spec = [*runs[:-1], changed(runs[-1], steps=LONGER)]
    often = {"checkpoint_every_steps": 10, "decode_workers": 2}
    whole = trained(stores[0], [*teachers, spec], **often)
    cut = Store(tmp_path / "cut", (lists.videos, lists.mixed)).take(stores[0], *teachers)
    process = cut.start(spec, **often)
    run = RunDir(cut.path, spec_id(spec))
    while (row := last_row(run.metrics)) is None or row["step"] < 17:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.001)
            pytest.fail(f"it ended before it was killed: {process.communicate()}")
    started = members(process.pid)
    process.kill()
    process.communicate()
    assert len(started) > (3 if spec.clip.source == "streamed" else 0)
    assert not run.result.exists()

    resumed = cut.run(spec, **often)
    assert resumed.losses == whole.losses
    assert_same(resumed, whole, 0.0)
    result = resumed.run.read_result()
    assert result is not None
    assert result.attempts == 2
    attempts = [row["attempt"] for row in read_metrics(run.metrics)]
    assert attempts == [1] * 10 + [2] * (LONGER - 10)
    deadline = time.monotonic() + 20
    while members(process.pid) and time.monotonic() < deadline:
        pass
    assert not members(process.pid), "processes of the killed run are left"


def members(group: int) -> list[str]:
    """Commands of the living processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
            state, _, process_group = rest.split()[:3]
            if int(process_group) == group and state != "Z":
                found.append(name)
    return found


def test_a_spec_file_and_its_list_give_the_run_of_a_plan(
    lists: Lists, stores: tuple[Store, Store, Store], tmp_path: Path
) -> None:
    spec = run_spec("vjepa", data_of(lists.videos))
    planned = trained(stores[0], [spec])
    store = Store(tmp_path / "store", ())
    file = tmp_path / "spec.json"
    file.write_bytes(pretty_json(spec))
    arguments = ["run", str(file), "--store", str(store.path), "--json", "--list"]
    assert_same(store.command([*arguments, str(lists.videos)], spec), planned, 0.0)
    refused = store.command([*arguments, str(lists.mixed)], spec, code=2)
    assert spec.data.fingerprint in refused.err
    again = store.command([*arguments, str(lists.videos)], spec)
    assert "is complete; nothing to do" in again.err


def test_a_loss_that_is_not_finite_poisons_nothing(
    lists: Lists, stores: tuple[Store, Store, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Case 10: the state `diverged`, a checkpoint that is finite, and a run that can go on from there."""
    spec = run_spec("vjepa", data_of(lists.videos), steps=12)
    whole = trained(stores[0], [spec])
    store, outcome, calls = (
        Store(tmp_path / "store", (lists.videos,)).take(stores[0]),
        Learner.outcome,
        iter(range(99)),
    )

    def poisoned(self: Learner, *inputs: Any, **options: Any) -> Outcome:
        found = outcome(self, *inputs, **options)
        return found._replace(loss=found.loss * float("nan")) if next(calls) == 7 else found

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "outcome", poisoned)
        failed = store.run(spec, code=1)
    assert "the run failed (diverged): loss or gradient not finite at step 7 of 12" in failed.err
    error = failed.run.read_error()
    assert error is not None
    assert (error.kind, error.step) == ("diverged", 8)
    assert failed.run.read_result() is None
    found = load_newest(failed.run, pytest.fail)
    assert found is not None
    assert found[0].step == 6
    assert all(torch.isfinite(tensor).all() for tensor in found[1].values())
    shown = store.command(["show", spec_id(spec), "--store", str(store.path), "--json"], spec).shown
    assert shown is not None
    assert shown["error"]["kind"] == "diverged"
    assert_same(store.run(spec), whole, 0.0)


@pytest.mark.parametrize("norm", ["patch_channel", "patch"])
def test_black_clips_have_a_finite_loss(norm: str, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path\n" + "".join(f"{number}.mp4\n" for number in range(4)))
    for number in range(4):
        black = np.zeros((48, 64, 3), dtype=np.uint8)
        write_video(tmp_path / f"{number}.mp4", 20, width=64, height=48, picture=lambda *_, x=black: x)
    store = Store(tmp_path / "store", (tmp_path / "list.csv",))
    spec = run_spec(
        "vjepa",
        data_of(tmp_path / "list.csv"),
        clip=changed(CLIP, source="streamed"),
        objective={"pixel_weight": 1.0, "pixel_norm": norm, "latent_loss": "cosine"},
    )
    ended = store.run(spec, decode_workers=0)
    assert np.isfinite(ended.losses).all()
    assert np.isfinite(ended.norms).all()
    assert all(torch.isfinite(tensor).all() for tensor in ended.weights.values())


def test_a_student_of_other_patches_than_its_teacher_is_refused(lists: Lists, tmp_path: Path) -> None:
    """Case 12: the teacher's patches are 16 pixels wide, the student's 14."""
    store = Store(tmp_path / "store", (lists.videos,))
    clip = changed(CLIP, store_px=112, crop_px=112)
    teacher = run_spec("random", data_of(lists.videos), clip=clip, model={"patch_px": 16})
    store.run(teacher)
    student = run_spec("salt", data_of(lists.videos), clip=clip, model={"patch_px": 14}, teacher=teacher)
    refused = store.run(student, code=1)
    assert "(teacher)" in refused.err
    assert "clip, patch or tubelet differ" in refused.err


@pytest.mark.parametrize(("arm", "warned"), [("vjepa", True), ("salt", False)])
def test_collapse_is_told_from_a_frozen_random_teacher(
    arm: str, warned: bool, lists: Lists, tmp_path: Path
) -> None:
    """Case 09: an average that is the encoder itself, at twenty times the rate, on twelve clips."""
    store = Store(tmp_path / "store", (lists.videos,))
    teacher = run_spec("random", data_of(lists.videos))
    store.run(teacher)
    spec = run_spec(
        arm,
        data_of(lists.videos),
        teacher=teacher if arm == "salt" else None,
        objective={"ema_start": 0.0, "ema_end": 0.0},
        optim={"lr": 20 * 3e-3},
        steps=300,
    )
    ended = store.run(spec, log_every_steps=10, checkpoint_every_steps=300)
    assert ("warning: collapse at step" in ended.err) is warned, ended.err


@pytest.mark.filterwarnings("ignore")  # torch's compiler uses what torch has deprecated
def test_compiled_blocks_train_the_same_and_compile_once(
    lists: Lists, stores: tuple[Store, Store, Store], tmp_path: Path
) -> None:
    spec = run_spec("vjepa", data_of(lists.videos), masks=(SHORT,))
    plain = trained(stores[0], [spec])
    compiled = Store(tmp_path / "store", (lists.videos,)).take(stores[0]).run(spec, compile=True)
    assert compiled.err == "", "graphs were compiled after the first step"
    np.testing.assert_allclose(compiled.losses, plain.losses, atol=1e-4, rtol=0)
    assert recompilations() > 0
