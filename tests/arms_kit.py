"""Small runs of every kind, as a user starts them: real clips, a store, a plan, `salt-train run`."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import salt_cli
from salt.flops import run_cost
from salt.lists import data_spec, read_list
from salt.metrics import read_metrics
from salt.plan_specs import Plan, PlannedRun
from salt.plans import encode_plan, plan_dir
from salt.sizes import SIZES
from salt.specs import (
    UNTRAINED,
    ClipSpec,
    DataPart,
    DataSpec,
    ExecSpec,
    MaskSpec,
    ModelSpec,
    ObjectiveSpec,
    OptimSpec,
    PositionSpec,
    RunSpec,
    TeacherRef,
    VitSpec,
    spec_id,
)
from salt.store import RunDir, write_atomically
from tests.console import ROOT
from tests.video_kit import write_video

STEPS, BATCH = 4, 8
FRAMES, WIDTH, HEIGHT = 20, 64, 48

CLIP = ClipSpec(frames=8, frame_stride=2, store_px=32, crop_px=24)
#: An encoder narrower than `nano`; `micro` is a wider one.
NARROW = VitSpec(width=24, depth=2, heads=2, mlp_width=48)

SHORT = MaskSpec(visible_tokens=8, target_tokens=32)
LONG = MaskSpec(blocks=2, scale=0.4, visible_tokens=6, target_tokens=24)
CAUSAL = MaskSpec(kind="causal", blocks=2, scale=0.3, context_frames=2, visible_tokens=6, target_tokens=40)
TUBE = MaskSpec(kind="tube", visible_tokens=8, target_tokens=56)
GROUPED = MaskSpec(blocks=2, scale=0.3, keep="batch_min", keep_clips=4, visible_tokens=16, target_tokens=24)

#: Whatever may differ between two runs of the same numbers: how often is written, and by how many.
EXECUTION = ExecSpec(log_every_steps=1, checkpoint_every_steps=3, decode_workers=1)


def write_clips(folder: Path, *, clips: int = 12, images: int = 0, first: int = 0) -> Path:
    """A list of clips of a bright square that moves left or right, and of still images; its path."""
    folder.mkdir(parents=True)
    lines = ["path,motion"]
    for number in range(first, first + clips):
        write_video(folder / f"{number}.mp4", FRAMES, width=WIDTH, height=HEIGHT, picture=_moving(number))
        lines.append(f"{number}.mp4,{'right' if number % 2 else 'left'}")
    for number in range(images):
        Image.fromarray(_moving(number)(3 * number, WIDTH, HEIGHT)).save(folder / f"{number}.png")
        lines.append(f"{number}.png,still")
    path = folder / "list.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def _moving(number: int) -> Any:
    random = np.random.default_rng(number)
    colour, ground = random.integers(128, 256, 3), random.integers(0, 100, 3)
    row, column, speed = random.integers(0, 32), random.integers(0, 64), 3 if number % 2 else -3

    def picture(frame: int, width: int, height: int) -> NDArray[np.uint8]:
        image = np.tile(ground.astype(np.uint8), (height, width, 1))
        image[row : row + 16, (np.arange(column, column + 20) + speed * frame) % width] = colour
        return image

    return picture


def data_of(path: Path, name: str = "train") -> DataSpec:
    return data_spec(read_list(path), name)


def mixture(parts: dict[Path, float]) -> DataSpec:
    """Lists mixed by weight."""
    found = [(data_of(path, path.parent.name), weight) for path, weight in parts.items()]
    return DataSpec(
        name="mixture",
        fingerprint="-".join(data.fingerprint[:8] for data, _ in found),
        clips=sum(data.clips for data, _ in found),
        parts=tuple(
            DataPart(name=data.name, fingerprint=data.fingerprint, clips=data.clips, weight=weight)
            for data, weight in found
        ),
    )


def run_spec(
    arm: Any,
    data: DataSpec,
    *,
    clip: ClipSpec = CLIP,
    size: VitSpec = SIZES["nano"],
    teacher: RunSpec | None = None,
    masks: tuple[MaskSpec, ...] = (SHORT, LONG),
    model: dict[str, Any] | None = None,
    objective: dict[str, Any] | None = None,
    optim: dict[str, Any] | None = None,
    steps: int = STEPS,
    **more: Any,
) -> RunSpec:
    """A run of a few steps; `teacher` is the run whose last weights are the targets."""
    # AdamW's `eps` is near the gradients' size, so that a step is a smooth function of the gradient: at a
    # small one, a gradient that is zero but for rounding becomes a step of full size, and a wrong scale of
    # all gradients shows in no weight.
    rates: dict[str, Any] = {
        "lr": 3e-3,
        "lr_start": 0.0,
        "clip_norm": 1.0,
        "batch_clips": BATCH,
        "warmup_share": 0.25,
        "eps": 1e-3,
        **(optim or {}),
    }
    fields = {"patch_px": 6, "position": PositionSpec(rope_base=100.0), "init": "xavier", **(model or {})}
    return RunSpec(
        arm=arm,
        seed=1,
        steps=0 if arm in UNTRAINED else steps,
        model=ModelSpec(encoder=size, predictor=VitSpec(width=32, depth=1, heads=2, mlp_width=64), **fields),
        clip=clip,
        data=data,
        masks=masks,
        objective=ObjectiveSpec(**{"ema_start": 0.9, **(objective or {})}),
        optim=OptimSpec(**rates),
        teacher=None if teacher is None else reference(teacher),
        **more,
    )


def reference(teacher: RunSpec) -> TeacherRef:
    stage = 1 if teacher.teacher is None else teacher.teacher.stage + 1
    return TeacherRef(run_id=spec_id(teacher), step=teacher.steps, encoder=teacher.model.encoder, stage=stage)


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a command left behind."""

    code: int
    err: str
    run: RunDir
    shown: dict[str, Any] | None  # its JSON output

    @property
    def losses(self) -> list[float]:
        return [row["loss"] for row in read_metrics(self.run.metrics)]

    @property
    def norms(self) -> list[float]:
        return [row["grad_norm"] for row in read_metrics(self.run.metrics)]

    @property
    def weights(self) -> dict[str, Any]:
        return load_file(self.run.artefact)


class Store:
    """A run store, and the lists that its runs train on."""

    def __init__(self, path: Path, lists: tuple[Path, ...]) -> None:
        self.path = path
        self.lists = {data_of(item).fingerprint: str(item) for item in lists}

    def plan(self, name: str, specs: list[RunSpec], **execution: Any) -> None:
        """Write a plan of these runs, as `salt-sweep plan` does, in the order in which they can be made."""
        plan = Plan(
            name=name,
            study_sha256="0" * 64,
            convention="matmul",
            charge="full",
            match="flops",
            execution=msgspec.structs.replace(EXECUTION, lists=self.lists, **execution),
            probes={},
            runs=tuple(
                PlannedRun(run_id=spec_id(spec), role="student", spec=spec, cost=run_cost(spec), probe_ids=())
                for spec in specs
            ),
            cells=(),
        )
        write_atomically(plan_dir(self.path, name) / "plan.jsonl", encode_plan(plan))

    def arguments(self, spec: RunSpec, name: str) -> list[str]:
        return ["run", spec_id(spec), "--plan", name, "--store", str(self.path), "--json"]

    def run(self, spec: RunSpec, *, code: int = 0, **execution: Any) -> Ended:
        """Train one run in this process through the command line; teachers must be in the store."""
        self.plan("one", [spec], **execution)
        return self.command(self.arguments(spec, "one"), spec, code=code)

    def command(self, arguments: list[str], spec: RunSpec, *, code: int = 0) -> Ended:
        out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()  # JSON goes out as bytes
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            ended = salt_cli.run("salt-train", arguments)
        out.seek(0)
        said = out.read()
        assert ended == code, f"{ended}, not {code}: {err.getvalue()[-3000:]}"
        shown = json.loads(said) if said else None
        return Ended(code=ended, err=err.getvalue(), run=RunDir(self.path, spec_id(spec)), shown=shown)

    def start(self, spec: RunSpec, **execution: Any) -> subprocess.Popen[str]:
        """Begin to train a run in a process of its own, which leads its process group."""
        self.plan("one", [spec], **execution)
        return subprocess.Popen(
            [sys.executable, str(ROOT / "salt_cli.py"), "salt-train", *self.arguments(spec, "one")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def take(self, other: Store, *specs: RunSpec) -> Store:
        """Copy finished runs and decoded clips of another store into this one."""
        for spec in specs:
            source, target = (RunDir(store.path, spec_id(spec)).path for store in (other, self))
            if not target.exists():
                shutil.copytree(source, target)
        clips = self.path / "cache" / "clips"
        if (other.path / "cache" / "clips").exists() and not clips.exists():
            clips.parent.mkdir(parents=True, exist_ok=True)
            clips.symlink_to(other.path / "cache" / "clips")
        return self


def sdpa_flops(query: Any, key: Any, value: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Scores and values of torch's fused attention on a CPU, which its counter does not know."""
    batch, heads, n, width = query
    flops: int = 2 * 2 * batch * heads * n * key[2] * width
    return flops


def sdpa_backward_flops(gradient: Any, query: Any, key: Any, *_: Any, **__: Any) -> int:
    """Gradients of values, probabilities, queries and keys; that scores are made again is not counted."""
    return 2 * sdpa_flops(query, key, None)


class Counted(FlopCounterMode):
    """FLOPs of all that is computed inside."""

    def __init__(self) -> None:
        aten = torch.ops.aten
        super().__init__(
            display=False,
            custom_mapping={
                aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flops,
                aten._scaled_dot_product_flash_attention_for_cpu_backward: sdpa_backward_flops,
            },
        )
