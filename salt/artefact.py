"""`artefact.safetensors`: the finished encoder of a run, sealed by its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from salt.checkpoint import Origin, load_kept
from salt.errors import RunFailed
from salt.flops import own_adapter
from salt.specs import UNSET, ModelSpec, RunSpec, TeacherRef
from salt.store import RunDir, write_atomically
from salt.tensor_names import misfits, plain_names, shapes

if TYPE_CHECKING:
    import torch

    from salt.external_model import ExternalEncoder
    from salt.specs import ClipSpec
    from salt.vit import Encoder

    AnyEncoder = Encoder | ExternalEncoder


class About(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an artefact says of itself, in the header of its file."""

    run_id: str
    step: int
    branch: str
    weights_sha256: str
    teacher_sha256: str | None
    trunk_sha256: str | None = None  # of the file of the trunk's state, for a cooldown


def write_artefact(run: RunDir, spec: RunSpec, encoder: Encoder, branch: str, origin: Origin) -> None:
    """Save the encoder that is probed, with the hash of its weights and of what it was made from."""
    write_weights(run, spec, plain_names(encoder.state_dict()), branch, origin)


def write_weights(
    run: RunDir, spec: RunSpec, weights: Mapping[str, torch.Tensor], branch: str, origin: Origin
) -> None:
    """`write_artefact` of an encoder's weights by name, as they come from elsewhere."""
    from safetensors.torch import save as encode

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    about = About(
        run_id=run.run_id,
        step=spec.steps,
        branch=branch,
        weights_sha256=weights_sha256(tensors),
        teacher_sha256=origin.teacher_sha256,
        trunk_sha256=origin.trunk_sha256,
    )
    data = encode(tensors, metadata={"salt": msgspec.json.encode(about).decode()})
    write_atomically(run.artefact, data, sha256=hashlib.sha256(data).hexdigest())


def read_about(run: RunDir) -> About:
    """The header of a finished run's artefact; raises `RunFailed` if it is absent or not one of ours."""
    from safetensors import SafetensorError, safe_open

    if not run.artefact.exists():
        raise RunFailed("teacher", f"run {run.run_id} has no artefact: it is not trained to its end")
    try:
        with safe_open(str(run.artefact), framework="pt") as file:
            return msgspec.json.decode((file.metadata() or {})["salt"], type=About)
    except (OSError, SafetensorError, KeyError, msgspec.DecodeError) as error:
        raise RunFailed(
            "teacher",
            f"{run.artefact} is not an artefact: {error}; move the run's folder away and train it again",
        ) from error


def weights_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """Hash over names, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def read_weights(run: RunDir, spec: RunSpec) -> tuple[dict[str, torch.Tensor], About]:
    """Weights of a finished run's encoder, held to their hash, and the header of their file.

    Raises:
        RunFailed: absent, damaged, or those of another run or step.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    about = read_about(run)
    if (about.run_id, about.step) != (run.run_id, spec.steps):
        raise RunFailed(
            "teacher",
            f"{run.artefact} is that of run {about.run_id} at step {about.step}: "
            f"it is not the artefact of run {run.run_id} at step {spec.steps}",
        )
    try:
        tensors = load_file(run.artefact)
    except (OSError, SafetensorError) as error:
        raise RunFailed("teacher", f"{run.artefact} cannot be read: {error}") from error
    if about.weights_sha256 != weights_sha256(tensors):
        raise RunFailed(
            "teacher",
            f"{run.artefact}: the weights do not match their hash; move the run's folder away and train it "
            "again",
        )
    return tensors, about


def load_artefact(run: RunDir, spec: RunSpec) -> tuple[AnyEncoder, str, str]:
    """Encoder, branch and weights' hash of a finished run; anything that does not fit raises `RunFailed`."""
    tensors, about = read_weights(run, spec)
    if own_adapter(spec) is not None:
        from salt.external_model import load_external

        return load_external(run, spec, tensors), about.branch, about.weights_sha256
    return _encoder_of(spec, tensors, str(run.artefact)), about.branch, about.weights_sha256


def _encoder_of(spec: RunSpec, tensors: Mapping[str, torch.Tensor], where: str) -> Encoder:
    """The encoder of a run with these weights: a missing, unexpected or misshapen one raises `RunFailed`."""
    from salt.learner import build_encoder

    encoder = build_encoder(spec.model.encoder, spec.model, spec.clip, spec.seed)
    try:
        plain = plain_names(tensors)
    except ValueError as error:
        raise RunFailed("teacher", f"{where}: {error}") from error
    problem = misfits(shapes(plain), shapes(encoder.state_dict()))
    if problem is not None:
        raise RunFailed("teacher", f"{where}: weights do not fit the encoder of their run: {problem}")
    encoder.load_state_dict(plain, strict=True)
    return encoder


def load_kept_encoder(run: RunDir, spec: RunSpec, step: int) -> tuple[Encoder, str, str]:
    """The same of the state that a run kept after `step` steps; the run itself may still be in training."""
    _, state = load_kept(run, step, "teacher")
    branch, prefix = ("ema", "ema.") if spec.arm == "vjepa" else ("student", "encoder.")
    tensors = {
        name.removeprefix(prefix): tensor
        for name, tensor in plain_names(state).items()
        if name.startswith(prefix)
    }
    encoder = _encoder_of(spec, tensors, f"state of run {run.run_id} at step {step}")
    return encoder, branch, weights_sha256(tensors)


def load_teacher(
    store_run: RunDir, reference: TeacherRef, model: ModelSpec, clip: ClipSpec
) -> tuple[AnyEncoder, str]:
    """The frozen teacher of a student and its weights' hash; its tokens and input must be the student's.

    At its run's last step a teacher is that run's artefact, before it the state that the run kept. Its arm is
    any that has an encoder: the student of one teacher may teach the next.
    """
    from salt.learner import freeze

    if not store_run.spec.exists():
        raise RunFailed("teacher", f"teacher {reference.run_id} is not in the store {store_run.store}")
    spec = store_run.read_spec()
    finished = reference.step == spec.steps
    if not (finished or reference.step in spec.keep_steps) or spec.model.encoder != reference.encoder:
        raise RunFailed(
            "teacher",
            f"teacher {reference.run_id} has {spec.steps} steps, keeps its state at {list(spec.keep_steps)} "
            f"and is {spec.model.encoder}, not what its student was planned with: {reference}",
        )
    same = (spec.clip, spec.model.patch_px, spec.model.tubelet_frames) == (
        clip,
        model.patch_px,
        model.tubelet_frames,
    )
    if not same:
        raise RunFailed(
            "teacher",
            f"teacher {reference.run_id} reads other tokens than its student: clip, patch or tubelet differ",
        )
    if reference.adapter != (UNSET if spec.external is None else spec.external.adapter):
        raise RunFailed(
            "teacher", f"teacher {reference.run_id} reads clips otherwise than its student was planned with"
        )
    encoder: AnyEncoder
    if finished:
        encoder, _, digest = load_artefact(store_run, spec)
    else:
        encoder, _, digest = load_kept_encoder(store_run, spec, reference.step)
    return freeze(encoder), digest
