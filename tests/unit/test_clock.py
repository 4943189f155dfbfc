"""The wall clock follows its source through steps; versions rise all the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from chatd.clock import RTT_S_MAX, STEP_MS, Clock

T0 = 1_700_000_000.0
MONTH_S = 30 * 86_400


class World:
    """True time goes on; the host's and the database's clocks are off by what they are set to."""

    def __init__(self, host_off_s: float = 0.0, db_off_s: float = 0.0) -> None:
        self.at = 100.0
        self.host_off_s, self.db_off_s = host_off_s, db_off_s
        self.clock = Clock(lambda: self.at, self.host)
        self.steps: list[int] = []
        self.clock.stepped = self.steps.append

    def host(self) -> float:
        return T0 + self.at + self.host_off_s

    def db_ms(self) -> int:
        return int((T0 + self.at + self.db_off_s) * 1000)

    def sync(self, rtt_s: float = 0.001, asked: float = 0.5) -> None:
        """A reading that takes `rtt_s`, of which the database reads its clock after a part."""
        self.at += rtt_s * asked
        db_ms = self.db_ms()
        self.at += rtt_s * (1 - asked)
        self.clock.sync(db_ms, rtt_s)

    @property
    def error_ms(self) -> float:
        """Against the database's clock."""
        return self.clock.now_ms() - self.db_ms()


def test_the_first_reading_of_the_database_is_believed_at_once_and_is_no_step() -> None:
    world = World(host_off_s=MONTH_S)
    world.clock.now_ms()
    world.sync()
    assert abs(world.error_ms) <= 2
    assert (world.steps, world.clock.ahead_ms) == ([], 0)


def test_the_hosts_steps_change_nothing_once_the_database_was_read_but_are_told() -> None:
    world = World()
    world.sync()
    world.host_off_s = -MONTH_S
    assert world.clock.watch() == -MONTH_S * 1000
    assert world.clock.watch() == 0
    assert abs(world.error_ms) <= 2
    assert world.steps == []


def test_before_that_the_hosts_clock_is_followed() -> None:
    world = World(host_off_s=MONTH_S)
    world.host_off_s = 0.0
    assert world.clock.watch() == -MONTH_S * 1000
    assert abs(world.clock.now_s() - world.host()) < 0.01
    assert world.steps == [-MONTH_S * 1000]


def test_the_databases_clock_set_back_is_followed_and_versions_run_on() -> None:
    world = World(db_off_s=MONTH_S)
    world.sync()
    before = world.clock.now_ms()
    world.db_off_s = 0.0
    world.sync()
    assert abs(world.error_ms) <= 2
    assert world.clock.now_ms() < before
    assert 0 <= world.clock.now_ms() + world.clock.ahead_ms - before <= 10
    world.db_off_s = MONTH_S
    world.sync()
    assert world.clock.ahead_ms <= 10, "a step forward takes the lead away again"
    assert len(world.steps) == 2


def test_a_slow_reading_is_no_step_but_a_step_beyond_its_doubt_is_one() -> None:
    world = World()
    world.sync()
    world.sync(rtt_s=20.0, asked=0.0)  # off by 10 s at most, as it may have been read at any moment
    world.sync(rtt_s=20.0, asked=1.0)
    assert world.steps == []
    assert abs(world.error_ms) <= 2
    world.db_off_s = 60.0
    world.sync(rtt_s=20.0)
    assert len(world.steps) == 1
    assert abs(world.error_ms) <= 10_000


def test_what_makes_up_for_a_slow_first_reading_is_no_step() -> None:
    """A start on a slow way: the first reading may be off by half of what it took, which is more
    than `STEP_MS`.
    """
    world = World()
    world.sync(rtt_s=2.5, asked=0.02)
    before = world.clock.steady_ms()
    world.sync(rtt_s=0.2)
    assert abs(world.error_ms) <= 2
    assert world.steps == []
    assert abs(world.clock.steady_ms() - before) > STEP_MS, "attach times follow, as the other nodes' do"


def test_a_database_that_has_moved_farther_away_is_followed_again_after_some_readings() -> None:
    world = World()
    world.sync(rtt_s=0.0001)
    world.db_off_s = 0.4  # below a step
    for _ in range(200):
        world.at += 1
        world.sync(rtt_s=RTT_S_MAX * 2)
    assert abs(world.error_ms) <= 5


_moves = st.lists(
    st.one_of(
        st.tuples(st.just("pass"), st.floats(0.0, 100.0)),
        st.tuples(st.just("host"), st.floats(-MONTH_S, MONTH_S)),
        st.tuples(st.just("db"), st.floats(-MONTH_S, MONTH_S)),
        st.tuples(st.just("watch"), st.just(0.0)),
        st.tuples(st.just("sync"), st.floats(0.0, 0.04)),
        st.tuples(st.just("slow"), st.floats(0.05, 10.0)),
    ),
    max_size=60,
)


@given(_moves, st.floats(-MONTH_S, MONTH_S), st.floats(0.0, 1.0))
def test_whatever_is_stepped_versions_rise_and_the_time_is_right_to_a_step(
    moves: list[tuple[str, float]], off_s: float, asked: float
) -> None:
    world = World(host_off_s=off_s)
    clock = world.clock
    last, steps = clock.now_ms(), 0
    last_v = last
    doubt_s = 0.0  # what was read slowly may be off, and where it is ahead the time waits for so long
    for move, value in moves:
        first = not clock.synced
        match move:
            case "pass":
                world.at += value
                doubt_s = max(0.0, doubt_s - value)
            case "host":
                world.host_off_s = value
            case "db":
                world.db_off_s = value
            case "watch":
                clock.watch()
                assert clock.synced or abs(clock.now_s() - world.host()) <= STEP_MS / 1000 + 0.01
            case _:
                known_s = 0.0 if first else clock._rtt_s
                doubt_s = max(doubt_s, known_s)
                world.sync(value, asked)
                if not first:
                    assert abs(world.error_ms) <= STEP_MS + (value + doubt_s) * 1000 + 10
        now = clock.now_ms()
        if first and clock.synced:  # nobody was told anything before
            last = last_v = now
        assert now + clock.ahead_ms >= last_v
        if len(world.steps) == steps:
            assert now >= last, "without a step it never goes back"
        last, last_v, steps = now, now + clock.ahead_ms, len(world.steps)
