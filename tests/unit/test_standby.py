"""Which servers may answer in place of the primary."""

from __future__ import annotations

from typing import Any

import pytest

from chatd.postgres.log_state import LogState
from chatd.postgres.standby import (
    OTHER_CLUSTER,
    OTHER_LOG,
    OTHER_TIMELINE,
    PROMOTED,
    Role,
    StandbySight,
    judge,
)

HERE = "7000/0000000A/5/16384"
SIGHT = StandbySight("now", HERE, None, "7000/5/16384", 10, 1)


@pytest.mark.parametrize(
    ("differs", "verdict"),
    [
        ({}, Role.STANDBY),
        ({"timeline": 9}, Role.STANDBY),  # its control file is as old as its last restartpoint
        ({"timeline": 11}, OTHER_TIMELINE),
        ({"epoch": "before"}, OTHER_LOG),
        ({"recorded": "7000/00000009/5/16384"}, OTHER_LOG),
        ({"recorded": None}, OTHER_LOG),
        ({"place": "7001/5/16384"}, OTHER_CLUSTER),
        ({"place": "7000/6/16384"}, OTHER_CLUSTER),
        ({"place": "7000/5/16385"}, OTHER_CLUSTER),
        ({"actual": HERE}, Role.PRIMARY),
        ({"actual": "7000/0000000B/5/16384", "timeline": 11}, PROMOTED),
        ({"actual": HERE, "epoch": "next"}, PROMOTED),
    ],
)
def test_a_server_may_answer_if_it_shows_the_log_that_is_known(differs: dict[str, Any], verdict: Role | str) -> None:
    log = LogState()
    log.adopt("now", HERE)
    assert judge(log, SIGHT._replace(**differs)) == verdict
