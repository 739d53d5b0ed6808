"""Which column of a foreign table is what: as `--columns` says, else by obvious names."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from difflib import get_close_matches

from salt.errors import UserError

#: Fields of `--columns`: names that are recognised without it. The first is ours and goes before the others.
#: Compared without case, blanks and punctuation; one letter only as it stands.
NAMES: dict[str, tuple[str, ...]] = {
    "compute": ("total_flops", "compute", "flops", "flop", "training_flop", "training_flops", "train_flops",
                "pretraining_flops", "C"),
    "size": ("parameters", "size", "params", "param_count", "model_size", "n_params", "num_params", "N"),
    "data": ("clips_seen", "data", "tokens", "clips", "samples", "samples_seen", "n_tokens", "num_tokens",
             "training_tokens", "D"),
    "loss": ("final_loss", "loss", "val_loss", "validation_loss", "eval_loss"),
    "metric": ("accuracy", "acc", "metric", "top1", "top1_accuracy"),
    "seed": ("seed",),
    "arm": ("arm", "method", "model", "algorithm"),
    "label": ("label", "task", "benchmark"),
    "kind": ("kind", "probe"),
    "frames": ("frames",),
    "budget": ("budget_flops", "budget", "compute_budget"),
    "student": ("student",),
    "teacher": ("teacher",),
    "teacher_metric": ("teacher_accuracy", "teacher_metric"),
    "share": ("teacher_share", "share"),
    "config": ("config",),
    "gpu_hours": ("gpu_hours",),
    "n_report": ("n_report", "n_test"),
}  # fmt: skip
#: What is computed from two others, only when asked for.
DERIVED = {
    ("compute", "6ND"): ("size", "data"),
    ("data", "C/6N"): ("compute", "size"),
    ("size", "C/6D"): ("compute", "data"),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a field comes from: columns of the file (several only for `config`), times `scale`.

    `percent` is True for `metric=acc%`; `formula` names a derived field and has no columns.
    """

    columns: tuple[str, ...] = ()
    scale: float = 1.0
    percent: bool = False
    formula: str | None = None


def sources(path: str, header: list[str], text: str | None) -> dict[str, Source]:
    """Field -> source: what `text` (`compute=C,size=N,...`) says, and obvious names for the rest.

    Raises `UserError` for a field or column that is not there, and for two columns that are alike.
    """
    named = _named(path, header, text) if text else {}
    taken = {column for source in named.values() for column in source.columns}
    for field, names in NAMES.items():
        if field in named:
            continue
        found = _recognised([name for name in header if name not in taken], names)
        if len(found) > 1:
            raise UserError(
                f"{path}: columns {' and '.join(map(repr, found))} could both be {field}; say which with "
                f"--columns {field}={found[0]}"
            )
        if found:
            named[field] = Source(columns=(found[0],))
    return named


def _recognised(header: list[str], names: tuple[str, ...]) -> list[str]:
    if names[0] in header:
        return [names[0]]
    plain = {_plain(name) for name in names}
    return [name for name in header if _plain(name) in plain]


def _plain(name: str) -> str:
    return name if len(name) == 1 else re.sub(r"[\W_]+", "", name).lower()


def _named(path: str, header: list[str], text: str) -> dict[str, Source]:
    found: dict[str, Source] = {}
    for item in next(csv.reader([text], skipinitialspace=True)):
        field, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise UserError(f"--columns {item!r}: write FIELD=COLUMN, such as compute=flops,loss=val_loss")
        if field not in NAMES:
            near = get_close_matches(field, NAMES, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise UserError(f"--columns {item!r}: no field {field!r}; {hint}fields are {', '.join(NAMES)}")
        if field in found:
            raise UserError(f"--columns names {field} twice; name it once")
        found[field] = _source(path, header, field, value)
    return found


def _source(path: str, header: list[str], field: str, value: str) -> Source:
    if value in header:
        return Source(columns=(value,))
    if (field, value) in DERIVED:
        return Source(formula=value)
    if field in ("metric", "teacher_metric") and value.endswith("%") and value[:-1] in header:
        return Source(columns=(value[:-1],), percent=True)
    column, star, factor = value.rpartition("*")
    if star and column in header:
        try:
            return Source(columns=(column,), scale=float(factor))
        except ValueError:
            raise UserError(f"--columns {field}={value}: {factor!r} is not a number") from None
    parts = tuple(value.split("+"))
    if field == "config" and all(part in header for part in parts):
        return Source(columns=parts)
    near = get_close_matches(value, header, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"--columns {field}={value}: {path} has no column {value!r}; {hint}it has {', '.join(header)}"
    )
