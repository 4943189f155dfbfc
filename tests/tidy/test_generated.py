"""What is made from the code is as the code makes it; the unit file is one that systemd takes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from chatd.metrics import Metrics
from chatd.ops.bounds import BOUNDS, Bound
from tests.fix_redis import OwnRedis
from tests.fix_server import MakeServer
from tests.tidy import generated

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", generated.TABLES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_the_code(page: Path) -> None:
    assert generated.filled(page) == page.read_text(), "run `make docs`"


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: f"{bound.resource} by {bound.by}")
def test_each_bound_has_a_metric_and_a_test(bound: Bound) -> None:
    assert f"chatd_{bound.metric}" in {
        family.name + suffix for family in Metrics().collect() for suffix in ("", "_total")
    }
    file, _, name = bound.test.partition("::")
    assert f"def {name}(" in (ROOT / file).read_text()


@pytest.mark.cluster
async def test_each_gauge_of_a_node_stands_on_the_operations_page(make_server: MakeServer, own_redis: OwnRedis) -> None:
    metrics = (await make_server(redis_url=own_redis.url)).node.metrics
    page = generated.PAGE.read_text()
    assert [name for name in (*metrics.gauges, *metrics.infos) if f"`chatd_{name}`" not in page] == []


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not on this machine")
    unit = (ROOT / "deploy/systemd/chatd.service").read_text().replace("/opt/chatd/venv/bin/chatd", "/bin/true")
    (tmp_path / "chatd.service").write_text(unit)
    result = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "chatd.service")], capture_output=True, text=True, check=False
    )
    assert [line for line in result.stderr.splitlines() if "chatd.service" in line and "Unknown" in line] == []


def test_the_unit_tries_for_ever_and_has_its_settings_from_the_file_alone() -> None:
    unit = (ROOT / "deploy/systemd/chatd.service").read_text()
    before_service = unit.partition("[Service]")[0]
    assert "\nStartLimitIntervalSec=0\n" in before_service
    assert "Environment=" not in unit
    assert "--config /etc/chatd/chatd.toml" in unit
