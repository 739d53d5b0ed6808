"""Weights between our layout and that of Hugging Face's `VJEPA2Model`, bit for bit.

Both hold the same numbers: theirs has a 3-D convolution where ours has one matrix over patches, and
queries, keys and values apart where ours has one matrix. Names and defaults are those of transformers 5
(`VJEPA2Config`, `VJEPA2Model`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from salt.errors import UserError
from salt.specs import ClipSpec, ModelSpec, PositionSpec, VitSpec

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    Tensors = Mapping[str, torch.Tensor]

#: Constants of both models: the epsilon of the norms, and the base of the rotary frequencies.
NORM_EPS = 1e-6
ROPE_BASE = 10000.0
#: Our name of a part of a block -> theirs; `qkv` is three of theirs.
_BLOCK = {
    "norm1": "norm1",
    "proj": "attention.proj",
    "norm2": "norm2",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
_ATTENTION = ("query", "key", "value")
_PATCHES = "encoder.embeddings.patch_embeddings.proj"
_PREDICTOR = {
    "embed": "predictor.embeddings.predictor_embeddings",
    "trunk.norm": "predictor.layernorm",
    "out": "predictor.proj",
}
_MASK_TOKENS = "predictor.embeddings.mask_tokens"


#: No model is as wide as these; a number above is a mistake, and could not be computed with.
_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
_Depth = Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
_Ratio = Annotated[float, msgspec.Meta(gt=0, le=1024)]


class HfConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What we need of a `config.json`; a key that is not there has `VJEPA2Config`'s default."""

    model_type: str = ""
    patch_size: _Count | Annotated[tuple[_Count, ...], msgspec.Meta(min_length=2, max_length=2)] = 16
    crop_size: _Count = 256
    frames_per_clip: _Count = 64
    tubelet_size: _Count = 2
    hidden_size: _Count = 1024
    in_chans: _Count = 3
    num_attention_heads: _Count = 16
    num_hidden_layers: _Depth = 24
    mlp_ratio: _Ratio = 4.0
    layer_norm_eps: float = NORM_EPS
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    pred_hidden_size: _Count = 384
    pred_num_attention_heads: _Count = 12
    pred_num_hidden_layers: _Depth = 12
    pred_num_mask_tokens: _Count = 10
    pred_mlp_ratio: _Ratio = 4.0


def read_config(path: Path) -> HfConfig:
    """A `config.json` of a V-JEPA 2; one that our encoder cannot be is a `UserError` that says why."""
    try:
        config = msgspec.json.decode(path.read_bytes(), type=HfConfig)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not a configuration of a V-JEPA 2: {error}") from error
    problems = []
    wanted = {
        "model_type": "vjepa2",
        "hidden_act": "gelu",
        "qkv_bias": True,
        "layer_norm_eps": NORM_EPS,
    }
    for name, value in wanted.items():
        found = getattr(config, name)
        if name == "model_type" and found != value:
            problems.append(
                f"model_type is {found!r}: only 'vjepa2' becomes an encoder of ours; other models teach as "
                f"they are, `external: {{NAME: hf:{path.parent}}}` in a study file"
            )
        elif found != value:
            problems.append(f"{name} is {found!r}, only {value!r} can be imported")
    if not isinstance(config.patch_size, int) and len(set(config.patch_size)) > 1:
        problems.append(f"patch_size is {list(config.patch_size)}, patches must be square")
    if config.in_chans not in (1, 3):
        problems.append(f"in_chans is {config.in_chans}, clips have 1 or 3 channels")
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    return config


def model_spec(config: HfConfig) -> ModelSpec:
    """The model that a configuration describes. Its rotary frequencies are tiled."""
    return ModelSpec(
        encoder=VitSpec(
            width=config.hidden_size,
            depth=config.num_hidden_layers,
            heads=config.num_attention_heads,
            mlp_width=int(config.hidden_size * config.mlp_ratio),
        ),
        predictor=VitSpec(
            width=config.pred_hidden_size,
            depth=config.pred_num_hidden_layers,
            heads=config.pred_num_attention_heads,
            mlp_width=int(config.pred_hidden_size * config.pred_mlp_ratio),
        ),
        tubelet_frames=config.tubelet_size,
        patch_px=config.patch_size if isinstance(config.patch_size, int) else config.patch_size[0],
        position=PositionSpec(rope=True, rope_base=ROPE_BASE, rope_frequencies="tiled"),
        mask_token="per_mask",
    )


def config_of(model: ModelSpec, clip: ClipSpec, mask_tokens: int | None) -> dict[str, Any]:
    """The `config.json` of a model; without a predictor (`mask_tokens` None) its predictor has no blocks."""
    encoder, predictor = model.encoder, model.predictor
    return {
        "architectures": ["VJEPA2Model"],
        "model_type": "vjepa2",
        "dtype": "float32",
        "patch_size": model.patch_px,
        "crop_size": clip.crop_px,
        "frames_per_clip": clip.frames,
        "tubelet_size": model.tubelet_frames,
        "hidden_size": encoder.width,
        "in_chans": clip.channels,
        "num_attention_heads": encoder.heads,
        "num_hidden_layers": encoder.depth,
        "mlp_ratio": _mlp_ratio(encoder),
        "layer_norm_eps": NORM_EPS,
        "qkv_bias": True,
        "hidden_act": "gelu",
        "drop_path_rate": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pred_hidden_size": predictor.width,
        "pred_num_attention_heads": predictor.heads,
        "pred_num_hidden_layers": 0 if mask_tokens is None else predictor.depth,
        "pred_num_mask_tokens": 1 if mask_tokens is None else mask_tokens,
        "pred_zero_init_mask_tokens": True,
        "pred_mlp_ratio": _mlp_ratio(predictor),
    }


def _mlp_ratio(vit: VitSpec) -> float:
    """A ratio whose product with the width, rounded down, is the MLP's width: 48 / 11 of 1408 is 6144."""
    ratio = vit.mlp_width / vit.width
    return ratio if int(vit.width * ratio) == vit.mlp_width else math.nextafter(ratio, math.inf)


def encoder_to_hf(tensors: Tensors, model: ModelSpec, channels: int) -> dict[str, torch.Tensor]:
    """Our encoder's weights under their names and in their shapes."""
    # Ours: [D, tubelet frame, row, column, channel], flat; theirs: [D, channel, tubelet frame, row, column].
    patches = tensors["embed.weight"].unflatten(1, _patch_shape(model, channels)).permute(0, 4, 1, 2, 3)
    theirs = {f"{_PATCHES}.weight": patches.contiguous(), f"{_PATCHES}.bias": tensors["embed.bias"]}
    for kind in ("weight", "bias"):
        theirs[f"encoder.layernorm.{kind}"] = tensors[f"trunk.norm.{kind}"]
    return theirs | _blocks_to_hf(tensors, "encoder", model.encoder)


def encoder_from_hf(tensors: Tensors, model: ModelSpec) -> dict[str, torch.Tensor]:
    """The inverse of `encoder_to_hf`; weights of other modules are passed over."""
    patches = tensors[f"{_PATCHES}.weight"].permute(0, 2, 3, 4, 1).flatten(1)
    ours = {"embed.weight": patches.contiguous(), "embed.bias": tensors[f"{_PATCHES}.bias"]}
    for kind in ("weight", "bias"):
        ours[f"trunk.norm.{kind}"] = tensors[f"encoder.layernorm.{kind}"]
    return ours | _blocks_from_hf(tensors, "encoder", model.encoder)


def predictor_to_hf(tensors: Tensors, model: ModelSpec) -> dict[str, torch.Tensor]:
    """Our predictor's weights under their names and in their shapes."""
    theirs = {_MASK_TOKENS: tensors["mask_token"][:, None, None, :]}
    for ours, name in _PREDICTOR.items():
        for kind in ("weight", "bias"):
            theirs[f"{name}.{kind}"] = tensors[f"{ours}.{kind}"]
    return theirs | _blocks_to_hf(tensors, "predictor", model.predictor)


def predictor_from_hf(tensors: Tensors, model: ModelSpec) -> dict[str, torch.Tensor]:
    """The inverse of `predictor_to_hf`; weights of other modules are passed over."""
    ours = {"mask_token": tensors[_MASK_TOKENS][:, 0, 0, :]}
    for name, theirs in _PREDICTOR.items():
        for kind in ("weight", "bias"):
            ours[f"{name}.{kind}"] = tensors[f"{theirs}.{kind}"]
    return ours | _blocks_from_hf(tensors, "predictor", model.predictor)


def _patch_shape(model: ModelSpec, channels: int) -> tuple[int, int, int, int]:
    return model.tubelet_frames, model.patch_px, model.patch_px, channels


def _blocks_to_hf(tensors: Tensors, module: str, vit: VitSpec) -> dict[str, torch.Tensor]:
    theirs = {}
    for layer in range(vit.depth):
        ours, block = f"trunk.blocks.{layer}", f"{module}.layer.{layer}"
        for kind in ("weight", "bias"):
            for part, name in _BLOCK.items():
                theirs[f"{block}.{name}.{kind}"] = tensors[f"{ours}.{part}.{kind}"]
            for name, third in zip(_ATTENTION, tensors[f"{ours}.qkv.{kind}"].chunk(3), strict=True):
                theirs[f"{block}.attention.{name}.{kind}"] = third
    return theirs


def _blocks_from_hf(tensors: Tensors, module: str, vit: VitSpec) -> dict[str, torch.Tensor]:
    import torch

    ours = {}
    for layer in range(vit.depth):
        block, theirs = f"trunk.blocks.{layer}", f"{module}.layer.{layer}"
        for kind in ("weight", "bias"):
            for part, name in _BLOCK.items():
                ours[f"{block}.{part}.{kind}"] = tensors[f"{theirs}.{name}.{kind}"]
            thirds = [tensors[f"{theirs}.attention.{name}.{kind}"] for name in _ATTENTION]
            ours[f"{block}.qkv.{kind}"] = torch.cat(thirds)
    return ours


def hf_shapes(config: HfConfig, predictor: bool) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that a configuration asks for, of the predictor too if wanted."""
    model = model_spec(config)
    width, narrow = config.hidden_size, config.pred_hidden_size
    time, height, breadth, channels = _patch_shape(model, config.in_chans)
    found = {f"{_PATCHES}.weight": (width, channels, time, height, breadth), f"{_PATCHES}.bias": (width,)}
    found |= _block_shapes("encoder", model.encoder) | _pair("encoder.layernorm", width)
    if predictor:
        found[_MASK_TOKENS] = (config.pred_num_mask_tokens, 1, 1, narrow)
        found |= _pair(_PREDICTOR["embed"], narrow, width) | _block_shapes("predictor", model.predictor)
        found |= _pair(_PREDICTOR["trunk.norm"], narrow) | _pair(_PREDICTOR["out"], width, narrow)
    return found


def _pair(name: str, width: int, *inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width, *inputs), f"{name}.bias": (width,)}


def _block_shapes(module: str, vit: VitSpec) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for layer in range(vit.depth):
        block = f"{module}.layer.{layer}"
        found |= _pair(f"{block}.norm1", vit.width) | _pair(f"{block}.norm2", vit.width)
        for name in (*_ATTENTION, "proj"):
            found |= _pair(f"{block}.attention.{name}", vit.width, vit.width)
        found |= _pair(f"{block}.mlp.fc1", vit.mlp_width, vit.width)
        found |= _pair(f"{block}.mlp.fc2", vit.width, vit.mlp_width)
    return found


def hf_names(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Names as `VJEPA2Model` has them: of a model that holds one (`vjepa2.`), or of a bare encoder."""
    named = {name.removeprefix("vjepa2."): tensor for name, tensor in tensors.items()}
    if len(named) < len(tensors):
        raise UserError("some weights are there twice, with and without the prefix `vjepa2.`")
    if not any(name.startswith("encoder.") for name in named):
        bare = ("embeddings.", "layer.", "layernorm.")
        return {f"encoder.{n}" if n.startswith(bare) else n: tensor for n, tensor in named.items()}
    return named
