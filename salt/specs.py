"""What a run, a probe and a plan are: frozen, strictly decoded types.

Everything in these types that can change a number is part of a run's identity; everything that
cannot (paths, hosts, threads, device) is in `ExecSpec` and is not.
"""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from salt.adapter_spec import AdapterSpec
from salt.spec_base import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveTriple,
    Share,
    Spec,
    Triple,
)

#: Raised by hand when the arithmetic of training or probing changes, so that old runs stay apart.
NUMERICS = 2

#: Fingerprint of a list that is only declared: enough to plan with, not to submit.
DECLARED = "declared"

Arm = Literal["pixel", "salt", "vjepa", "random", "supervised", "raw", "external"]
ARMS: tuple[Arm, ...] = ("pixel", "salt", "vjepa")
#: Those whose predictor is a decoder: it predicts values of patches, not latents.
DECODES: tuple[Arm, ...] = ("pixel",)
#: What a cell of a plan compares. A student that learns pixels beside latents (`hybrid`), or latents of
#: weights that were trained elsewhere (`external`), is a run of the arm salt: what it computes names it.
CellArm = Literal["pixel", "salt", "vjepa", "random", "supervised", "raw", "external", "hybrid"]
CELL_ARMS: tuple[CellArm, ...] = ("pixel", "salt", "external", "hybrid", "vjepa")
#: Arms that take no training steps here.
UNTRAINED: tuple[Arm, ...] = ("random", "raw", "external")
Convention = Literal["matmul", "paper"]
Charge = Literal["full", "shared", "none"]
#: What cells of one budget have in common: training FLOPs, optimiser steps or GPU-hours.
Match = Literal["flops", "steps", "gpu-hours"]
Role = Literal["teacher", "trunk", "student", "reference"]
Frames = Literal["ordered", "shuffled", "first", "middle"]
ProbeKind = Literal["linear", "knn", "attentive"]
LabelFree = Literal["rankme", "lidar", "alpha_req"]


def run_arm(arm: CellArm) -> Arm:
    """The arm of the run that ends a cell under study."""
    return "salt" if arm == "hybrid" or arm == "external" else arm  # so that types narrow


class VitSpec(Spec, kw_only=True):
    """A vision transformer's trunk. `mlp_width` is the hidden width of the MLP in units."""

    width: PositiveInt  # numbers in a token
    depth: NonNegativeInt  # blocks
    heads: PositiveInt  # of attention, in each block
    mlp_width: PositiveInt  # hidden units of the MLP


class PositionSpec(Spec, kw_only=True):
    """How tokens know where they are: 3-D rotary positions, additive sin-cos, or both.

    `tiled` rotary frequencies are a quirk of the published V-JEPA 2 code, for its checkpoints: the two
    numbers of a pair turn by different angles.
    """

    rope: bool = True  # rotary positions in time, height and width
    rope_base: PositiveFloat = 10000.0  # slowest turning; larger is slower
    rope_frequencies: Literal["interleaved", "tiled"] = "interleaved"  # `tiled` as in published checkpoints
    sincos: bool = False  # adds sine and cosine of the place to tokens
    sincos_base: PositiveFloat = 10000.0  # slowest wave; larger is slower
    sincos_scale: PositiveFloat = 1.0  # multiplies places


class ModelSpec(Spec, kw_only=True):
    """Encoder, predictor (or pixel decoder) and the token grid they share."""

    encoder: VitSpec
    predictor: VitSpec
    tubelet_frames: PositiveInt = 2
    patch_px: PositiveInt = 16
    position: PositionSpec = msgspec.field(default_factory=PositionSpec)
    init: Literal["trunc_normal", "xavier"] = "trunc_normal"
    mask_token: Literal["shared", "per_mask"] = "shared"  # one for all masks, or one for each mask of a clip


class ClipSpec(Spec, kw_only=True):
    """How a video file becomes a clip: which frames, and which part of them, in pixels.

    `stored`: `clips_per_file` clips spread evenly over the file (one: its middle) are decoded once, their
    middle square stored as uint8 [frames, store_px, store_px, channels]. `streamed`: each epoch decodes that
    many clips of each file at fresh random places. Frames are `frame_stride` apart, or, with `frame_rate_hz`,
    those nearest in time to that rate.

    Each epoch crops afresh: `shift` is a square of `crop_px` (streamed: of the frame scaled to `store_px`) at
    a random place; `random_resized` a box with a share `crop_scale_*` of the area and an aspect ratio
    `crop_aspect_*` (log-uniform), resized to `crop_px`, the same for all frames. `flip` mirrors half of all
    clips. An image is a still clip. Values are `(pixel / 255 - mean) / std`, one mean and std for all
    channels or one each.
    """

    source: Literal["stored", "streamed"] = "stored"  # decoded once, or afresh each epoch
    frames: PositiveInt = 16  # in a clip
    frame_stride: PositiveInt = 4  # distance of frames in the file; 1: every frame
    frame_rate_hz: PositiveFloat | None = None  # instead of a stride
    clips_per_file: PositiveInt = 1  # taken from each file
    store_px: PositiveInt = 256  # square that is stored, in pixels
    crop_px: PositiveInt = 224  # square that the model sees, in pixels
    crop: Literal["shift", "random_resized"] = "shift"  # how it is cut out
    crop_scale_min: Annotated[float, Meta(gt=0.0, le=1.0)] = 0.3  # smallest share of the area
    crop_scale_max: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0  # largest share of the area
    crop_aspect_min: PositiveFloat = 0.75  # narrowest: width by height
    crop_aspect_max: PositiveFloat = 1.35  # widest: width by height
    flip: bool = False  # mirror half of all clips
    channels: Literal[1, 3] = 3  # grey or colour
    mean: float | Triple = 0.449  # taken off values in 0..1
    std: PositiveFloat | PositiveTriple = 0.226  # divides them after that
    short_clips: Literal["skip", "repeat-last", "loop", "shrink-stride"] = "skip"  # files with too few frames


class DataPart(Spec, kw_only=True):
    """One list of a mixture, and its share of all clips drawn."""

    name: str  # of the list
    fingerprint: str  # hash of its content
    clips: PositiveInt  # rows of the list
    weight: PositiveFloat  # by the sum of all weights


class DataSpec(Spec, kw_only=True):
    """Videos by content: `fingerprint` hashes a list's rows and file sizes, not its place; `clips` counts
    rows.

    A mixture has `parts`; then `fingerprint` is theirs, weights included, and `clips` is their sum.
    """

    name: str  # of the list
    fingerprint: str  # hash of its content
    clips: PositiveInt  # rows of the list
    parts: tuple[DataPart, ...] = ()  # lists of a mixture


class MaskSpec(Spec, kw_only=True):
    """One mask of a clip: which tokens are visible and which are predicted.

    `blocks`: a union of tubes is predicted; the defaults are the short-range mask of V-JEPA (Bardes et al.
    2024, table 8). `causal`: the same, and only the first `context_frames` steps of the token grid are
    visible, all later ones predicted. `tube`: random cells are visible at every time step, others predicted
    (VideoMAE); blocks, scale and aspect mean nothing there.

    `keep: fixed`: every clip has just these counts. `batch_min` reproduces the published code: the lists of
    each `keep_clips` neighbouring clips are cut to the shortest of them, which eats the end of the clip; the
    counts here are then what a plan expects on average.
    """

    kind: Literal["blocks", "causal", "tube"] = "blocks"
    blocks: PositiveInt = 8
    scale: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.15
    aspect_min: PositiveFloat = 0.75
    aspect_max: PositiveFloat = 1.5
    context_frames: PositiveInt | None = None
    keep: Literal["fixed", "batch_min"] = "fixed"
    keep_clips: PositiveInt = 24
    visible_tokens: PositiveInt
    target_tokens: PositiveInt


class ObjectiveSpec(Spec, kw_only=True):
    """Losses, and the points that the SALT paper leaves open (arXiv 2509.24317).

    Targets are the teacher's output, or with `teacher_layer` its tokens after that many blocks, through its
    final norm. With a `pixel_weight` above 0 a latent arm also predicts pixels: loss = latents + weight *
    pixels.
    """

    pixel_loss: Literal["l2", "l1"] = "l2"  # squared or absolute error of pixels
    pixel_norm: Literal["patch_channel", "patch", "none"] = "patch_channel"  # normalised by
    pixel_weight: NonNegativeFloat = 0.0  # of pixels in a latent arm; 0: none
    latent_loss: Literal["l1", "l2", "smooth_l1", "cosine"] = "l1"  # between predicted and target latents
    target_layer_norm: bool = True  # targets are normalised first
    teacher_layer: PositiveInt | None = None  # block whose tokens are targets; none: the last
    ema_start: Share = 0.998  # momentum of the average at the start (vjepa)
    ema_end: Share = 1.0  # momentum at the end


class OptimSpec(Spec, kw_only=True):
    """AdamW with a linear warmup (a share of the run) and a cosine to `lr_end`.

    Under `constant` the rate stays at `lr` after the warmup (a trunk); under `cooldown` it falls linearly
    from there to `lr_end` between the trunk's step and the last one. Both keep weight decay and EMA momentum
    at their start values, as V-JEPA 2 does (arXiv 2506.09985). `clip_norm` limits the gradient norm, of all
    weights together or of each module (encoder, predictor) apart; `None` turns clipping off. `bfloat16` is
    autocast: weights, optimiser, losses and the EMA stay float32.
    """

    schedule: Literal["cosine", "constant", "cooldown"] = "cosine"  # of the rate; set by the planner
    batch_clips: PositiveInt = 3072  # clips of one step
    lr_start: NonNegativeFloat = 2e-4  # rate at the start of the warmup
    lr: PositiveFloat = 6.25e-4  # rate after the warmup, the highest
    lr_end: NonNegativeFloat = 1e-6  # rate at the last step
    warmup_share: Share = 0.04  # of all steps
    beta1: Share = 0.9  # AdamW's
    beta2: Share = 0.95  # AdamW's
    eps: PositiveFloat = 1e-8  # AdamW's
    weight_decay_start: NonNegativeFloat = 0.04  # at the first step
    weight_decay_end: NonNegativeFloat = 0.4  # at the last step; a cosine between
    clip_norm: PositiveFloat | None = 0.02  # largest norm of the gradient; none: no limit
    clip_scope: Literal["all", "module"] = "all"  # of all weights together, or of each module
    clip_in_warmup: bool = True  # whether it holds in the warmup too
    precision: Literal["float32", "bfloat16"] = "float32"  # of matrix products


class TeacherRef(Spec, kw_only=True):
    """The frozen teacher of a student: its run, the step of its weights and its encoder.

    `stage` counts the runs behind those weights: 1 for a pixel run, 2 for a student of one, and so on.
    """

    run_id: str
    step: NonNegativeInt
    encoder: VitSpec
    stage: PositiveInt = 1
    adapter: AdapterSpec | UnsetType = UNSET  # for a model of transformers


class ExternalRef(Spec, kw_only=True):
    """Weights that were trained elsewhere, by content: nothing of their training is known here.

    `hf` are those of a V-JEPA 2, which became an encoder of ours; `transformers` are a model of that package,
    run as it is behind an `adapter`. `stated_flops` is what a study says that their training has cost.
    """

    format: Literal["hf", "transformers"]
    model: str  # what the weights' own configuration calls them
    weights_sha256: str
    adapter: AdapterSpec | UnsetType = UNSET
    stated_flops: PositiveInt | UnsetType = UNSET


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
    external: ExternalRef | None = None  # for imported encoders only: they take no steps


class ProbeSpec(Spec, kw_only=True):
    """A suite of probes on one frozen encoder: every label x kind x frames, on shared features.

    Hyperparameters are chosen on `selection`, which is never the reported split. `train_clips`
    labelled clips are drawn from `train`, the same ones for every encoder.

    A video is read as `segments` clips spread over it, whose tokens are probed together, from `views` crops
    each, whose class probabilities are averaged (training takes one view at random). `layers` counts blocks;
    the tokens after each of them, through the final norm, are put side by side along the tokens (V-JEPA 2);
    none means the encoder's output. Every rate x weight decay is a head; all heads train in one pass.
    """

    numerics: int = NUMERICS  # raised when probing changes
    labels: tuple[str, ...]  # columns of the lists
    kinds: tuple[ProbeKind, ...]  # of probes
    frames: tuple[Frames, ...] = ("ordered",)  # what becomes of the order of frames
    train: DataSpec  # list that probes are fitted on
    selection: DataSpec  # list that chooses
    report: DataSpec  # list that is reported on
    train_clips: PositiveInt  # labelled clips that are drawn
    selection_clips: PositiveInt  # that choose
    report_clips: PositiveInt  # that are reported on
    seed: NonNegativeInt = 0  # of the draw and the start
    ridge_penalties: tuple[PositiveFloat, ...] = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)  # linear: tried
    neighbours: tuple[PositiveInt, ...] = (1, 5, 20)  # knn: tried
    attentive_lrs: tuple[PositiveFloat, ...] = (1e-3, 3e-3)  # rates, tried on selection
    attentive_weight_decays: tuple[NonNegativeFloat, ...] = (0.01,)  # tried on selection
    attentive_blocks: PositiveInt = 4  # the last of them with cross-attention
    attentive_epochs: PositiveInt = 20  # over the labelled clips
    attentive_batch_clips: PositiveInt = 64  # clips of one step
    attentive_heads: PositiveInt | None = None  # None: as many as the encoder
    segments: PositiveInt = 1  # clips spread over a video
    views: PositiveInt = 1  # crops of each
    layers: tuple[PositiveInt, ...] = ()  # blocks whose tokens are read; none: the output
    label_free: tuple[LabelFree, ...] = ()  # metrics without labels


class ExecSpec(Spec, kw_only=True):
    """How and where a run executes. Nothing here changes a number beyond rounding.

    `micro_batch_clips` bounds the clips of one forward and backward pass on a device; gradients add up over
    them. `recompute` keeps no activations inside blocks. With several processes (torchrun, srun) `sharding`
    splits nothing, the optimiser's state and gradients, or weights too (`full`, FSDP2).
    """

    folder: str | None = None  # where the study file lay: its paths are relative to it
    lists: dict[str, str] = {}  # fingerprint -> path of the list on this machine
    device: str = "cpu"  # cpu, cuda or cuda:N
    threads: PositiveInt = 1  # of torch, on the CPU
    decode_workers: NonNegativeInt = 2  # processes that decode clips
    checkpoint_every_steps: PositiveInt = 200  # what a kill can lose at most
    log_every_steps: PositiveInt = 20  # a line of metrics.jsonl
    micro_batch_clips: PositiveInt | None = None  # largest pass; none: the batch
    recompute: bool = False  # less memory, a forward pass more
    compile: bool = False  # torch.compile
    processes: PositiveInt = 1  # that train one run together, each on a device of its own
    sharding: Literal["none", "optimizer", "full"] = "none"  # what is split over processes
    peak_flops_per_s: PositiveFloat | None = None  # of one device at the run's precision, for utilisation
    tensorboard: bool = False  # event files beside the metrics
    wandb_project: str | None = None  # log to Weights & Biases too


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
        if not other.parts:  # as most costs of cached targets are
            return self
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
