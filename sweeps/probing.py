"""Which probe suites are run on which encoders."""

from __future__ import annotations

from salt.specs import Arm, ProbeSpec, Role, spec_id
from sweeps.config import ProbeConfig
from sweeps.study import Study


class Probing:
    """Suites by id, sorted, and for every kind of run the places of those that it gets."""

    def __init__(self, study: Study, suites: dict[str, ProbeSpec]) -> None:
        ids = {name: spec_id(spec) for name, spec in suites.items()}
        self.specs = {ids[name]: suites[name] for name in sorted(ids, key=lambda name: ids[name])}
        order = list(self.specs)
        self._configs = [(probe, order.index(ids[probe.name])) for probe in study.file.probes]
        self._known: dict[tuple[Arm, Role, int, bool], tuple[int, ...]] = {}

    def places(self, arm: Arm, role: Role, seed: int, at_largest: bool) -> tuple[int, ...]:
        """Places in `specs` of the suites that a run gets, in the order of the study file."""
        key = (arm, role, seed, at_largest)
        if key not in self._known:
            self._known[key] = tuple(
                place for probe, place in self._configs if _is_probed(probe, arm, role, seed, at_largest)
            )
        return self._known[key]


def _is_probed(probe: ProbeConfig, arm: Arm, role: Role, seed: int, at_largest: bool) -> bool:
    """Whether a suite is run on an encoder. References stand beside every budget, so `on` never leaves them
    out.

    Raw pixels are not tokens: suites with attentive probes pass them by.
    """
    if arm == "raw" and "attentive" in probe.kinds:
        return False
    # Imported weights have no seed of the study.
    other_seed = probe.seeds is not None and seed not in probe.seeds and arm != "external"
    if role not in probe.roles or other_seed:
        return False
    return probe.on == "all" or role == "reference" or at_largest
