"""`salt-sweep benchmark`: how fast this machine trains, as a share of its own peak."""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from salt.errors import UserError
from salt.flops import step_cost
from salt.sizes import SIZES, check_model, grid
from salt.specs import (
    ARMS,
    Arm,
    ClipSpec,
    DataSpec,
    MaskSpec,
    ModelSpec,
    OptimSpec,
    RunSpec,
    TeacherRef,
    VitSpec,
)
from sweeps.command import add_command, print_json, print_tables
from sweeps.document import unknown_name
from sweeps.site import DEFAULT, GIB, SiteSpec, load_site, site_yaml, with_measured

if TYPE_CHECKING:
    pass

#: Side of the square matrices whose product measures the peak: 17.2 GFLOP.
MATRIX = 2048
#: Blocks and scale of the short-range and long-range masks (arXiv 2404.08471, table 8; 2509.24317, table 5).
MASKS = ((8, 0.15), (2, 0.7))
#: Sizes for CPUs, which are benchmarked on the miniature's clips unless told otherwise.
SMALL = ("nano", "micro", "tiny")


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Timed training steps and, before each, a timed matrix product; seconds, in order."""

    step_flops: int
    step_s: tuple[float, ...]
    product_s: tuple[float, ...]

    @property
    def flops_per_s(self) -> float:
        """Of the median step, by the ledger."""
        return self.step_flops / statistics.median(self.step_s)

    @property
    def peak_flops_per_s(self) -> float:
        """Of the quickest product: others may slow a machine down, nothing speeds it up."""
        return 2 * MATRIX**3 / min(self.product_s)

    @property
    def share(self) -> float:
        return self.flops_per_s / self.peak_flops_per_s


def add_benchmark(commands: Any) -> None:
    """Register `salt-sweep benchmark`."""
    parser = add_command(
        commands,
        "benchmark",
        _benchmark,
        "measure how fast this machine trains, as a share of its peak",
        "Time real training steps on clips of noise, and large matrix products in between, and print the\n"
        "FLOP/s that a run reaches by the ledger, as a share of the peak. Store and plans are not touched.\n"
        "On a GPU training runs under bfloat16 autocast, on a CPU in float32. --write keeps the share in a\n"
        "site profile; its other values stay as they are, its comments do not.",
        [
            "salt-sweep benchmark --student vit_l --device cuda --batch 24",
            "salt-sweep benchmark --student nano --student micro --threads 2 --write my-site.yaml",
            "salt-sweep benchmark --student vit_b --arm salt --teacher vit_l --device cuda --json",
        ],
        store=False,
    )
    parser.add_argument(
        "--student",
        action="append",
        required=True,
        metavar="SIZE",
        help="an encoder; may be given several times",
    )
    parser.add_argument("--arm", choices=ARMS, default="pixel", help="what is trained (default: pixel)")
    parser.add_argument("--teacher", metavar="SIZE", help="for --arm salt (default: the student's size)")
    parser.add_argument("--batch", type=int, default=2, metavar="CLIPS", help="clips a step (default: 2)")
    parser.add_argument("--steps", type=int, default=5, help="timed steps after one of warm-up (default: 5)")
    parser.add_argument(
        "--crop", type=int, metavar="PX", help="side of a clip (default: 224; 24 for nano to tiny)"
    )
    parser.add_argument("--frames", type=int, help="frames of a clip (default: 16; 8 for nano to tiny)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument(
        "--write", metavar="SITE.yaml", help="keep the result in a new or existing site profile"
    )


def benchmark_spec(
    arm: Arm,
    student: str,
    *,
    batch_clips: int,
    teacher: str | None = None,
    crop_px: int | None = None,
    frames: int | None = None,
) -> RunSpec:
    """What is timed: V-JEPA's two masks with their published token counts.

    Clips, patches and predictor are the SALT paper's, but for nano, micro and tiny the miniature's.

    Raises:
        UserError: a size that does not exist, or a model or mask that cannot be built.
    """
    from salt.masks import check_masks, published_counts

    for flag, name in (("--student", student), ("--teacher", teacher or student)):
        if name not in SIZES:
            raise UserError(unknown_name(flag, name, list(SIZES)))
    small = student in SMALL
    side = crop_px or (24 if small else 224)
    clip = ClipSpec(
        frames=frames or (8 if small else 16), store_px=side, crop_px=side, channels=1 if small else 3
    )
    predictor = (
        VitSpec(width=32, depth=2, heads=2, mlp_width=128)
        if small
        else VitSpec(width=384, depth=12, heads=16, mlp_width=1536)
    )
    model = ModelSpec(encoder=SIZES[student], predictor=predictor, patch_px=6 if small else 16)
    problems = check_model(model, clip, ())
    masks: tuple[MaskSpec, ...] = ()
    if not problems:
        cells = grid(model, clip)
        counts = [published_counts(blocks, scale, 0.75, 1.5, cells) for blocks, scale in MASKS]
        masks = tuple(
            MaskSpec(blocks=blocks, scale=scale, visible_tokens=visible, target_tokens=target)
            for (blocks, scale), (visible, target) in zip(MASKS, counts, strict=True)
        )
        problems = check_masks(masks, cells)
    if problems:
        raise UserError("\n".join(f"benchmark of {student}: {problem}" for problem in problems))
    return RunSpec(
        arm=arm,
        seed=0,
        steps=1,
        model=model,
        clip=clip,
        data=DataSpec(name="noise", fingerprint="0" * 16, clips=batch_clips),
        masks=masks,
        optim=OptimSpec(batch_clips=batch_clips),
        teacher=TeacherRef(run_id="0" * 16, step=0, encoder=SIZES[teacher or student])
        if arm == "salt"
        else None,
    )


def _benchmark(args: argparse.Namespace) -> int:
    for flag in ("batch", "steps", "crop", "frames", "threads"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag} {value}: give at least 1")
    if args.teacher is not None and args.arm != "salt":
        raise UserError(
            f"--teacher {args.teacher} with --arm {args.arm}: only the salt arm has one; leave it out"
        )
    students = list(dict.fromkeys(args.student))
    specs = {
        student: benchmark_spec(
            args.arm,
            student,
            batch_clips=args.batch,
            teacher=args.teacher,
            crop_px=args.crop,
            frames=args.frames,
        )
        for student in students
    }
    path = None if args.write is None else Path(args.write)
    machine = environment(args.device, args.threads)
    if path is not None and path.exists():  # a profile that does not fit is said before anything is timed
        with_measured(load_site(path), str(path), str(machine["precision"]), {})
    speeds = {
        student: measure_speed(spec, steps=args.steps, device=args.device, threads=args.threads)
        for student, spec in specs.items()
    }
    if path is not None:
        from salt.store import write_atomically

        site = load_site(path) if path.exists() else _this_machine(path, machine, speeds)
        rates = {student: speed.flops_per_s for student, speed in speeds.items()}
        site = with_measured(site, str(path), str(machine["precision"]), rates)
        write_atomically(path, site_yaml(site).encode())
    if args.json:
        rows = [_row(student, args, speed) for student, speed in speeds.items()]
        print_json({"machine": machine, "rows": rows, "written": None if path is None else str(path)})
    else:
        print_tables(_tables(machine, args, speeds))
        if path is not None:
            print(f"wrote {path}")
    return 0


def _row(student: str, args: argparse.Namespace, speed: Speed) -> dict[str, Any]:
    return {
        "student": student,
        "arm": args.arm,
        "batch_clips": args.batch,
        "steps": len(speed.step_s),
        "step_flops": speed.step_flops,
        "step_s": statistics.median(speed.step_s),
        "step_s_least": min(speed.step_s),
        "step_s_most": max(speed.step_s),
        "flops_per_s": speed.flops_per_s,
        "peak_flops_per_s": speed.peak_flops_per_s,
        "share_of_peak": speed.share,
    }


def _tables(machine: dict[str, str | int], args: argparse.Namespace, speeds: dict[str, Speed]) -> list[Any]:
    from rich.table import Table

    table = Table(title=f"training steps of {args.batch} clips, arm {args.arm}", title_justify="left")
    table.add_column("student", no_wrap=True)
    for name in ("GFLOP/step", "s/step", "least", "most", "GFLOP/s", "peak GFLOP/s", "share of peak"):
        table.add_column(name, justify="right")
    for student, speed in speeds.items():
        table.add_row(
            student,
            f"{speed.step_flops / 1e9:.4g}",
            f"{statistics.median(speed.step_s):.4g}",
            f"{min(speed.step_s):.4g}",
            f"{max(speed.step_s):.4g}",
            f"{speed.flops_per_s / 1e9:.4g}",
            f"{speed.peak_flops_per_s / 1e9:.4g}",
            f"{speed.share:.3f}",
        )
    return [", ".join(f"{name} {value}" for name, value in machine.items()), table]


# --- measuring ------------------------------------------------------------------------------------


def environment(device: str, threads: int | None) -> dict[str, str | int]:
    """What a measurement depends on: processor, precision, threads, torch.

    Raises:
        UserError: no CUDA device where one was asked for.
    """
    import platform

    import torch

    if device == "cuda":
        if not torch.cuda.is_available():
            raise UserError(
                "--device cuda: torch sees no CUDA device here; use --device cpu, or another machine"
            )
        name: str = torch.cuda.get_device_name()
    else:
        name = _cpu_name() or platform.processor() or platform.machine()
    return {
        "device": name,
        "precision": "bf16" if device == "cuda" else "fp32",
        "threads": threads or torch.get_num_threads(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str | None:
    """The processor's name as Linux gives it; None elsewhere."""
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return None
    names = (line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line)
    return next(names, None)


def measure_speed(spec: RunSpec, *, steps: int, device: str, threads: int | None) -> Speed:
    """Time `steps` whole training steps after one of warm-up, and a matrix product before each.

    A step is what `salt.train` does: clips of noise to patches, targets, loss, backward, clipping, AdamW and
    the EMA update. Products alternate with steps, so that both see the same load of the machine.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        from salt.rehearsal import Rehearsal

        half = device == "cuda"
        optim = msgspec.structs.replace(spec.optim, precision="bfloat16" if half else "float32")
        step = Rehearsal(msgspec.structs.replace(spec, optim=optim), torch.device(device))
        kind = torch.bfloat16 if half else torch.float32
        random = torch.Generator().manual_seed(0)
        a, b = (torch.randn(MATRIX, MATRIX, generator=random).to(device, kind) for _ in range(2))
        times = [(_timed(lambda: a @ b, device), _timed(step, device)) for _ in range(steps + 1)][1:]
    except torch.OutOfMemoryError as error:
        clips = spec.optim.batch_clips
        raise UserError(f"--batch {clips}: does not fit into the memory of this device; lower it") from error
    finally:
        torch.set_num_threads(before)
    product_s, step_s = zip(*times, strict=True)
    return Speed(step_flops=step_cost(spec).total_flops, step_s=step_s, product_s=product_s)


def _timed(work: Any, device: str) -> float:
    """Seconds of one call, its kernels included."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _this_machine(path: Path, machine: dict[str, str | int], speeds: dict[str, Speed]) -> SiteSpec:
    """A profile of this machine; its slowest measured share stands in for sizes that were not measured."""
    import os

    import torch

    if machine["precision"] == "bf16":
        count, memory_bytes = torch.cuda.device_count(), torch.cuda.get_device_properties(0).total_memory
    else:
        count, memory_bytes = 1, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    peak = float(f"{max(speed.peak_flops_per_s for speed in speeds.values()):.4g}")
    slowest = min(speed.flops_per_s for speed in speeds.values())
    memory_gib = round(memory_bytes / GIB, 1)
    return SiteSpec(
        name=path.stem,
        gpu=str(machine["device"]),
        gpus_total=count,
        gpus_per_node=count,
        memory_gib=memory_gib,
        peak_flops={"bf16": peak} if machine["precision"] == "bf16" else {"fp32": peak},
        precision="bf16" if machine["precision"] == "bf16" else "fp32",
        utilisation={DEFAULT: min(1.0, float(f"{slowest / peak:.3g}"))},
        reserve_gib=round(min(4.0, memory_gib / 4), 1),
        note=f"peak: a product of {MATRIX} x {MATRIX} matrices, {machine['threads']} threads, "
        f"torch {machine['torch']}; default: the slowest size that was measured first",
    )
