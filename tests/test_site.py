"""Memory, time and money of a site: closed forms against tensors that live, against hand counts, and against
the published GPU-hours.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from salt.checkpoint import KEPT
from salt.errors import UserError
from salt.flops import step_cost
from salt.learner import Learner, build_encoder, freeze
from salt.optim import build_optimizer
from salt.resume import optimizer_tensors
from salt.sizes import SIZES, patch_values, tokens
from salt.specs import Arm, ClipSpec, RunSpec, TrunkRef
from sweeps.benchmark_cli import add_benchmark, benchmark_spec
from sweeps.machine_time import (
    artefact_bytes,
    cached_target_bytes,
    calendar_days,
    checkpoint_bytes,
    gpu_seconds_per_step,
    hardware_flops_per_step,
    price,
    run_gpu_hours,
)
from sweeps.memory import gpu_counts, memory, propose, trained_parameters
from sweeps.site import DEFAULT_SITE, GIB, SiteSpec, load_site, site_yaml
from tests.examples import run_spec

SITES = Path(__file__).parent.parent / "examples" / "sites"

# GPU-hours on one A100 and FLOPs in the paper's own count, as printed in arXiv 2509.24317: a ViT-L teacher of
# 80k steps and a student of 160k steps, batch 3072, 16 frames of 224 px.
PUBLISHED = {
    "vit_l": (8263, 1.2e21),
    "vit_h": (9574, 1.5e21),
    "vit_g": (10476, 1.85e21),
    "vit_gg": (12379, 2.6e21),
}


def published(arm: Arm, size: str, teacher: str | None = None, steps: int = 160_000) -> RunSpec:
    """A run of the paper's shape in bfloat16, with the mean token counts of the published mask sampler."""
    spec = benchmark_spec(arm, size, teacher=teacher, batch_clips=3072)
    optim = msgspec.structs.replace(spec.optim, precision="bfloat16")
    return msgspec.structs.replace(spec, steps=steps, optim=optim)


# --- memory against tensors that live -------------------------------------------------------------------


class Live(TorchDispatchMode):
    """Bytes of all storages that are alive after each operation, and the most that ever were."""

    def __init__(self, tensors: Iterator[torch.Tensor]) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak_bytes = 0
        self.add(tensors)

    def add(self, tensors: Any) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = StorageWeakRef(storage)
            self.storages[reference.cdata] = (reference, storage.nbytes())
        self.storages = {key: item for key, item in self.storages.items() if not item[0].expired()}
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self.storages.values()))

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.add(item for item in tree_iter(result) if isinstance(item, torch.Tensor))
        return result


class Trained:
    """A learner, its optimiser and a batch, after one step, so that gradients and moments are there."""

    def __init__(self, spec: RunSpec, half: bool = False) -> None:
        self.learner = Learner(spec, classes=6)
        if spec.teacher is not None:
            self.learner.teacher = freeze(build_encoder(spec.teacher.encoder, spec.model, spec.clip, 1))
        self.optimizer = build_optimizer(self.learner.trained, spec.optim)
        count = spec.optim.batch_clips
        self.patches = torch.randn(count, tokens(spec.model, spec.clip), patch_values(spec.model, spec.clip))
        self.labels = torch.zeros(count, dtype=torch.long)
        self.half = half
        self.step()

    def loss(self) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            return self.learner.loss(self.patches, 0, self.labels)

    def step(self) -> None:
        loss = self.loss()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        return [weight for module in self.learner.trained for weight in module.parameters()]

    def moments(self) -> list[torch.Tensor]:
        return list(optimizer_tensors(self.optimizer).values())

    def state(self) -> Iterator[torch.Tensor]:
        teacher = self.learner.teacher
        yield from (*self.weights, *self.moments(), self.patches)
        yield from (weight.grad for weight in self.weights if weight.grad is not None)
        yield from () if teacher is None else teacher.parameters()


def nbytes(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


CASES = [("pixel", None), ("salt", "tiny"), ("vjepa", None)]


@pytest.mark.parametrize(("arm", "teacher"), CASES)
def test_state_and_disk_are_torchs_bytes(arm: Arm, teacher: str | None) -> None:
    spec = run_spec(arm, "micro", teacher=teacher, batch_clips=2)
    trained = Trained(spec)
    parts = memory(spec, 2, recompute=False, precision="fp32")
    assert parts.parameters == nbytes(trained.weights)
    assert parts.gradients == nbytes(weight.grad for weight in trained.weights)
    assert parts.moments == nbytes(trained.moments()) == 2 * parts.parameters
    frozen = trained.learner.teacher
    assert parts.teacher == (0 if frozen is None else nbytes(frozen.parameters()))
    # Under autocast every weight has a copy of 2 bytes beside it.
    half = memory(spec, 2, recompute=False, precision="bf16")
    assert (half.parameters, half.moments) == (parts.parameters // 2 * 3, parts.moments)
    saved = {**trained.learner.tensors(), **optimizer_tensors(trained.optimizer)}
    assert checkpoint_bytes(spec) == nbytes(saved.values())
    assert artefact_bytes(spec) == nbytes(trained.learner.encoder.parameters())
    assert KEPT == 2  # docs/hardware.md says so


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("arm", "teacher"), [*CASES, ("supervised", None)])
def test_saved_activations(arm: Arm, teacher: str | None, half: bool) -> None:
    spec = run_spec(arm, "micro", teacher=teacher, batch_clips=4)
    held_activations(spec, half)


@pytest.mark.parametrize(
    "objective",
    [
        {"latent_loss": "l2"},
        {"latent_loss": "smooth_l1"},
        {"latent_loss": "cosine"},
        {"pixel_weight": 0.1},
        {"pixel_weight": 0.1, "pixel_loss": "l1", "latent_loss": "cosine"},
        {"teacher_layer": 1},
    ],
)
def test_saved_by_losses(objective: dict[str, Any]) -> None:
    held_activations(run_spec("salt", "micro", teacher="tiny", batch_clips=4, **objective), half=False)


def held_activations(spec: RunSpec, half: bool) -> None:
    """Counted is each storage once that autograd packs, but for the weights and their bfloat16 copies."""
    trained = Trained(spec, half)
    weights = {weight.untyped_storage().data_ptr() for weight in trained.weights}
    matrices = {shape for weight in trained.weights for shape in (weight.shape, weight.shape[::-1])}
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        copy = tensor.dtype == torch.bfloat16 and tensor.shape in matrices
        if not copy and tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = trained.loss()
    counted = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert loss.isfinite()
    parts = memory(spec, 4, recompute=False, precision="bf16" if half else "fp32")
    assert parts.activations == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(
    ("arm", "size", "teacher", "half"),
    [
        ("pixel", "micro", None, False),
        ("pixel", "micro", None, True),
        ("vjepa", "tiny", None, False),
        ("salt", "nano", "vit_s", False),  # the teacher's pass is the larger one
    ],
)
def test_peak_of_everything_that_lives(arm: Arm, size: str, teacher: str | None, half: bool) -> None:
    spec = run_spec(arm, size, teacher=teacher, batch_clips=32)
    trained = Trained(spec, half)
    with Live(trained.state()) as live:
        trained.step()
    parts = memory(spec, 32, recompute=False, precision="bf16" if half else "fp32")
    if teacher == "vit_s":
        assert parts.teacher_working > parts.activations + parts.working
    assert parts.peak_bytes == pytest.approx(live.peak_bytes, rel=0.05)


def test_memory_grows_with_clips_and_shrinks_with_recomputation_and_sharding() -> None:
    spec = published("salt", "vit_l", "vit_l")
    one, two = memory(spec, 1, recompute=False), memory(spec, 2, recompute=False)
    assert two.state_bytes == one.state_bytes == 18 * trained_parameters(spec) + 4 * 303_885_312
    assert two.activations == 2 * one.activations
    assert two.peak_bytes > one.peak_bytes
    again = memory(spec, 2, recompute=True)
    # By hand: of a block's 24 d + 2 x 2 m bytes under autocast only its input stays, 2 d.
    assert again.activations < two.activations / 5
    assert again.peak_bytes < two.peak_bytes
    shared = memory(spec, 2, recompute=False, shards=8, sharded=True)
    assert shared.moments == -(-two.moments // 8)
    assert shared.peak_bytes < two.peak_bytes
    assert memory(run_spec("random", steps=0), 4, recompute=False).peak_bytes == 0


# --- layouts ----------------------------------------------------------------------------------------


def test_layouts() -> None:
    large = propose(published("salt", "vit_l", "vit_l", steps=1000), DEFAULT_SITE)
    assert (large.gpus, large.recompute, large.sharded, large.problem) == (1, False, False, None)
    assert large.micro_batch * large.accumulation_steps == 3072
    assert large.peak_bytes <= 75 * GIB

    spec = published("salt", "vit_l", "vit_l")
    long = propose(spec, DEFAULT_SITE)
    assert long.hours == pytest.approx(run_gpu_hours(spec, DEFAULT_SITE) / long.gpus)
    assert long.gpus == 48
    assert long.hours <= 7 * 24 < run_gpu_hours(spec, DEFAULT_SITE) / 32  # the next smaller count
    limited = propose(spec, msgspec.structs.replace(DEFAULT_SITE, max_gpus=16))
    assert (limited.gpus, limited.problem) == (16, None)
    assert limited.hours > 7 * 24
    assert gpu_counts(3072, DEFAULT_SITE) == [1, 2, 3, 4, 6, 8, 16, 24, 32, 48, 64]
    assert gpu_counts(7, DEFAULT_SITE) == [1, 7]

    # 1.84e9 weights of 18 bytes and an average of 4 bytes each are 38 GiB before any clip.
    smaller = msgspec.structs.replace(DEFAULT_SITE, memory_gib=40)
    giant = propose(published("vjepa", "vit_gg"), smaller)
    assert (giant.sharded, giant.recompute, giant.problem) == (True, False, None)
    clip = propose(published("supervised", "vit_gg"), smaller)
    assert (clip.sharded, clip.recompute, clip.problem) == (False, True, None)


def test_what_cannot_fit_is_said_with_numbers() -> None:
    tight = msgspec.structs.replace(DEFAULT_SITE, memory_gib=1, reserve_gib=0.25)
    fit = propose(published("vjepa", "vit_gg"), tight)
    assert fit.problem is not None
    assert f"needs {fit.peak_bytes / GIB:.3g} GiB" in fit.problem
    assert "64-way sharding" in fit.problem
    assert "offers 0.75 GiB a GPU (1 GiB less 0.25 in reserve)" in fit.problem
    assert f"{fit.peak_bytes / GIB - 0.75:.3g} GiB too little" in fit.problem


# --- time, money, disk --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", list(PUBLISHED))
def test_built_in_utilisation_is_what_the_published_hours_imply(size: str) -> None:
    hours, printed_flops = PUBLISHED[size]
    teacher, student = published("pixel", "vit_l", steps=80_000), published("salt", size, "vit_l")
    paper = sum(step_cost(spec, "paper").total_flops * spec.steps for spec in (teacher, student))
    assert paper == pytest.approx(printed_flops, rel=0.01)
    ours = sum(step_cost(spec).total_flops * spec.steps for spec in (teacher, student))
    implied = ours / (hours * 3600) / DEFAULT_SITE.peak_flops["bf16"]
    assert DEFAULT_SITE.utilisation[size] == pytest.approx(implied, abs=0.005)
    sustained = paper / (hours * 3600) / 1e12
    assert sustained == pytest.approx({"vit_l": 40, "vit_h": 43, "vit_g": 49, "vit_gg": 59}[size], abs=0.5)


def test_hours_by_hand() -> None:
    spec = run_spec("vjepa", "micro", steps=100)
    site = msgspec.structs.replace(
        DEFAULT_SITE, peak_flops={"fp32": 1e9, "bf16": 8e9}, utilisation={"default": 0.5, "micro": 0.25}
    )
    step = step_cost(spec)
    half = msgspec.structs.replace(spec, optim=msgspec.structs.replace(spec.optim, precision="bfloat16"))
    assert gpu_seconds_per_step(spec, site) == 8 * gpu_seconds_per_step(half, site)  # each by its own peak
    assert gpu_seconds_per_step(spec, site) == pytest.approx(step.total_flops / 0.25e9)
    assert run_gpu_hours(spec, site) == pytest.approx(100 * step.total_flops / 0.25e9 / 3600)
    # Recomputation: one more forward pass of what is trained, in time alone.
    more = hardware_flops_per_step(spec, recompute=True) - step.total_flops
    assert more == step.parts["encoder"].forward + step.parts["predictor"].forward
    branch = msgspec.structs.replace(spec, trunk=TrunkRef(run_id="0" * 16, step=60))
    assert run_gpu_hours(branch, site) == pytest.approx(0.4 * run_gpu_hours(spec, site))
    other = run_spec("pixel", "tiny")
    assert gpu_seconds_per_step(other, site) == pytest.approx(step_cost(other).total_flops / 0.5e9)
    assert price(10, site) is None
    assert price(10, msgspec.structs.replace(site, price_per_gpu_hour=1.5)) == 15


def test_cached_targets_cost_time_once_and_disk() -> None:
    spec = msgspec.structs.replace(run_spec("salt", "nano", teacher="micro"), cached_views=3)
    assert cached_target_bytes(spec) == 3 * 8192 * 64 * 48 * 4
    optim = msgspec.structs.replace(spec.optim, precision="bfloat16")
    assert cached_target_bytes(msgspec.structs.replace(spec, optim=optim)) == 3 * 8192 * 64 * 48 * 2
    assert cached_target_bytes(run_spec("salt", "nano", teacher="micro")) == 0
    assert memory(spec, 1, recompute=False).teacher == 0
    untrained = msgspec.structs.replace(spec, steps=0)
    assert 0 < run_gpu_hours(untrained, DEFAULT_SITE) < run_gpu_hours(spec, DEFAULT_SITE)


def test_calendar_by_hand() -> None:
    site = msgspec.structs.replace(DEFAULT_SITE, max_gpus=16)
    # A teacher of 96 GPU-hours on 8 GPUs, 12 h; its student of 288 on 8, 36 h; another run of 24 on 1, 24 h.
    runs = [(96.0, 8, None), (288.0, 8, 0), (24.0, 1, None)]
    assert calendar_days(runs, site) == pytest.approx((12 + 36) / 24)  # the chain
    assert calendar_days([*runs, (960.0, 16, None)], site) == pytest.approx(1368 / 16 / 24)  # the crowd
    assert calendar_days([], site) == 0
    with pytest.raises(ValueError, match="does not come before"):
        calendar_days([(1.0, 1, 0)], site)
    with pytest.raises(ValueError, match="lends 1 to 16"):
        calendar_days([(1.0, 17, None)], site)


# --- profiles and the benchmark --------------------------------------------------------------------------


def test_example_profiles_load_and_the_built_in_one_is_the_first(tmp_path: Path) -> None:
    sites = {path.stem: load_site(path) for path in SITES.glob("*.yaml")}
    assert set(sites) == {"a100", "h100", "laptop-cpu", "cluster", "test-cluster"}
    assert sites["a100"] == DEFAULT_SITE == load_site(None)
    for site in sites.values():
        (tmp_path / "copy.yaml").write_text(site_yaml(site))
        assert load_site(tmp_path / "copy.yaml") == site
        assert site.source(SIZES["vit_l"]) == "assumed"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("gpus_total: 64", "gpus_total: 4", "gpus_per_node 8 is above gpus_total 4"),
        ("precision: bf16", "precision: fp16", "precision.*fp16"),
        ("precision: bf16", "precison: bf16", "did you mean 'precision'"),
        ("vit_l: 0.17", "vit_x: 0.17", "utilisation.vit_x: unknown name 'vit_x'"),
        ("vit_l: 0.17", "vit_l: 17", r"utilisation\.vit_l 17: .* at most 1"),
        ("default: 0.15, ", "", "no entry `default`"),
        ("reserve_gib: 4", "reserve_gib: 80", "leaves nothing"),
        ("# price_per_gpu_hour", "price_per_gpu_hour", "in what currency"),
        ("{bf16: 312e12, ", "{", "add peak_flops.bf16"),
    ],
)
def test_a_bad_profile_is_refused_with_its_place(tmp_path: Path, old: str, new: str, words: str) -> None:
    text = (SITES / "a100.yaml").read_text()
    assert old in text
    path = tmp_path / "bad.yaml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=words) as caught:
        load_site(path)
    assert str(path) in str(caught.value)


def test_an_absent_profile_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent.yaml: cannot be read.*examples/sites/a100.yaml"):
        load_site(tmp_path / "absent.yaml")


def run_benchmark(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    add_benchmark(parser.add_subparsers())
    args = parser.parse_args(["benchmark", *argv])
    code: int = args.run(args)
    return code


def test_benchmark_measures_and_keeps_what_a_profile_has(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    threads = torch.get_num_threads()
    assert run_benchmark("--student", "nano", "--steps", "1", "--threads", "1", "--write", str(path)) == 0
    assert torch.get_num_threads() == threads
    text = capsys.readouterr().out
    assert text.index("torch") < text.index("share of peak") < text.index("nano")
    first = load_site(path)
    assert (first.precision, first.measured, first.gpus_total) == ("fp32", ("nano",), 1)

    edited = msgspec.structs.replace(first, max_hours_per_job=12.0, price_per_gpu_hour=0.5, currency="EUR")
    path.write_text(site_yaml(edited))
    quick = ("--steps", "1", "--batch", "1", "--frames", "4", "--json", "--write", str(path))
    assert run_benchmark("--student", "micro", "--arm", "salt", "--teacher", "nano", *quick) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    spec = benchmark_spec("salt", "micro", teacher="nano", batch_clips=1, frames=4)
    assert row["step_flops"] == step_cost(spec).total_flops
    assert row["share_of_peak"] == pytest.approx(row["step_flops"] / row["step_s"] / row["peak_flops_per_s"])
    second = load_site(path)
    micro = second.utilisation["micro"]
    assert micro * second.peak == pytest.approx(row["flops_per_s"], rel=0.01)
    kept = msgspec.structs.replace(
        edited, utilisation={**edited.utilisation, "micro": micro}, measured=("nano", "micro")
    )
    assert second == kept
    assert path.read_text() == site_yaml(second)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--student", "vit_x"], "--student: unknown name 'vit_x'"),
        (["--student", "nano", "--crop", "25"], "not a multiple of model.patch_px 6"),
        (["--student", "nano", "--steps", "0"], "--steps 0: give at least 1"),
        (["--student", "nano", "--teacher", "tiny"], "only the salt arm"),
    ],
)
def test_benchmark_refuses_mistakes(argv: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run_benchmark(*argv)


def test_a_profile_of_another_precision_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a100.yaml"
    path.write_text(site_yaml(DEFAULT_SITE))
    with pytest.raises(UserError, match="precision bf16, but this was measured in fp32"):
        run_benchmark("--student", "nano", "--steps", "1", "--batch", "1", "--write", str(path))
    assert load_site(path) == DEFAULT_SITE


def test_the_published_clip_is_the_papers() -> None:
    spec = published("pixel", "vit_l")
    assert tokens(spec.model, spec.clip) == 1568
    assert spec.clip == ClipSpec(store_px=224)
    assert isinstance(DEFAULT_SITE, SiteSpec)
