"""How fast a training step is, against the machine's own matrix products: `python benchmarks/train_step.py`.

An EMA step (target pass, two masks, backward, AdamW, average) at two sizes, as `salt.train` takes it. The
ledger's FLOPs of a step by the time of a step, as a share of what a product of two large matrices reaches
between the runs, in the same process and precision. On a GPU (`--device cuda`) the precision is bfloat16,
blocks are compiled, and the sizes are larger.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import msgspec
import torch

from benchmarks.environment import environment
from salt.flops import step_cost
from salt.linear import Linear
from salt.masks import published_counts
from salt.rehearsal import Rehearsal
from salt.sizes import SIZES, grid
from salt.specs import ClipSpec, DataSpec, MaskSpec, ModelSpec, OptimSpec, RunSpec, VitSpec

#: Encoder, predictor (width, depth, heads), frames, side in pixels, clips: on a CPU, and on a GPU.
SHAPES = {
    "cpu": [("vit_ti", (96, 4, 3), 16, 112, 4), ("vit_s", (192, 6, 6), 8, 64, 16)],
    "cuda": [("vit_b", (384, 12, 12), 16, 224, 24), ("vit_l", (384, 12, 12), 16, 224, 24)],
}
#: Side of the square matrices.
PEAK_SIDE = {"cpu": 2048, "cuda": 8192}
#: Blocks and their share of the picture, of V-JEPA's two masks.
PUBLISHED_MASKS = ((8, 0.15), (2, 0.7))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--rounds", type=int, default=5, help="runs, with a measurement of the peak before each"
    )
    parser.add_argument("--steps", type=int, default=8, help="steps a run")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(environment(), file=sys.stderr if arguments.json else sys.stdout)
    device = torch.device(arguments.device)
    for shape in SHAPES[device.type]:
        found = measure(spec_of(*shape, precision="bfloat16" if device.type == "cuda" else "float32"), device,
                        rounds=arguments.rounds, steps=arguments.steps)  # fmt: skip
        if arguments.json:
            print(json.dumps({"size": shape[0], **found}))
            continue
        print(
            f"{shape[0]}, predictor {shape[1][1]} x {shape[1][0]}, {shape[2]} frames of {shape[3]} px, "
            f"{shape[4]} clips: {found['step_ms']:.0f} ms a step, {found['gflop']:.1f} GFLOP, "
            f"peak {found['peak_gflops']:.0f} GFLOP/s, share {found['share']:.3f} "
            f"(by the layers' own product {found['layer_peak_gflops']:.0f} GFLOP/s)"
        )
        print("  " + ", ".join(f"{name} {ms:.1f} ms" for name, ms in found["parts_ms"].items()))


def spec_of(
    size: str, predictor: tuple[int, int, int], frames: int, side_px: int, clips: int, precision: str
) -> RunSpec:
    width, depth, heads = predictor
    model = ModelSpec(
        encoder=SIZES[size],
        predictor=VitSpec(width=width, depth=depth, heads=heads, mlp_width=4 * width),
    )
    clip = ClipSpec(frames=frames, store_px=side_px, crop_px=side_px)
    masks = []
    for blocks, scale in PUBLISHED_MASKS:
        visible, target = published_counts(blocks, scale, 0.75, 1.5, grid(model, clip))
        masks.append(MaskSpec(blocks=blocks, scale=scale, visible_tokens=visible, target_tokens=target))
    return RunSpec(
        arm="vjepa",
        seed=0,
        steps=1000,
        model=model,
        clip=clip,
        data=DataSpec(name="none", fingerprint="none", clips=clips),
        masks=tuple(masks),
        optim=msgspec.convert({"batch_clips": clips, "precision": precision}, OptimSpec),
    )


def measure(spec: RunSpec, device: torch.device, *, rounds: int, steps: int) -> dict[str, object]:
    """Medians over rounds: time of a step, peak, share of it, and where the time goes."""
    flops = step_cost(spec).total_flops
    step = Rehearsal(spec, device, compiled=device.type == "cuda")
    for _ in range(3):
        step()
    peaks, layer_peaks, times = [], [], []
    for _ in range(rounds):
        peaks.append(peak_flops_per_s(device, spec.optim.precision))
        layer_peaks.append(peak_flops_per_s(device, spec.optim.precision, layer=True))
        for _ in range(steps):
            times.append(timed(step, device))
    shares = [
        flops / statistics.median(times[place * steps : (place + 1) * steps]) / peak
        for place, peak in enumerate(peaks)
    ]
    return {
        "step_ms": 1e3 * statistics.median(times),
        "gflop": flops / 1e9,
        "peak_gflops": statistics.median(peaks) / 1e9,
        "layer_peak_gflops": statistics.median(layer_peaks) / 1e9,
        "share": statistics.median(shares),
        "parts_ms": laps(step, device, steps),
    }


def laps(step: Rehearsal, device: torch.device, steps: int) -> dict[str, float]:
    """Median milliseconds of each part of a step; the stop watch waits for the device."""
    found: dict[str, list[float]] = {}
    for _ in range(steps):
        before = time.perf_counter()

        def lap(name: str) -> None:
            nonlocal before
            wait(device)
            now = time.perf_counter()
            found.setdefault(name, []).append(1e3 * (now - before))
            before = now

        step(lap)
    return {name: statistics.median(values) for name, values in found.items()}


def peak_flops_per_s(device: torch.device, precision: str, layer: bool = False) -> float:
    """The best of five products of two square matrices, by torch itself or by the model's layers."""
    side = PEAK_SIDE[device.type]
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=kind) for _ in range(2))
    linear = Linear(side, side, bias=False, device=device, dtype=kind)

    @torch.no_grad()
    def multiply() -> torch.Tensor:
        return linear(left) if layer else left @ right

    multiply()
    return 2 * side**3 / min(timed(multiply, device) for _ in range(5))


def timed(work: Callable[[], object], device: torch.device) -> float:
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
