"""What a study was meant to be and what was run of it, and how the report's numbers are made, in words."""

from __future__ import annotations

import pandas as pd

from analysis.pareto import arm_rows
from analysis.plain import flops_text


def design(table: pd.DataFrame) -> list[tuple[str, str]]:
    arms = arm_rows(table)

    def names(column: str, rows: pd.DataFrame) -> str:
        return ", ".join(str(value) for value in dict.fromkeys(rows[column].dropna())) or "none"

    sizes = arms.dropna(subset=["parameters"]).drop_duplicates("student").sort_values("parameters")
    shares = sorted(set(arms["teacher_share"].dropna()))
    suites = table.dropna(subset=["kind"]).drop_duplicates(["kind", "label", "frames"])
    probes = "; ".join(
        f"{kind} on {names('label', group)} ({names('frames', group)})"
        for kind, group in suites.groupby("kind", sort=False)
    )
    splits = [f"{int(n):,} {text}" for n, text in _probe_clips(table)]
    return [
        ("Arms", names("arm", arms)),
        ("References", names("arm", table[(table["role"] == "cell") & ~table.index.isin(arms.index)])),
        (
            "Students",
            ", ".join(f"{row.student} ({int(row.parameters):,} parameters)" for row in sizes.itertuples()),
        ),
        (
            "Teachers",
            names("teacher", arms) + "".join(f", {100 * share:.3g} % of the budget" for share in shares),
        ),
        ("Budgets", ", ".join(f"{flops_text(b)} FLOPs" for b in sorted(set(arms["budget_flops"].dropna())))),
        ("Seeds", ", ".join(str(int(seed)) for seed in sorted(set(arms["seed"])))),
        ("FLOP convention", _convention(str(table["convention"].iloc[0]))),
        ("Charge for teacher training", str(table["charge"].iloc[0])),
        ("Largest residual of a budget", f"{100 * arms['residual'].abs().max():.2f} %"),
        ("Probes", probes),
        ("Probe clips", ", ".join(splits) or "no scores yet"),
    ]


def _probe_clips(table: pd.DataFrame) -> list[tuple[float, str]]:
    texts = (("n_train", "to train"), ("n_selection", "to select"), ("n_report", "to report"))
    return [(value, text) for name, text in texts for value in sorted(set(table[name].dropna()))]


def _convention(name: str) -> str:
    known = {
        "matmul": "matmul: a multiply-add is 2 FLOPs; matrix products, patch embedding and attention; "
        "backward is twice forward for trained parts; the frozen or EMA teacher's forward passes are "
        "inside; recomputation and probes are not"
    }
    return known.get(name, name)


def ran(table: pd.DataFrame) -> str:
    cells = table[table["role"] == "cell"]
    runs = table.dropna(subset=["own_flops"]).drop_duplicates("run_id")
    done, wanted = int((cells["state"] == "done").sum()), len(cells)
    return (
        f"{cells['cell_id'].nunique()} cells, {table['run_id'].nunique()} runs "
        f"({table.loc[table['role'] == 'teacher', 'run_id'].nunique()} of them teachers only). {len(runs)} "
        f"runs finished, {flops_text(runs['own_flops'].sum())} FLOPs of training with each run counted once, "
        f"{runs['train_wall_s'].sum():,.0f} s of training and {runs['probe_wall_s'].sum():,.0f} s of probes, "
        f"summed over processes. {done} of {wanted} scores of cells are there."
    )


def method(table: pd.DataFrame) -> list[tuple[str, str]]:
    return [
        (
            "Frontier",
            "Per arm, label and probe: configurations whose mean accuracy over seeds no other reaches with "
            "at most its FLOPs. Realised FLOPs within 1 % of the budget count as the budget. Exact; ties "
            "stay together; missing values take no part.",
        ),
        (
            "Intervals",
            "Student's t over seeds, 95 %, two-sided, n − 1 degrees of freedom, report clips fixed. Equal "
            "values or one seed give none.",
        ),
        (
            "Gain over random",
            "Accuracy minus that of the untrained encoder of the same size and seed, then the interval of "
            "the mean.",
        ),
        (
            "Choice",
            "Where an arm has several configurations, comparisons use the one that is best on the "
            "selection clips, never on the report clips.",
        ),
        ("Chance", "The share of the most frequent class of the report clips."),
        (
            "Missing",
            "A run that is missing, failed or diverged stays in the tables with its reason, and is never "
            "counted as 0.",
        ),
        (
            "Total FLOPs",
            "The run's own training, its teacher's forward passes, and its teacher's training as charged "
            f"(`{table['charge'].iloc[0]}`).",
        ),
    ]
