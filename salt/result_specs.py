"""What a run leaves behind: scores of probes, its result, its error."""

from __future__ import annotations

from typing import Literal

from salt.mask_statistics import MaskStatistics
from salt.specs import Arm, Cost, Frames, MaskSpec, ProbeKind, Spec


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
    label_free: dict[str, float] = {}  # of the report clips' mean tokens
    feature_flops: int  # encoding the clips, outside the budget
    wall_s: float


class MaskInput(Spec, kw_only=True):
    """What one mask of a run shows, over many draws: shares of the token grid; see `MaskStatistics`."""

    mask: MaskSpec
    statistics: MaskStatistics


class ListInput(Spec, kw_only=True):
    """One list as the run found it: `clips` are those that decoded (streamed: all, none was tried yet)."""

    name: str
    fingerprint: str
    clips: int
    skipped_files: int
    decoded_files: dict[str, int] = {}  # of stored clips, by decoder
    near_copies: int | None = None  # files alike to another; None: streamed, or too long a list


class RunInputs(Spec, kw_only=True):
    """`inputs.json`: what a run began with, written before its first step."""

    lists: tuple[ListInput, ...]
    masks: tuple[MaskInput, ...]


class ListSeen(Spec, kw_only=True):
    """What a run has drawn of one list of its mixture."""

    name: str
    clips_seen: int
    unique_clips: int
    epochs: float
    max_repeats: int


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
    max_repeats: int = 0  # draws of the clip that was drawn most often
    burnt_steps: int | None = None  # trained once more after a kill or a failure; None: not known
    burnt_flops: int | None = None
    burnt_wall_s: float | None = None
    peak_memory_bytes: int | None = None  # rank 0's, see `salt.hardware`; None: another attempt trained last
    lists: tuple[ListSeen, ...] = ()


class RunError(Spec, kw_only=True):
    """`error.json`: why the last attempt stopped; removed by the next attempt."""

    run_id: str
    kind: str
    message: str
    attempt: int
    step: int | None
    host: str
    restarts_without_progress: int | None = None  # attempts in a row, this one included, from the same place
    traceback: str | None = None
