"""How runs become lanes and arrays: order, caps, sizes, dependencies."""

import random

from slurm.lanes import PlannedLane, Wishes, arrays, dependency, plan_lanes
from slurm.records import LaneRef


def ends_before(lanes: list[PlannedLane]) -> dict[int, set[int]]:
    """Lane -> all lanes that have ended when it starts."""
    found: dict[int, set[int]] = {}
    for number, lane in enumerate(lanes):
        found[number] = set(lane.after_new)
        for above in lane.after_new:
            assert above < number
            found[number] |= found[above]
    return found


def peak(lanes: list[PlannedLane], seconds: dict[int, float]) -> int:
    """Lanes that run at once at the most, each begun as soon as those before it have ended."""
    starts = [0.0] * len(lanes)
    for number, lane in enumerate(lanes):
        starts[number] = max((starts[a] + seconds[a] for a in lane.after_new), default=0.0)
    spans = [(starts[n], starts[n] + seconds[n]) for n in range(len(lanes))]
    return max(sum(a <= start < b for a, b in spans) for start, _ in spans)


def test_students_wait_for_the_lanes_of_their_own_teachers_alone() -> None:
    needs = {"t1": [], "t2": [], "s1": ["t1"], "s2": ["t1"], "s3": ["t2"], "alone": []}
    lanes = plan_lanes(needs, {}, Wishes())
    by_run = {name: number for number, lane in enumerate(lanes) for name in lane.lane.runs}
    assert len(lanes) == 6
    assert lanes[by_run["s1"]].after_new == lanes[by_run["s2"]].after_new == {by_run["t1"]}
    assert lanes[by_run["s3"]].after_new == {by_run["t2"]}
    assert not lanes[by_run["alone"]].after_new
    found = arrays(lanes, 1001)
    assert [sorted(n for lane in array.lanes for n in lanes[lane].lane.runs) for array in found] == [
        ["alone", "t1", "t2"],
        ["s1", "s2"],
        ["s3"],
    ]


def test_a_teacher_in_the_queue_is_waited_for_there() -> None:
    lanes = plan_lanes({"s": ["t"], "u": ["made elsewhere"]}, {"t": LaneRef(job="7", task=3)}, Wishes())
    assert lanes[0].after == {LaneRef(job="7", task=3)}
    assert not lanes[1].after


def test_chains_and_trunks_follow_one_another() -> None:
    needs = {"trunk": [], "stage1": ["trunk"], "stage2": ["stage1"], "student": ["stage2", "trunk"]}
    before = ends_before(plan_lanes(needs, {}, Wishes()))
    assert before[3] == {0, 1, 2}


def test_short_runs_share_lanes_of_the_wished_length() -> None:
    seconds: dict[str, float | None] = {f"r{n}": 60.0 + n for n in range(100)}
    seconds["unknown"] = None
    lanes = plan_lanes({name: [] for name in seconds}, {}, Wishes(seconds=seconds, lane_s=1800.0))
    alone = [lane for lane in lanes if lane.lane.runs == ("unknown",)]
    rest = [lane.lane for lane in lanes if lane.lane.runs != ("unknown",)]
    total = sum(value for value in seconds.values() if value is not None)
    assert len(alone) == 1
    assert len(rest) == round(total / 1800)
    assert sorted(name for lane in rest for name in lane.runs) == sorted(set(seconds) - {"unknown"})
    for lane in rest:
        assert lane.seconds == sum(seconds[name] or 0.0 for name in lane.runs)
        assert abs(lane.seconds - total / len(rest)) < 160.0  # one run more or less
        assert list(lane.runs) == sorted(lane.runs, key=lambda name: int(name[1:]))
    packed = plan_lanes({name: [] for name in seconds}, {}, Wishes(seconds=seconds, lane_s=1800.0, workers=4))
    assert len(packed) == 1 + round(total / 7200)


def test_a_cap_holds_over_all_arrays() -> None:
    drawn = random.Random(0)
    needs: dict[str, list[str]] = {f"t{n}": [] for n in range(7)}
    needs |= {f"s{n}": [f"t{n % 7}"] for n in range(40)}
    lanes = plan_lanes(needs, {}, Wishes(slots=4))
    before = ends_before(lanes)
    for number, lane in enumerate(lanes):
        others = [n for n, other in enumerate(lanes) if other.lane.slot == lane.lane.slot and n < number]
        assert set(others) <= before[number], "two lanes of a slot at once"
    for _ in range(20):
        assert peak(lanes, {n: drawn.uniform(1.0, 50.0) for n in range(len(lanes))}) <= 4
    assert sorted(name for lane in lanes for name in lane.lane.runs) == sorted(needs)
    assert {lane.lane.slot for lane in lanes} == {0, 1, 2, 3}


def test_short_runs_under_a_cap_are_as_many_lanes_as_slots() -> None:
    seconds = {f"r{n}": 100.0 for n in range(1000)}
    lanes = plan_lanes({name: [] for name in seconds}, {}, Wishes(seconds=seconds, lane_s=1.0, slots=8))
    assert [len(lane.lane.runs) for lane in lanes] == [125] * 8
    assert len(arrays(lanes, 1001)) == 1


def test_a_cap_counts_what_was_sent_before() -> None:
    busy = {0: LaneRef(job="5", task=0), 1: LaneRef(job="5", task=1), 10**6: LaneRef(job="4", task=0)}
    lanes = plan_lanes({f"r{n}": [] for n in range(6)}, {}, Wishes(slots=3), busy)
    assert all(LaneRef(job="4", task=0) in lane.after for lane in lanes), "sent without a slot"
    first = {slot: next(lane for lane in lanes if lane.lane.slot == slot) for slot in range(3)}
    assert LaneRef(job="5", task=0) in first[0].after
    assert LaneRef(job="5", task=1) in first[1].after
    assert first[2].after == {LaneRef(job="4", task=0)}
    assert lanes[0].lane.slot == 2, "the free slot first"


def test_arrays_are_split_at_the_limit_and_come_after_what_they_wait_for() -> None:
    needs: dict[str, list[str]] = {f"t{n}": [] for n in range(2500)}
    needs |= {f"s{n}": ["t0", "t2499"] for n in range(5)}
    lanes = plan_lanes(needs, {}, Wishes())
    found = arrays(lanes, 1001)
    assert [len(array.lanes) for array in found] == [1001, 1001, 498, 5]
    sent: set[int] = set()
    for array in found:
        assert array.after_new <= sent
        sent |= set(array.lanes)
    assert len(sent) == 2505


def test_dependencies_name_whole_jobs_whole() -> None:
    lanes = [LaneRef(job="12", task=n) for n in (1, 0)] + [LaneRef(job="9", task=4)]
    assert dependency(lanes, {"12": 2, "9": 7}) == "afterany:9_4:12"
    assert dependency(lanes, {}) == "afterany:9_4:12_0:12_1"
    assert dependency([], {}) is None
