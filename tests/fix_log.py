"""The log's settings are of the process: a test that changes them puts them back."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog

from chatd import log


@contextmanager
def log_restored() -> Iterator[None]:
    """Afterwards the log is set as it was."""
    before, debug_on, root = structlog.get_config(), log.DEBUG_ON, logging.getLogger()
    pool = logging.getLogger("psycopg.pool")
    levels, handlers = (root.level, pool.level), root.handlers[:]
    try:
        yield
    finally:
        structlog.configure(**before)
        log.DEBUG_ON = debug_on
        for logger, level in zip((root, pool), levels, strict=True):
            logger.setLevel(level)
        root.handlers[:] = handlers


@pytest.fixture(autouse=True)
def _log_of_the_test() -> Iterator[None]:
    """No test finds the log as a command that an earlier one ran in this process has set it."""
    with log_restored():
        yield
