"""The command line: which command it names, what is said about a word that is none of its own."""

from __future__ import annotations

import pytest

from chatd.cli import COMMANDS
from chatd.errors import SettingError
from chatd.ops import command_line


def refused(*words: str) -> str:
    with pytest.raises(SettingError) as e:
        command_line.parse(words)
    return str(e.value)


@pytest.mark.parametrize("words", [(), ("--port", "1"), ("serve", "--port", "1")])
def test_a_line_without_a_command_is_serve(words: tuple[str, ...]) -> None:
    assert command_line.parse(words).command == "serve"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_all_settings_and_has_its_function(name: str) -> None:
    own = {"keys": ["list"], "user": ["show", "alice"], "token": ["alice"], "tail": ["alice"], "chat": ["alice"]}
    options = command_line.parse([name, *own.get(name, []), "--lease-ms", "1000"])
    assert (options.command, options.lease_ms) == (name, "1000")


def test_an_unknown_word_is_one_line_with_the_near_flag_and_without_its_value() -> None:
    says = "--redis_ur: is no flag of `chatd serve`; did you mean --redis-url?"
    assert refused("serve", "--redis_ur=redis://:s3cr3t@h") == says
    assert refused("serve", "--xyz") == "--xyz: is no flag of `chatd serve`; see `chatd serve --help`"
    assert refused("doctor", "twice") == "twice: is one word too many; see `chatd doctor --help`"
    assert "redis://:***@h" in refused("serve", "redis://:s3cr3t@h")


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", "9" * 13])
def test_a_time_to_live_out_of_bounds_is_refused(text: str) -> None:
    assert "give an integer from 1 to" in refused("token", "alice", f"--ttl-s={text}")
