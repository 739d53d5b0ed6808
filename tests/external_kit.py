"""Tiny models of transformers with random weights, saved with processors as a user would find them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from salt.specs import ClipSpec, ModelSpec, VitSpec

FRAMES, SIDE_PX = 4, 24
CLIP = ClipSpec(
    frames=FRAMES, frame_stride=1, store_px=32, crop_px=SIDE_PX, channels=3, mean=(0.4, 0.5, 0.6), std=0.25
)
#: 2 x 3 x 3 tokens.
MODEL = ModelSpec(
    encoder=VitSpec(width=24, depth=1, heads=2, mlp_width=48),
    predictor=VitSpec(width=24, depth=1, heads=2, mlp_width=48),
    tubelet_frames=2,
    patch_px=8,
)
_TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
KINDS = ("videomae", "vjepa2", "dinov2", "dinov2_with_registers", "swiglu", "clip", "clip_whole", "siglip")


def save(kind: str, folder: Path, seed: int = 0, **changes: Any) -> Any:
    """Save a model of a kind, three patches high and wide, with its processor; the model as it was made."""
    import transformers as hf

    square = {"image_size": 24, "patch_size": 8}
    wide = _TOWER | {"intermediate_size": 64}
    small = {"image_size": 21, "patch_size": 7, "mlp_ratio": 2}
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
            "vocab_size": 9, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    makers: dict[str, Any] = {
        "videomae": lambda: hf.VideoMAEModel(
            hf.VideoMAEConfig(**square | wide | {"num_frames": FRAMES, "use_mean_pooling": False} | changes)
        ),
        "vjepa2": lambda: hf.VJEPA2Model(
            hf.VJEPA2Config(
                patch_size=8, crop_size=24, frames_per_clip=FRAMES, mlp_ratio=2.0, pred_hidden_size=24,
                pred_num_attention_heads=2, pred_num_hidden_layers=1,
                **_TOWER | {"hidden_size": 48} | changes,
            )
        ),
        "dinov2": lambda: hf.Dinov2Model(hf.Dinov2Config(**small | _TOWER | changes)),
        "dinov2_with_registers": lambda: hf.Dinov2WithRegistersModel(
            hf.Dinov2WithRegistersConfig(**small | _TOWER | changes)
        ),
        "swiglu": lambda: hf.Dinov2Model(hf.Dinov2Config(use_swiglu_ffn=True, **small | _TOWER | changes)),
        "clip": lambda: hf.CLIPVisionModel(hf.CLIPVisionConfig(**square | wide | changes)),
        "clip_whole": lambda: hf.CLIPModel(
            hf.CLIPConfig(vision_config=square | wide | changes, text_config=text, projection_dim=8)
        ),
        "siglip": lambda: hf.SiglipVisionModel(hf.SiglipVisionConfig(**square | wide | changes)),
    }  # fmt: skip
    torch.manual_seed(seed)
    model = makers[kind]().eval()
    with torch.no_grad():  # fresh norms and biases are ones and zeros, which would hide a mistake
        for weights in model.parameters():
            weights.add_(0.05 * torch.randn_like(weights))
    model.save_pretrained(folder)
    write_processor(kind, folder)
    return model


def write_processor(kind: str, folder: Path, **changes: Any) -> None:
    """A processor's file, as `save_pretrained` writes it; V-JEPA 2's class needs torchvision to be made."""
    patch_px = 7 if kind in ("dinov2", "dinov2_with_registers", "swiglu") else 8
    side = {"height": 3 * patch_px, "width": 3 * patch_px}
    names = {
        "videomae": "VideoMAEImageProcessor",
        "clip": "CLIPImageProcessor",
        "clip_whole": "CLIPImageProcessor",
        "siglip": "SiglipImageProcessor",
    }
    fields = {
        "do_center_crop": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "crop_size": side,
        "size": {"shortest_edge": 3 * patch_px},
        "image_mean": [0.485, 0.456, 0.406],
        "image_std": [0.229, 0.224, 0.225],
        "rescale_factor": 1 / 255,
        "resample": 3 if kind not in ("videomae", "vjepa2") else 2,
    }
    if kind == "vjepa2":
        name = "video_preprocessor_config.json"
        fields["video_processor_type"] = "VJEPA2VideoProcessor"
    else:
        name = "preprocessor_config.json"
        fields["image_processor_type"] = names.get(kind, "BitImageProcessor")
    (folder / name).write_text(json.dumps(fields | changes))


def crops(clips: int = 2, seed: int = 1, clip: ClipSpec = CLIP) -> torch.Tensor:
    """Clips as a decoder gives them, uint8 [B, T, side, side, C]."""
    random = torch.Generator().manual_seed(seed)
    shape = (clips, clip.frames, clip.crop_px, clip.crop_px, clip.channels)
    return torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
