"""The table of bounds: how much a client can make a node hold or do, and what happens past that.

`make docs` writes it into docs/operations.md. A test checks that each row's metric is exported and
that its test exists. A bound that is a setting is shown by its name and default, others by the
value of their constant.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from chatd import log, log_writer, store
from chatd.chat import gap_fill, history, loading, reads, resync
from chatd.config import Settings
from chatd.core import coalescing, frame_rate, gap, hello_rates, read_pacing, session, unused
from chatd.net.connection import CLOSE_S
from chatd.net.flow_control import CLOSING_FRAMES_MAX
from chatd.net.listener import RECEIVE_BYTES, UNSENT_BYTES
from chatd.postgres import sweep
from chatd.wire import framing, handshake


class Bound(NamedTuple):
    """One row of the table.

    `by`: what it is counted for. `past`: what happens past it. `metric`: its name without `chatd_`.
    `test`: file and function.
    """

    resource: str
    by: str
    bound: str
    past: str
    metric: str
    test: str


def setting(name: str, unit: str = "") -> str:
    """The text of a bound that is a setting: its default, unit and name."""
    default = Settings.model_fields[name].default
    return f"{default:,}{' ' + unit if unit else ''} (`{name}`)"


BOUNDS: Final[tuple[Bound, ...]] = (
    # ---- frames and turns
    Bound(
        "frames of any kind: data, continuation, ping, pong; before hello, too",
        "connection",
        f"{setting('frames_per_s', 'a second')}, {setting('frames_burst', 'at once')}",
        f"a `watch` counts as one more for each {reads.NAMES_A_FRAME} names; "
        "requests are refused with `rate_limited`, pings not answered; "
        f"{frame_rate.THROTTLED_MAX:,} over it (less 1 a second): closed with 4008",
        "frames_throttled_total",
        "tests/faults/test_floods.py::test_frames_of_each_kind_count_in_each_state",
    ),
    Bound(
        "bytes and frames read in a turn of the loop",
        "connection",
        f"{read_pacing.SLICE_BYTES:,} bytes, {framing.FEED_FRAMES_MAX} frames",
        "the rest is read in the next turns, a slice of each connection in turn; "
        "until then nothing more is read from its socket",
        "reads_put_off_total",
        "tests/faults/test_floods.py::test_megabytes_readable_at_once_take_many_turns",
    ),
    Bound(
        "the same, all connections together",
        "node",
        f"{read_pacing.SESSIONS_BUDGET // read_pacing.FRAME_COST:,} frames or {read_pacing.SESSIONS_BUDGET:,} bytes, "
        "of connections without a hello a quarter",
        "as above",
        "reads_put_off_total",
        "tests/unit/test_read_pacing.py::test_a_turn_takes_no_more_than_the_budget",
    ),
    Bound(
        "handshakes in a turn of the loop",
        "node",
        f"{read_pacing.UNAUTHENTICATED_BUDGET // read_pacing.HANDSHAKE_COST}",
        "as above",
        "reads_put_off_total",
        "tests/faults/test_floods.py::test_handshakes_beyond_the_budget_wait_for_the_next_turn",
    ),
    Bound(
        "bytes received and not read",
        "connection",
        f"{RECEIVE_BYTES:,} bytes in the kernel, and one read of them here",
        "TCP stops the sender",
        "reads_put_off_total",
        "tests/faults/test_floods.py::test_megabytes_readable_at_once_take_many_turns",
    ),
    Bound(
        "frames after the server has closed",
        "connection",
        f"{CLOSING_FRAMES_MAX} frames, {CLOSE_S:g} s for the peer's close",
        "nothing more is read; after that time the connection is cut",
        "closing_floods_total",
        "tests/faults/test_floods.py::test_after_our_close_no_more_than_an_outbox_is_read",
    ),
    Bound(
        "a message",
        "connection",
        f"{setting('frame_bytes_max', 'bytes')}, however it is fragmented",
        "closed with 1009",
        "connections_closed_total",
        "tests/unit/test_framing.py::test_a_message_too_big_is_refused_by_its_header",
    ),
    Bound(
        "unreadable messages",
        "connection",
        f"{session.BAD_FRAMES_MAX}",
        "closed with 4000",
        "frames_bad_total",
        "tests/integration/test_hostile.py::test_too_many_unreadable_frames_close",
    ),
    Bound(
        "head of the upgrade request",
        "connection",
        f"{handshake.HEAD_BYTES_MAX:,} bytes, {setting('handshake_ms', 'ms')}",
        "431, or cut",
        "connections_refused_total",
        "tests/faults/test_bounds.py::test_a_handshake_without_end",
    ),
    Bound(
        "plain HTTP requests",
        "connection",
        f"{handshake.REQUESTS_MAX}, {handshake.KEEP_ALIVE_S} s from a response to the next request; "
        "it counts as one without a hello; behind a trusted proxy 1",
        "the last is answered with `Connection: close`; after that time the connection is cut",
        "http_requests_total",
        "tests/faults/test_bounds.py::test_plain_requests_of_a_connection_are_bounded",
    ),
    # ---- connections
    Bound(
        "connections without a hello",
        "address (IPv6: /64)",
        setting("unauthenticated_per_address_max"),
        "its oldest is closed with 4009",
        "connections_refused_total",
        "tests/faults/test_floods.py::test_silent_connections_of_one_address_keep_nobody_out",
    ),
    Bound(
        "connections without a hello",
        "node",
        f"{setting('unauthenticated_max')}, {setting('hello_ms', 'ms')} each",
        "the oldest is closed with 4009; after that time with 4003",
        "connections_refused_total",
        "tests/faults/test_bounds.py::test_of_those_who_wait_for_hello_the_oldest_goes",
    ),
    # ---- reads
    Bound(
        "requests that wait until a conversation is loaded (without `redis_url`)",
        "connection",
        f"{session.DEFERRED_MAX}; {loading.LOAD_MAX} conversations a query, {loading.READERS_MAX} queries at a time",
        "closed with 4009",
        "conversations_loaded_total",
        "tests/integration/test_waiting_requests.py::test_who_sends_too_much_while_one_waits_is_closed",
    ),
    Bound(
        "conversations in memory (without `redis_url`)",
        "connection",
        f"those that its requests named within {2 * unused.ROUND_LOOKS} s",
        "let go after that time",
        "conversations_let_go_total",
        "tests/unit/test_unused.py::test_what_is_used_in_each_round_stays_and_the_rest_goes_within_two",
    ),
    Bound(
        "reads (`history`, `conversations`, `watch`) under way, each until its answer is taken",
        "connection; user",
        f"{reads.READS_MAX}; {reads.USER_READS_MAX}",
        "refused with `overloaded`",
        "reads_refused_total",
        "tests/integration/test_reads.py::test_answers_that_are_not_taken_are_under_way_for_all_devices_of_their_user",
    ),
    Bound(
        "a page of history",
        "answer",
        f"{history.PAGE_BYTES_MAX:,} bytes or one entry; {setting('history_max', 'messages')}",
        "`more`",
        "requests_total",
        "tests/integration/test_reads.py::test_a_page_of_long_messages_ends_with_its_bytes",
    ),
    Bound(
        "reads at the database, one user after another",
        "node",
        f"half of {setting('pool_max', 'connections')}; {setting('reads_queue_max')} wait",
        "the user with the most waiting reads loses the newest: `overloaded`",
        "reads_refused_total",
        "tests/unit/test_fair_queue.py::test_past_the_bound_the_one_who_waits_most_often_loses_its_newest",
    ),
    Bound(
        "a page of a listing for hello",
        "user",
        f"1 at a time, {store.LIST_ROWS_MAX:,} conversations looked at, {store.LIST_ALL_MAX} where all are listed",
        "the next one waits; if its session has ended by then, it is not read",
        "hellos_total",
        "tests/integration/test_reads.py::test_a_listing_ends_with_its_session",
    ),
    Bound(
        "a pass over all conversations, for many hellos",
        "node",
        f"1 at a time, {sweep.USERS_MAX:,} hellos, {sweep.FOUND_MAX:,} conversations found",
        f"the other hellos wait for the next pass; past what is found none is made for {sweep.PAUSE_S:g} s, "
        "and each hello looks for itself",
        "hellos_swept_total",
        "tests/integration/test_sweep.py::test_where_a_pass_cannot_answer_each_looks_for_itself",
    ),
    Bound(
        "hellos, and new tokens (`refresh`)",
        "user",
        f"{hello_rates.USER_HELLOS_PER_S:g} a second, {hello_rates.USER_HELLOS_BURST} at once",
        "`overloaded` with `retry_ms`, a hello also closed with 4009",
        "hellos_limited_total",
        "tests/integration/test_reads.py::test_too_many_hellos_are_refused_with_the_time_to_wait",
    ),
    Bound(
        "hellos",
        "address",
        f"{hello_rates.ADDRESS_HELLOS_PER_S:g} a second, {setting('connections_per_address_max', 'at once')}",
        "as above",
        "hellos_limited_total",
        "tests/integration/test_reads.py::test_too_many_hellos_are_refused_with_the_time_to_wait",
    ),
    Bound(
        "a resync in memory",
        "session",
        f"{resync.READ_ENTRIES} entries read, {resync.CHUNK_BYTES:,} bytes queued",
        "it waits until the client takes more",
        "resync_entries_total",
        "tests/integration/test_reads.py::test_a_client_that_reads_gets_all_that_it_missed_whatever_its_size",
    ),
    Bound(
        "bytes that the kernel has and cannot send yet",
        "connection",
        f"{UNSENT_BYTES:,}",
        "the rest waits here",
        "slow_consumers_total",
        "tests/integration/test_reads.py::test_the_kernel_holds_little_for_a_client_that_does_not_read",
    ),
    Bound(
        "pushes that wait for a client",
        "connection",
        f"{setting('out_queue_bytes_max', 'bytes')}; nothing taken for {setting('heartbeat_ms', 'ms')}",
        "closed with 4006",
        "slow_consumers_total",
        "tests/faults/test_bounds.py::test_a_consumer_that_never_reads",
    ),
    Bound(
        "entries of other nodes that wait for one before them",
        "conversation, node",
        f"{gap.EARLY_MAX}, {gap_fill.EARLY_ALL_MAX:,}",
        "the log is read, where they are as well, and no longer waited for the bus",
        "gap_fills_total",
        "tests/unit/test_gap_fill.py::test_past_the_bound_of_early_entries_the_log_is_read_at_once",
    ),
    # ---- pushes
    Bound(
        "typing pushed",
        "conversation and side",
        f"1 in {coalescing.TYPING_S:g} s",
        "the last is pushed when the second is over, unless a message arrived",
        "typing_merged_total",
        "tests/integration/test_flaps.py::test_typing_of_many_devices_is_pushed_once_a_second",
    ),
    Bound(
        "changes of presence pushed",
        "user",
        f"1 in {coalescing.PRESENCE_S:g} s, {coalescing.PRESENCE_BURST} at once",
        "the last state is pushed when that time is over",
        "presence_merged_total",
        "tests/integration/test_flaps.py::test_flapping_presence_is_pushed_once_a_second_and_the_last_state_stands",
    ),
    # ---- log
    Bound(
        "lines of one event in the log",
        "node",
        f"{log.EVENT_PER_S:g} a second, {log.EVENT_BURST:,} at once",
        "left out, and `log.dropped` says how many",
        "log_lines_dropped_total",
        "tests/unit/test_log.py::test_of_one_event_only_so_many_lines_are_written",
    ),
    Bound(
        "log lines whose reader is too slow",
        "node",
        f"{log_writer.QUEUE_BYTES_MAX:,} bytes",
        "dropped, and `log.dropped` says how many",
        "log_lines_dropped_total",
        "tests/faults/test_floods.py::test_a_log_that_nobody_reads_stops_nobody",
    ),
)


def docs_table() -> str:
    """Markdown, for docs/operations.md."""
    rows = ["| what | by | bound | past it | metric | test |", "|---|---|---|---|---|---|"]
    for b in BOUNDS:
        file, _, name = b.test.partition("::")
        test = f"`{name}` in `{file.removeprefix('tests/')}`"
        rows.append(f"| {b.resource} | {b.by} | {b.bound} | {b.past} | `chatd_{b.metric}` | {test} |")
    return "\n".join(rows) + "\n"
