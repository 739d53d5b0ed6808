"""Recipes: named, versioned rules from encoder size, batch and length to hyperparameters, with sources.

A published version never changes: editing one means a new number, for a study names its recipe as `salt@1`
and must mean the same a year later. A test holds the outputs of every version by hash. A recipe rules the
fields that its rules name and no others; losses, masks and the model are the study's.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from salt.errors import UserError
from salt.specs import Arm, NonNegativeFloat, OptimSpec, PositiveInt, Spec, VitSpec
from sweeps.document import unknown_name

#: A warmup that takes more than this share of a run is worth a warning.
WARMUP_LIMIT = 0.25
#: The global batch in clips at which every published value holds.
PUBLISHED_BATCH_CLIPS = 3072
#: What a new study should name. A study that names no recipe takes the plain defaults of the specs.
DEFAULT_RECIPE = "salt@1"

#: What a value does when batch or length differ from the published ones: nothing; grow with batch / 3072;
#: grow with the root of it; or, for a warmup in steps, become a share of the run's own steps.
Follows = Literal["nothing", "batch", "root of batch", "length"]


class Rule(Spec, kw_only=True):
    """One field of `OptimSpec` or `ObjectiveSpec` and where its value comes from.

    `value` is the one at a batch of 3072 clips; of a rule that follows the length it is a number of steps.
    `None` turns the thing off (no clipping). `citation` names the source, or says that there is none.
    """

    field: str  # such as `optim.lr`
    value: NonNegativeFloat | None
    follows: Follows = "nothing"
    arms: tuple[Arm, ...] | None = None  # None: all
    citation: str

    @property
    def text(self) -> str:
        """The rule in words."""
        if self.follows == "length":
            return f"{self.value:,.0f} steps, as a share of the run's own (at most all of it)"
        shown = number_text(self.value)
        if self.follows == "batch":
            return f"{shown} x batch / {PUBLISHED_BATCH_CLIPS}"
        if self.follows == "root of batch":
            return f"{shown} x sqrt(batch / {PUBLISHED_BATCH_CLIPS})"
        return f"{shown} of the run's steps" if self.field.endswith("_share") else shown

    def at(self, batch_clips: int, steps: int) -> float | None:
        """The field's value at a global batch in clips and a length in steps (at least 1)."""
        if self.value is None or self.follows == "nothing":
            return self.value
        if self.follows == "length":
            return min(1.0, self.value / steps)
        ratio = batch_clips / PUBLISHED_BATCH_CLIPS
        return self.value * (ratio if self.follows == "batch" else math.sqrt(ratio))


class Recipe(Spec, kw_only=True):
    """A version of a set of rules. `schedule` is the study's schedule that it was published with.

    `published_steps` is the length of the source's main runs; rules that follow the length take it where the
    length is not known yet. No rule here reads the encoder's size: each paper has one setting for all its
    sizes. The size is an argument so that a later version may.
    """

    name: str  # with its version, such as `salt@1`
    summary: str
    schedule: Literal["cosine", "wsd"]
    published_steps: PositiveInt
    rules: tuple[Rule, ...]

    @property
    def depends_on_steps(self) -> bool:
        """Whether the length of a run changes its hyperparameters."""
        return any(rule.follows == "length" for rule in self.rules)

    def optim(self, arm: Arm, size: VitSpec, batch_clips: int, steps: int) -> dict[str, Any]:
        """Fields of `OptimSpec` for a global batch in clips and a length in steps (0: not known yet).

        The batch itself and `schedule` are not among them: they are the study's.

        Raises:
            UserError: the batch, which may come unchecked from a study file, is not a number of clips.
        """
        return self._fields("optim.", arm, batch_clips, steps)

    def objective(self, arm: Arm, size: VitSpec, batch_clips: int, steps: int) -> dict[str, Any]:
        """Fields of `ObjectiveSpec` that the recipe rules: EMA momentum, for the arm that has it."""
        return self._fields("objective.", arm, batch_clips, steps)

    def _fields(self, section: str, arm: Arm, batch_clips: int, steps: int) -> dict[str, Any]:
        if not isinstance(batch_clips, int) or batch_clips < 1:
            raise UserError(f"optim.batch_clips: {batch_clips!r} is not a whole number of at least 1")
        if steps < 0:
            raise ValueError(f"{steps} steps: give 0 where the length is not known")
        length = steps or self.published_steps
        return {
            rule.field.removeprefix(section): rule.at(batch_clips, length)
            for rule in self.rules
            if rule.field.startswith(section) and (rule.arms is None or arm in rule.arms)
        }


def number_text(value: float | None) -> str:
    """Up to five digits, whole numbers in full, small ones as 6.25e-4; `off` for None."""
    if value is None:
        return "off"
    if value == 0 or abs(value) >= 0.01:
        return f"{value:,.0f}" if value >= 1000 else f"{value:.5g}"
    mantissa, exponent = f"{value:.4e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


# --- the recipes ----------------------------------------------------------------------------------

_SALT = "Li et al. 2025, arXiv 2509.24317, table 5"
_VJEPA = "Bardes et al. 2024, arXiv 2404.08471, table 8"
_VJEPA_CODE = "Bardes et al. 2024, arXiv 2404.08471, released code (facebookresearch/jepa)"
_VJEPA2 = "Assran et al. 2025, arXiv 2506.09985, table 9"
_VJEPA2_SHORT = "Assran et al. 2025, arXiv 2506.09985, table 10"
_VJEPA2_CODE = "Assran et al. 2025, arXiv 2506.09985, released code (facebookresearch/vjepa2)"
#: The papers state no rule for other batches. V-JEPA's own configuration for a batch of 2400 keeps the rate.
_LINEAR = "; other batches: not stated, linear is how others read the configurations of V-JEPA 2"
_ROOT = "; other batches: square root, as Malladi et al. 2022 find for Adam, arXiv 2205.10287 (betas stay)"
_SALT_EMA = f"{_VJEPA}; the SALT paper does not state the EMA schedule of its baseline"
_EPS = "not stated in the paper; the default of PyTorch's AdamW"


def _rule(field: str, value: float | None, citation: str, follows: Follows = "nothing") -> Rule:
    arms: tuple[Arm, ...] | None = ("vjepa",) if field.startswith("objective.ema") else None
    return Rule(field=field, value=value, follows=follows, arms=arms, citation=citation)


_SALT_2509 = Recipe(
    name="salt-2509@1",
    summary="the SALT paper's table as printed, both stages: 10,000 steps of warmup whatever the length",
    schedule="cosine",
    published_steps=240_000,
    rules=(
        _rule("optim.lr_start", 2e-4, _SALT + _LINEAR, "batch"),
        _rule("optim.lr", 6.25e-4, _SALT + _LINEAR, "batch"),
        _rule("optim.lr_end", 1e-6, _SALT + _LINEAR, "batch"),
        _rule("optim.warmup_share", 10_000, _SALT, "length"),
        _rule("optim.beta1", 0.9, _SALT),
        _rule("optim.beta2", 0.95, _SALT),
        _rule("optim.eps", 1e-8, _EPS),
        _rule("optim.weight_decay_start", 0.04, _SALT),
        _rule("optim.weight_decay_end", 0.4, _SALT),
        _rule("optim.clip_norm", 0.02, f"{_SALT}; norm or value is not said, taken as the norm"),
        _rule("objective.ema_start", 0.998, _SALT_EMA),
        _rule("objective.ema_end", 1.0, _SALT_EMA),
    ),
)

_SALT_1 = Recipe(
    name="salt@1",
    summary="the SALT paper's values, warmup 1/24 of each run, rates with the square root of the batch",
    schedule="cosine",
    published_steps=240_000,
    rules=(
        _rule("optim.lr_start", 2e-4, _SALT + _ROOT, "root of batch"),
        _rule("optim.lr", 6.25e-4, _SALT + _ROOT, "root of batch"),
        _rule("optim.lr_end", 1e-6, _SALT + _ROOT, "root of batch"),
        _rule(
            "optim.warmup_share",
            1 / 24,
            f"{_SALT}: 10,000 steps, of the main 240,000; that it is a share is ours (short teachers)",
        ),
        *_SALT_2509.rules[4:],
    ),
)

_VJEPA_2404 = Recipe(
    name="vjepa-2404@1",
    summary="V-JEPA: cosine, 90,000 steps, EMA 0.998 to 1 (its schedules, cut at 80 %, are run in full)",
    schedule="cosine",
    published_steps=90_000,
    rules=(
        _rule("optim.lr_start", 2e-4, _VJEPA + _LINEAR, "batch"),
        _rule("optim.lr", 6.25e-4, _VJEPA + _LINEAR, "batch"),
        _rule("optim.lr_end", 1e-6, _VJEPA + _LINEAR, "batch"),
        _rule("optim.warmup_share", 12_000, _VJEPA, "length"),
        _rule("optim.beta1", 0.9, _VJEPA_CODE),
        _rule("optim.beta2", 0.999, _VJEPA_CODE),
        _rule("optim.eps", 1e-8, _VJEPA_CODE),
        _rule("optim.weight_decay_start", 0.04, _VJEPA),
        _rule("optim.weight_decay_end", 0.4, _VJEPA),
        _rule("optim.clip_norm", 10.0, f"{_VJEPA_CODE}: encoder and predictor apart, after the warmup"),
        _rule("objective.ema_start", 0.998, _VJEPA),
        _rule("objective.ema_end", 1.0, _VJEPA),
    ),
)

_VJEPA2_2506 = Recipe(
    name="vjepa2-2506@1",
    summary="V-JEPA 2: constant rate after 12,000 steps, linear cooldown; weight decay and EMA constant",
    schedule="wsd",
    published_steps=252_000,
    rules=(
        _rule("optim.lr_start", 1e-4, _VJEPA2 + _LINEAR, "batch"),
        _rule("optim.lr", 5.25e-4, _VJEPA2 + _LINEAR, "batch"),
        _rule("optim.lr_end", 1e-6, _VJEPA2 + _LINEAR, "batch"),
        _rule("optim.warmup_share", 12_000, _VJEPA2, "length"),
        _rule("optim.beta1", 0.9, _VJEPA2_CODE),
        _rule("optim.beta2", 0.999, _VJEPA2_CODE),
        _rule("optim.eps", 1e-8, _VJEPA2_CODE),
        _rule("optim.weight_decay_start", 0.04, _VJEPA2),
        _rule("optim.weight_decay_end", 0.04, _VJEPA2),
        _rule("optim.clip_norm", None, f"{_VJEPA2_CODE}: no clipping"),
        _rule("objective.ema_start", 0.99925, _VJEPA2),
        _rule("objective.ema_end", 0.99925, _VJEPA2),
    ),
)

_VJEPA2_2506_SHORT = Recipe(
    name="vjepa2-2506-short@1",
    summary="V-JEPA 2's abbreviated recipe: cosine over 90,000 steps, EMA 0.999 to 1",
    schedule="cosine",
    published_steps=90_000,
    rules=(
        _rule("optim.lr_start", 2e-4, _VJEPA2_SHORT + _LINEAR, "batch"),
        _rule("optim.lr", 6.25e-4, _VJEPA2_SHORT + _LINEAR, "batch"),
        _rule("optim.lr_end", 1e-6, _VJEPA2_SHORT + _LINEAR, "batch"),
        _rule("optim.warmup_share", 12_000, _VJEPA2_SHORT, "length"),
        *_VJEPA2_2506.rules[4:7],
        _rule("optim.weight_decay_start", 0.04, _VJEPA2_SHORT),
        _rule("optim.weight_decay_end", 0.4, _VJEPA2_SHORT),
        _rule("optim.clip_norm", None, f"{_VJEPA2_CODE}: no clipping"),
        _rule("objective.ema_start", 0.999, _VJEPA2_SHORT),
        _rule("objective.ema_end", 1.0, _VJEPA2_SHORT),
    ),
)

#: Every recipe by its full name, the default first.
RECIPES: dict[str, Recipe] = {
    recipe.name: recipe for recipe in (_SALT_1, _SALT_2509, _VJEPA_2404, _VJEPA2_2506, _VJEPA2_2506_SHORT)
}


def find_recipe(name: str, where: str = "recipe") -> Recipe:
    """The recipe of that name; without `@version` the newest one. `.name` of the result is the full name.

    Args:
        where: the place of the name, which begins the message of an error.

    Raises:
        UserError: no such recipe or version; names the nearest one.
    """
    if name in RECIPES:
        return RECIPES[name]
    base, at, _ = name.partition("@")
    versions = [recipe for recipe in RECIPES.values() if recipe.name.partition("@")[0] == base]
    if versions and not at:
        return max(versions, key=lambda recipe: int(recipe.name.partition("@")[2]))
    raise UserError(unknown_name(where, name, [recipe.name for recipe in versions] or list(RECIPES)))


def warmup_warning(optim: OptimSpec, steps: int) -> str | None:
    """A sentence where the warmup takes more than `WARMUP_LIMIT` of a run's steps, else None."""
    warmup = round(optim.warmup_share * steps)
    if warmup <= WARMUP_LIMIT * steps:
        return None
    return (
        f"the warmup takes {warmup:,} of {steps:,} steps, {100 * warmup / steps:.0f} % of the run and "
        f"more than {100 * WARMUP_LIMIT:.0f} %: lower optim.warmup_share, "
        "or take a recipe whose warmup is a share of each run"
    )
