"""A site: the machines a study is to run on, as far as hours, days, money and memory depend on them.

Nothing here changes what is trained or any FLOP budget: a site turns counted FLOPs into time. The share of
the peak that training reaches (`utilisation`) is the one number that no data sheet gives; measure it with
`salt-sweep benchmark`. docs/hardware.md says where the built-in values come from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from salt.errors import UserError
from salt.plain_yaml import written_yaml
from salt.sizes import SIZES
from salt.specs import NonNegativeFloat, PositiveFloat, PositiveInt, RunSpec, Spec, VitSpec
from slurm.profile import SlurmProfile
from slurm.profile_checks import problems as profile_problems
from sweeps.document import decode, parse_yaml, unknown_name

Precision = Literal["bf16", "fp32"]
GIB = 2**30
#: The entry of `utilisation` for sizes without one of their own.
DEFAULT = "default"


class SiteSpec(Spec, kw_only=True):
    """A cluster, or one machine. A "GPU" is whatever one rank of a run computes on, a CPU included.

    `peak_flops` are FLOP/s of one GPU's dense matrix products, by precision; a run's own (`optim.precision`)
    decides which counts. `utilisation` is the share of the peak at `precision` that a run's `matmul` FLOPs
    reach, by the size of the trained encoder; runs of another precision are taken to reach it too.
    `max_gpus` caps the GPUs in use at once by all runs. `reserve_gib` of each GPU's memory is left to the
    driver and to fragmentation.
    """

    name: str  # of the site, in plans and reports
    gpu: str  # what it is called
    gpus_total: PositiveInt  # of the whole site
    gpus_per_node: PositiveInt  # that one run can have on a node
    memory_gib: PositiveFloat  # of one GPU
    peak_flops: dict[Precision, PositiveFloat]  # precision -> FLOP/s of one GPU
    precision: Precision = "bf16"  # at which the shares below hold
    utilisation: dict[str, float]  # size or `default` -> share of the peak that is reached
    measured: tuple[str, ...] = ()  # entries of `utilisation` that were measured; the others are assumed
    max_gpus: PositiveInt | None = None  # None: all of them
    max_hours_per_job: PositiveFloat | None = None  # a run gets GPUs enough for this; none: 7 days
    price_per_gpu_hour: NonNegativeFloat | None = None  # with `currency`; none: no price in plans
    currency: str | None = None  # of the price, such as USD
    reserve_gib: NonNegativeFloat = 4.0  # of each GPU, for driver and fragmentation
    note: str = ""  # where the numbers are from
    slurm: SlurmProfile | None = None  # how jobs are sent there

    @property
    def peak(self) -> float:
        """Peak FLOP/s of one GPU at the site's precision."""
        return self.peak_flops[self.precision]

    @property
    def gpu_cap(self) -> int:
        """GPUs that all runs together may use at once."""
        return self.max_gpus or self.gpus_total

    @property
    def usable_bytes(self) -> int:
        """Memory of one GPU that a run may fill, in bytes."""
        return int((self.memory_gib - self.reserve_gib) * GIB)

    def entry(self, vit: VitSpec) -> str:
        """The entry of `utilisation` that holds for an encoder: its size's name, else `default`."""
        names = (name for name, size in SIZES.items() if size == vit and name in self.utilisation)
        return next(names, DEFAULT)

    def sustained_flops(self, vit: VitSpec, precision: Precision | None = None) -> float:
        """FLOP/s of one GPU that a run of this encoder reaches, in `matmul` FLOPs: peak x utilisation.

        The peak is that of a precision, by default the site's; the share is the same for all of them.
        """
        return self.peak_flops[precision or self.precision] * self.utilisation[self.entry(vit)]

    def source(self, vit: VitSpec) -> Literal["measured", "assumed"]:
        """Whether the utilisation for this encoder was measured."""
        return "measured" if self.entry(vit) in self.measured else "assumed"


def run_precision(spec: RunSpec) -> Precision:
    """What a run computes in, by the name that profiles give it."""
    return "bf16" if spec.optim.precision == "bfloat16" else "fp32"


#: 64 A100 of 80 GB in nodes of 8. Peaks: NVIDIA A100 data sheet, dense. Utilisation: what the SALT paper's
#: GPU-hours (arXiv 2509.24317, 80k teacher and 160k student steps) imply in this repository's FLOPs, by
#: `tests/test_site.py`; sizes below L have no published hours and take a cautious default.
DEFAULT_SITE = SiteSpec(
    name="a100-64",
    gpu="NVIDIA A100 80 GB",
    gpus_total=64,
    gpus_per_node=8,
    memory_gib=79.0,
    peak_flops={"bf16": 312e12, "fp32": 19.5e12},
    utilisation={DEFAULT: 0.15, "vit_l": 0.17, "vit_h": 0.19, "vit_g": 0.22, "vit_gg": 0.27},
    note="utilisation assumed: implied by the GPU-hours of arXiv 2509.24317, which leave out data loading "
    "and communication",
)


def load_site(path: Path | str | None) -> SiteSpec:
    """The site of a profile, or `DEFAULT_SITE` for None.

    Raises:
        UserError: the file cannot be read, has unknown keys or values that contradict each other; the message
            names file, key and way out.
    """
    if path is None:
        return DEFAULT_SITE
    file = Path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}): name a site profile, such as a copy of "
            "examples/sites/a100.yaml"
        ) from error
    site = decode(parse_yaml(data, file), SiteSpec, f"{file}: ")
    problems = _problems(site)
    if problems:
        raise UserError("\n".join(f"{file}: {problem}" for problem in problems))
    return site


def check_slurm(site: SiteSpec, changes: dict[str, Any], where: str) -> SiteSpec:
    """The profile with keys of its section `slurm:` replaced.

    Raises:
        UserError: a key or a value that is none, or that contradicts the others; `where` names the place.
    """
    section = {**msgspec.to_builtins(site.slurm), **changes} if site.slurm is not None else changes
    changed = decode({**msgspec.to_builtins(site), "slurm": section}, SiteSpec, f"{where}: ")
    problems = _problems(changed)
    if problems:
        raise UserError("\n".join(f"{where}: {problem}" for problem in problems))
    return changed


def with_measured(site: SiteSpec, where: str, precision: str, flops_per_s: dict[str, float]) -> SiteSpec:
    """The profile with the measured FLOP/s of some sizes in it; every other value stays.

    Shares are of the profile's own peak, so that peak x utilisation is the speed that was measured.

    Raises:
        UserError: the profile's peak cannot hold a measured speed, or is for another precision.
    """
    if site.precision != precision:
        raise UserError(
            f"{where}: precision {site.precision}, but this was measured in {precision}: "
            "write to another profile, or measure on the device that it describes"
        )
    shares = {size: float(f"{rate / site.peak:.3g}") for size, rate in flops_per_s.items()}
    for size, share in shares.items():
        if not 0 < share <= 1:
            raise UserError(
                f"{where}: {size} reached {flops_per_s[size]:.4g} FLOP/s, {share:g} of "
                f"peak_flops.{precision} {site.peak:g}: correct the peak, or write to another profile"
            )
    measured = tuple(dict.fromkeys([*site.measured, *shares]))
    return msgspec.structs.replace(site, utilisation={**site.utilisation, **shares}, measured=measured)


def site_yaml(site: SiteSpec) -> str:
    """A profile as `load_site` reads it: keys in a fixed order, without those that hold their default."""
    data = msgspec.to_builtins(site)
    for field in msgspec.structs.fields(SiteSpec):
        if not field.required and field.name != "precision" and getattr(site, field.name) == field.default:
            del data[field.name]
    order = [DEFAULT, *SIZES]
    data["utilisation"] = dict(sorted(data["utilisation"].items(), key=lambda item: order.index(item[0])))
    data["peak_flops"] = dict(sorted(data["peak_flops"].items()))
    if "measured" in data:
        data["measured"] = sorted(data["measured"], key=order.index)
    section = data.pop("slurm", None)
    return written_yaml(data) + ("" if site.slurm is None else _slurm_yaml(site.slurm, section))


def _slurm_yaml(profile: SlurmProfile, data: dict[str, Any]) -> str:
    """The section of a profile, a key a line; those that hold their default are left out."""
    lines = ["slurm:"]
    for field in msgspec.structs.fields(SlurmProfile):
        if getattr(profile, field.name) in (field.default, {}):
            continue
        value = data[field.name]
        flow = None if isinstance(value, dict | list | tuple) else False
        text = written_yaml({field.name: value}, flow=flow)
        lines += [f"  {line}" for line in text.splitlines()]
    return "\n".join(lines) + "\n"


#: Below and above these no machine is, and hours, bytes and money would be beyond a number's range.
_EARTHLY: dict[str, tuple[float, float]] = {
    "memory_gib": (1e-3, 1e6),
    "max_hours_per_job": (1e-3, 1e6),
    "price_per_gpu_hour": (0.0, 1e6),
    "peak_flops": (1e6, 1e21),
}
_LEAST_SHARE = 1e-6  # of the peak


def _unearthly(site: SiteSpec) -> list[str]:
    """Values that no machine has, such as those of a mistaken exponent."""
    problems = []
    for field, (least, most) in _EARTHLY.items():
        value = getattr(site, field)
        found = (
            {f"{field}.{key}": item for key, item in value.items()}
            if isinstance(value, dict)
            else {field: value}
        )
        problems += [
            f"{place} {item:g}: {least:g} to {most:g} is what a machine may have"
            for place, item in found.items()
            if item is not None and not least <= item <= most
        ]
    return problems


def _problems(site: SiteSpec) -> list[str]:
    """Every way in which the values of a profile contradict each other."""
    problems = _unearthly(site) + ([] if site.slurm is None else profile_problems(site.slurm))
    names = [DEFAULT, *SIZES]
    problems += [
        unknown_name(f"utilisation.{name}", name, names) for name in site.utilisation if name not in names
    ]
    problems += [
        f"utilisation.{name} {share:g}: give a share of the peak, above 0 and at most 1"
        for name, share in site.utilisation.items()
        if not _LEAST_SHARE <= share <= 1
    ]
    if DEFAULT not in site.utilisation:
        problems.append("utilisation: no entry `default`, which sizes without one of their own take: add it")
    problems += [
        f"measured: {name!r} has no entry in utilisation: add it there or take it from this list"
        for name in site.measured
        if name not in site.utilisation
    ]
    if site.precision not in site.peak_flops:
        problems.append(
            f"precision {site.precision}: peak_flops has {', '.join(site.peak_flops) or 'nothing'}: "
            f"add peak_flops.{site.precision}, or name a precision that is there"
        )
    if site.gpus_per_node > site.gpus_total:
        problems.append(f"gpus_per_node {site.gpus_per_node} is above gpus_total {site.gpus_total}")
    if site.max_gpus is not None and site.max_gpus > site.gpus_total:
        problems.append(
            f"max_gpus {site.max_gpus} is above gpus_total {site.gpus_total}: lower it, or leave it out"
        )
    if site.reserve_gib >= site.memory_gib:
        problems.append(
            f"reserve_gib {site.reserve_gib:g} leaves nothing of memory_gib {site.memory_gib:g}: lower it"
        )
    if site.price_per_gpu_hour is not None and site.currency is None:
        problems.append("price_per_gpu_hour: in what currency? add `currency:`, such as USD")
    return problems
