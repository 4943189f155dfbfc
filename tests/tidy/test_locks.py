"""The lock files of requirements/ are in step with setup.cfg, and hold a hash for every file that
pip may take.

A test that fails here asks for `make lock`. Nothing is asked of an index: what a release needs in
turn was uv's work.
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.tidy.locked import ROOT, pins, wanted

EXTRAS = {"server": "", "embedded": "embedded", "tui": "tui", "dev": "dev"}


@pytest.mark.parametrize("lock", EXTRAS)
def test_each_requirement_of_setup_cfg_is_met_by_a_pin(lock: str) -> None:
    locked = pins(lock)
    for requirement in wanted(EXTRAS[lock]):
        pin = locked.get(canonicalize_name(requirement.name))
        assert pin is not None, f"{lock}.txt has no {requirement.name}: run `make lock`"
        assert Version(pin["version"]) in requirement.specifier, (
            f"{lock}.txt has {pin['name']} {pin['version']}, not {requirement}: run `make lock`"
        )


@pytest.mark.parametrize("lock", EXTRAS)
def test_what_an_extra_of_a_requirement_brings_is_pinned(lock: str) -> None:
    """`psycopg[binary]` is of no use without psycopg-binary."""
    for requirement in wanted(EXTRAS[lock]):
        for extra in requirement.extras:
            brought = [Requirement(line) for line in metadata.requires(requirement.name) or []]
            optional = [one for one in brought if one.marker is not None and not one.marker.evaluate()]
            names = {
                canonicalize_name(one.name) for one in optional if one.marker and one.marker.evaluate({"extra": extra})
            }
            assert names, f"{requirement.name} has no extra {extra}"
            assert names <= pins(lock).keys(), f"{lock}.txt lacks something of {requirement}: run `make lock`"


@pytest.mark.parametrize("lock", EXTRAS)
def test_no_pin_is_left_of_a_requirement_that_went(lock: str) -> None:
    direct = {
        name
        for name, pin in pins(lock).items()
        if re.search(r"^    #.* chatd \(setup\.cfg\)$", pin["rest"], re.MULTILINE)
    }
    assert direct == {canonicalize_name(one.name) for one in wanted(EXTRAS[lock])}


@pytest.mark.parametrize("lock", [*EXTRAS, "tools"])
def test_every_pin_has_hashes(lock: str) -> None:
    found = pins(lock)
    assert found
    assert [name for name, pin in found.items() if not re.search(r"--hash=sha256:[0-9a-f]{64}", pin["rest"])] == []


@pytest.mark.parametrize("lock", ["server", "embedded", "tui"])
def test_what_runs_is_what_was_tested(lock: str) -> None:
    tested = pins("dev")
    assert {name: pin["version"] for name, pin in pins(lock).items()}.items() <= {
        name: pin["version"] for name, pin in tested.items()
    }.items()


def test_what_builds_chatd_is_pinned() -> None:
    """`make setup` builds without isolation, so by the setuptools of dev.txt."""
    for line in tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]:
        requirement = Requirement(line)
        assert Version(pins("dev")[requirement.name]["version"]) in requirement.specifier
