"""What all specs are made of: numbers in their ranges, and the frozen, strictly decoded base."""

from __future__ import annotations

from typing import Annotated, dataclass_transform

import msgspec
from msgspec import Meta, Struct

PositiveInt = Annotated[int, Meta(ge=1)]
NonNegativeInt = Annotated[int, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0.0, le=1.0)]
PositiveFloat = Annotated[float, Meta(gt=0.0)]
NonNegativeFloat = Annotated[float, Meta(ge=0.0)]
# msgspec 0.22 crashes on a union of a constrained float and a tuple type of fixed length.
Triple = Annotated[tuple[float, ...], Meta(min_length=3, max_length=3)]
PositiveTriple = Annotated[tuple[PositiveFloat, ...], Meta(min_length=3, max_length=3)]


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Spec(Struct, frozen=True, forbid_unknown_fields=True):
    """Base of all specs: frozen, unknown fields refused; each is declared keyword-only."""
