"""The docs site builds without a warning, its links lead somewhere, and it needs nothing from other hosts."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fix_browser import chromium
from tests.site import build, checks, llms, pages

pytest.importorskip("zensical", reason="zensical is not installed: `make setup`")


def _copy(root: Path) -> Path:
    shutil.copytree(pages.DOCS, root / "docs")
    shutil.copy(pages.CONFIG, root)
    return root


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build.build(_copy(tmp_path_factory.mktemp("site")))


def test_nothing_is_wrong_with_the_site(site: Path) -> None:
    assert checks.faults(site) == []
    assert len(list(site.rglob("*.html"))) > 40


@pytest.mark.parametrize("seeded", ["[x](nowhere.md)", "[x](glossary.md#nowhere)", "[x](#nowhere)"])
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, seeded: str) -> None:
    root = tmp_path
    (root / "docs").mkdir()
    (root / "docs/index.md").write_text(f"# A\n\n{seeded}\n")
    (root / "docs/glossary.md").write_text("# B\n")
    (root / "zensical.toml").write_text('[project]\nsite_name = "a"\ntheme.font = false\n')
    with pytest.raises(build.BuildFailed, match="nowhere"):
        build.build(root)


def test_llms_txt_leads_to_the_markdown_of_each_page(site: Path) -> None:
    links = re.findall(r"\]\(([^)]+)\)", (site / "llms.txt").read_text())
    assert len(links) == len(pages.in_order()) + 2
    assert [link for link in links if not (site / link).is_file()] == []
    full = (site / "llms-full.txt").read_text()
    assert full == llms.full()
    assert all(page.text in full for page in pages.in_order())


@pytest.fixture(params=["folder", "prefix"])
def place(site: Path, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a browser finds the site: a folder, or a server that has it below a path."""
    if request.param == "folder":
        yield site.as_uri()
        return
    (tmp_path / "some").mkdir()
    (tmp_path / "some/docs").symlink_to(site)
    handler = functools.partial(_Quiet, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/some/docs"
        server.shutdown()
        thread.join()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.slow
async def test_a_browser_asks_no_other_host_and_the_search_finds(place: str) -> None:
    binary = chromium()
    from playwright.async_api import async_playwright, expect

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=binary)
        page = await browser.new_page(viewport={"width": 390, "height": 844})
        asked: list[str] = []
        faults: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
        for listed in pages.in_order()[:: 1 if place.startswith("file:") else 4]:
            await page.goto(f"{place}/{listed.path.removesuffix('.md')}.html")
            wider = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wider <= 0, f"{listed.path} is wider than a phone by {wider} px"
        await page.keyboard.press("Control+k")
        await page.get_by_placeholder("Search").fill("write-behind")
        await expect(page.get_by_role("option").first).to_contain_text("behind")
        await browser.close()
    assert [url for url in asked if not url.startswith((place, "data:", "blob:", "about:"))] == []
    assert faults == []
