"""From runs to lanes to arrays: what one job works through, and which jobs it waits for.

Pure: nothing here asks Slurm or reads a store. A run waits only for the lanes that make what it begins from;
runs that wait for the same lanes share lanes and arrays. Short runs are put together until a lane is as long
as wanted. Under a cap on jobs at once each lane has a slot, and waits for the one before it in that slot, so
that the cap holds over all arrays of a plan, those that were sent before included.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from slurm.records import Lane, LaneRef

#: A lane that is not sent yet, by its place among the new ones.
New = int


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """How lanes are to be cut.

    `seconds` are what runs take by estimate, None or absent where nobody knows: such a run has a lane of its
    own. A lane is about `lane_s` long on `workers` processes; 0 gives each run its own. At most `slots` lanes
    run at once.
    """

    seconds: Mapping[str, float | None] = field(default_factory=dict)
    lane_s: float = 0.0
    workers: int = 1
    slots: int | None = None


@dataclass(frozen=True, kw_only=True)
class PlannedLane:
    """A lane to be sent, after lanes that are live already and after new ones."""

    lane: Lane
    after: frozenset[LaneRef]
    after_new: frozenset[New]


@dataclass(frozen=True, kw_only=True)
class Array:
    """Lanes, by place, that are sent as one array: all of them wait for the same."""

    lanes: tuple[New, ...]
    after: frozenset[LaneRef]
    after_new: frozenset[New]


def plan_lanes(
    needs: Mapping[str, Sequence[str]],
    made_by: Mapping[str, LaneRef],
    wishes: Wishes,
    busy: Mapping[int, LaneRef] | None = None,
) -> list[PlannedLane]:
    """Lanes for the runs that are the keys of `needs`, in that order, which is one that they can be made in.

    Args:
        needs: run_id -> the runs that have not yet made what it begins from. made_by: the live lanes of runs
            that were sent before. busy: slot -> the lane that has it at present.
    """
    lane_of: dict[str, New] = {}
    lanes: list[PlannedLane] = []
    waiting = dict(needs)
    while waiting:
        # All whose makers have a lane, or will get none here: these form one level.
        level = [
            run_id for run_id, above in waiting.items() if not any(name in waiting for name in above)
        ] or list(waiting)
        groups: dict[tuple[frozenset[LaneRef], frozenset[New]], list[str]] = {}
        for run_id in level:
            above = waiting[run_id]
            sent = frozenset(made_by[name] for name in above if name in made_by and name not in lane_of)
            new = frozenset(lane_of[name] for name in above if name in lane_of)
            groups.setdefault((sent, new), []).append(run_id)
        for (sent, new), runs in groups.items():
            for lane in _cut(runs, wishes):
                lanes.append(PlannedLane(lane=lane, after=sent, after_new=new))
                lane_of |= dict.fromkeys(lane.runs, len(lanes) - 1)
        for run_id in level:
            del waiting[run_id]
    return lanes if wishes.slots is None else _into_slots(lanes, wishes.slots, busy or {})


def _cut(runs: Sequence[str], wishes: Wishes) -> Iterator[Lane]:
    """Lanes of about the wished length; at most as many as there are slots, where that is fewer."""
    known: list[tuple[str, float]] = []
    for run_id in runs:
        seconds = wishes.seconds.get(run_id)
        if seconds is None or wishes.lane_s <= 0:
            yield Lane(runs=(run_id,), seconds=seconds)
        else:
            known.append((run_id, seconds))
    if not known:
        return
    total = sum(seconds for _, seconds in known)
    count = max(1, min(len(known), round(total / (wishes.lane_s * wishes.workers))))
    if wishes.slots is not None:
        count = min(count, wishes.slots)
    # Longest first into the lane that is shortest so far; within a lane the plan's order stays.
    order = {run_id: place for place, (run_id, _) in enumerate(known)}
    heap = [(0.0, place) for place in range(count)]
    content: list[list[str]] = [[] for _ in range(count)]
    for run_id, seconds in sorted(known, key=lambda item: (-item[1], order[item[0]])):
        length, place = heapq.heappop(heap)
        content[place].append(run_id)
        heapq.heappush(heap, (length + seconds, place))
    lengths = {place: length for length, place in heap}
    for place, names in enumerate(content):
        if names:
            yield Lane(runs=tuple(sorted(names, key=order.__getitem__)), seconds=lengths[place])


def _into_slots(lanes: list[PlannedLane], slots: int, busy: Mapping[int, LaneRef]) -> list[PlannedLane]:
    """Give each lane the slot that is free first, by estimate, and let it wait for the lane before it there.

    Live lanes in slots beyond the cap, sent under another one, are waited for by all: else there could be too
    many at once.
    """
    over = frozenset(reference for slot, reference in busy.items() if slot >= slots)
    tails: dict[int, LaneRef | New] = {slot: reference for slot, reference in busy.items() if slot < slots}
    free = [(1.0 if slot in tails else 0.0, slot) for slot in range(slots)]
    heapq.heapify(free)
    ends: list[float] = []
    placed = []
    for number, planned in enumerate(lanes):
        ready = max((ends[new] for new in planned.after_new), default=0.0)
        free_s, slot = heapq.heappop(free)
        before = tails.get(slot)
        after = planned.after | over
        after_new = planned.after_new
        if isinstance(before, LaneRef):
            after |= {before}
        elif before is not None:
            after_new |= {before}
        # Lanes of unknown length count as equal ones.
        ends.append(max(ready, free_s) + (planned.lane.seconds or 1.0))
        heapq.heappush(free, (ends[-1], slot))
        tails[slot] = number
        lane = Lane(runs=planned.lane.runs, seconds=planned.lane.seconds, slot=slot)
        placed.append(PlannedLane(lane=lane, after=after, after_new=after_new))
    return placed


def arrays(lanes: Sequence[PlannedLane], largest: int) -> list[Array]:
    """Arrays of at most `largest` lanes, each after all that its lanes wait for."""
    groups: dict[tuple[frozenset[LaneRef], frozenset[New]], list[New]] = {}
    for number, planned in enumerate(lanes):
        groups.setdefault((planned.after, planned.after_new), []).append(number)
    found = [
        Array(lanes=tuple(numbers[start : start + largest]), after=after, after_new=after_new)
        for (after, after_new), numbers in groups.items()
        for start in range(0, len(numbers), largest)
    ]
    return _in_order(found)


def _in_order(found: list[Array]) -> list[Array]:
    """An array comes after those that hold a lane which it waits for."""
    array_of = {lane: place for place, array in enumerate(found) for lane in array.lanes}
    needs = [{array_of[lane] for lane in array.after_new} - {place} for place, array in enumerate(found)]
    ordered: list[Array] = []
    done: set[int] = set()
    while len(done) < len(found):
        ready = [place for place in range(len(found)) if place not in done and needs[place] <= done]
        assert ready, "lanes wait for each other"
        ordered += [found[place] for place in ready]
        done.update(ready)
    return ordered


def dependency(after: Sequence[LaneRef], tasks_of: Mapping[str, int]) -> str | None:
    """sbatch's `--dependency`: after these lanes ended, however. `tasks_of` is job -> its number of tasks; a
    job that is waited for whole is named whole.
    """
    by_job: dict[str, list[int]] = {}
    for reference in sorted(after, key=lambda each: (int(each.job), each.task)):
        by_job.setdefault(reference.job, []).append(reference.task)
    names: list[str] = []
    for job, tasks in by_job.items():
        whole = len(tasks) == tasks_of.get(job)
        names += [job] if whole else [f"{job}_{task}" for task in tasks]
    return f"afterany:{':'.join(names)}" if names else None
