"""`artefact.safetensors`: the finished encoder of a run, sealed by its hash."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from salt.errors import RunFailed
from salt.specs import ModelSpec, RunSpec, TeacherRef
from salt.store import RunDir, write_atomically

if TYPE_CHECKING:
    import torch

    from salt.specs import ClipSpec
    from salt.vit import Encoder


def write_artefact(run: RunDir, spec: RunSpec, encoder: Encoder, branch: str) -> str:
    """Save the encoder that is kept; returns the SHA-256 of its weights."""
    from safetensors.torch import save as encode

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in encoder.state_dict().items()}
    digest = weights_sha256(tensors)
    about = {"run_id": run.run_id, "step": str(spec.steps), "branch": branch, "weights_sha256": digest}
    write_atomically(run.artefact, encode(tensors, metadata={"salt": json.dumps(about, sort_keys=True)}))
    return digest


def weights_sha256(tensors: dict[str, torch.Tensor]) -> str:
    """Hash over names, shapes and bytes of all tensors, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def load_artefact(run: RunDir, spec: RunSpec) -> tuple[Encoder, str, str]:
    """Encoder, branch and weights' hash of a finished run; anything that does not fit raises `RunFailed`."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    from salt.learner import build_encoder

    if not run.artefact.exists():
        raise RunFailed("teacher", f"run {run.run_id} has no artefact: it is not trained to its end")
    with safe_open(str(run.artefact), framework="pt") as file:
        about = json.loads((file.metadata() or {}).get("salt", "{}"))
    tensors = load_file(run.artefact)
    digest = weights_sha256(tensors)
    if about.get("run_id") != run.run_id or about.get("step") != str(spec.steps):
        raise RunFailed(
            "teacher",
            f"{run.artefact} says {about}: it is not the artefact of run {run.run_id} at step {spec.steps}",
        )
    if about.get("weights_sha256") != digest:
        raise RunFailed(
            "teacher",
            f"{run.artefact}: the weights do not match their hash; remove it and train the run again",
        )
    encoder = build_encoder(spec.model.encoder, spec.model, spec.clip, spec.seed)
    encoder.load_state_dict(tensors, strict=True)
    return encoder, str(about["branch"]), digest


def load_teacher(
    store_run: RunDir, reference: TeacherRef, model: ModelSpec, clip: ClipSpec
) -> tuple[Encoder, str]:
    """The frozen teacher of a student and its weights' hash; its tokens and input must be the student's."""
    from salt.learner import freeze

    if not store_run.spec.exists():
        raise RunFailed("teacher", f"teacher {reference.run_id} is not in the store {store_run.store}")
    spec = store_run.read_spec()
    if spec.steps != reference.step or spec.model.encoder != reference.encoder:
        raise RunFailed(
            "teacher",
            f"teacher {reference.run_id} has {spec.steps} steps and {spec.model.encoder}, "
            f"not what its student was planned with: {reference}",
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
    encoder, _, digest = load_artefact(store_run, spec)
    return freeze(encoder), digest
