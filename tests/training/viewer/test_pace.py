"""Tests when a viewer draws, with a clock of its own."""

from training.viewer.pace import STILL_AFTER, Pace, Quality, Size


def test_coarse_at_once_and_in_full_when_still():
    pace = Pace()
    assert pace.due(0.0) is Quality.NONE and pace.wait(0.0) is None
    pace.change(10.0)
    assert pace.due(10.0) is Quality.MOVING and pace.wait(10.0) == 0
    pace.drawn(Quality.MOVING, 10.0)
    assert pace.due(10.05) is Quality.NONE
    assert abs(pace.wait(10.05) - (STILL_AFTER - 0.05)) < 1e-9
    still = 10.0 + STILL_AFTER + 1e-6
    assert pace.due(still) is Quality.STILL
    pace.drawn(Quality.STILL, still)
    assert pace.due(99.0) is Quality.NONE and pace.wait(99.0) is None


def test_a_drag_is_coarse_throughout():
    """At 30 changes a second and 50 ms a picture there is no full one before the end."""
    pace, now, drawn, changes = Pace(), 0.0, [], [k / 30 for k in range(60)]
    while now < 3.0:
        while changes and changes[0] <= now:
            pace.change(changes.pop(0))
        quality = pace.due(now)
        if quality is not Quality.NONE:
            drawn.append((now, quality))
            pace.drawn(quality, now)
        now += 0.05
    full = [when for when, quality in drawn if quality is Quality.STILL]
    assert len(full) == 1 and full[0] >= 59 / 30 + STILL_AFTER
    assert len(drawn) > 30


def test_what_changes_while_a_picture_is_drawn_is_drawn_again():
    pace = Pace()
    pace.change(1.0)
    pace.change(1.3)  # while the picture of 1.25 is drawn
    pace.drawn(Quality.STILL, 1.25)
    assert pace.due(1.35) is Quality.MOVING


def test_sizes_settle_where_a_picture_takes_the_time_that_there_is():
    """A machine that needs 1 microsecond a pixel, and square pictures: 45 ms are 212 pixels of height."""
    size = Size(most=512)
    for _ in range(20):
        size.took(1e-6 * size.height**2)
    assert 190 <= size.height <= 230
    for _ in range(20):
        size.took(1e-9 * size.height**2)
    assert size.height == 512
    for _ in range(20):
        size.took(10.0)
    assert size.height == size.least
