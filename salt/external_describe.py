"""What a folder of transformers says of its model: family, shape, input, normalisation; read, not run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from salt.adapter_spec import AdapterSpec, Family, GridResize, PerTubelet
from salt.errors import UserError
from salt.hf_content import json_content_sha256, read_object, weights_content_sha256
from salt.hf_folder import CONFIG, PROCESSORS
from salt.hf_transformers import LOCAL, transformers
from salt.specs import UNSET, ExternalRef, VitSpec

#: `model_type` of a configuration -> its family. Of two towers the one that sees is taken.
FAMILIES: dict[str, Family] = {
    "vjepa2": "vjepa2",
    "videomae": "videomae",
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2_with_registers",
    "clip": "clip",
    "clip_vision_model": "clip",
    "siglip": "siglip",
    "siglip_vision_model": "siglip",
}
#: Families that can be given another input size than their own.
ANY_SIZE: tuple[Family, ...] = ("vjepa2", "dinov2", "dinov2_with_registers", "clip", "siglip")
VIDEO: tuple[Family, ...] = ("vjepa2", "videomae")
#: What a processor of several parts (images and text) saves instead.
JOINT_PROCESSOR = "processor_config.json"
#: PIL's numbers of the filters that we have.
_FILTERS: dict[int, Literal["bilinear", "bicubic"]] = {2: "bilinear", 3: "bicubic"}


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a study asks of an external model, where it asks."""

    input_px: int | None = None
    per_tubelet: PerTubelet | None = None
    resize_grid: GridResize = "none"
    trained_flops: int | None = None


@dataclass(frozen=True, kw_only=True)
class Described:
    """A model by content: its blocks as ours are described, and the reference that a run's spec holds."""

    encoder: VitSpec
    reference: ExternalRef

    @property
    def adapter(self) -> AdapterSpec:
        assert self.reference.adapter
        return self.reference.adapter


@dataclass(frozen=True, kw_only=True)
class _Processor:
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float
    resample: Literal["bilinear", "bicubic"]
    side: int | None
    sha256: str


def describe(folder: Path, reading: Reading, where: str) -> Described:
    """A folder's model by its content, without running it; `where` names the place that asks, in errors.

    Raises:
        UserError: transformers is missing, a file is missing or damaged, a family that is not known, or a
            size that the model cannot take.
    """
    if not (folder / CONFIG).is_file():
        raise UserError(f"{where}: {folder / CONFIG} is not there; name the folder of a saved model")
    with transformers(where) as package:
        config = _config(package, folder, where)
        processor = _processor(package, folder, where)
    kind = str(config.model_type)
    if kind not in FAMILIES:
        raise UserError(
            f"{where}: {folder / CONFIG} is a {kind!r}; external teachers can be "
            f"{', '.join(sorted(FAMILIES))}"
        )
    family = FAMILIES[kind]
    sees = getattr(config, "vision_config", config)
    if getattr(sees, "num_channels", getattr(sees, "in_chans", 3)) != 3:
        raise UserError(f"{where}: the model reads {sees.num_channels} channels, and colour has 3")
    own, patch = _side(sees, where), _square(sees.patch_size, "patch_size", where)
    side = _input_px(family, own, patch, processor.side, reading, where)
    if reading.per_tubelet is not None and family in VIDEO:
        raise UserError(
            f"{where}: per_tubelet {reading.per_tubelet}: {family} reads whole clips, not frames; leave it "
            "out"
        )
    adapter = AdapterSpec(
        family=family,
        config_sha256=json_content_sha256(folder / CONFIG),
        processor_sha256=processor.sha256,
        input_px=side,
        interpolated=side != own and family not in VIDEO,
        patch_px=patch,
        tubelet_frames=int(sees.tubelet_size) if family in VIDEO else None,
        frames=int(sees.num_frames) if family == "videomae" else None,
        special_tokens=_special_tokens(family, sees),
        rescale=processor.rescale,
        mean=processor.mean,
        std=processor.std,
        resample=processor.resample,
        per_tubelet=reading.per_tubelet or "mean",
        resize_grid=reading.resize_grid,
    )
    reference = ExternalRef(
        format="transformers",
        model=kind,
        weights_sha256=weights_content_sha256(folder),
        adapter=adapter,
        stated_flops=UNSET if reading.trained_flops is None else reading.trained_flops,
    )
    return Described(encoder=_vit(family, sees), reference=reference)


def _config(package: Any, folder: Path, where: str) -> Any:
    try:
        return package.AutoConfig.from_pretrained(folder, **LOCAL)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{where}: {folder / CONFIG} cannot be read by transformers: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or repr(error)).splitlines()[0]


def _vit(family: Family, config: Any) -> VitSpec:
    """The blocks. An MLP with a gate has three products where ours has two, of half as many numbers each."""
    width = int(config.hidden_size)
    if family in ("vjepa2", "dinov2", "dinov2_with_registers"):
        mlp = int(width * config.mlp_ratio)
        if getattr(config, "use_swiglu_ffn", False):
            mlp = 3 * ((int(mlp * 2 / 3) + 7) // 8 * 8) // 2
    else:
        mlp = int(config.intermediate_size)
    return VitSpec(
        width=width, depth=int(config.num_hidden_layers), heads=int(config.num_attention_heads), mlp_width=mlp
    )


def _special_tokens(family: Family, config: Any) -> int:
    """Tokens before the patches: a class token, and registers."""
    if family == "dinov2_with_registers":
        return 1 + int(config.num_register_tokens)
    return 1 if family in ("dinov2", "clip") else 0


def _side(config: Any, where: str) -> int:
    return _square(getattr(config, "image_size", getattr(config, "crop_size", None)), "image_size", where)


def _square(value: Any, name: str, where: str) -> int:
    values = set(value) if isinstance(value, list | tuple) else {value}
    if len(values) != 1 or not isinstance(side := values.pop(), int):
        raise UserError(f"{where}: the model's {name} is {value!r}, it must be one whole number")
    return side


def _input_px(
    family: Family, own: int, patch: int, processor: int | None, reading: Reading, where: str
) -> int:
    """The side at which the model is run: as asked, as its processor cuts, or that of its configuration."""
    if family not in ANY_SIZE and reading.input_px not in (None, own):
        raise UserError(
            f"{where}: input_px {reading.input_px}: {family} has fixed positions and takes {own} px only; "
            "leave it out"
        )
    side = reading.input_px or (own if family not in ANY_SIZE else processor or own)
    if side % patch:
        raise UserError(
            f"{where}: input_px {side} is not a multiple of the model's patches of {patch} px: give "
            f"input_px: {max(1, side // patch) * patch}"
        )
    return side


# --- the processor --------------------------------------------------------------------------------


def _processor(package: Any, folder: Path, where: str) -> _Processor:
    names = (*PROCESSORS, JOINT_PROCESSOR)
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise UserError(
            f"{where}: {folder} has none of {', '.join(names)}: how this model's pixels are normalised "
            "is not known; save its processor there too, `AutoImageProcessor...save_pretrained(FOLDER)`"
        )
    written = read_object(path)
    for part in ("video_processor", "image_processor"):
        written = written[part] if isinstance(written.get(part), dict) else written
    fields = written | _resolved(package, path)
    try:
        mean, std = (
            msgspec.convert(fields[name], tuple[float, ...] | float) for name in ("image_mean", "image_std")
        )
    except (KeyError, msgspec.ValidationError) as error:
        raise UserError(f"{where}: {path} does not say how pixels are normalised ({error!r})") from error
    means, stds = (value if isinstance(value, tuple) else (value,) * 3 for value in (mean, std))
    if not fields.get("do_normalize", True):
        means, stds = (0.0,) * 3, (1.0,) * 3
    rescale = float(fields.get("rescale_factor") or 1 / 255) if fields.get("do_rescale", True) else 1.0
    resample = int(fields.get("resample") or 2)
    if len(means) != 3 or len(stds) != 3 or min(stds) <= 0:
        raise UserError(f"{where}: {path}: image_mean {means} and image_std {stds} are not three values each")
    if resample not in _FILTERS:
        raise UserError(f"{where}: {path}: resample {resample}: bilinear (2) and bicubic (3) are known")
    return _Processor(
        mean=means,
        std=stds,
        rescale=rescale,
        resample=_FILTERS[resample],
        side=_processor_side(fields),
        sha256=json_content_sha256(path),
    )


def _resolved(package: Any, path: Path) -> dict[str, Any]:
    """Fields as the processor's class fills them in. Some classes need torchvision; then the file must do."""
    auto = package.AutoVideoProcessor if path.name.startswith("video") else package.AutoImageProcessor
    try:
        processor = auto.from_pretrained(path.parent, **LOCAL)
    except (ImportError, OSError, ValueError, KeyError, TypeError):
        return {}
    names = ("image_mean", "image_std", "do_normalize", "do_rescale", "rescale_factor", "resample")
    found = {name: getattr(processor, name, None) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _processor_side(fields: dict[str, Any]) -> int | None:
    """The side of what the processor gives the model."""
    sizes = [fields.get("crop_size")] if fields.get("do_center_crop", False) else []
    for size in (*sizes, fields.get("size")):
        if isinstance(size, int):
            return size
        if isinstance(size, dict):
            for name in ("height", "shortest_edge"):
                if isinstance(size.get(name), int):
                    return int(size[name])
    return None
