"""Which frames of a video make a clip: where it starts, and the gaps between its frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

from salt.specs import ClipSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

#: Slack in seconds when times are compared: far below a frame, above rounding.
SLACK_S = 1e-6


def start_at(place: float, last_start: int) -> int:
    """The start at `place` in [0, 1) among 0 to `last_start`, all equally likely for a uniform place."""
    if not 0.0 <= place < 1.0:
        raise ValueError(f"place {place} is outside [0, 1)")
    return min(int(place * (last_start + 1)), last_start)


def spread_starts(last_start: int, clips: int) -> list[int]:
    """The centres of `clips` equal parts of the starts 0 to `last_start`; of one clip, the middle."""
    return [(2 * index + 1) * last_start // (2 * clips) for index in range(clips)]


def last_start(video_frames: int, clip: ClipSpec) -> int:
    """The last frame at which a clip of evenly counted frames can start; 0 in a video that is too short."""
    return max(0, video_frames - (clip.frames - 1) * clip.frame_stride - 1)


def pick_frames(video_frames: int, clip: ClipSpec, start: int | None) -> tuple[list[int], int]:
    """Frame numbers of a clip and how many of them are padding.

    `start` is the first frame, from 0 to `video_frames - span`, both reachable; None is the middle of the
    video. Gaps are exactly `frame_stride`. A video shorter than the span follows `short_clips`: `skip`
    raises ValueError; `repeat-last` stays on the last frame; `loop` goes on at the beginning;
    `shrink-stride` takes the largest stride that fits, and where not even stride 1 does, repeats the last
    frame.
    """
    span = (clip.frames - 1) * clip.frame_stride + 1
    if video_frames >= span:
        last = video_frames - span
        first = last // 2 if start is None else start
        if not 0 <= first <= last:
            raise ValueError(f"start frame {first} is outside 0..{last}")
        return [first + index * clip.frame_stride for index in range(clip.frames)], 0
    if clip.short_clips == "skip":
        raise ValueError(
            f"{video_frames} frames, but {clip.frames} frames at stride {clip.frame_stride} span {span}; "
            "short_clips: repeat-last, loop or shrink-stride would keep it"
        )
    stride = clip.frame_stride
    if clip.short_clips == "shrink-stride":
        stride = max(1, (video_frames - 1) // max(1, clip.frames - 1))
    wanted = [index * stride for index in range(clip.frames)]
    padded = sum(1 for number in wanted if number >= video_frames)
    if clip.short_clips == "loop":
        return [number % video_frames for number in wanted], padded
    return [min(number, video_frames - 1) for number in wanted], padded


def last_start_by_time(times_s: NDArray[np.float64], clip: ClipSpec) -> int:
    """The last frame after which the file goes on for the whole span of a clip at `frame_rate_hz`.

    `times_s` are the frames' times, [frames], rising. 0 in a file that is too short.
    """
    import numpy as np

    assert clip.frame_rate_hz is not None
    span_s = (clip.frames - 1) / clip.frame_rate_hz
    return max(0, int(np.searchsorted(times_s, times_s[-1] - span_s + SLACK_S, side="right")) - 1)


def pick_by_time(times_s: NDArray[np.float64], clip: ClipSpec, start: int) -> tuple[list[int], int]:
    """Numbers of the frames nearest in time to the start's time + k / `frame_rate_hz`, and the padding.

    Of two frames equally near, the earlier one. Raises ValueError where the file is slower than asked, so
    that one frame would stand for two moments. A file shorter than the span follows `short_clips`: `skip`
    raises ValueError; `repeat-last` stays on the last frame; `loop` goes on at the beginning, one mean gap
    after the last frame; `shrink-stride` spreads the moments over the whole file, where a frame that serves
    twice counts as padding.
    """
    import numpy as np

    assert clip.frame_rate_hz is not None
    gap_s = 1.0 / clip.frame_rate_hz
    span_s, video_s = (clip.frames - 1) * gap_s, float(times_s[-1] - times_s[0])
    moments = np.arange(clip.frames) * gap_s
    if video_s + SLACK_S >= span_s:
        last = last_start_by_time(times_s, clip)
        if not 0 <= start <= last:
            raise ValueError(f"start frame {start} is outside 0..{last}")
        numbers = _nearest(times_s, times_s[start] + moments)
        _refuse_repeats(times_s, numbers, clip.frame_rate_hz)
        return numbers.tolist(), 0
    if clip.short_clips == "skip":
        raise ValueError(
            f"{video_s:.3g} s, but {clip.frames} frames at {clip.frame_rate_hz:g} per second span "
            f"{span_s:.3g} s; short_clips: repeat-last, loop or shrink-stride would keep it"
        )
    inside = int((moments <= video_s + SLACK_S).sum())
    if clip.short_clips == "shrink-stride":
        numbers = _nearest(times_s, times_s[0] + np.linspace(0.0, video_s, clip.frames))
        return numbers.tolist(), clip.frames - len(np.unique(numbers))
    if clip.short_clips == "loop":
        mean_gap_s = video_s / (len(times_s) - 1) if len(times_s) > 1 else gap_s
        moments = moments % (video_s + mean_gap_s)
    numbers = _nearest(times_s, times_s[0] + moments)
    _refuse_repeats(times_s, numbers[:inside], clip.frame_rate_hz)
    return numbers.tolist(), clip.frames - inside


def _nearest(times_s: NDArray[np.float64], moments_s: NDArray[np.float64]) -> NDArray[np.int64]:
    import numpy as np

    after = np.clip(np.searchsorted(times_s, moments_s), 1, max(1, len(times_s) - 1))
    if len(times_s) == 1:
        return np.zeros(len(moments_s), np.int64)
    earlier = moments_s - times_s[after - 1] <= times_s[after] - moments_s + SLACK_S
    return np.where(earlier, after - 1, after)


def _refuse_repeats(times_s: NDArray[np.float64], numbers: NDArray[np.int64], rate_hz: float) -> None:
    import numpy as np

    repeats = np.flatnonzero(np.diff(numbers) == 0)
    if len(repeats):
        number, video_s = int(numbers[repeats[0]]), float(times_s[-1] - times_s[0])
        rate = f"{(len(times_s) - 1) / video_s:.3g} frames per second on average" if video_s else "one frame"
        raise ValueError(
            f"slower than asked: one frame, at {times_s[number] - times_s[0]:.3g} s, would stand for two "
            f"moments at frame_rate_hz {rate_hz:g} (the file has {rate})"
        )
