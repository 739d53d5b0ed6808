"""The hyperparameters that the papers print, and how a recipe differs from them, field by field.

Values are as in the tables named by `citation`; `None` is "not stated". Where a value comes from released
code and not from the paper, its note says so. `off` and `none` are values: clipping is off, there is no EMA
teacher.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from salt.specs import Arm, Spec, VitSpec
from sweeps.recipe import PUBLISHED_BATCH_CLIPS, Recipe, number_text

Value = float | str | None


class Entry(Spec, kw_only=True):
    """A published value: a number in the field's unit, a word, or None where it is not stated."""

    value: Value
    note: str = ""


class Published(Spec, kw_only=True):
    """One paper's table. `vjepa_entries` replace `entries` where the arm is `vjepa`."""

    key: str
    title: str
    citation: str
    steps: int  # of the main runs
    entries: dict[str, Entry]
    vjepa_entries: dict[str, Entry] = {}

    def entry(self, field: str, arm: Arm) -> Entry:
        own = self.vjepa_entries.get(field) if arm == "vjepa" else None
        return own or self.entries.get(field) or Entry(value=None)


class DiffRow(Spec, kw_only=True):
    """One field of a recipe beside a published one. `differs` is None where either is not known."""

    field: str
    ours: Value
    published: Value
    differs: bool | None
    note: str


def _entries(values: Mapping[str, Value | tuple[Value, str]]) -> dict[str, Entry]:
    return {
        field: Entry(value=value[0], note=value[1]) if isinstance(value, tuple) else Entry(value=value)
        for field, value in values.items()
    }


#: Fields that a recipe rules, or that salt's own schedules fix.
RULED = (
    "lr_start",
    "lr",
    "lr_end",
    "lr_path",
    "warmup_steps",
    "warmup_share",
    "weight_decay_start",
    "weight_decay_end",
    "weight_decay_path",
    "beta1",
    "beta2",
    "eps",
    "clip_norm",
    "ema_start",
    "ema_end",
    "ema_path",
    "schedule_run",
)
#: Fields that the study sets: batch, length, clips, masks and predictor; or that are fixed (crops).
UNRULED = (
    "batch_clips",
    "steps",
    "frames",
    "frame_sampling",
    "crop_px",
    "crop_scale",
    "crop_aspect",
    "tubelet_frames",
    "patch_px",
    "mask_blocks",
    "mask_scales",
    "mask_aspect",
    "predictor_width",
    "predictor_depth",
    "predictor_heads",
    "precision",
)
FIELDS = RULED + UNRULED

#: What all four tables share: clips, masks and the predictor's trunk.
_COMMON: dict[str, Value | tuple[Value, str]] = {
    "batch_clips": PUBLISHED_BATCH_CLIPS,
    "frames": 16,
    "crop_scale": "0.3-1",
    "crop_aspect": "0.75-1.35",
    "tubelet_frames": 2,
    "patch_px": 16,
    "mask_blocks": "8 and 2",
    "mask_scales": "0.15 and 0.7",
    "mask_aspect": "0.75-1.5",
    "predictor_width": 384,
    "predictor_depth": 12,
}
_ABBREVIATED_RAMP: dict[str, Value | tuple[Value, str]] = {
    "lr_start": 2e-4,
    "lr": 6.25e-4,
    "lr_end": 1e-6,
    "lr_path": "cosine",
    "weight_decay_start": 0.04,
    "weight_decay_end": 0.4,
    "weight_decay_path": ("linear", "linear in the paper, a cosine in the released code"),
}
_META_ADAM: dict[str, Value | tuple[Value, str]] = {
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": (1e-8, "released code"),
    "precision": ("bf16", "bfloat16 autocast in the released code"),
}
_VJEPA2_CLIPS: dict[str, Value | tuple[Value, str]] = {
    "frame_sampling": "4 a second",
    "mask_blocks": ("8 and 2", "released code; the paper's table gives scales only"),
    "crop_px": 256,
    "predictor_heads": 12,
    "clip_norm": ("off", "no clipping in the released code"),
}

_SALT = Published(
    key="salt",
    title="SALT",
    citation="Li et al. 2025, arXiv 2509.24317, tables 4 and 5; the same for both stages",
    steps=240_000,
    entries=_entries(
        {
            **_COMMON,
            **_ABBREVIATED_RAMP,
            "weight_decay_path": "cosine",
            "warmup_steps": (10_000, "in every stage, whatever its length"),
            "beta1": 0.9,
            "beta2": 0.95,
            "eps": None,
            "clip_norm": (0.02, "norm or value is not said"),
            "ema_start": "none",
            "ema_end": "none",
            "ema_path": "none",
            "schedule_run": "100 %",
            "steps": (240_000, "80,000 of the teacher and 160,000 of the student in the main runs"),
            "mask_blocks": ("8 and 2", "as in V-JEPA; SALT's table gives scales only"),
            "frame_sampling": "every 4th",
            "crop_px": 224,
            "predictor_heads": (16, "the decoder of the pixel stage is not stated"),
            "precision": None,
        }
    ),
    vjepa_entries={
        field: Entry(value=None, note="not stated for the paper's V-JEPA 2 baseline") for field in RULED
    },
)

_VJEPA = Published(
    key="vjepa",
    title="V-JEPA",
    citation="Bardes et al. 2024, arXiv 2404.08471, table 8, and the released code",
    steps=90_000,
    entries=_entries(
        {
            **_COMMON,
            **_ABBREVIATED_RAMP,
            **_META_ADAM,
            "batch_clips": (PUBLISHED_BATCH_CLIPS, "2400 for ViT-H at 384 px, with the same rate"),
            "warmup_steps": 12_000,
            "clip_norm": (10, "released code: encoder and predictor apart, only after the warmup"),
            "ema_start": 0.998,
            "ema_end": 1.0,
            "ema_path": "linear",
            "schedule_run": ("80 %", "schedules planned for 1.25 times the steps and cut there"),
            "steps": 90_000,
            "frame_sampling": "every 4th",
            "crop_px": (224, "384 for one ViT-H"),
            "predictor_heads": ("as encoder", "as many heads as the encoder"),
        }
    ),
)

_VJEPA2 = Published(
    key="vjepa2",
    title="V-JEPA 2",
    citation="Assran et al. 2025, arXiv 2506.09985, tables 9 and 12, and the released code",
    steps=252_000,
    entries=_entries(
        {
            **_COMMON,
            **_META_ADAM,
            **_VJEPA2_CLIPS,
            "frames": (16, "64 in the cooldown"),
            "crop_px": (256, "up to 512 in the cooldown"),
            "lr_start": 1e-4,
            "lr": 5.25e-4,
            "lr_end": (1e-6, "at the end of the cooldown"),
            "lr_path": ("wsd", "constant after the warmup, then a linear cooldown of 12,000 steps"),
            "warmup_steps": 12_000,
            "weight_decay_start": 0.04,
            "weight_decay_end": 0.04,
            "weight_decay_path": "constant",
            "ema_start": 0.99925,
            "ema_end": 0.99925,
            "ema_path": "constant",
            "schedule_run": (
                "100 %",
                "the stretch of 1.25 in the configurations changes no constant schedule",
            ),
            "steps": (252_000, "12,000 warmup, 228,000 constant, 12,000 cooldown"),
        }
    ),
)

_VJEPA2_SHORT = Published(
    key="vjepa2-short",
    title="V-JEPA 2 short",
    citation="Assran et al. 2025, arXiv 2506.09985, table 10 (abbreviated recipe), table 12, released code",
    steps=90_000,
    entries=_entries(
        {
            **_COMMON,
            **_ABBREVIATED_RAMP,
            **_META_ADAM,
            **_VJEPA2_CLIPS,
            "warmup_steps": 12_000,
            "ema_start": 0.999,
            "ema_end": 1.0,
            "ema_path": "linear",
            "schedule_run": None,
            "steps": 90_000,
        }
    ),
)

PUBLISHED: dict[str, Published] = {table.key: table for table in (_SALT, _VJEPA, _VJEPA2, _VJEPA2_SHORT)}


def ours(recipe: Recipe, *, arm: Arm, size: VitSpec, batch_clips: int, steps: int) -> dict[str, Value]:
    """What a recipe gives for each of `FIELDS`; None for what the study sets.

    The batch is in clips; `steps` of 0 means the length of the recipe's source.
    """
    length = steps or recipe.published_steps
    optim = recipe.optim(arm, size, batch_clips, length)
    objective = recipe.objective(arm, size, batch_clips, length)
    values: dict[str, Value] = dict.fromkeys(FIELDS)
    values.update({field: value for field, value in optim.items() if field in FIELDS})
    values["lr_path"] = recipe.schedule
    values["warmup_steps"] = round(optim["warmup_share"] * length)
    constant = optim["weight_decay_start"] == optim["weight_decay_end"] or recipe.schedule == "wsd"
    values["weight_decay_path"] = "constant" if constant else "cosine"
    values["clip_norm"] = "off" if optim["clip_norm"] is None else optim["clip_norm"]
    if arm == "vjepa":
        constant = objective["ema_start"] == objective["ema_end"]
        values |= objective | {"ema_path": "constant" if constant else "linear"}
    else:
        values |= {"ema_start": "none", "ema_end": "none", "ema_path": "none"}
    # Schedules are run to their end, and crops are squares of `crop_px`, never rescaled, whatever the recipe.
    values |= {"schedule_run": "100 %", "crop_scale": "fixed", "crop_aspect": "1"}
    values["batch_clips"], values["steps"] = batch_clips, length
    return values


def diff(
    recipe: Recipe, published: Published, *, arm: Arm, size: VitSpec, batch_clips: int, steps: int
) -> tuple[DiffRow, ...]:
    """Every field of a recipe beside a published table, differing or not; units as in `ours`."""
    mine = ours(recipe, arm=arm, size=size, batch_clips=batch_clips, steps=steps)
    return tuple(_row(field, mine[field], published, arm) for field in FIELDS)


def _row(field: str, mine: Value, published: Published, arm: Arm) -> DiffRow:
    entry = published.entry(field, arm)
    value, note = entry.value, entry.note
    if field == "warmup_share":
        warmup = published.entry("warmup_steps", arm).value
        if isinstance(warmup, int | float):
            value, note = warmup / published.steps, f"computed from {published.steps:,} steps"
    if mine == "none" and value != "none":
        note = "this arm has no EMA teacher"
    if mine is None:
        note = "; ".join(filter(None, ["not ruled by a recipe", note]))
    return DiffRow(field=field, ours=mine, published=value, differs=_differs(mine, value), note=note)


def _differs(mine: Value, theirs: Value) -> bool | None:
    if mine is None or theirs is None:
        return None
    if isinstance(mine, str) or isinstance(theirs, str):
        return mine != theirs
    return not math.isclose(mine, theirs, rel_tol=1e-9)


def value_text(value: Value) -> str:
    """A value as a table shows it; `-` for what is not stated or not known."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else number_text(value)
