"""Lines that nobody reads are dropped and counted; nobody waits."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from chatd.log_writer import QUEUE_BYTES_MAX, LogWriter, may_block


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def test_a_pipe_that_nobody_reads_takes_what_is_allowed_and_the_rest_is_counted(pipe: tuple[int, int]) -> None:
    reads, writes = pipe
    writer, line = LogWriter(writes), b"x" * 999 + b"\n"
    n = 2 * QUEUE_BYTES_MAX // len(line)
    for _ in range(n):
        writer.put(line)
    assert n // 3 < writer.dropped < n
    assert not writer.flush(0.01)
    left = (n - writer.dropped) * len(line)
    while left:  # and once somebody reads, all that was taken comes, whole
        data = os.read(reads, 1 << 16)
        assert set(data) <= set(line)
        left -= len(data)
    assert writer.flush()
    dropped = writer.dropped
    writer.put(line)
    assert os.read(reads, 1 << 16) == line
    assert writer.dropped == dropped


def test_lines_of_several_threads_stay_whole_and_in_order(pipe: tuple[int, int]) -> None:
    reads, writes = pipe
    writer = LogWriter(writes)

    def put(thread: int) -> None:
        for n in range(200):
            writer.put(b"%d:%d\n" % (thread, n))

    threads = [threading.Thread(target=put, args=(thread,)) for thread in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.flush()
    lines = [tuple(map(int, line.split(b":"))) for line in os.read(reads, 1 << 16).splitlines()]
    assert sorted(lines) == [(t, n) for t in range(3) for n in range(200)]
    assert [[n for t, n in lines if t == thread] for thread in range(3)] == 3 * [list(range(200))]


def test_a_reader_that_has_gone_ends_nothing() -> None:
    gone, to_gone = os.pipe()
    os.close(gone)
    writer = LogWriter(to_gone)
    writer.put(b"lost\n")
    assert writer.flush()
    writer.put(b"lost too\n")
    assert writer.flush()
    os.close(to_gone)


def test_a_child_by_fork_writes_by_a_thread_of_its_own(pipe: tuple[int, int]) -> None:
    reads, writes = pipe
    writer = LogWriter(writes)
    writer.put(b"parent\n")
    assert writer.flush()
    if (pid := os.fork()) == 0:
        writer.put(b"child\n")
        writer.flush()
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reads, 1 << 16) == b"parent\nchild\n"


def test_a_file_takes_its_lines_at_once(pipe: tuple[int, int], tmp_path_factory: pytest.TempPathFactory) -> None:
    with (tmp_path_factory.mktemp("log") / "file").open("wb") as file:
        assert not may_block(file.fileno())
    assert may_block(pipe[1])
