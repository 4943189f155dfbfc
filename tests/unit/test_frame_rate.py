"""The rate of frames: who goes over it is told when to come back, forgiven, or closed in the end."""

from __future__ import annotations

import pytest

from chatd.core.frame_rate import (
    DOUBLES_EVERY,
    FORGIVEN_PER_S,
    RETRY_MS_MAX,
    RETRY_MS_MIN,
    THROTTLED_MAX,
    FrameRate,
)


def test_a_frame_within_the_rate_is_not_counted() -> None:
    frames = FrameRate(10.0, 2)
    assert [frames.take(1.0), frames.take(1.0), frames.take(1.0)] == [True, True, False]
    assert frames.throttled == 0


def test_only_so_many_frames_over_the_rate_are_borne() -> None:
    frames = FrameRate(1.0, 1)
    assert not any(frames.too_many(5.0) for _ in range(THROTTLED_MAX))
    assert frames.too_many(5.0)


@pytest.mark.parametrize("first", [0.0, 1e6])
def test_frames_over_the_rate_are_forgiven_in_time(first: float) -> None:
    frames = FrameRate(1.0, 1)
    for _ in range(100):
        frames.too_many(first)
    frames.too_many(first + 60 / FORGIVEN_PER_S)
    assert frames.throttled == pytest.approx(41)
    frames.too_many(first + 1e5)
    assert frames.throttled == 1, "no credit is saved up"


def test_the_wait_doubles_up_to_its_bound() -> None:
    frames, waits = FrameRate(1.0, 1), []
    for _ in range(THROTTLED_MAX):
        frames.too_many(0.0)
        waits.append(frames.retry_ms)
    assert waits[0] == waits[DOUBLES_EVERY - 2] == RETRY_MS_MIN
    assert waits[DOUBLES_EVERY - 1] == 2 * RETRY_MS_MIN
    assert waits == sorted(waits)
    assert waits[-1] == RETRY_MS_MAX
