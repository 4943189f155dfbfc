"""Ctrl-C at every step of a call into the client's thread, and the ends of that thread."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import threading
from pathlib import Path
from typing import Final

import pytest

from chatd.client.loop_thread import LoopThread
from chatd.client.testing import FakeChatd
from tests.fix_interrupts import TOLERATED, Run, interrupted

STEPS: Final = 40
UNCLEAN: Final = ("Task was destroyed", "never awaited", "RuntimeError: ", "TimeoutError", "Timeout (")


async def test_ctrl_c_at_any_step_ends_a_script_as_python_does(tmp_path: Path) -> None:
    async with FakeChatd() as server:
        server.say("bob", "me", "1")
        whole, *runs = await interrupted("sync", signal.SIGINT, STEPS, server.url, str(tmp_path / "state"))
    assert (whole.status, whole.errors) == (0, "")
    assert len(runs) > STEPS // 2
    bad = [one for one in runs if not _is_python_s_own(one)]
    assert len(bad) <= TOLERATED * len(runs), f"{len(bad)} of {len(runs)}, as step {bad[0].at}: {bad[0].errors}"


def _is_python_s_own(one: Run) -> bool:
    if one.at is None:
        return (one.status, one.errors) == (0, "")
    is_interrupt = one.status == -signal.SIGINT and one.errors.strip().splitlines()[-1] == "KeyboardInterrupt"
    return is_interrupt and not any(word in one.errors for word in UNCLEAN)


HANGS = """
import signal, threading
from chatd.client.sync import Client

signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

def token(renew):
    print("hangs", flush=True)
    threading.Event().wait()

with Client("ws://127.0.0.1:1/ws", token=token, device="script"):
    pass
"""


async def test_ctrl_c_again_ends_a_script_whose_client_hangs() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HANGS, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"hangs\n"
    ended = asyncio.create_task(process.communicate())
    while not ended.done():
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        await asyncio.wait([ended], timeout=0.5)
    assert process.returncode == -signal.SIGINT, ended.result()[1]


def test_a_thread_without_a_loop_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_loop(_: asyncio.Runner) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(asyncio.Runner, "get_loop", no_loop)
    thread = LoopThread("none")
    with pytest.raises(OSError, match="Too many"):
        thread.start()
    thread.stop()


def test_one_that_was_stopped_before_it_began_takes_no_call() -> None:
    thread = LoopThread("stopped")
    thread.stop()
    thread.start()
    with pytest.raises(RuntimeError, match="is closed"):
        thread.call(lambda: asyncio.sleep(0))
    thread.stop()


def test_calls_of_other_threads_end_with_the_loop() -> None:
    thread = LoopThread("shared")
    thread.start()
    begun, errors = threading.Event(), list[BaseException]()

    async def waits() -> None:
        begun.set()
        await asyncio.Event().wait()

    def other() -> None:
        try:
            thread.call(waits)
        except RuntimeError as e:
            errors.append(e)

    waiting = threading.Thread(target=other)
    waiting.start()
    begun.wait()
    thread.stop()
    waiting.join()
    assert "is closed" in str(errors[0])
    assert not thread._calls


def test_a_call_has_a_bound_and_its_coroutine_ends_before_it_returns() -> None:
    thread = LoopThread("bound")
    thread.start()
    ended = False

    async def slow() -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended = True

    with pytest.raises(TimeoutError):
        thread.call(slow, within_s=0.01)
    assert ended
    thread.stop()


def test_the_thread_itself_may_not_wait() -> None:
    thread = LoopThread("own")
    thread.start()

    async def inside() -> None:
        thread.call(lambda: asyncio.sleep(0))

    with pytest.raises(RuntimeError, match="own thread"):
        thread.call(inside)
    thread.stop()
