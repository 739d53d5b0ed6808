"""Runs to and from Hugging Face folders: `config.json` and `model.safetensors` of a `VJEPA2Model`.

Nothing is converted but names and the order of numbers, so that weights go there and back bit for bit. No
network, no pickle, and not the transformers package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from salt.errors import RunFailed, UserError
from salt.flops import run_cost
from salt.hf_folder import CONFIG, INDEX, WEIGHTS, normalisation_remarks, read_float32
from salt.hf_weights import (
    ROPE_BASE,
    config_of,
    encoder_from_hf,
    encoder_to_hf,
    hf_shapes,
    model_spec,
    predictor_from_hf,
    predictor_to_hf,
    read_config,
)
from salt.result_specs import RunResult
from salt.sizes import check_model
from salt.specs import (
    DECLARED,
    ClipSpec,
    DataSpec,
    ExternalRef,
    RunSpec,
    Spec,
    spec_id,
)
from salt.store import RunDir, pretty_json, write_atomically
from salt.tensor_names import misfits, plain_names, shapes
from salt.writable import make_folder

if TYPE_CHECKING:
    import torch

NOTE = "salt.json"


class ExportNote(Spec, kw_only=True):
    """`salt.json` of an exported folder: where its weights come from."""

    run_id: str
    step: int
    branch: str  # `ema` for V-JEPA's average, else `student`
    weights_sha256: str  # of the encoder, as in the run's artefact
    teacher_sha256: str | None
    predictor: str | None  # why there is no predictor; None where there is one
    spec: RunSpec


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export_run` wrote."""

    folder: Path
    note: ExportNote


@dataclass(frozen=True, kw_only=True)
class Imported:
    """The run that `import_folder` made or found; `remarks` are for the user to read."""

    run: RunDir
    spec: RunSpec
    already_there: bool
    remarks: tuple[str, ...]


def export_problems(spec: RunSpec) -> list[str]:
    """Every option of a run that a `VJEPA2Model` cannot express, empty if it can be exported."""
    position, problems = spec.model.position, []
    if spec.arm == "raw":
        problems.append("arm raw has no encoder")
    if spec.external is not None and spec.external.adapter:
        return [
            f"its weights are a {spec.external.model} of transformers already: take the folder they came from"
        ]
    if position.sincos:
        problems.append("model.position.sincos adds vectors to tokens, V-JEPA 2 has rotary positions only")
    if not position.rope:
        problems.append("model.position.rope is off, V-JEPA 2 always turns queries and keys")
    elif position.rope_frequencies != "tiled":
        problems.append(
            f"model.position.rope_frequencies is {position.rope_frequencies}, "
            "V-JEPA 2's are tiled: the same weights would give other tokens there"
        )
    if position.rope and position.rope_base != ROPE_BASE:
        problems.append(f"model.position.rope_base is {position.rope_base:g}, V-JEPA 2's is {ROPE_BASE:g}")
    if spec.clip.channels != 3:
        problems.append(f"clip.channels is {spec.clip.channels}, V-JEPA 2's videos have 3")
    return problems


def export_run(run: RunDir, folder: Path) -> Exported:
    """Write a finished run's encoder, and its predictor where one is kept, as a folder for transformers.

    Raises:
        UserError: the run is not finished, has options that cannot be expressed, or files are in the way.
        RunFailed: the run's files are damaged.
    """
    from safetensors.torch import save as encode

    from salt.artefact import read_weights

    spec = run.read_spec()
    problems = export_problems(spec)
    if problems:
        raise UserError(f"run {run.run_id} cannot be exported as hf: {'; '.join(problems)}")
    if not run.artefact.exists():
        raise UserError(f"run {run.run_id} has no finished encoder yet: train it to its end first")
    weights, about = read_weights(run, spec)
    predictor, reason = _predictor(run, spec)
    note = ExportNote(
        run_id=run.run_id,
        step=about.step,
        branch=about.branch,
        weights_sha256=about.weights_sha256,
        teacher_sha256=about.teacher_sha256,
        predictor=reason,
        spec=spec,
    )
    _check_target(folder, note)
    tensors = encoder_to_hf(weights, spec.model, spec.clip.channels)
    if predictor is not None:
        tensors |= predictor_to_hf(predictor, spec.model)
    tokens = None if predictor is None else len(predictor["mask_token"])
    data = encode(
        {name: tensor.contiguous() for name, tensor in sorted(tensors.items())}, metadata={"format": "pt"}
    )
    make_folder(folder, "--out")
    write_atomically(folder / NOTE, pretty_json(note))  # first: an export that was killed can be done again
    write_atomically(folder / CONFIG, pretty_json(config_of(spec.model, spec.clip, tokens)))
    write_atomically(folder / WEIGHTS, data)
    return Exported(folder=folder, note=note)


def _check_target(folder: Path, note: ExportNote) -> None:
    """Refuse to write over anything but an earlier export of the same weights."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file: name a folder")
    there = [name for name in (CONFIG, WEIGHTS, INDEX, NOTE) if (folder / name).exists()]
    if not there:
        return
    try:
        earlier = msgspec.json.decode((folder / NOTE).read_bytes(), type=ExportNote)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        earlier = None
    if earlier is None or (earlier.run_id, earlier.weights_sha256) != (note.run_id, note.weights_sha256):
        raise UserError(
            f"--out {folder} has a {there[0]} that is not an export of run {note.run_id}: name another folder"
        )


def _predictor(run: RunDir, spec: RunSpec) -> tuple[dict[str, torch.Tensor] | None, str | None]:
    """The predictor of a run's last step, or None and why there is none that could be exported."""
    from salt.checkpoint import load_kept, load_newest

    if spec.arm not in ("salt", "vjepa", "external"):
        return None, f"arm {spec.arm} has no predictor of latents"
    if spec.steps in spec.keep_steps:
        step, state = spec.steps, load_kept(run, spec.steps, "checkpoint")[1]
    else:
        remarks: list[str] = []
        newest = load_newest(run, remarks.append)
        if newest is None or newest[0].step != spec.steps:
            return None, f"the run kept no state of its last step, {spec.steps} (`keep_steps`)"
        step, state = newest[0].step, newest[1]
    prefix = "predictor."
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in plain_names(state).items()
        if name.startswith(prefix)
    }
    if not tensors:
        return None, f"the state at step {step} has no predictor"
    outputs = tensors["out.weight"].shape[0]
    if outputs != spec.model.encoder.width:
        return None, (
            f"it predicts {outputs} numbers for a token, and V-JEPA 2's predictor always as many as its "
            f"encoder is wide, {spec.model.encoder.width}"
        )
    return tensors, None


def import_clip(folder: Path, base: ClipSpec | None = None) -> ClipSpec:
    """The clip that a folder's configuration names, other fields as in `base` or by default."""
    config = read_config(folder / CONFIG)
    channels: Literal[1, 3] = 1 if config.in_chans == 1 else 3
    if base is not None:
        return msgspec.structs.replace(base, channels=channels)
    default = ClipSpec(frames=config.frames_per_clip, crop_px=config.crop_size, channels=channels)
    return msgspec.structs.replace(default, store_px=max(default.store_px, default.crop_px))


def import_folder(
    store: Path, folder: Path, clip: ClipSpec, *, name: str | None = None, drop: Sequence[str] = ()
) -> Imported:
    """Make a finished run of a folder's encoder, named by its content: the same weights and clip, the same
    run.

    Weights whose names begin with one of `drop` are left out; all others must be exactly those that the
    configuration asks for. The predictor, if there is one, becomes the run's checkpoint at step 0.

    Raises:
        UserError: the folder is no V-JEPA 2, weights do not fit, or the clip does not fit the model.
    """
    from salt.artefact import weights_sha256
    from salt.claim import Claim, ClaimHeld

    config = read_config(folder / CONFIG)
    model = model_spec(config)
    problems = check_model(model, clip, ())
    if clip.channels != config.in_chans:
        problems.append(f"clip.channels {clip.channels}: the weights are for {config.in_chans}")
    if problems:
        raise UserError(f"{folder}: {'; '.join(problems)}")
    tensors, remarks = read_float32(folder, drop)
    has_predictor = any(key.startswith("predictor.") for key in tensors)
    problem = misfits(shapes(tensors), hf_shapes(config, has_predictor))
    if problem is not None:
        raise UserError(
            f"{folder}: weights do not fit {CONFIG}: {problem}. Nothing is loaded in part; "
            "--drop PREFIX leaves out weights by the beginning of their name"
        )
    remarks += normalisation_remarks(folder, clip)
    weights = encoder_from_hf(tensors, model)
    spec = RunSpec(
        arm="external",
        seed=0,
        steps=0,
        model=model,
        clip=clip,
        data=DataSpec(name="unknown", fingerprint=DECLARED, clips=1),
        masks=(),
        external=ExternalRef(format="hf", model=config.model_type, weights_sha256=weights_sha256(weights)),
    )
    run = RunDir(store, spec_id(spec))
    if not has_predictor:
        remarks.append("the folder has no predictor: the run is its encoder alone")
    predictor = predictor_from_hf(tensors, model) if has_predictor else None
    already = _is_there(run, spec, remarks)
    if already and predictor is not None and _has_predictor(run, spec, predictor, remarks):
        predictor = None
    if not already or predictor is not None:
        make_folder(run.path, "the run's folder")
        try:
            claim = Claim.acquire(run)
        except ClaimHeld as held:
            raise UserError(f"{held}: wait for it, or stop it") from held
        with claim:
            if predictor is not None:
                _write_predictor(run, predictor)
            if not already:
                write_external_run(run, spec, weights, {"imported_from": str(folder), "name": name})
    return Imported(run=run, spec=spec, already_there=already, remarks=tuple(remarks))


def _is_there(run: RunDir, spec: RunSpec, remarks: list[str]) -> bool:
    """Whether the run is whole. One with a damaged file is not; a remark says so, and it is written again."""
    from salt.artefact import read_weights

    if not (run.result.exists() and run.artefact.exists()):
        return False
    try:
        read_weights(run, spec)
        return run.read_spec() == spec
    except (RunFailed, UserError, OSError) as damage:
        remarks.append(f"the run was there, but damaged, and is written again ({damage})")
        return False


def _has_predictor(
    run: RunDir, spec: RunSpec, predictor: dict[str, torch.Tensor], remarks: list[str]
) -> bool:
    """Whether a run has a predictor already, which then stays; a remark if it is not this one."""
    from salt.artefact import weights_sha256

    try:
        kept, _ = _predictor(run, spec)
    except RunFailed as damage:
        remarks.append(f"the run's predictor was damaged and is written again ({damage})")
        return False
    if kept is None:
        remarks.append("the run was there without a predictor: the folder's is added")
        return False
    if weights_sha256(kept) != weights_sha256(predictor):
        remarks.append("the folder's predictor is not the one that the run has: the run's stays")
    return True


def _write_predictor(run: RunDir, predictor: dict[str, torch.Tensor]) -> None:
    """As the run's checkpoint at step 0, where an export looks for it."""
    from salt import checkpoint

    state = {f"predictor.{name}": tensor for name, tensor in predictor.items()}
    origin = checkpoint.Origin()
    checkpoint.save(run, checkpoint.pack(run, 0, state, attempt=1, train_wall_s=0.0, origin=origin))


def write_external_run(
    run: RunDir,
    spec: RunSpec,
    weights: dict[str, torch.Tensor],
    provenance: dict[str, str | None],
) -> None:
    """The files of a finished run whose weights come from elsewhere, `result.json` last."""
    from salt.artefact import weights_sha256, write_weights
    from salt.checkpoint import Origin

    write_atomically(run.spec, pretty_json(spec))
    write_atomically(run.env, pretty_json({"attempts": [provenance]}))
    write_weights(run, spec, weights, "student", Origin())
    result = RunResult(
        run_id=run.run_id,
        arm=spec.arm,
        steps=0,
        cost=run_cost(spec),  # nothing but what a study states that the weights cost elsewhere
        final_loss=None,
        artefact_sha256=weights_sha256(weights),
        teacher_sha256=None,
        attempts=1,
        train_wall_s=None,
        probe_wall_s=0.0,
        clips_seen=0,
        unique_clips=0,
        epochs=0.0,
    )
    write_atomically(run.result, pretty_json(result))
