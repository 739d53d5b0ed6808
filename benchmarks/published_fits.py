"""Published fits from their own data: `python benchmarks/published_fits.py --data FOLDER`.

The data carry no licence and are not part of salt. FOLDER holds, under these names,
`chinchilla_fig4_epoch.csv` (repository epoch-research/analyzing-chinchilla, data/svg_extracted_data.csv, at
92258837425e1b5f2851d624287f0120583a3d0e) and `isoflops_open_athena.csv` (Open-Athena/scaling-law-analysis,
data/isoflops/extract/isoflops.csv, at 3e0656ee3dce1a2c89aa67691920f5eb9d30f0fc). Prints what is expected
beside what comes out; the exit code is 1 where one is off by more than its tolerance.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import pandas as pd  # noqa: E402 - found from any folder

from analysis.isoflop import exchange, miss, parabola_law, profiles  # noqa: E402
from analysis.law_bootstrap import bootstrap  # noqa: E402
from analysis.law_fit import LawFit, fit_law  # noqa: E402
from analysis.laws import SURFACE, points  # noqa: E402

NAMES = ("exponent_size", "exponent_data", "amplitude_size", "amplitude_data", "asymptote")
#: Replication of Chinchilla's third approach (Besiroglu et al. 2024) on 240 and on all 245 points.
CHINCHILLA = {240: (0.34731, 0.36717, 477.83, 2143.4, 1.81722), 245: (0.3493, 0.4530, None, None, 1.8913)}
OBJECTIVES = {240: 0.0010182740, 245: 0.0018260}
#: Least squares by variable projection (arXiv 2603.22339 and its repository); the last is the residual sum
#: of squares.
SQUARES = {
    "llama_3__raw_loss": (0.31001, 0.31364, 59.14, 155.11, 0.60467, 0.00201972),
    "llama_3__exp_loss": (0.34806, 0.35908, 261.65, 870.22, 1.84055, 0.0074066),
    "ml_scalefit__massivetext__chinchilla": (0.38846, 0.43345, 974.07, 8518.3, 1.91759, 0.0485403),
}


class Checks:
    """Counts what is off, and prints all."""

    def __init__(self) -> None:
        self.off = 0

    def line(self, name: str, expected: float | None, found: float, tolerance: float) -> None:
        if expected is None:
            return
        good = abs(found / expected - 1) <= tolerance
        self.off += not good
        print(f"  {name}: expected {expected:.6g}, found {found:.10g}" + ("" if good else "   OFF"))

    def parameters(self, fit: LawFit, expected: tuple[float | None, ...], tolerance: float) -> None:
        for name, value in zip(NAMES, expected, strict=False):
            self.line(name, value, fit.parameters[name], tolerance)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    folder = parser.parse_args().data
    checks = Checks()
    table = pd.read_csv(folder / "chinchilla_fig4_epoch.csv")
    size, compute = table["Model Size"], table["Training FLOP"]
    for count in (240, 245):
        kept = table["loss"] < (3.44699543 if count == 240 else float("inf"))
        data = points(
            table["loss"][kept],
            metric="loss",
            size=size[kept],
            data=(compute / 6 / size)[kept],
            compute=compute[kept],
        )
        fit = fit_law(SURFACE, data, huber=1e-3)
        print(f"Chinchilla, {len(data)} points, sum of Huber losses (1e-3) of log loss: {fit.status}")
        checks.parameters(fit, CHINCHILLA[count], 2e-4)
        checks.line("objective", OBJECTIVES[count], fit.objective, 1e-5)
        if count == 240:
            draws = bootstrap(fit, draws=4000)
            assert draws is not None
            spread = dict(zip(SURFACE.parameters, draws.parameters.std(axis=0), strict=True))
            print(f"  standard errors: {', '.join(f'{name} {spread[name]:.3g}' for name in NAMES)}")
    runs = pd.read_csv(folder / "isoflops_open_athena.csv")
    for experiment, expected in SQUARES.items():
        rows = runs[runs["experiment"] == experiment]
        data = points(
            rows["loss"],
            metric="loss",
            size=rows["params"],
            data=rows["tokens"],
            compute=rows["budget"],
            budget=rows["budget"],
        )
        fit = fit_law(SURFACE, data, squares=True)
        print(f"{experiment}, {len(data)} points, least squares: {fit.status}")
        checks.parameters(fit, expected[:5], 1e-4)
        checks.line("residual sum of squares", expected[5], 2 * fit.objective, 1e-5)
        if experiment == "llama_3__raw_loss":
            cost = exchange(data)
            line = parabola_law(profiles(data, fit.parameters, cost), cost)
            assert line is not None
            checks.line("parabola's factor of N*", 0.55675, line[0], 1e-4)
            checks.line("parabola's exponent of N*", 0.463221, line[1], 1e-5)
            found = miss(fit.parameters, cost, 3.8e25, line[0] * 3.8e25 ** line[1])
            checks.line("parabola's N* at 3.8e25", 3.93325e11, found.size_parabola, 1e-5)
            print(
                f"  following the parabola wastes {100 * found.share:.1f} % of 3.8e25 FLOPs (abstract: 6.5 %)"
            )
    print(f"{checks.off} off")
    return 1 if checks.off else 0


if __name__ == "__main__":
    sys.exit(main())
