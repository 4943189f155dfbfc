"""How `tests/install` reads the operations page: what is typed, and what is written where."""

from __future__ import annotations

from tests.install import page
from tests.install.page import Step

SAMPLE = """
## Install
```sh
one
two

```
```toml
first = 1
```
```json
{"not": "ours"}
```
```sh
editor /etc/a
three
```
```toml
shown = "only"
```
```nginx
server;
```
```sh
editor /etc/b
```
## Later
```sh
never
```
"""


def test_commands_are_typed_in_order_and_an_editor_gets_the_block_before_it() -> None:
    expected = [
        Step("one"),
        Step("two"),
        Step("editor /etc/a", "first = 1\n"),
        Step("three"),
        Step("editor /etc/b", "server;\n"),
    ]
    assert list(page.steps(SAMPLE)) == expected


def test_every_editor_of_the_operations_page_has_something_to_write() -> None:
    editors = {
        step.command: step.text for step in page.steps(page.PAGE.read_text()) if step.command.startswith("editor")
    }
    assert set(editors) == {"editor /etc/chatd/chatd.toml", "editor /etc/nginx/conf.d/chatd.conf"}
    assert all(editors.values())


def test_the_certificate_goes_where_the_pages_nginx_looks_for_it() -> None:
    assert page.nginx_files(page.PAGE.read_text()) == ("/etc/ssl/chat.pem", "/etc/ssl/chat.key")
