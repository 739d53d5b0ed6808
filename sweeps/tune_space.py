"""What is tuned: fields of the recipe and the ranges they are drawn from, the same effort for every arm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from salt.errors import UserError
from salt.specs import ObjectiveSpec, OptimSpec, Spec
from sweeps.document import decode, unknown_key

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import BaseTrial

    from sweeps.study import Study

Value = float | int | str | bool | None
#: Besides fields of `optim` and `objective`.
MASKS, BUDGET = "masks", "budget_flops"
#: Around the study's own rate and weight decay where no space is given.
LR_FACTOR, DECAY_FACTOR = 8.0, 8.0


class Axis(Spec, kw_only=True):
    """Numbers from `low` to `high`, evenly or (`log`) evenly in their logarithm; or one of `choices`.

    Choices cannot change later: a number is better a range.
    """

    low: float | None = None
    high: float | None = None
    log: bool = False
    choices: tuple[Value, ...] = ()
    arms: tuple[str, ...] | None = None  # None: all

    def end(self, name: Literal["low", "high"]) -> Value:
        """An end of a range, or the first choice."""
        return self.choices[0] if self.choices else self.bounds[name == "high"]

    @property
    def bounds(self) -> tuple[float, float]:
        """Of a range."""
        assert self.low is not None
        assert self.high is not None
        return self.low, self.high


Space = dict[str, Axis]


def parse_space(data: Any, study: Study, where: str) -> Space:
    """A space from a document: `optim.lr: {low: 1e-4, high: 1e-2, log: true}`, `masks: {choices: [...]}`.

    Raises:
        UserError: names the field and the way out: unknown fields, empty or turned ranges, unknown mask sets,
            an EMA momentum in arms that have none.
    """
    if not isinstance(data, dict) or not data:
        raise UserError(
            f"{where}: give fields with their ranges, such as optim.lr: {{low: 1e-4, high: 1e-2, log: true}}"
        )
    known = [f"optim.{name}" for name in OptimSpec.__struct_fields__]
    known += [f"objective.{name}" for name in ObjectiveSpec.__struct_fields__] + [MASKS, BUDGET]
    space: Space = {}
    for name, value in data.items():
        if name not in known:
            raise UserError(unknown_key(f"{where}: {name}", name, known))
        axis = decode(value, Axis, f"{where}: {name}: ")
        if bool(axis.choices) == (axis.low is not None) or (axis.low is None) != (axis.high is None):
            raise UserError(f"{where}: {name}: give either low and high, or choices")
        _check(name, axis, study, f"{where}: {name}")
        space[name] = axis
    return space


def _check(name: str, axis: Axis, study: Study, where: str) -> None:
    if not axis.choices:
        low, high = axis.bounds
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise UserError(f"{where}: from {low:g} to {high:g} is no range: low must be below high")
        if axis.log and low <= 0:
            raise UserError(f"{where}: a logarithmic range begins above 0, not at {low:g}")
    elif len(axis.choices) < 2 or len(set(axis.choices)) < len(axis.choices):
        raise UserError(f"{where}: give at least two different choices")
    if name == MASKS:
        sets = list(study.file.mask_sets)
        for choice in axis.choices if axis.choices else ("a range",):
            if choice not in sets:
                raise UserError(
                    f"{where}: {choice!r} is none of the study's mask_sets "
                    f"({', '.join(sets) or 'it has none'})"
                )
    if name == BUDGET and axis.choices:
        raise UserError(f"{where}: give a range of FLOPs, such as {{low: 1e11, high: 1e12, log: true}}")


def default_space(study: Study, arms: list[str], student: str) -> Space:
    """Learning rate and weight decay by a factor of eight around the study's own, EMA momentum where there is
    one, and masks where the study has sets of them.
    """
    own: Any = study.training("pixel", student, steps=1000)
    rate, decay = own.optim.lr, own.optim.weight_decay_end or 0.05
    space: Space = {
        "optim.lr": Axis(low=rate / LR_FACTOR, high=rate * LR_FACTOR, log=True),
        "optim.weight_decay_end": Axis(low=decay / DECAY_FACTOR, high=decay * DECAY_FACTOR, log=True),
    }
    if "vjepa" in arms:
        space["objective.ema_start"] = Axis(low=0.9, high=0.9995, arms=("vjepa",))
    if len(study.file.mask_sets) > 1:
        space[MASKS] = Axis(choices=tuple(study.file.mask_sets))
    return space


def of_arm(space: Space, arm: str) -> Space:
    """The part of a space that an arm has."""
    return {name: axis for name, axis in space.items() if axis.arms is None or arm in axis.arms}


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """The same for Optuna."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {
        name: FloatDistribution(*axis.bounds, log=axis.log)
        if not axis.choices
        else CategoricalDistribution(axis.choices)
        for name, axis in space.items()
    }


def suggest(trial: BaseTrial, space: Space) -> dict[str, Value]:
    """Values of a trial."""
    values: dict[str, Value] = {}
    for name, axis in space.items():
        if not axis.choices:
            values[name] = trial.suggest_float(name, *axis.bounds, log=axis.log)
        else:
            values[name] = trial.suggest_categorical(name, axis.choices)
    return values


def plain(space: Space) -> dict[str, Any]:
    """For a file."""
    found: dict[str, Any] = msgspec.to_builtins(space)
    return found
