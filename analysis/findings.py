"""What the data say, and what they do not: sentences computed from the table, each with the runs behind it.

Nothing here is fixed text about a study: a sentence appears when its numbers ask for it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis.gather import cells_used
from analysis.intervals import clip_margin, holm
from analysis.pareto import arm_rows, selected, usable
from analysis.plain import flops_text
from analysis.tables import interval, percent

#: A gap between random encoder and headroom that is used up by this share leaves little for pretraining to
#: show.
SATURATED_SHARE = 0.6
#: Half-width of the normal interval, in standard errors, at which a control counts as off chance: about 1 in
#: 700.
CONTROL_ERRORS = 3.2


@dataclass(frozen=True)
class Finding:
    """One sentence or two, under a short topic, with the ids of the runs that it rests on."""

    topic: str
    text: str
    run_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evidence:
    """The tables that findings are read from, made once."""

    table: pd.DataFrame
    configs: pd.DataFrame
    differences: pd.DataFrame
    same_size: pd.DataFrame
    budgets: pd.DataFrame
    teachers: pd.DataFrame


def results(evidence: Evidence) -> list[Finding]:
    """What came out, per label and probe at the largest budget; claims only what the intervals carry."""
    found = []
    ordered = evidence.configs[evidence.configs["frames"] == "ordered"]
    for (label, kind), group in ordered.groupby(["label", "kind"], sort=False):
        chosen = selected(group)
        if chosen.empty:
            found.append(Finding(f"{label}, {kind}", "No finite score: nothing came out."))
            continue
        top = chosen[chosen["budget_flops"] == chosen["budget_flops"].max()]
        arms = [
            f"{row.config} {percent(row.mean)} % (gain over random {percent(row.gain, signed=True)}, "
            f"{interval(row.gain_low, row.gain_high, signed=True)}, n {int(row.n)})"
            for row in top.itertuples()
        ]
        runs = tuple(run for ids in top["run_ids"] for run in ids)
        budget = top["budget_flops"].max()
        text = f"At {flops_text(budget)} FLOPs, configurations chosen on the selection clips: "
        text += (
            "; ".join(arms)
            + ". "
            + _winner(evidence.differences, str(label), str(kind), top["budget_flops"].max())
        )
        found.append(Finding(f"{label}, {kind}", text, runs))
    return found


def _winner(differences: pd.DataFrame, label: str, kind: str, budget: float) -> str:
    here = differences[(differences["label"] == label) & (differences["kind"] == kind)]
    here = here[here["budget_flops"] == budget]
    claimed = here[here["claimed"]]
    if here.empty:
        return "Fewer than two arms have scores here, so arms are not compared."
    if here["p"].isna().all():
        return "Too few common seeds for an interval, so arms are not compared."
    if claimed.empty:
        return "No difference between arms survives correction: no arm is claimed to win."
    return "Claimed after correction: " + "; ".join(claimed["verdict"]) + "."


def limits(evidence: Evidence) -> list[Finding]:
    """Section `what may not be concluded`: every threat that the numbers show, the strongest first."""
    found = [_lost(evidence.table), *_no_gain(evidence), *_not_separable(evidence), *_teaching(evidence)]
    found += [
        *_controls(evidence.table),
        *_saturated(evidence),
        *_below_raw(evidence),
        _seeds(evidence),
        _clips(evidence),
    ]
    found += [_selection(evidence), _repeats(evidence.table), _scale(evidence.table), _charge(evidence.table)]
    return [finding for finding in found if finding is not None]


def _lost(table: pd.DataFrame) -> Finding | None:
    used, total = cells_used(table)
    lost = table[table["state"] != "done"]
    if lost.empty:
        return None
    states = ", ".join(f"{number} {state}" for state, number in lost["state"].value_counts().items())
    text = (
        f"{used} of {total} cells have scores; {len(lost)} of {len(table)} scores are not there ({states}). "
        "If runs are lost for a reason that has to do with their quality, what is left flatters the arm "
        "that lost them."
    )
    return Finding("Runs are missing", text, tuple(dict.fromkeys(lost["run_id"])))


def _no_gain(evidence: Evidence) -> list[Finding]:
    """Labels and probes where no arm's choice beats the random encoder, corrected for looking at several
    arms.
    """
    found = []
    ordered = evidence.configs[evidence.configs["frames"] == "ordered"]
    for (label, kind), group in ordered.groupby(["label", "kind"], sort=False):
        chosen = selected(group)
        top = chosen[chosen["budget_flops"] == chosen["budget_flops"].max()]
        known = top[top["gain_low"].notna()]
        corrected = holm([None if pd.isna(p) else float(p) for p in known["gain_p"]])
        runs = tuple(run for ids in top["run_ids"] for run in ids)
        if known.empty:
            text = "No interval of the gain over a random encoder: a gain from pretraining is not shown."
            found.append(Finding(f"Gain without interval: {label}, {kind}", text, runs))
        elif not any(
            p is not None and p < 0.05 and g > 0 for p, g in zip(corrected, known["gain"], strict=True)
        ):
            largest = percent(known["gain"].max(), signed=True)
            text = (
                f"At the largest budget no arm is above the random encoder after correction for {len(known)} "
                f"arms (largest gain {largest} points). Nothing about {label} may be concluded from this "
                "probe, the order of the arms least of all."
            )
            found.append(Finding(f"No gain shown: {label}, {kind}", text, runs))
    return found


def _not_separable(evidence: Evidence) -> list[Finding]:
    compared = [evidence.differences, evidence.same_size]
    known = pd.concat([part[part["p"].notna()] for part in compared if len(part)] or [evidence.differences])
    if known.empty:
        return [Finding("Arms are not compared", "No pair of arms has enough common seeds for an interval.")]
    claimed = known[known["claimed"]]
    width = ((known["high"] - known["low"]) / 2).median()
    text = (
        f"Of {len(known)} paired comparisons of arms at equal budget, {len(claimed)} survive Holm's "
        "correction within their label and probe. The median half-width of the intervals is "
        f"{percent(width)} points: smaller true differences cannot be told from none here, and an interval "
        "that holds 0 does not show that arms are equal."
    )
    topic = "Arms are not separable" if claimed.empty else "Most comparisons of arms say nothing"
    return [Finding(topic, text)] if len(claimed) <= len(known) / 2 else []


def _teaching(evidence: Evidence) -> list[Finding]:
    """Students above their teacher, but not above pixel training of the same total FLOPs."""
    rows = evidence.teachers[evidence.teachers["frames"] == "ordered"]
    found = []
    for (label, kind), group in rows.groupby(["label", "kind"], sort=False):
        passed = group[group["gap_low"] > 0]
        led = passed[passed["over_pixel_low"] > 0]
        if passed.empty:
            continue
        text = (
            f"In {len(passed)} of {len(group)} teacher-student pairs the student is above its teacher beyond "
            f"the interval; in {len(led)} of those it is also above the pixel arm at equal FLOPs and size "
            "(intervals not corrected). A student has its teacher's compute below it: without that lead, "
            "more FLOPs explain it as well as teaching does."
        )
        runs = tuple(dict.fromkeys(run for ids in passed["run_ids"] for run in ids))
        found.append(Finding(f"Passing a teacher is not yet teaching: {label}, {kind}", text, runs))
    return found


def _controls(table: pd.DataFrame) -> list[Finding]:
    """Order destroyed must mean chance. A score above it says that the label leaks without order."""
    rows = table[(table["role"] == "cell") & usable(table) & (table["frames"] != "ordered")]
    if rows.empty:
        text = (
            "No probe saw shuffled clips or single frames: that labels need the order of frames is not shown."
        )
        return [Finding("No controls of order", text)]
    error = (rows["chance"] * (1 - rows["chance"]) / rows["n_report"]) ** 0.5
    off = rows[rows["accuracy"] > rows["chance"] + CONTROL_ERRORS * error]
    if off.empty:
        return []
    worst = off.loc[off["accuracy"].idxmax()]
    text = (
        f"{len(off)} of {len(rows)} controls (shuffled or single frames) are above chance by more than "
        f"{CONTROL_ERRORS:g} standard errors of their clips, at most {percent(worst['accuracy'])} % "
        f"({worst['label']}, {worst['kind']}, {worst['frames']}) against {percent(worst['chance'])} %: what "
        "these probes read is in part not the order of frames."
    )
    return [Finding("A label leaks without order", text, tuple(dict.fromkeys(off["run_id"])))]


def _saturated(evidence: Evidence) -> list[Finding]:
    """Probes that do most of the work themselves: the random encoder is already near the headroom."""
    table = evidence.table
    rows = table[(table["role"] == "cell") & usable(table) & (table["frames"] == "ordered")]
    found: list[Finding] = []
    for (label, kind), group in rows.groupby(["label", "kind"], sort=False):
        random = group[group["arm"] == "random"]
        supervised = group[(group["arm"] == "supervised") & (group["trained_label"] == label)]
        if supervised.empty:
            topic = f"Headroom unknown: {label}"
            text = f"No encoder supervised on {label} was probed, so how high accuracy can go is not known."
            found += [Finding(topic, text)] if topic not in {finding.topic for finding in found} else []
            continue
        if random.empty:
            continue
        chance, ceiling = group["chance"].mean(), supervised["accuracy"].mean()
        share = (
            (random["accuracy"].mean() - chance) / (ceiling - chance) if ceiling > chance else float("nan")
        )
        if share > SATURATED_SHARE:
            text = (
                f"The random encoder reaches {percent(random['accuracy'].mean())} %, {100 * share:.0f} % of "
                f"the way from chance to the supervised {percent(ceiling)} %. The probe itself does most of "
                "the work, and little is left for pretraining to show."
            )
            found.append(
                Finding(f"Little headroom: {label}, {kind}", text, (*random["run_id"], *supervised["run_id"]))
            )
    return found


def _below_raw(evidence: Evidence) -> list[Finding]:
    table = evidence.table
    raw = table[(table["arm"] == "raw") & usable(table) & (table["frames"] == "ordered")]
    best = evidence.configs[evidence.configs["frames"] == "ordered"]
    found = []
    for row in raw.itertuples():
        here = best[(best["label"] == row.label) & (best["kind"] == row.kind)]
        if here["mean"].notna().any() and here["mean"].max() < row.accuracy:
            text = (
                f"Raw pixels, unprocessed, reach {percent(row.accuracy)} %, more than every pretrained "
                f"encoder (at most {percent(here['mean'].max())} %). With this probe the encoders have lost "
                "something that the pixels hold."
            )
            found.append(Finding(f"Below raw pixels: {row.label}, {row.kind}", text, (row.run_id,)))
    return found


def _seeds(evidence: Evidence) -> Finding | None:
    counts = evidence.configs.loc[
        (evidence.configs["n"] > 0) & (evidence.configs["frames"] == "ordered"), "n"
    ]
    if counts.empty or counts.max() >= 10:
        return None
    low, high = int(counts.min()), int(counts.max())
    text = (
        f"Seeds per configuration: {low if low == high else f'{low} to {high}'}. Student's t intervals over "
        "so few rest on the assumption that seeds are normally distributed, which cannot be checked; one "
        "seed gives no interval at all."
    )
    return Finding("Few seeds", text)


def _clips(evidence: Evidence) -> Finding | None:
    rows = evidence.configs[evidence.configs["mean"].notna()]
    if rows.empty:
        return None
    margin = max(
        clip_margin(float(r.mean), float(r.n_report))
        for r in rows[["mean", "n_report"]].itertuples(index=False)
    )
    text = (
        "All encoders are scored on the same report clips, and the intervals hold seeds only. Other clips "
        f"would move a single accuracy by up to {percent(margin)} points (95 %, binomial), beside what the "
        "seeds show; differences by less."
    )
    return Finding("One set of report clips", text)


def _selection(evidence: Evidence) -> Finding | None:
    ordered = evidence.configs[evidence.configs["frames"] == "ordered"]
    per_arm = ordered.groupby("arm")["config_id"].nunique()
    by_budget = ordered.groupby(["arm", "budget_flops"])["config_id"].nunique().groupby("arm").max()
    if per_arm.empty or by_budget.max() == 1:
        return None
    counts = ", ".join(f"{arm} {number}" for arm, number in by_budget.items())
    text = (
        f"Configurations tried per budget: {counts}. The frontier takes the best mean on the report clips, "
        "which favours the arm with more tries; comparisons of arms use the choice on the selection clips "
        "instead."
    )
    return Finding("The frontier is a maximum", text)


def _repeats(table: pd.DataFrame) -> Finding | None:
    rows = arm_rows(table).drop_duplicates("cell_id")
    most = rows["epochs"].max()
    if pd.isna(most) or most <= 1:
        return None
    worst = rows.loc[rows["epochs"].idxmax()]
    text = (
        f"Up to {most:.2f} epochs over {int(worst['unique_clips']):,} clips ({worst['config']}). Arms whose "
        "step is cheaper see each clip more often at equal FLOPs, so compute and repetition are not told "
        "apart."
    )
    return Finding("Data repeat", text, (worst["run_id"],))


def _scale(table: pd.DataFrame) -> Finding | None:
    rows = arm_rows(table)
    rows = rows[usable(rows)]
    if rows.empty:
        return None
    data = ", ".join(sorted({str(name) for name in table["data"].dropna()})) or "not named"
    known = rows["parameters"].dropna()
    ends = sorted({known.min(), known.max()}) if len(known) else []
    sizes = " to ".join(f"{int(value):,}" for value in ends) or "an unknown number of"
    text = (
        f"Budgets {flops_text(rows['total_flops'].min())} to {flops_text(rows['total_flops'].max())} FLOPs, "
        f"encoders of {sizes} parameters, one training list ({data or 'not named'}), one recipe per "
        "arm. Nothing is shown outside this range: an order of arms here is no forecast for larger ones."
    )
    return Finding("Small scale, one data set", text)


def _charge(table: pd.DataFrame) -> Finding | None:
    students = arm_rows(table)
    if students["teacher_run_id"].isna().all():
        return None
    charge = str(table["charge"].iloc[0])
    meaning = {
        "full": "each student pays for its whole teacher, though teachers are trained once and shared",
        "shared": "students of one teacher share its training, so totals depend on how many students the "
        "plan has",
        "none": "teachers are free, as if they existed anyway: totals of students are not comparable with "
        "those of other arms",
    }[charge]
    text = f"Teacher training is charged `{charge}`: {meaning}. Under another charge the frontiers move."
    return Finding("The charge decides", text)
