"""README's Python program does what README says.

Those in JavaScript are run by tests/site/test_javascript_guides.py.
"""

from __future__ import annotations

from pathlib import Path

from tests.fix_process import MakeProcess
from tests.site import pages
from tests.site.programs import Page, echoes_over_a_kill
from tests.site.test_page_programs import OWN_CLIENT
from tests.until import until

README = pages.ROOT / "README.md"


async def test_the_bot_of_the_readme_answers_each_message_once_over_a_kill(
    make_process: MakeProcess, tmp_path: Path
) -> None:
    server = await make_process()
    page = Page(README, tmp_path, server, (("ws://127.0.0.1:8080/ws", server.url),))
    own = Page(OWN_CLIENT, tmp_path / "own", server)
    async with page.running("echo.py"), own.running("chat.py") as alice:
        await until(lambda: '"user":"echo"' in server.log_file.read_text())  # from here on it answers
        await echoes_over_a_kill(alice, server)
