"""A folder of transformers becomes a finished run of the store: frozen weights that teach and are probed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from salt.adapter_spec import AdapterSpec
from salt.errors import RunFailed, UserError
from salt.external_describe import Described
from salt.hf_transformers import LOCAL, transformers
from salt.specs import DECLARED, ClipSpec, DataSpec, ModelSpec, RunSpec, VitSpec, spec_id
from salt.store import RunDir, write_atomically
from salt.writable import make_folder


def external_spec(found: Described, clip: ClipSpec, model: ModelSpec) -> RunSpec:
    """The run of a model as it reads a study's clips, by content: weights, configuration, processor, clip."""
    width = found.encoder.width
    return RunSpec(
        arm="external",
        seed=0,
        steps=0,
        model=ModelSpec(
            encoder=found.encoder,
            predictor=VitSpec(width=width, depth=0, heads=1, mlp_width=1),  # it has none
            tubelet_frames=model.tubelet_frames,
            patch_px=model.patch_px,
        ),
        clip=clip,
        data=DataSpec(name="unknown", fingerprint=DECLARED, clips=1),
        masks=(),
        external=found.reference,
    )


def bring_model(store: Path, folder: Path, spec: RunSpec) -> bool:
    """Copy a folder's weights into the store as the run that `spec` describes; False if it was there.

    Raises:
        UserError: the folder is not the one that was described, or lacks weights that its model needs.
    """
    from salt.claim import Claim, ClaimHeld
    from salt.exchange import write_external_run

    run = RunDir(store, spec_id(spec))
    if is_there(run, spec):
        return False
    model_config, weights = _weights(folder, spec)
    make_folder(run.path, "the run's folder")
    try:
        claim = Claim.acquire(run)
    except ClaimHeld as held:
        raise UserError(f"{held}: wait for it, or stop it") from held
    with claim:
        from salt.external_model import MODEL_FOLDER

        write_atomically(run.path / MODEL_FOLDER / "config.json", model_config)
        write_external_run(run, spec, weights, {"imported_from": str(folder), "name": None})
    return True


def is_there(run: RunDir, spec: RunSpec) -> bool:
    """Whether such a run is whole: its result, and weights that are those of their hash."""
    from salt.artefact import read_weights

    if not (run.result.exists() and run.artefact.exists()):
        return False
    try:
        read_weights(run, spec)
        return run.read_spec() == spec
    except (RunFailed, UserError, OSError):
        return False


def _weights(folder: Path, spec: RunSpec) -> tuple[bytes, dict[str, Any]]:
    """The configuration of what gives latents, and its weights in float32 by the names of our encoder."""
    import torch

    from salt.external_model import ExternalEncoder, backbone_of

    assert spec.external is not None
    adapter = spec.external.adapter
    assert isinstance(adapter, AdapterSpec)
    with transformers(f"{folder}") as package:
        try:
            model, info = package.AutoModel.from_pretrained(
                folder, **LOCAL, use_safetensors=True, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
            first = (str(error).strip() or repr(error)).splitlines()[0]
            raise UserError(f"{folder}: transformers cannot load this model: {first}") from error
        backbone = backbone_of(model, adapter.family)
        own = {id(tensor) for tensor in backbone.state_dict(keep_vars=True).values()}
        needed = {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in own}
        missing = sorted(needed & set(info["missing_keys"]))
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"{folder}: the model's weights lack {missing[0]}{more}: they would be random; save it whole"
            )
        config: bytes = backbone.config.to_json_string(use_diff=False).encode()
    weights = ExternalEncoder(backbone, adapter, spec.model, spec.clip).state_dict()
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f"{folder}: {name} holds values that are not finite: these weights are of no use")
    return msgspec.json.format(config), weights
