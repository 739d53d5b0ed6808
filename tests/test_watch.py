"""Watchdogs: what they say of embeddings, time and work, and when they bark."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from salt.batches import Batches, to_patches
from salt.clips import Clips
from salt.collapse import Collapse, Row, spread
from salt.digits import draw_clip, render_clips
from salt.flops import step_cost
from salt.label_free import rankme
from salt.learner import Learner, build_encoder, freeze
from salt.metrics import Metrics
from salt.objectives import pixel_targets
from salt.optim import build_optimizer, clip_gradients, rates, set_schedule
from salt.sizes import SIZES
from salt.specs import DataSpec, ExecSpec, RunSpec
from salt.throughput import Earlier, Throughput
from salt.watch import Starvation, Watch
from tests.examples import run_spec


def clips_of(frames: NDArray[np.uint8]) -> Clips:
    """Frames as the clips of a list."""
    names = tuple(f"{number}.mp4" for number in range(len(frames)))
    return Clips(
        frames=frames,
        files=tuple(Path(name) for name in names),
        rows=names,
        columns={},
        skipped=(),
        fingerprint="f" * 16,
        padded_share=0.0,
    )


def batches_of(spec: RunSpec, frames: NDArray[np.uint8]) -> Callable[[int], torch.Tensor]:
    """Patches of a step."""
    batches = Batches(spec, {spec.data.fingerprint: clips_of(frames)})
    return lambda step: to_patches(batches.crops(step), spec.clip, spec.model)


def data(clips: int) -> DataSpec:
    return DataSpec(name="train", fingerprint="f" * 16, clips=clips)


@pytest.fixture(scope="module")
def frames() -> NDArray[np.uint8]:
    """The miniature's clips, made in memory."""
    return render_clips([draw_clip("train", 0, number) for number in range(1024)])


def trained(spec: RunSpec, frames: NDArray[np.uint8], teacher: Any = None) -> tuple[list[Row], list[str]]:
    """What the collapse watchdog saw every 20 steps, until it says something."""
    learner = Learner(spec)
    if teacher is not None:
        learner.teacher = teacher
    optimizer = build_optimizer(learner.trained, spec.optim)
    patches = batches_of(spec, frames)
    watch, rows, said = Collapse(moving=spec.arm == "vjepa"), [], []
    for step in range(spec.steps):
        now = rates(spec, step)
        set_schedule(optimizer, now.learning_rate, now.weight_decay)
        optimizer.zero_grad(set_to_none=True)
        outcome = learner.outcome(patches(step), learner.masks(step, range(spec.optim.batch_clips)))
        if step == 0:
            assert outcome.targets is not None
            watch.begin(outcome.targets)
        outcome.loss.backward()
        clip_gradients(learner.trained, spec, step)
        optimizer.step()
        learner.update_teacher(now.ema_momentum)
        if (step + 1) % 20 == 0:
            rows.append(watch.observe(step + 1, outcome.targets, outcome.encoded))
            said += [message for message in [watch.warning()] if message is not None]
            if said:
                break
    return rows, said


def test_it_fires_for_a_collapsing_run_and_not_for_sound_ones(frames: NDArray[np.uint8]) -> None:
    """No average, 20 times the rate and 32 clips; a random frozen teacher; the miniature's recipe."""
    broken = run_spec("vjepa", "nano", steps=300, data=data(32), lr=20 * 1e-3, ema_start=0.0, ema_end=0.0)
    rows, said = trained(broken, frames[:32])
    assert len(said) == 1
    assert "effective rank fell" in said[0]
    assert "learning rate" in said[0]
    assert rows[-1]["target_rank"] < 0.5 * rows[-1]["target_rank_highest"]

    student = run_spec("salt", "nano", teacher="nano", steps=120, data=data(32))
    teacher = freeze(build_encoder(SIZES["nano"], student.model, student.clip, seed=123))
    rows, said = trained(student, frames[:32], teacher)
    assert said == []
    assert min(row["target_clip_std"] for row in rows) > 0.5

    rows, said = trained(run_spec("vjepa", "nano", steps=160, data=data(1024)), frames)
    assert said == []
    assert min(row["target_rank"] for row in rows) > 0.7 * rows[-1]["target_rank_highest"]


def test_numbers_of_known_embeddings() -> None:
    random = torch.Generator().manual_seed(0)
    noise = torch.randn(32, 8, 16, generator=random)  # 256 tokens: all of them are looked at
    found = spread(noise)
    flat = noise.reshape(-1, 16).double().numpy()
    unit = np.sqrt((flat**2).mean())
    assert found["rank"] == pytest.approx(rankme(flat), rel=1e-6)  # singular values against eigenvalues
    assert found["std"] == pytest.approx(flat.std(axis=0).mean() / unit, rel=1e-5)
    places = noise.double().numpy().var(axis=0, ddof=1).mean() ** 0.5
    assert found["clip_std"] == pytest.approx(places / unit, rel=1e-5)
    mean = noise.double().numpy().mean(axis=1)
    cosines = np.corrcoef(np.c_[mean, -mean])  # of [m, -m], whose mean is 0, correlation is cosine
    assert found["cosine"] == pytest.approx(cosines[~np.eye(32, dtype=bool)].mean(), abs=1e-5)
    assert found["flat_share"] == 0.0
    for scaled in (noise * 1000, noise.flip(0)):  # neither the unit nor the order of clips matters
        assert spread(scaled) == pytest.approx(found, rel=1e-5)

    half = torch.cat([noise, torch.ones(32, 8, 16)], dim=-1)
    assert spread(half)["flat_share"] == 0.5
    one = spread(torch.ones(32, 8, 16))
    assert (one["std"], one["flat_share"], one["clip_std"]) == (0.0, 1.0, 0.0)
    assert (one["rank"], one["cosine"]) == (pytest.approx(1.0, abs=1e-3), pytest.approx(1.0))
    # The place is all it knows: tokens differ, clips do not.
    places_only = spread(noise[:1].expand(32, 8, 16))
    assert places_only["std"] == pytest.approx(1.0, abs=0.2)
    assert (places_only["clip_std"], places_only["cosine"]) == (0.0, pytest.approx(1.0))

    single = spread(noise[:1])
    assert (single["clip_std"], single["cosine"]) == (None, None)
    assert all(np.isnan(value) for value in spread(torch.full((2, 2, 4), torch.nan)).values())
    assert spread(torch.zeros(2, 2, 4))["rank"] == 0.0


def test_a_large_batch_is_sampled_without_touching_the_runs_randomness() -> None:
    torch.manual_seed(5)
    x = torch.randn(100, 300, 24).to(torch.bfloat16)
    state = torch.get_rng_state()
    found = spread(x)
    assert torch.equal(torch.get_rng_state(), state)
    assert found == spread(x)
    assert found["std"] == pytest.approx(1.0, rel=0.02)
    assert found["rank"] == pytest.approx(rankme(x[:40, :100].reshape(-1, 24).float().numpy()), rel=0.02)


def test_one_warning_an_episode() -> None:
    random = torch.Generator().manual_seed(0)
    well = torch.randn(16, 16, 32, generator=random)
    poor = torch.randn(16, 16, 4, generator=random) @ torch.randn(4, 32, generator=random)
    same = torch.ones(16, 16, 32)

    def heard(moving: bool, *targets: torch.Tensor) -> list[int]:
        watch, said = Collapse(moving=moving), []
        for number, tensor in enumerate(targets):
            watch.observe(number, tensor, well)
            if watch.warning() is not None:
                said.append(number)
        return said

    assert heard(True, well, poor, poor, well, poor, poor) == []  # two lines are not an episode
    assert heard(True, well, *[poor] * 6, well, *[poor] * 3) == [3, 10]
    resumed = Collapse(moving=True, highest_rank=spread(well)["rank"])
    for number in range(3):
        row = resumed.observe(number, poor)
    assert resumed.warning() is not None
    assert row["target_rank_highest"] == spread(well)["rank"]
    assert heard(False, well, *[poor] * 6) == []  # a frozen teacher's rank is what it is
    assert heard(False, *[same] * 6) == [2]
    assert heard(True, *[torch.full((4, 4, 8), torch.nan)] * 6) == []  # the loop stops for that


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def steps(watch: Starvation, clock: Clock, count: int, wait_s: float, work_s: float) -> None:
    for _ in range(count):
        with watch.waiting():
            clock.now_s += wait_s
        clock.now_s += work_s


def test_starvation_is_the_share_of_time_waited_for_clips() -> None:
    clock = Clock()
    watch = Starvation(clock=clock)
    assert watch.share(0) is None
    with watch.waiting():
        clock.now_s += 100.0  # decoders start: not counted
    clock.now_s += 1.0
    steps(watch, clock, 9, wait_s=0.1, work_s=0.9)
    assert watch.share(10) == pytest.approx(0.09)
    assert watch.warning() is None
    for step in (20, 30):
        steps(watch, clock, 10, wait_s=0.25, work_s=0.75)
        assert watch.share(step) == pytest.approx(0.25)
    message = watch.warning()
    assert message is not None
    assert "step 20: 25%" in message
    assert "decode_workers" in message
    assert watch.warning() is None
    steps(watch, clock, 10, wait_s=0.0, work_s=1.0)
    assert watch.share(40) == 0.0
    steps(watch, clock, 10, wait_s=1.0, work_s=1.0)
    assert watch.share(50) == pytest.approx(0.5)
    assert "step 50" in str(watch.warning())


def test_on_a_gpu_a_wait_counts_only_while_the_device_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device is busy for 1 s a step; the host enqueues it in none, and waits 0.75 or 1.5 s for clips."""
    clock = Clock()
    device = SimpleNamespace(free_s=0.0)

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at_s = max(clock.now_s, device.free_s)  # events take their turn behind what is queued

        def synchronize(self) -> None:
            clock.now_s = max(clock.now_s, self.at_s)

        def elapsed_time(self, other: "Event") -> float:
            return 1000 * (other.at_s - self.at_s)

    monkeypatch.setattr(torch.cuda, "Event", Event)

    def share(wait_s: float) -> float | None:
        watch = Starvation(cuda=True, clock=clock)
        for _ in range(21):
            with watch.waiting():
                clock.now_s += wait_s
            device.free_s = max(clock.now_s, device.free_s) + 1.0
        clock.now_s = device.free_s
        return watch.share(21)

    assert share(0.75) == pytest.approx(0.0)
    assert share(1.5) == pytest.approx(20 * 0.5 / (20 * 1.5 + 1.0))


def test_work_adds_up_over_attempts_and_what_was_done_twice_stands_apart(tmp_path: Path) -> None:
    spec = run_spec("pixel", "nano", batch_clips=16, steps=60)
    flops = step_cost(spec).total_flops
    path = tmp_path / "metrics.jsonl"
    clock = Clock()

    def attempt(number: int, start: int, wall_s: float, lines: tuple[int, ...]) -> list[Row]:
        """A step takes half a second; a line every few."""
        earlier = Earlier.read(path, step=start, wall_s=wall_s)
        work = Throughput(
            spec, step_flops=flops, start=start, peak_flops_per_s=4.0 * flops, earlier=earlier, clock=clock
        )
        rows, at = [], start
        with Metrics(path, number) as metrics:
            for line in lines:
                clock.now_s += 0.5 * (line - at)
                at = line
                rows.append(work.row(line))
                metrics.write(line, **rows[-1])
        return rows

    first = attempt(1, 0, 0.0, (10, 20, 35))[-1]
    assert first == {
        "flops": 35 * flops,
        "clips": 35 * 16,
        "tokens": 35 * 16 * 64,
        "wall_s": 17.5,
        "flops_per_s": pytest.approx(2.0 * flops),
        "utilisation": pytest.approx(0.5),
        "burnt_steps": 0,
        "burnt_wall_s": 0.0,
    }
    path.write_bytes(path.read_bytes() + b'{"step": 37, "att')  # killed inside a line
    second = attempt(2, 30, 15.0, (40, 50))[-1]
    assert (second["flops"], second["wall_s"]) == (50 * flops, 25.0)
    assert (second["burnt_steps"], second["burnt_wall_s"]) == (5, 2.5)
    third = attempt(3, 40, 20.0, (60,))[-1]
    assert (third["flops"], third["wall_s"]) == (60 * flops, 30.0)
    assert (third["burnt_steps"], third["burnt_wall_s"]) == (15, 7.5)
    assert Earlier.read(path, step=60, wall_s=30.0).burnt_steps == 15  # nothing lost: nothing added
    assert clock.now_s == 30.0 + 7.5
    with Metrics(path, 4) as metrics:
        metrics.write(61, **third, target_rank_highest=17.5)
    assert Earlier.read(path, step=60, wall_s=30.0).highest_rank == 17.5
    without_peak = Throughput(spec, step_flops=flops, start=0, clock=clock)
    clock.now_s += 1.0
    assert without_peak.row(2)["utilisation"] is None


def test_the_loop_gets_one_row_and_hears_of_trouble() -> None:
    spec = run_spec("salt", "nano", teacher="nano")
    said: list[str] = []
    watch = Watch(spec, ExecSpec(), said.append, step_flops=10**9, start=0)
    targets = torch.ones(4, 64, 32)
    for step in (1, 2, 3):
        with watch.waiting():
            pass
        row = watch.row(step, targets=targets)
    assert {"flops", "wall_s", "utilisation", "data_wait_share", "target_rank", "target_cosine"} <= set(row)
    assert "context_rank" not in row
    assert watch.wall_s >= row["wall_s"] - 0.001
    assert len(said) == 1
    assert said[0].startswith("collapse at step 3: target embeddings hardly differ between clips")


@pytest.mark.parametrize("norm", ["patch_channel", "patch"])
def test_a_black_clip_gives_finite_targets_loss_and_gradients(norm: str) -> None:
    spec = run_spec("pixel", "nano", pixel_norm=norm, data=data(16))
    patches = batches_of(spec, np.zeros((16, 8, 32, 32, 1), dtype=np.uint8))(0)
    # Not exactly 0: the rounding of a patch's mean is divided by the 1e-6 that bounds its deviation.
    assert torch.all(pixel_targets(patches, spec.clip.channels, norm).abs() < 1.0)
    learner = Learner(spec)
    loss = learner.loss(patches, 0)
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [p.grad for module in learner.trained for p in module.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
