"""What a run, a probe and a plan are: frozen, strictly decoded types.

Everything in these types that can change a number is part of a run's identity; everything that
cannot (paths, hosts, threads, device) is in `ExecSpec` and is not.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Any, Literal, dataclass_transform

import msgspec
from msgspec import Meta, Struct

#: Raised by hand when the arithmetic of training or probing changes, so that old runs stay apart.
NUMERICS = 1

#: Fingerprint of a list that is only declared: enough to plan with, not to submit.
DECLARED = "declared"

PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Meta(gt=0.0)]
NonNegativeFloat = Annotated[float, Meta(ge=0.0)]

Arm = Literal["pixel", "salt", "vjepa", "random", "supervised", "raw"]
ARMS: tuple[Arm, ...] = ("pixel", "salt", "vjepa")
Convention = Literal["matmul", "paper"]
Charge = Literal["full", "shared", "none"]
#: What cells of one budget have in common: training FLOPs, optimiser steps or GPU-hours.
Match = Literal["flops", "steps", "gpu-hours"]
Role = Literal["teacher", "trunk", "student", "reference"]
Frames = Literal["ordered", "shuffled", "first", "middle"]
ProbeKind = Literal["linear", "knn", "attentive"]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Spec(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all specs: frozen, unknown fields refused; each is declared keyword-only."""


class VitSpec(Spec, kw_only=True):
    """A vision transformer's trunk. `mlp_width` is the hidden width of the MLP in units."""

    width: PositiveInt
    depth: NonNegativeInt
    heads: PositiveInt
    mlp_width: PositiveInt


class PositionSpec(Spec, kw_only=True):
    """How tokens know where they are: 3-D rotary positions, additive sin-cos, or both."""

    rope: bool = True
    rope_base: PositiveFloat = 10000.0
    sincos: bool = False
    sincos_base: PositiveFloat = 10000.0
    sincos_scale: PositiveFloat = 1.0


class ModelSpec(Spec, kw_only=True):
    """Encoder, predictor (or pixel decoder) and the token grid they share."""

    encoder: VitSpec
    predictor: VitSpec
    tubelet_frames: PositiveInt = 2
    patch_px: PositiveInt = 16
    position: PositionSpec = msgspec.field(default_factory=PositionSpec)
    init: Literal["trunc_normal", "xavier"] = "trunc_normal"


class ClipSpec(Spec, kw_only=True):
    """How a video file becomes a clip: frames, stored side and training crop, in pixels.

    A clip is stored once as uint8 [frames, store_px, store_px, channels]; each epoch draws a fresh
    square crop of `crop_px` from it. Values are `(pixel / 255 - mean) / std`.
    """

    frames: PositiveInt = 16
    frame_stride: PositiveInt = 4
    store_px: PositiveInt = 256
    crop_px: PositiveInt = 224
    channels: Literal[1, 3] = 3
    mean: float = 0.449
    std: PositiveFloat = 0.226
    short_clips: Literal["skip", "repeat-last", "loop", "shrink-stride"] = "skip"


class DataSpec(Spec, kw_only=True):
    """A list of videos by content: `fingerprint` hashes its rows and file sizes, not its place."""

    name: str
    fingerprint: str
    clips: PositiveInt


class MaskSpec(Spec, kw_only=True):
    """One mask of a clip: a union of tubes; a fixed number of tokens is visible and predicted.

    The defaults are the short-range mask of V-JEPA (Bardes et al. 2024, table 8).
    """

    blocks: PositiveInt = 8
    scale: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.15
    aspect_min: PositiveFloat = 0.75
    aspect_max: PositiveFloat = 1.5
    visible_tokens: PositiveInt
    target_tokens: PositiveInt


class ObjectiveSpec(Spec, kw_only=True):
    """Losses, and the points that the SALT paper leaves open (arXiv 2509.24317)."""

    pixel_loss: Literal["l2", "l1"] = "l2"
    pixel_norm: Literal["patch_channel", "patch", "none"] = "patch_channel"
    latent_loss: Literal["l1", "l2"] = "l1"
    target_layer_norm: bool = True
    ema_start: Share = 0.998
    ema_end: Share = 1.0


class OptimSpec(Spec, kw_only=True):
    """AdamW with a linear warmup (a share of the run) and a cosine to `lr_end`.

    Under `constant` the rate stays at `lr` after the warmup (a trunk); under `cooldown` it falls linearly
    from there to `lr_end` between the trunk's step and the last one. Both keep weight decay and EMA momentum
    at their start values, as V-JEPA 2 does (arXiv 2506.09985). `clip_norm` limits the global gradient norm;
    `None` turns clipping off.
    """

    schedule: Literal["cosine", "constant", "cooldown"] = "cosine"
    batch_clips: PositiveInt = 3072
    lr_start: NonNegativeFloat = 2e-4
    lr: PositiveFloat = 6.25e-4
    lr_end: NonNegativeFloat = 1e-6
    warmup_share: Share = 0.04
    beta1: Share = 0.9
    beta2: Share = 0.95
    eps: PositiveFloat = 1e-8
    weight_decay_start: NonNegativeFloat = 0.04
    weight_decay_end: NonNegativeFloat = 0.4
    clip_norm: PositiveFloat | None = 0.02


class TeacherRef(Spec, kw_only=True):
    """The frozen teacher of a student: its run, the step of its weights and its encoder.

    `stage` counts the runs behind those weights: 1 for a pixel run, 2 for a student of one, and so on.
    """

    run_id: str
    step: NonNegativeInt
    encoder: VitSpec
    stage: PositiveInt = 1


class TrunkRef(Spec, kw_only=True):
    """Where a cooldown branches off: the state that run `run_id` kept after `step` steps."""

    run_id: str
    step: PositiveInt


class RunSpec(Spec, kw_only=True):
    """One training run, whole: its id is a hash of this.

    `steps` counts from the start of the path: a cooldown that branches off at step 900 and takes 100 steps
    has
    1000. `keep_steps` are steps whose whole state stays in the run's folder, for cooldowns that branch off
    there and for students of a teacher that is not fully trained. With `cached_views` the teacher's latents
    come from that many fixed views of each clip, encoded once; else it encodes every batch.
    """

    numerics: int = NUMERICS
    arm: Arm
    seed: NonNegativeInt
    steps: NonNegativeInt
    model: ModelSpec
    clip: ClipSpec
    data: DataSpec
    masks: tuple[MaskSpec, ...]
    objective: ObjectiveSpec = msgspec.field(default_factory=ObjectiveSpec)
    optim: OptimSpec = msgspec.field(default_factory=OptimSpec)
    teacher: TeacherRef | None = None
    trunk: TrunkRef | None = None
    keep_steps: tuple[PositiveInt, ...] = ()
    cached_views: PositiveInt | None = None
    label: str | None = None  # the label column, for the supervised reference only


class ProbeSpec(Spec, kw_only=True):
    """A suite of probes on one frozen encoder: every label x kind x frames, on shared features.

    Hyperparameters are chosen on `selection`, which is never the reported split. `train_clips`
    labelled clips are drawn from `train`, the same ones for every encoder.
    """

    numerics: int = NUMERICS
    labels: tuple[str, ...]
    kinds: tuple[ProbeKind, ...]
    frames: tuple[Frames, ...] = ("ordered",)
    train: DataSpec
    selection: DataSpec
    report: DataSpec
    train_clips: PositiveInt
    selection_clips: PositiveInt
    report_clips: PositiveInt
    seed: NonNegativeInt = 0
    ridge_penalties: tuple[PositiveFloat, ...] = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)
    neighbours: tuple[PositiveInt, ...] = (1, 5, 20)
    attentive_lrs: tuple[PositiveFloat, ...] = (1e-3, 3e-3)
    attentive_weight_decay: NonNegativeFloat = 0.01
    attentive_blocks: PositiveInt = 4
    attentive_epochs: PositiveInt = 20
    attentive_batch_clips: PositiveInt = 64


class ExecSpec(Spec, kw_only=True):
    """How and where a run executes. Nothing here changes a number."""

    folder: str | None = None  # where the study file lay: its paths are relative to it
    lists: dict[str, str] = {}  # fingerprint -> path of the list on this machine
    device: str = "cpu"
    threads: PositiveInt = 1
    decode_workers: NonNegativeInt = 2
    checkpoint_every_steps: PositiveInt = 200
    log_every_steps: PositiveInt = 20


class Part(Spec, kw_only=True):
    """FLOPs of one part of the computation, forward and backward, as integers."""

    forward: NonNegativeInt = 0
    backward: NonNegativeInt = 0


class Cost(Spec, kw_only=True):
    """A ledger: FLOPs per part under a named convention. It adds and scales."""

    convention: Convention = "matmul"
    parts: dict[str, Part] = {}

    @property
    def total_flops(self) -> int:
        return sum(part.forward + part.backward for part in self.parts.values())

    def __add__(self, other: Cost) -> Cost:
        if other.convention != self.convention:
            raise ValueError(f"cannot add FLOPs counted as {self.convention!r} and {other.convention!r}")
        names = dict.fromkeys([*self.parts, *other.parts])
        zero = Part()
        parts = {}
        for name in names:
            a, b = self.parts.get(name, zero), other.parts.get(name, zero)
            parts[name] = Part(forward=a.forward + b.forward, backward=a.backward + b.backward)
        return Cost(convention=self.convention, parts=parts)

    def __mul__(self, factor: int) -> Cost:
        if not isinstance(factor, int):
            raise TypeError(f"a ledger scales by whole numbers, not by {factor!r}")
        parts = {
            name: Part(forward=part.forward * factor, backward=part.backward * factor)
            for name, part in self.parts.items()
        }
        return Cost(convention=self.convention, parts=parts)


class Cell(Spec, kw_only=True):
    """One point of a study's grid: a budget spent in one way. `run_id` is the encoder it ends in."""

    cell_id: str
    budget: NonNegativeFloat  # in the plan's unit (`Plan.match`); 0 for references
    budget_flops: NonNegativeInt  # the budget where FLOPs are matched, else what the cell is charged
    arm: Arm
    student: str  # name of the encoder size that is probed
    teacher: str | None  # size of the teacher that gives the targets
    teacher_share: float | None  # of the budget, as asked
    teacher_steps: int | None  # steps behind the teacher's weights, in its own run
    seed: int
    run_id: str
    teacher_run_id: str | None
    stages: tuple[str, ...] = ()  # runs of a chain before that teacher, first one first
    teacher_students: NonNegativeInt  # how many students of this plan share the teacher
    teacher_cost: Cost | None  # training of all teachers on the way, each up to the weights that are used
    cost: Cost  # the student's own way, its teacher's inference and its trunk included
    charged_flops: NonNegativeInt  # what counts against the budget, by the plan's charge
    residual: float  # (charged - budget) / budget in the plan's unit; 0 for references


class PlannedRun(Spec, kw_only=True):
    """A run of a plan, in an order in which each can be made from those before it."""

    run_id: str
    role: Role
    spec: RunSpec
    cost: Cost  # what this run itself spends
    probe_ids: tuple[str, ...]


class Refused(Spec, kw_only=True):
    """A point of the grid that was left out, and every reason."""

    cell: str
    budget: float
    verdicts: tuple[str, ...]
    reasons: tuple[str, ...]


class Plan(Spec, kw_only=True):
    """All of a study: probes, runs (teachers first), the cells of its grid, and those left out."""

    name: str
    study_sha256: str
    convention: Convention
    charge: Charge
    match: Match
    execution: ExecSpec
    overrides: dict[str, Any] = {}  # keys of the study file that the command line replaced
    probes: dict[str, ProbeSpec]
    runs: tuple[PlannedRun, ...]
    cells: tuple[Cell, ...]
    refused: tuple[Refused, ...] = ()


class ProbeScore(Spec, kw_only=True):
    """One accuracy, with everything needed to judge it."""

    kind: ProbeKind
    label: str
    frames: Frames
    accuracy: float
    n_report: int
    n_train: int
    n_selection: int
    classes: int
    chance: float  # share of the most frequent class in the report split
    selection_accuracy: float
    selected: dict[str, float]
    flops: int  # training and evaluating this probe, outside the budget


class ProbeResult(Spec, kw_only=True):
    """`probes/<probe_id>.json`: all scores of one suite on one encoder."""

    probe_id: str
    run_id: str
    encoder_sha256: str
    branch: Literal["student", "ema", "raw"]
    scores: tuple[ProbeScore, ...]
    feature_flops: int  # encoding the clips, outside the budget
    wall_s: float


class RunResult(Spec, kw_only=True):
    """`result.json`: written last. It exists if and only if the run is done."""

    run_id: str
    arm: Arm
    steps: int
    cost: Cost
    final_loss: float | None
    artefact_sha256: str | None
    teacher_sha256: str | None
    attempts: int
    train_wall_s: float | None  # of all attempts that led here; None if its log is lost
    probe_wall_s: float
    clips_seen: int
    unique_clips: int
    epochs: float


class RunError(Spec, kw_only=True):
    """`error.json`: why the last attempt stopped; removed by the next attempt."""

    run_id: str
    kind: str
    message: str
    attempt: int
    step: int | None
    host: str
    traceback: str | None = None


def canonical_json(spec: Any) -> bytes:
    """The one JSON text of a spec: sorted keys, floats in shortest form, NaN and infinity refused."""
    data = msgspec.to_builtins(spec)
    _refuse_non_finite(data, "spec")
    return msgspec.json.encode(data, order="sorted")


def _refuse_non_finite(value: Any, where: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} is {value}: only finite numbers can be part of a spec")
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_non_finite(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_non_finite(item, f"{where}[{index}]")


def spec_id(spec: RunSpec | ProbeSpec) -> str:
    """First 16 hex digits of the SHA-256 of the canonical JSON of the whole spec.

    The spec is decoded again first, so that `1`, `1.0` and `1e0` in a float field are one value.
    """
    typed = msgspec.convert(msgspec.to_builtins(spec), type(spec))
    return hashlib.sha256(canonical_json(typed)).hexdigest()[:16]
