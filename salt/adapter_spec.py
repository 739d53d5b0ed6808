"""How a model of transformers reads our clips and what of its output is a teacher's latents."""

from __future__ import annotations

from typing import Literal

from salt.spec_base import NonNegativeInt, PositiveFloat, PositiveInt, PositiveTriple, Spec, Triple

Family = Literal["vjepa2", "videomae", "dinov2", "dinov2_with_registers", "clip", "siglip"]
#: How the frames of a student's tubelet become one latent, for models that read images.
PerTubelet = Literal["mean", "first", "middle"]
GridResize = Literal["none", "bilinear"]


class AdapterSpec(Spec, kw_only=True):
    """A frozen model of transformers, with all that its latents depend on beside its weights.

    A clip is resized to `input_px`, its values times `rescale` are normalised by `mean` and `std`; of the
    tokens of one pass the first `special_tokens` are dropped. Models with `tubelet_frames` read whole clips,
    those without read single frames. `resize_grid` takes latents to a student's grid of another side.
    """

    family: Family
    config_sha256: str
    processor_sha256: str
    input_px: PositiveInt
    interpolated: bool  # whether that is not the side that its positions were trained at
    patch_px: PositiveInt
    tubelet_frames: PositiveInt | None = None
    frames: PositiveInt | None = None  # that a clip must have; None: any number
    special_tokens: NonNegativeInt = 0
    rescale: PositiveFloat
    mean: Triple
    std: PositiveTriple
    resample: Literal["bilinear", "bicubic"]
    per_tubelet: PerTubelet = "mean"
    resize_grid: GridResize = "none"

    @property
    def side(self) -> int:
        """Tokens along height and width."""
        return self.input_px // self.patch_px

    @property
    def patch_values(self) -> int:
        """Numbers in one patch; all of these models read three channels."""
        return (self.tubelet_frames or 1) * self.patch_px**2 * 3

    def passes(self, frames: int, tubelet_frames: int) -> int:
        """Forward passes for one clip of a student with that many frames and tubelets of that length."""
        if self.tubelet_frames is not None:
            return 1
        return frames if self.per_tubelet == "mean" else frames // tubelet_frames

    def patches(self, frames: int) -> int:
        """Patch tokens in one pass, without the special ones."""
        steps = 1 if self.tubelet_frames is None else frames // self.tubelet_frames
        return steps * self.side**2
