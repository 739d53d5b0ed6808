"""Cached targets are the online ones; wrong, damaged and half-built caches never train."""

import errno
import logging
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch

from salt import target_cache
from salt.artefact import weights_sha256
from salt.batches import Batches, to_patches
from salt.clips import Clips
from salt.errors import RunFailed
from salt.flops import cache_cost
from salt.learner import Learner, build_encoder, freeze
from salt.sizes import SIZES
from salt.specs import DataSpec, RunSpec
from salt.target_cache import CachedTargets, StepTargets, open_targets
from salt.target_files import shard_path, target_identity, target_index, targets_path, write_shard
from salt.vit import take_tokens
from tests.examples import run_spec

CLIPS, VIEWS, TOKENS, WIDTH = 24, 3, 64, 32
ROWS = tuple(f"{number}.mp4" for number in range(CLIPS))
ROW_BYTES = TOKENS * WIDTH * 4
#: Five clip-views a shard: shards end inside views, and the last one is short.
SHARD_BYTES = 5 * ROW_BYTES
SHARDS = 15  # of 72 rows


def student(**changes: Any) -> RunSpec:
    data = DataSpec(name="train", fingerprint="f" * 16, clips=CLIPS)
    spec = run_spec("salt", "nano", teacher="nano", data=data, batch_clips=4)
    return msgspec.structs.replace(spec, **{"cached_views": VIEWS, **changes})


class Killed(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class Source:
    """Clips, their views and a teacher; counts what it is asked to encode."""

    def __init__(self, shift: int = 0, seed: int = 7, kill_at: int | None = None) -> None:
        self.spec = student()
        self.frames = np.random.default_rng(0).integers(0, 255, (CLIPS, 8, 32, 32, 1), dtype=np.uint8)
        self.teacher = freeze(build_encoder(SIZES["nano"], self.spec.model, self.spec.clip, seed))
        self.sha256 = weights_sha256(self.teacher.state_dict())
        self.shift, self.kill_at, self.encoded = shift, kill_at, 0

    def view_crops(self, clips: Any, view: int) -> Any:
        crops = []
        for clip in map(int, clips):
            top, left = (5 * clip + 2 * view) % 8 + self.shift, (3 * view + clip) % 9
            crops.append(self.frames[clip, :, top : top + 24, left : left + 24])
        return np.stack(crops)

    def patches(self, clips: Any, views: Any) -> torch.Tensor:
        crops = [self.view_crops([clip], view)[0] for clip, view in zip(clips, views, strict=True)]
        return to_patches(torch.from_numpy(np.stack(crops)), self.spec.clip, self.spec.model)

    def encode(self, crops: torch.Tensor) -> torch.Tensor:
        if self.kill_at is not None and self.encoded >= self.kill_at:
            raise Killed
        self.encoded += len(crops)
        latents: torch.Tensor = self.teacher(to_patches(crops, self.spec.clip, self.spec.model))
        return latents

    def open(self, cache: Path, **options: Any) -> CachedTargets:
        options = {"chunk_clips": 2, "shard_bytes": SHARD_BYTES, "show": False, **options}
        spec = options.pop("spec", self.spec)
        sha256 = options.pop("sha256", self.sha256)
        rows = options.pop("rows", ROWS)
        return open_targets(cache, spec, sha256, rows, self.view_crops, self.encode, **options)


class Built(NamedTuple):
    source: Source
    targets: CachedTargets


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    source = Source()
    return Built(source, source.open(tmp_path_factory.mktemp("store") / "cache"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("layer_norm", [True, False])
def test_a_step_on_cached_targets_is_the_online_step_bit_for_bit(built: Built, layer_norm: bool) -> None:
    """Clips of mixed views; latents of whole clips, or of each mask's targets alone."""
    clips, views = np.array([20, 3, 3, 11]), np.array([1, 0, 2, 2])
    patches = built.source.patches(clips, views)
    objective = msgspec.structs.replace(built.source.spec.objective, target_layer_norm=layer_norm)
    learner = Learner(student(objective=objective))
    learner.teacher = built.source.teacher
    masks = learner.masks(9, range(4))
    assert masks is not None
    choices: list[Any] = [
        None,  # the teacher, online
        built.targets.read(clips, views),
        [built.targets.read(clips, views, target) for target in masks.target],
    ]
    results = []
    for latents in choices:
        learner.objective.zero_grad()
        loss = learner.outcome(patches, masks, latents=latents).loss
        loss.backward()
        results.append(
            (loss.detach(), [p.grad.clone() for p in learner.objective.parameters() if p.grad is not None])
        )
    online = results[0]
    assert float(online[0]) > 0
    for cached in results[1:]:
        assert torch.equal(cached[0], online[0])
        assert all(torch.equal(a, b) for a, b in zip(cached[1], online[1], strict=True))


def test_a_run_reads_the_targets_of_what_its_batches_show(tmp_path: Path) -> None:
    """Two ranks, all views in turn; on the CPU each mask's targets, else whole clips if masks take more."""
    source = Source()
    stored = Clips(
        frames=source.frames,
        files=tuple(map(Path, ROWS)),
        rows=ROWS,
        columns={},
        skipped=(),
        fingerprint=source.spec.data.fingerprint,
        padded_share=0.0,
    )
    batches = Batches(source.spec, {stored.fingerprint: stored})
    source.view_crops = batches.view_crops  # type: ignore[method-assign, assignment]
    cached = source.open(tmp_path)
    learner = Learner(source.spec)
    targets = StepTargets(cached, batches, torch.device("cpu"))
    views = set()
    for step in range(3 * CLIPS // 4):
        for places in (range(2), range(2, 4)):
            masks = learner.masks(step, places)
            assert masks is not None
            patches = to_patches(batches.crops(step, places), source.spec.clip, source.spec.model)
            with torch.no_grad():
                online = source.teacher(patches)
            read = targets.read(step, places, masks)
            assert all(
                torch.equal(found, take_tokens(online, target))
                for found, target in zip(read, masks.target, strict=True)
            )
            views |= set(batches.views(step, places).tolist())
    assert views == set(range(VIEWS))
    # The meta device stands for one behind a bus: two masks of 32 targets are not above 64 tokens, of 33 are.
    assert masks is not None
    elsewhere = StepTargets(cached, batches, torch.device("meta"))
    few = masks._replace(target=[torch.zeros(4, 32, dtype=torch.int64)])
    many = masks._replace(target=[torch.zeros(4, 33, dtype=torch.int64)])
    assert [part.shape for part in elsewhere.read(0, range(2), few)] == [(4, 32, WIDTH)]
    assert elsewhere.read(0, range(2), many).shape == (2, TOKENS, WIDTH)  # type: ignore[union-attr]


def test_the_layout_is_the_documented_one(built: Built) -> None:
    """Row v * clips + i, found with numpy alone; every shard ends in its seal."""
    folder, index = built.targets.folder, built.targets.index
    assert folder == targets_path(folder.parent.parent, index.identity)
    assert sorted(contents(folder)) == [*(f"{n:05d}.npy" for n in range(SHARDS)), "index.json"]
    shards = [np.load(folder / f"{n:05d}.npy", mmap_mode="r") for n in range(SHARDS)]
    assert {shard.shape for shard in shards[:-1]} == {(5, TOKENS, WIDTH)}
    assert len(shards[-1]) == 2
    flat = np.concatenate(shards)
    view, clip = 2, 17
    with torch.no_grad():
        direct = built.source.teacher(built.source.patches([clip], [view]))[0].numpy()
    np.testing.assert_allclose(flat[view * CLIPS + clip], direct, rtol=0, atol=2e-6)
    sizes = [path.stat().st_size for path in sorted(folder.glob("*.npy"))]
    assert sum(sizes) == CLIPS * VIEWS * ROW_BYTES + SHARDS * (128 + 32)
    built.targets.verify()


def test_target_tokens_are_those_of_whole_clips(built: Built) -> None:
    clips, views = np.arange(6), np.array([0, 1, 2, 2, 1, 0])
    index = torch.stack([torch.randperm(TOKENS)[:10] for _ in range(12)])  # two masks a clip
    whole = built.targets.read(clips, views)
    assert torch.equal(built.targets.read(clips, views, index), take_tokens(whole, index))
    built.targets.ahead(clips, views)
    copy = pickle.dumps(built.targets)
    assert len(copy) < 5000  # not the values
    assert torch.equal(pickle.loads(copy).read(clips, views), whole)


@pytest.mark.parametrize(
    ("clips", "views", "index", "message"),
    [
        ([CLIPS], [0], None, "clip numbers 24 to 24 are not all from 0 to 23"),
        ([0], [VIEWS], None, "view numbers 3 to 3"),
        ([0], [0], [[TOKENS]], "target token numbers 64"),
        ([0, 1], [0, 0], [[1]], "1 lists of target tokens are not a multiple of 2 clips"),
    ],
)
def test_what_is_not_there_is_an_error(
    built: Built, clips: Any, views: Any, index: Any, message: str
) -> None:
    target = None if index is None else torch.tensor(index)
    with pytest.raises(ValueError, match=message):
        built.targets.read(np.array(clips), np.array(views), target)


def test_flops_are_the_planned_ones_and_spent_once(built: Built) -> None:
    """A second opening encodes nothing but the rows it looks at."""
    index, source = built.targets.index, built.source
    assert index.teacher_flops == cache_cost(source.spec).total_flops == built.targets.encoded_flops
    encoded = source.encoded
    again = source.open(built.targets.folder.parent.parent, checked_rows=2)
    assert (again.encoded_rows, again.encoded_flops, source.encoded - encoded) == (0, 0, 2)
    early = student(objective=msgspec.structs.replace(source.spec.objective, teacher_layer=1))
    assert target_index(early, target_identity(early, source.sha256, ROWS)).teacher_flops == (
        cache_cost(early).total_flops
    )


def test_every_change_of_teacher_list_or_crops_is_another_cache(built: Built) -> None:
    spec, sha256 = built.source.spec, built.source.sha256
    assert spec.teacher is not None
    replace = msgspec.structs.replace
    identity = target_identity(spec, sha256, ROWS)
    others = [
        target_identity(spec, "0" * 64, ROWS),
        target_identity(spec, sha256, ROWS[::-1]),
        target_identity(spec, sha256, ROWS[1:]),
        target_identity(spec, sha256, ROWS, storage="float16"),
        target_identity(student(cached_views=2), sha256, ROWS),
        target_identity(student(data=replace(spec.data, fingerprint="e" * 16)), sha256, ROWS),
        target_identity(student(clip=replace(spec.clip, crop="random_resized")), sha256, ROWS),
        target_identity(student(clip=replace(spec.clip, mean=0.5)), sha256, ROWS),
        target_identity(student(teacher=replace(spec.teacher, run_id="1" * 16)), sha256, ROWS),
        target_identity(student(objective=replace(spec.objective, teacher_layer=1)), sha256, ROWS),
        target_identity(student(optim=replace(spec.optim, precision="bfloat16")), sha256, ROWS),
        target_identity(student(numerics=spec.numerics + 1), sha256, ROWS),
    ]
    paths = {targets_path(Path("c"), each) for each in (identity, *others)}
    assert len(paths) == len(others) + 1
    same = student(seed=5, steps=3, objective=replace(spec.objective, target_layer_norm=False))
    assert target_identity(same, sha256, ROWS) == identity
    with pytest.raises(ValueError, match="a salt run with cached_views None"):
        target_identity(student(cached_views=None), sha256, ROWS)


@pytest.mark.parametrize("wrong", ["teacher", "crops"])
def test_latents_of_something_else_under_the_right_name_are_refused(tmp_path: Path, wrong: str) -> None:
    """Same names and hash, but another initialisation, or crops one pixel lower."""
    source = Source()
    source.open(tmp_path)
    other = Source(seed=8) if wrong == "teacher" else Source(shift=1)
    with pytest.raises(RunFailed, match=r"not the teacher's for clip \d+, view \d .*relative error") as error:
        other.open(tmp_path, sha256=source.sha256)
    assert error.value.kind == "teacher"


def test_an_index_that_was_edited_is_built_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    targets = Source().open(tmp_path)
    before = contents(targets.folder)
    path = targets.folder / "index.json"
    path.write_text(path.read_text().replace('"views": 3', '"views": 2'))
    with caplog.at_level(logging.WARNING):
        again = Source().open(tmp_path)
    assert "are not those that its name says" in caplog.text
    assert again.encoded_rows == CLIPS * VIEWS
    assert contents(again.folder) == before


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_shard_alone_is_encoded_again(tmp_path: Path, damage: str) -> None:
    targets = Source().open(tmp_path)
    before = contents(targets.folder)
    path = shard_path(targets.folder, 4)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(data if damage == "flipped" else data[:-1])
    again = Source().open(tmp_path)
    assert again.encoded_rows == 5
    assert contents(again.folder) == before


def test_large_caches_are_verified_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_cache, "CHECKED_BYTES", 0)
    targets = Source().open(tmp_path)
    path = shard_path(targets.folder, 4)
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunFailed, match=r"00004\.npy are damaged: remove that file"):
        targets.verify()
    path.unlink()
    assert Source().open(tmp_path).encoded_rows == 5


def test_a_killed_build_goes_on_where_it_was(tmp_path: Path, built: Built) -> None:
    """Killed inside the seventh shard, and again later: the same bytes, nothing whole encoded twice."""
    killed = Source(kill_at=32)
    with pytest.raises(Killed):
        killed.open(tmp_path)
    building = next((tmp_path / "targets").glob("*.building"))
    assert len(list(building.glob("*.npy"))) == 6
    (building / ".00006.npy.elsewhere-1.tmp").write_bytes(b"left by a kill that nothing could clean up after")
    with pytest.raises(Killed):
        Source(kill_at=11).open(tmp_path, shard_bytes=10 * SHARD_BYTES)  # keeps the shards it finds
    assert len(list(building.glob("*.npy"))) == 8
    last = Source()
    targets = last.open(tmp_path, checked_rows=0)
    assert (targets.encoded_rows, last.encoded) == (CLIPS * VIEWS - 40, CLIPS * VIEWS - 40)
    assert contents(targets.folder) == contents(built.targets.folder)
    assert {path.suffix for path in targets.folder.parent.iterdir()} == {"", ".lock"}


class Meeting(Source):
    """Encodes its first shard no further until told to, and may die there."""

    def __init__(self, dies: bool) -> None:
        super().__init__()
        self.dies, self.began, self.go_on = dies, threading.Event(), threading.Event()

    def encode(self, crops: torch.Tensor) -> torch.Tensor:
        self.began.set()
        assert self.go_on.wait(60)
        if self.dies:
            raise Killed
        return super().encode(crops)


class Telling(Source):
    """Calls back when it has encoded this many clip-views."""

    def __init__(self, count: int, call: Callable[[], None]) -> None:
        super().__init__()
        self.count, self.call = count, call

    def encode(self, crops: torch.Tensor) -> torch.Tensor:
        latents = super().encode(crops)
        if self.encoded == self.count:
            self.call()
        return latents


@pytest.mark.parametrize("dies", [False, True])
def test_two_builders_share_the_work(tmp_path: Path, built: Built, dies: bool) -> None:
    """One stands in its first shard until the other has done all others; alive or dead, all gets done
    once."""
    slow = Meeting(dies)
    quick = Telling(CLIPS * VIEWS - 5, slow.go_on.set)
    results: dict[str, CachedTargets | None] = {}

    def build_slowly() -> None:
        try:
            results["slow"] = slow.open(tmp_path, checked_rows=0)
        except Killed:
            results["slow"] = None

    thread = threading.Thread(target=build_slowly)
    thread.start()
    assert slow.began.wait(60)
    targets = quick.open(tmp_path, checked_rows=0)
    thread.join(60)
    assert not thread.is_alive()
    other = results["slow"]
    assert (other is None) == dies
    assert targets.encoded_rows == CLIPS * VIEWS - (0 if dies else 5)
    assert other is None or other.encoded_rows == 5
    assert contents(targets.folder) == contents(built.targets.folder)


def test_a_full_disk_is_known_before_and_survived_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = CLIPS * VIEWS * ROW_BYTES - 1
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free}))
        source = Source()
        with pytest.raises(RunFailed, match=r"3 views x 24 clips x 64 tokens x 32 .* 0\.00 GB") as error:
            source.open(tmp_path)
    assert (error.value.kind, source.encoded) == ("disk", 0)
    index = target_index(source.spec, target_identity(source.spec, source.sha256, ROWS), SHARD_BYTES)

    def filling() -> Any:
        yield np.zeros((2, TOKENS, WIDTH), dtype=np.float32)
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "full").mkdir()
    with pytest.raises(RunFailed, match=r"the disk filled up meanwhile; .* `targets: online`") as error:
        write_shard(tmp_path / "full", index, 0, filling())
    assert error.value.kind == "disk"
    assert not list((tmp_path / "full").iterdir())


@pytest.mark.parametrize(("storage", "bits"), [("float16", 10), ("bfloat16", 7)])
def test_half_precision_rounds_to_nearest(tmp_path: Path, built: Built, storage: Any, bits: int) -> None:
    targets = Source().open(tmp_path, storage=storage)
    clips, views = np.arange(CLIPS), np.arange(CLIPS) % VIEWS
    exact, stored = built.targets.read(clips, views), targets.read(clips, views)
    assert stored.dtype == getattr(torch, storage)
    normal = exact.abs() > 2.0**-14
    relative = ((stored.float() - exact).abs() / exact.abs())[normal]
    assert 2.0 ** -(bits + 2) < float(relative.max()) <= 2.0 ** -(bits + 1)
    assert targets.index.row_bytes == ROW_BYTES // 2


def test_runs_in_half_precision_store_float16_and_bear_its_rounding(tmp_path: Path) -> None:
    """A teacher under autocast, looked at again when the cache is opened."""
    source = Source()
    spec = student(optim=msgspec.structs.replace(source.spec.optim, precision="bfloat16"))
    full = source.teacher.forward

    def half(patches: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return full(patches)

    source.teacher.forward = half  # type: ignore[method-assign, assignment]
    targets = source.open(tmp_path, spec=spec, chunk_clips=5)
    assert targets.index.identity.storage == "float16"
    with torch.no_grad():
        online = source.teacher(source.patches([4, 5], [0, 1])).float()
    error = (targets.read(np.array([4, 5]), np.array([0, 1])).float() - online).norm() / online.norm()
    assert float(error) < 0.01


def test_latents_that_are_not_finite_are_not_stored(tmp_path: Path) -> None:
    source = Source()
    with torch.no_grad():
        source.teacher.trunk.norm.weight.mul_(1e5)
    with pytest.raises(RunFailed, match=r"clips 0 to 1 in view 0 are not finite as float16"):
        source.open(tmp_path, storage="float16")
    assert source.open(tmp_path, storage="float32").encoded_rows == CLIPS * VIEWS
