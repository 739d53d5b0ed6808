"""The study file: what is asked, on which data, with which grid of runs.

The keys are types; an unknown key, or a value of a wrong type or range, is an error that names it. What the
types cannot say is checked in `sweeps.study`; whether the grid's cells can be built and paid for is decided
in `sweeps.grid`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from salt.adapter_spec import GridResize, PerTubelet
from salt.specs import (
    Charge,
    ClipSpec,
    Convention,
    ExecSpec,
    Match,
    PositionSpec,
    PositiveFloat,
    PositiveInt,
    Role,
    Spec,
    VitSpec,
)

OpenShare = Annotated[float, Meta(gt=0.0, le=1.0)]
#: A seed that a table of doubles holds exactly.
Seed = Annotated[int, Meta(ge=0, le=2**53)]
#: A number of steps: 40000 or 40k.
Steps = Annotated[int, Meta(ge=1)] | Annotated[str, Meta(pattern=r"^[0-9]{1,9}(\.[0-9]{1,9})?k\Z")]
TARGETS = r"^(online|cached\(views=([1-9][0-9]{0,8})\))\Z"
SPLITS = ("train", "selection", "report")


StudyName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\Z", max_length=80)]


class DeclaredData(Spec, kw_only=True):
    """A list that is not here yet: enough to plan with, not to submit."""

    name: str  # what tables and specs call it
    clips: PositiveInt  # rows that the list will have


class MixturePart(Spec, kw_only=True):
    """One list of a mixture; its share of all clips drawn is its weight by the sum of all weights."""

    list: str | DeclaredData  # a list of videos, or one that is only declared
    weight: PositiveFloat  # its share by the sum of all weights


class DataFiles(Spec, kw_only=True):
    """Lists of videos, relative to the study file's folder. `train` may be a mixture of several."""

    train: str | DeclaredData | Annotated[tuple[MixturePart, ...], Meta(min_length=2)]  # pretraining, probes
    selection: str | DeclaredData  # chooses probes' hyperparameters; tuning too
    report: str | DeclaredData  # touched by the reported accuracies only


class ProbeData(Spec, kw_only=True):
    """The lists of one probe suite where they are not the study's."""

    train: str | DeclaredData | None = None  # labelled clips that probes are fitted on
    selection: str | DeclaredData | None = None  # chooses their hyperparameters
    report: str | DeclaredData | None = None  # what their accuracy is reported on


class MaskConfig(Spec, kw_only=True):
    """A `MaskSpec` whose token counts may be left out: then they are the published sampler's mean counts.

    Of a tube mask they come from `ratio`: int(cells x (1 - ratio)) cells of each time step are visible, all
    others predicted.
    """

    kind: Literal["blocks", "causal", "tube"] = "blocks"  # what is hidden; docs/masks.md
    blocks: PositiveInt = 8  # predicted blocks; they may overlap
    scale: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.15  # share of a frame's cells in one block
    aspect_min: PositiveFloat = 0.75  # of a block: height by width
    aspect_max: PositiveFloat = 1.5  # of a block: height by width
    context_frames: PositiveInt | None = None  # causal: visible steps of the token grid
    keep: Literal["fixed", "batch_min"] = "fixed"  # counts: fixed, or cut to the shortest
    keep_clips: PositiveInt = 24  # batch_min: clips that are cut alike
    ratio: Annotated[float, Meta(gt=0.0, lt=1.0)] | None = None  # tube: share of cells that are hidden
    visible_tokens: PositiveInt | None = None  # that the encoder reads; none: the mean
    target_tokens: PositiveInt | None = None  # that are predicted; none: the mean


MaskSet = Annotated[tuple[MaskConfig, ...], Meta(min_length=1)]


class ModelConfig(Spec, kw_only=True):
    """Everything of a `ModelSpec` but the encoder, which the grid varies."""

    predictor: VitSpec  # of latents; the pixel decoder has the same shape
    tubelet_frames: PositiveInt = 2  # frames in one token
    patch_px: PositiveInt = 16  # height and width of one token, in pixels
    position: PositionSpec = msgspec.field(default_factory=PositionSpec)  # how tokens know where they are
    init: Literal["trunc_normal", "xavier"] = "trunc_normal"  # how weights begin
    mask_token: Literal["shared", "per_mask"] = "shared"  # one for all, or for each mask


class ExternalConfig(Spec, kw_only=True):
    """Weights that were trained elsewhere: `hf:FOLDER` of transformers, or an imported run.

    `input_px` is the side at which the model is run, if not its own; `per_tubelet` how a model of single
    frames sees a tubelet; `resize_grid` whether its latents may be interpolated to the student's grid;
    `trained_flops` what its training has cost, which its students are then charged.
    """

    model: str  # `hf:FOLDER`, or an imported run
    input_px: PositiveInt | None = None  # none: the model's own
    per_tubelet: PerTubelet | None = None  # mean, first or middle frame; for models of images
    resize_grid: GridResize = "none"  # of latents, to the student's grid
    trained_flops: PositiveFloat | None = None  # none: its training is free


class ArmConfig(Spec, kw_only=True):
    """One arm. `optim` and `objective` lie over the study's own; `sweep` turns fields into axes.

    Fields that can be swept: `optim.*`, `objective.*`, and `masks` with names from `mask_sets`.
    """

    optim: dict[str, Any] = {}  # fields of `OptimSpec` that this arm has for itself
    objective: dict[str, Any] = {}  # fields of `ObjectiveSpec` that this arm has for itself
    sweep: dict[str, list[Any]] = {}  # field -> values: one configuration for each
    students: tuple[str, ...] | None = None  # sizes of this arm; none: the study's


class StageConfig(Spec, kw_only=True):
    """One teacher of a chain and what it may cost: a share of the budget, FLOPs or steps.

    The first may be one of `external`, which costs nothing here and takes none of them.
    """

    teacher: str  # a size, or for the first stage a name of `external`
    share: OpenShare | None = None  # of the budget, for this teacher
    flops: PositiveFloat | None = None  # what its training may cost
    steps: Steps | None = None  # that it is trained for


class SaltConfig(ArmConfig, kw_only=True):
    """The frozen-teacher arm. A teacher costs a share of each budget, a fixed number of FLOPs, or steps.

    `teacher_runs: one` takes all lengths of `teacher_steps` from one run of the longest, as states on its
    way, not annealed under a cosine; `own` trains each length with its own whole schedule. In `chains` the
    first stage is a pixel run, each next one a student of the one before, and the grid's student learns from
    the last. `teacher_sweep` varies the pixel stage like `sweep` the student. Teachers named in the study's
    `external` are there already: they have no length.
    """

    teachers: tuple[str, ...] = ()  # sizes of pixel encoders, or names of `external`
    teacher_share: tuple[OpenShare, ...] = ()  # of each budget, for the teacher's training
    teacher_flops: tuple[PositiveFloat, ...] = ()  # what a teacher's training costs, whatever the budget
    teacher_steps: tuple[Steps, ...] = ()  # that a teacher is trained for, whatever the budget
    teacher_runs: Literal["own", "one"] = "own"  # a run for each length, or states of one
    teacher_sweep: dict[str, list[Any]] = {}  # like `sweep`, for the pixel stage
    chains: tuple[Annotated[tuple[StageConfig, ...], Meta(min_length=1)], ...] = ()  # stages of teachers


class ExternalArmConfig(ArmConfig, kw_only=True):
    """Students of teachers that were trained elsewhere: names of the study's `external`, or `hf:FOLDER`."""

    teachers: Annotated[tuple[str, ...], Meta(min_length=1)]  # names of the study's `external`


class ArmsConfig(Spec, kw_only=True):
    """The arms that are compared. `hybrid` is `salt` with pixels beside the latents, weighted by
    `objective.pixel_weight`, which is 1 unless the study says otherwise.
    """

    pixel: ArmConfig | None = None  # pixel reconstruction with the whole budget
    vjepa: ArmConfig | None = None  # self-distillation from an average of the student
    salt: SaltConfig | None = None  # a student of a frozen teacher
    external: ExternalArmConfig | None = None  # a student of weights that were trained elsewhere
    hybrid: SaltConfig | None = None  # like salt, with pixels beside latents


class SeedsHere(Spec, kw_only=True):
    """Which cells get more seeds; what is left out does not restrict, but one of them must be given.

    `frontier` names a CSV file with a column `cell_id`, such as the `pareto-frontier-cells.csv` that
    `salt-analyze pareto` writes: its cells and their neighbours in the grid.
    """

    arms: tuple[Literal["pixel", "vjepa", "salt", "external", "hybrid"], ...] | None = None  # only these arms
    students: tuple[str, ...] | None = None  # only these sizes
    teachers: tuple[str, ...] | None = None  # only cells with these teachers
    teacher_share: tuple[OpenShare, ...] | None = None  # only these shares
    budgets: tuple[PositiveFloat, ...] | None = None  # only these budgets, as the study matches them
    frontier: str | None = None  # a CSV file with a column `cell_id`


class ExtraSeeds(Spec, kw_only=True):
    """More seeds where they help, such as at one cell of each arm or around the frontier."""

    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1)]  # beside the study's own
    where: SeedsHere  # the cells that get them


class SupervisedConfig(Spec, kw_only=True):
    """Training on labels, outside the budgets: how much there is to know."""

    label: str  # a column of the lists
    steps: PositiveInt  # that it is trained for
    students: tuple[str, ...]  # sizes that are trained
    optim: dict[str, Any] = {}  # fields of `OptimSpec` over the study's


class ReferencesConfig(Spec, kw_only=True):
    """Encoders that every arm is held against: they cost nothing of the budgets."""

    random: bool = True  # untrained encoders of every size
    raw: bool = True  # pixels as they are, without an encoder
    supervised: SupervisedConfig | None = None  # an encoder that is trained on labels
    external: tuple[str, ...] = ()  # names of the study's `external`


class ProbeConfig(Spec, kw_only=True):
    """A suite of probes and the encoders it is run on; fields left out keep `ProbeSpec`'s defaults."""

    name: Annotated[str, Meta(pattern=r"^[^.\n]+\Z")]  # of the suite, in tables
    labels: Annotated[tuple[str, ...], Meta(min_length=1)]  # columns of the lists
    kinds: Annotated[tuple[Literal["linear", "knn", "attentive"], ...], Meta(min_length=1)]  # of probes
    frames: tuple[Literal["ordered", "shuffled", "first", "middle"], ...] = ("ordered",)  # their order
    on: Literal["all", "largest-budget"] = "all"  # runs of every budget, or of the largest only
    roles: tuple[Role, ...] = ("teacher", "student", "reference")  # whose encoders are probed
    seeds: tuple[Seed, ...] | None = None  # runs of these seeds only; none: of all
    data: ProbeData = msgspec.field(default_factory=ProbeData)  # lists of this suite, where they are others
    train_clips: PositiveInt  # labelled clips that are drawn
    selection_clips: PositiveInt  # that choose
    report_clips: PositiveInt  # that are reported on
    seed: Seed = 0  # of the draw of clips and the probe's start
    settings: dict[str, Any] = {}  # any other field of ProbeSpec


DEFAULT_REFERENCES: ReferencesConfig = msgspec.field(default_factory=ReferencesConfig)
DEFAULT_EXECUTION: ExecSpec = msgspec.field(default_factory=ExecSpec)


class StudyFile(Spec, kw_only=True):
    """The keys of a study file."""

    name: StudyName  # of the plan, and of its folder in the store
    question: str = ""  # what the study asks; the report repeats it
    data: DataFiles  # lists of videos
    clip: ClipSpec  # which frames of a video, and which part of them
    model: ModelConfig  # tokens, positions, predictor: the same for all sizes
    sizes: dict[str, dict[str, Any]] = {}  # encoders of your own: name -> fields of VitSpec
    external: dict[str, str | ExternalConfig] = {}  # name -> an imported run, or `hf:FOLDER`
    masks: MaskSet  # a mask each; every clip is masked with all
    mask_sets: dict[str, MaskSet] = {}  # names for other sets, for a sweep over `masks`
    match: Match = "flops"  # what cells of one budget have in common
    convention: Convention = "matmul"  # how FLOPs are counted: docs/flops.md
    charge: Charge = "full"  # who pays for a teacher that several students share
    targets: Annotated[str, Meta(pattern=TARGETS)] = "online"  # `online`, or `cached(views=V)`: encoded once
    budgets_flops: tuple[PositiveFloat, ...] = ()  # under `match: flops`: what a cell may cost
    budgets_steps: tuple[Steps, ...] = ()  # under `match: steps`, such as 40k
    budgets_gpu_hours: tuple[PositiveFloat, ...] = ()  # under `match: gpu-hours`, by the site
    seeds: Annotated[tuple[Seed, ...], Meta(min_length=1)]  # of every cell
    extra_seeds: tuple[ExtraSeeds, ...] = ()  # more seeds at some cells
    students: Annotated[tuple[str, ...], Meta(min_length=1)]  # sizes, by name
    minimum_steps: PositiveInt = 1  # a cell with fewer is refused
    maximum_epochs: PositiveFloat | None = None  # a cell that repeats its data more often is refused
    bad_cells: Literal["refuse", "leave_out"] = "refuse"  # what becomes of cells that are refused
    schedule: Literal["cosine", "wsd"] = "cosine"  # `wsd`: one trunk for all budgets, a cooldown for each
    cooldown_share: Annotated[float, Meta(gt=0.0, lt=1.0)] = 0.1  # of a run, under `wsd`
    recipe: str | None = None  # a name, or a YAML file; `salt-sweep recipe list`
    site: str | None = None  # a site profile, relative to the study file, or `default`
    optim: dict[str, Any] = {}  # over the recipe: fields of OptimSpec
    objective: dict[str, Any] = {}  # over the recipe: fields of ObjectiveSpec
    arms: ArmsConfig  # what is compared
    references: ReferencesConfig = DEFAULT_REFERENCES  # what it is held against, outside the budgets
    probes: tuple[ProbeConfig, ...] = ()  # how encoders are scored
    execution: ExecSpec = DEFAULT_EXECUTION  # how runs are carried out; changes no number
    quick: dict[str, Any] = {}  # laid over the file by `--quick`: a small version
